//! The command line of the server.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = match piman::cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if !e.use_stderr() => e.exit(),
        // What was typed, or what a script took from a peer.
        Err(e) => {
            piman::text::human::print_error(format_args!("{}", e.render().to_string().trim_end()));
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
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
