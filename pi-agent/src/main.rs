//! The command line of the agent: arguments, log, one call, exit code.

use std::env;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use pi_agent::card::inspect;
use pi_agent::cli::{self, HELP, Order};
use pi_agent::control::Machine;
use pi_agent::init;
use pi_agent::install::{self, Outcome, Plan};
use pi_agent::telemetry::display::{Display, size};
use pi_agent::telemetry::log_buffer;
use pi_agent::telemetry::metrics;
use pi_agent::telemetry::progress::Progress;
use pi_agent::{log_to_stderr, rpc, say_on_stderr};
use piman_core::hosted::causes::in_one_line;

fn main() -> ExitCode {
    if let Some(code) = init::dispatch(init::attempt) {
        return code;
    }
    let order = match cli::parse(env::args_os().skip(1)) {
        Ok(order) => order,
        Err(e) => {
            say_on_stderr(format_args!("pi-agent: {}", in_one_line(e.as_ref())));
            return ExitCode::from(2);
        }
    };
    log_to_stderr();
    match order {
        Order::Help => print(HELP),
        Order::Version => print(concat!("pi-agent ", env!("CARGO_PKG_VERSION"), "\n")),
        Order::Install(plan, retries, port) => run(&plan, retries, port),
        Order::Metrics { host, port, interval, count } => {
            metrics::send(&host, port, interval, count);
            ExitCode::SUCCESS
        }
        Order::Check(disk) => {
            match disk.find().map_err(anyhow::Error::msg).and_then(|disk| inspect::survey_path(&disk)) {
                Ok(found) => {
                    print(&format!("{disk}: {found}\n"));
                    if found.card.is_installed(false) { ExitCode::SUCCESS } else { ExitCode::from(1) }
                }
                Err(e) => {
                    let e = in_one_line(e.as_ref());
                    say_on_stderr(format_args!("pi-agent: checking {disk}: {e}"));
                    ExitCode::from(2)
                }
            }
        }
        Order::Run(service) => rpc::run(&service),
        Order::Init => {
            say_on_stderr(format_args!("pi-agent init: {}", init::REFUSAL));
            ExitCode::from(2)
        }
    }
}

fn run(plan: &Plan, retries: u32, transfer_port: u16) -> ExitCode {
    let progress = Arc::new(Progress::new());
    let display = Display::start(Arc::clone(&progress));
    let outcome = install::run(plan, retries, &mut Machine::default(), &progress);
    drop(display);
    match &outcome {
        Ok(Outcome::Boot { .. }) => {}
        Ok(Outcome::Installed { image, took, .. }) => {
            log_buffer::keep(&format!("installed image {image:.16} in {:.1} s", took.as_secs_f64()));
        }
        Err(failure) => log_buffer::keep(&failure.to_string()),
    }
    if transfer_port != 0 && !matches!(outcome, Ok(Outcome::Boot { .. })) {
        log_buffer::send(&plan.server.host, transfer_port, &plan.identity);
    }
    match outcome {
        Ok(Outcome::Boot { card, .. }) => print(&format!("the server says boot: nothing to do ({card})\n")),
        Ok(Outcome::Installed { image, received, written, took, .. }) => print(&format!(
            "installed image {image:.16} in {:.1} s: {} received, {} written\n",
            took.as_secs_f64(),
            size(received),
            size(written)
        )),
        Err(failure) => {
            say_on_stderr(format_args!("pi-agent: {failure}"));
            ExitCode::from(failure.cause.exit_code())
        }
    }
}

/// Prints, and does not mind a reader that has gone away.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(1),
    }
}
