//! The program on the Pi: finds the card, asks piman, installs, proves, boots.
//!
//! | module | what lives there |
//! |---|---|
//! | [`install`] | the plan: what is done in which order, both paths, retries |
//! | [`card`] | the card: disks, partitions, filesystems, and what is on them |
//! | [`unpack`] | archive path: entries out of a compressed archive, onto the card |
//! | [`image`] | image path: chunks fetched, checked, written at their place |
//! | `personalise` | what makes a card one Pi's own, and able to boot by itself |
//! | [`fetch`] | ranges from the server, over as many connections as it takes |
//! | [`control`] | the control connection |
//! | [`trust`] | whose images are installed |
//! | [`rpc`] | the service on the installed Pi: calls of the server |
//! | [`telemetry`] | measurements, the log, progress |
//! | [`init`] | the agent as process 1 |
//! | [`unsaid`] | what the server is still to be told |
//! | [`identity`] | who this Pi is |
//! | [`failure`] | why it failed |
//! | [`cli`] | the command line |
// Nothing that may panic: not from the wire, the disk or the command line.
#![cfg_attr(
    not(test),
    deny(
        clippy::disallowed_methods,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::todo,
        clippy::unimplemented,
        clippy::indexing_slicing,
        clippy::string_slice
    )
)]

pub mod card;
pub mod cli;
pub mod control;
pub mod failure;
pub mod fetch;
pub mod identity;
pub mod image;
pub mod init;
pub mod install;
pub(crate) mod personalise;
pub mod rpc;
pub mod telemetry;
pub mod trust;
pub mod unpack;
pub mod unsaid;

/// Writes a line to standard error. Where that is closed nobody reads it, and that is no reason to fail: `eprintln`
/// would panic, and the agent would end in the middle of its work. Nothing in it steers a terminal: names and answers
/// in it come from servers and disks.
pub fn say_on_stderr(line: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{}", piman_core::text::EscapedLines(&line.to_string()));
}

/// Sends log lines of level info and worse to standard error.
pub fn log_to_stderr() {
    use std::io::IsTerminal;
    struct Stderr;
    impl log::Log for Stderr {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.level() <= log::max_level()
        }
        fn log(&self, record: &log::Record<'_>) {
            if self.enabled(record.metadata()) {
                telemetry::log_buffer::keep(&record.args().to_string());
                // A console line of its own, also where a progress line is being shown.
                if std::io::stderr().is_terminal() {
                    let _ = std::io::Write::write_all(&mut std::io::stderr(), b"\r");
                }
                say_on_stderr(*record.args());
            }
        }
        fn flush(&self) {}
    }
    static STDERR: Stderr = Stderr;
    if log::set_logger(&STDERR).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}
