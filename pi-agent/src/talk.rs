//! The control connection from the Pi's end: reaching piman, the talk to a decision, and
//! the reports that follow.

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use embedded_io_adapters::std::FromStd;
use piman_core::blocking::{Blocking, run};
use piman_core::drive;
use piman_core::install::{Date, Decision, Hello, Notice, Report, Stage, Start};
use piman_core::line::LINE_MAX;

use crate::failure::{Cause, Failure, OrFail};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long piman may take to decide.
const DECIDE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a report may take to be taken.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where piman is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its name or address.
    pub host: String,
    /// Its control port.
    pub control_port: u16,
    /// Its rootfs port, where it does not say another.
    pub rootfs_port: u16,
}

impl Server {
    /// Connects to one of its ports.
    ///
    /// # Errors
    /// If the name is unknown or no address of it answers within 10 s.
    pub fn connect(&self, port: u16) -> anyhow::Result<TcpStream> {
        let stream = crate::reach::connect(&self.host, port, CONNECT_TIMEOUT)
            .with_context(|| format!("connecting to {} port {port}: is piman running there?", self.host))?;
        crate::reach::keepalive(&stream)?;
        Ok(stream)
    }
}

/// A control connection that is open.
pub struct Talk {
    io: Blocking<FromStd<Limited>>,
}

impl Talk {
    /// Connects and talks to a decision.
    ///
    /// # Errors
    /// [`Cause::Network`] if piman cannot be reached or closes without a decision.
    pub fn open(
        server: &Server,
        start: Start<'_>,
        pi: &mut impl drive::Pi,
    ) -> Result<(Self, Decision), Failure> {
        let who = format!("{} port {}", server.host, server.control_port);
        let (talk, decision) = Self::connect(server)
            .and_then(|mut talk| {
                let mut buf = [0; LINE_MAX];
                talk.limit(DECIDE_TIMEOUT);
                let decision = run(drive::attend(&mut talk.io, &mut buf, &start, pi))
                    .map_err(|e| anyhow!("{e}"))
                    .context("waiting for a decision")?;
                Ok((talk, decision))
            })
            .or_fail(Stage::Disk, Cause::Network, format!("talking to piman at {who}"))?;
        Ok((talk, decision))
    }

    /// Connects only to report what has happened since an earlier connection was lost.
    ///
    /// # Errors
    /// If piman cannot be reached.
    pub fn resume(server: &Server, hello: Hello<'_>) -> anyhow::Result<Self> {
        let mut talk = Self::connect(server)?;
        talk.notify(Notice::Hello(hello))?;
        Ok(talk)
    }

    fn connect(server: &Server) -> anyhow::Result<Self> {
        let stream = server.connect(server.control_port)?;
        Ok(Self { io: Blocking(FromStd::new(Limited { stream, until: Instant::now() })) })
    }

    /// Reports by a word.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn report(&mut self, report: Report<'_>) -> anyhow::Result<()> {
        self.limit(REPORT_TIMEOUT);
        run(drive::report(&mut self.io, &report)).map_err(|e| anyhow!("{e}"))
    }

    /// Says a line of ours.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn notify(&mut self, notice: Notice<'_>) -> anyhow::Result<()> {
        self.limit(REPORT_TIMEOUT);
        run(drive::notify(&mut self.io, notice)).map_err(|e| anyhow!("{e}"))
    }

    fn limit(&mut self, limit: Duration) {
        self.io.0.inner_mut().until = Instant::now() + limit;
    }
}

/// A stream on which everything together has to happen before a deadline: a server that
/// sends a byte a second does not hold the Pi for ever.
#[derive(Debug)]
struct Limited {
    stream: TcpStream,
    until: Instant,
}

impl Limited {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))
        } else {
            Ok(left)
        }
    }
}

fn in_time<T>(result: io::Result<T>) -> io::Result<T> {
    result.map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "no answer in time"),
        _ => e,
    })
}

impl io::Read for Limited {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        in_time(io::Read::read(&mut self.stream, buf))
    }
}

impl io::Write for Limited {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        in_time(io::Write::write(&mut self.stream, buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::Write::flush(&mut self.stream)
    }
}

/// This machine as the talk sees it.
#[derive(Debug, Default)]
pub struct Machine {
    /// Whether its clock may be set: on a freshly booted Pi, which has none that runs
    /// without power; nowhere else.
    pub sets_clock: bool,
    /// Whether piman said that the root filesystem has to go. It goes with the installation
    /// that follows: nothing is erased before it is known what comes in its place.
    pub wiped: bool,
}

impl drive::Pi for Machine {
    fn set_date(&mut self, date: Date) -> bool {
        if !self.sets_clock {
            return false;
        }
        let seconds = i64::try_from(date.seconds_since_1970()).unwrap_or(0);
        let now = rustix::time::Timespec { tv_sec: seconds, tv_nsec: 0 };
        match rustix::time::clock_settime(rustix::time::ClockId::Realtime, now) {
            Ok(()) => true,
            Err(e) => {
                log::warn!("the clock cannot be set: {e}");
                false
            }
        }
    }

    fn addresses(&mut self, out: &mut impl fmt::Write) {
        addresses(out);
    }

    fn wipe(&mut self) -> bool {
        self.wiped = true;
        true
    }
}

/// The addresses by which this machine reaches others, from the kernel's routing tables.
fn addresses(out: &mut dyn fmt::Write) {
    let table = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let mut seen: Vec<&str> = Vec::new();
    let mut last = "";
    for line in table.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address;
        } else if line.ends_with("host LOCAL") && !last.starts_with("127.") && !seen.contains(&last) {
            // A full formatter only loses the rest of the list.
            let _ = write!(out, "{}{last}", if seen.is_empty() { "" } else { "\n" });
            seen.push(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_lost_power_is_noticed() {
        use rustix::net::sockopt;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Server { host: "127.0.0.1".into(), control_port: port, rootfs_port: port };
        let stream = server.connect(port).unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        let pauses = sockopt::tcp_keepintvl(&stream).unwrap() * sockopt::tcp_keepcnt(&stream).unwrap();
        assert!(sockopt::tcp_keepidle(&stream).unwrap() + pauses <= Duration::from_secs(120));
    }
}
