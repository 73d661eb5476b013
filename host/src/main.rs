//! The command line of the server.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = piman::cli::Cli::parse();
    cli.start_log();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            piman::text::human::print_error(format_args!(
                "piman: {}",
                piman_core::hosted::causes::in_one_line(e.as_ref())
            ));
            ExitCode::from(piman::cli::exit_code(&e))
        }
    }
}
