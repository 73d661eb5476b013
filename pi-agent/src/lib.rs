//! The program on the Pi: finds the card, asks piman, installs, proves, boots.
//!
//! | module | what lives there |
//! |---|---|
//! | [`install`] | the plan: what is done in which order, both paths, retries |
//! | [`disk`] | disks: what may be written, partitions, nodes to mount |
//! | [`ext4`] | empty filesystems without mounting |
//! | [`fetch`] | ranges from the server, over as many connections as it takes |
//! | [`image`] | path B: chunks fetched, checked, written at their place |
//! | [`archive`], [`decode`] | path A: entries out of a compressed archive |
//! | [`sums`] | the chunk hashes of an archive |
//! | [`trust`] | whose images are installed |
//! | [`mount`] | the root filesystem where it is mounted |
//! | [`proof`] | the proof of a finished installation, and the check for it |
//! | [`talk`] | the control connection |
//! | [`identity`] | who this Pi is |
//! | [`progress`], [`display`] | how far it is, and showing it |
//! | [`backoff`] | how long to wait before trying again |
//! | [`failure`] | why it failed |
//! | [`service`] | the service on the installed Pi: calls of the server |
//! | [`init`] | the agent as process 1 |
//! | [`machine`] | CPU, memory, disk, temperature and processes of this machine |
//! | [`figures`] | these as records |
//! | [`logbook`] | what was logged, sent to the server when it is done |
//! | [`cli`] | the command line |
// Nothing that may panic: not from the wire, the disk or the command line.
#![cfg_attr(
    not(test),
    deny(
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

pub mod archive;
pub mod backoff;
pub mod cli;
pub mod decode;
pub mod disk;
pub mod display;
pub mod ext4;
pub mod extract;
pub mod failure;
pub mod fetch;
pub mod figures;
pub mod identity;
pub mod image;
pub mod init;
pub mod install;
pub mod logbook;
pub mod machine;
pub mod mount;
pub mod progress;
pub mod proof;
pub mod reach;
pub mod service;
pub mod stream;
pub mod sums;
pub mod talk;
pub mod trust;

/// Writes a line to standard error. Where that is closed nobody reads it, and that is no reason to fail: `eprintln`
/// would panic, and the agent would end in the middle of its work.
pub fn say_on_stderr(line: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Sends log lines of level info and worse to standard error.
pub fn log_to_stderr() {
    struct Stderr;
    impl log::Log for Stderr {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.level() <= log::max_level()
        }
        fn log(&self, record: &log::Record<'_>) {
            if self.enabled(record.metadata()) {
                logbook::keep(&record.args().to_string());
                // A console line of its own, also where a progress line is being shown.
                say_on_stderr(format_args!("\r{}", record.args()));
            }
        }
        fn flush(&self) {}
    }
    static STDERR: Stderr = Stderr;
    if log::set_logger(&STDERR).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}
