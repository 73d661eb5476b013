//! One attempt, in the child of process 1: waits for the card and the network, does the
//! work, and ends with an exit code that says what is to happen next.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::options::Options;
use super::supervise::{PASSING, PERMANENT, READY};
use super::{first_choice, modules, net, system, wait};
use crate::control::Server;

/// How long a card may take to be found: slow readers on USB take half a minute.
const DISK_DEADLINE: Duration = Duration::from_secs(60);

/// How long the network may take: a switch that learns takes 50 s before it forwards.
const NETWORK_DEADLINE: Duration = Duration::from_secs(120);

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The root filesystem is mounted at [`NEW_ROOT`](super::NEW_ROOT), ready to be booted.
    Ready,
    /// It failed, and trying again may help. What happened and what to do, for people.
    Passing(String),
    /// It failed, and somebody has to do something before it helps to try again.
    Permanent(String),
}

impl Outcome {
    /// What the child tells process 1.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Ready => READY,
            Self::Passing(_) => PASSING,
            Self::Permanent(_) => PERMANENT,
        }
    }
}

/// The work between waiting and booting: given the options and where piman is, decides with
/// piman, installs if ordered, and mounts the root filesystem at
/// [`NEW_ROOT`](super::NEW_ROOT).
pub type Attempt = fn(&Options, &Server) -> Outcome;

/// Makes one attempt; its lines go to standard output.
#[must_use]
pub fn run(options: &Options, attempt: Attempt) -> ExitCode {
    log_to_stdout(options.log);
    let outcome = outcome(options, attempt);
    match &outcome {
        Outcome::Ready => {}
        Outcome::Passing(why) | Outcome::Permanent(why) => write_line(Level::Error, why),
    }
    ExitCode::from(outcome.code())
}

fn outcome(options: &Options, attempt: Attempt) -> Outcome {
    // An attempt that was cut short may have left the card mounted.
    system::unmount(system::NEW_ROOT.as_ref());
    for complaint in modules::load_all(modules::FOLDER.as_ref()) {
        log::warn!("a module could not be loaded: {complaint}");
    }
    let disk = first_choice::wait_for(&options.disk, first_choice::FILE.as_ref(), DISK_DEADLINE);
    let options = &Options { disk, ..options.clone() };
    // A network that leads to piman needs nothing; an address of an earlier attempt is confirmed. A serial line
    // needs no network at all.
    let is_line = options.server.as_ref().is_some_and(|server| server.line().is_some());
    if !is_line && (wait::network(options).is_err() || Path::new(net::KNOWN).exists()) {
        let seeks_piman = options.server.is_none();
        if let Err(lacking) = net::set_up(&options.addressing, seeks_piman, NETWORK_DEADLINE) {
            // An address is good as long as it was given for, whether its server answers meanwhile or not (RFC 2131, 3.2).
            if wait::network(options).is_err() {
                return Outcome::Passing(lacking);
            }
            log::warn!("{lacking}; keeping the previous address");
        }
    }
    match wait::wait_for("the network", NETWORK_DEADLINE, || wait::network(options)) {
        Err(lacking) => Outcome::Passing(lacking),
        Ok(server) => attempt(options, &server),
    }
}

/// Lets `log` write plain lines to standard output, once.
pub fn log_to_stdout(level: LevelFilter) {
    static LINES: Lines = Lines;
    if log::set_logger(&LINES).is_ok() {
        log::set_max_level(level);
    }
}

struct Lines;

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        write_line(record.level(), record.args());
    }

    fn flush(&self) {}
}

/// One line; that nobody reads it is no reason to fail.
fn write_line(level: Level, text: impl std::fmt::Display) {
    let mark = match level {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info => "",
        Level::Debug => "debug: ",
        Level::Trace => "trace: ",
    };
    let line = format!("{mark}{}\n", piman_core::text::EscapedLines(&text.to_string()));
    crate::telemetry::log_buffer::keep(line.trim_end());
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::Choice;

    #[test]
    fn a_disk_that_is_there_and_a_server_on_this_machine() {
        let disk = std::env::current_exe().unwrap();
        let options = Options {
            server: Some("127.0.0.1:5".parse().unwrap()),
            disk: disk.into(),
            rootfs_port: Some(6),
            ..Options::default()
        };
        let outcome = outcome(&options, |options, server| {
            assert_eq!(options.path, Choice::Auto);
            Outcome::Permanent(format!("{} {} {}", server.host, server.control_port, server.rootfs_port))
        });
        assert_eq!(outcome, Outcome::Permanent("127.0.0.1 5 6".into()));
    }

    #[test]
    fn over_a_serial_line_no_network_is_waited_for() {
        let disk = std::env::current_exe().unwrap();
        let options = Options {
            server: Some("serial:/dev/null:115200".parse().unwrap()),
            disk: disk.into(),
            ..Options::default()
        };
        let outcome = outcome(&options, |_, server| {
            Outcome::Permanent(format!("{} {}", server.host, server.control_port))
        });
        assert_eq!(outcome, Outcome::Permanent("serial:/dev/null:115200 3333".into()));
        let server = Some("serial:/dev/no-such-line".parse().unwrap());
        let lacking = wait::network(&Options { server, ..options }).unwrap_err();
        assert!(lacking.contains("/dev/no-such-line"), "{lacking}");
    }

    #[test]
    fn a_disk_that_is_none_is_told_and_no_other_is_taken() {
        use crate::init::boot_plan;
        use std::io::Read;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let heard = std::thread::spawn(move || {
            let mut heard = Vec::new();
            let (mut talk, _) = listener.accept().unwrap();
            talk.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            while !String::from_utf8_lossy(&heard).contains("nothing was changed") {
                let mut bytes = [0; 512];
                match talk.read(&mut bytes) {
                    Ok(n) if n > 0 => heard.extend_from_slice(&bytes[..n]),
                    _ => break,
                }
            }
            String::from_utf8_lossy(&heard).into_owned()
        });
        let line = format!("piman.server={server} piman.transfer-port=0 piman.disk=type=ssd");
        let options = Options::parse(line.as_bytes());
        let ended = outcome(&options, boot_plan::attempt);
        let Outcome::Permanent(why) = ended else { panic!("{ended:?}") };
        assert!(why.contains("piman.disk=type=ssd: not a type of a disk"), "{why}");
        assert!(why.ends_with("; nothing was changed"), "{why}");
        let heard = heard.join().unwrap();
        assert!(heard.contains(&why), "{heard}");
    }

    #[test]
    fn codes_are_told_apart() {
        let all = [Outcome::Ready, Outcome::Passing(String::new()), Outcome::Permanent(String::new())];
        assert_eq!(all.map(|o| o.code()), [0, 10, 20]);
    }
}
