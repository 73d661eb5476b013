//! The control connection from the Pi's end: reaching piman, the talk to a decision, and
//! the reports that follow.

mod limited;
mod machine;

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use embedded_io_adapters::std::FromStd;
use piman_core::Error;
use piman_core::blocking::{Blocking, run};
use piman_core::error::PeerError;
use piman_core::install::drive;
use piman_core::install::trust::{Floor, PiTrust, Refusal};
use piman_core::install::{Can, Clock, Date, Decision, Hello, Notice, Report, Stage, Start};
use piman_core::line::LINE_MAX;

use crate::failure::{Cause, Failure};
use crate::trust::Trust;
use limited::{Limited, Unanswered, late, unsent};
pub use machine::Machine;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long piman may take to decide.
const DECIDE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a server may take to answer the greeting before it is taken for an old one, which does not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(300);
/// How long a server that did not answer the greeting may take to decide. One that has not by then may have read
/// the greeting and the report at once and found no word that it knows: it is asked again without a greeting.
const UNANSWERED_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server that closed at the greeting is left alone: it may be one that is being started again.
const AFTER_CLOSE: Duration = Duration::from_secs(1);
/// How long an old server is given to read a report by itself.
const PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether what was said is delivered.
const DELIVERY_LOOK: Duration = Duration::from_millis(10);
/// How long a server of which nothing is known may take to say who it is, before it is told something all the same.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(2);
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
        let stream = piman_core::hosted::dial::connect(&self.host, port, CONNECT_TIMEOUT)
            .map_err(|e| anyhow!("{e}; check that `piman serve` runs there"))?;
        piman_core::hosted::dial::keepalive(&stream)?;
        Ok(stream)
    }
}

/// What is known of the server at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Peer {
    /// Nothing: it gets the lines that matter to whoever understands them.
    #[default]
    Unknown,
    /// It understands our lines.
    Ours,
    /// It did not answer while it was greeted: it hears what an old Pi says, and nothing else.
    Old,
}

/// A control connection that is open.
pub struct ControlConnection {
    io: Blocking<FromStd<Limited>>,
    peer: Peer,
    trust: PiTrust,
}

impl ControlConnection {
    /// Connects and talks to a decision. A server that does not answer the greeting is asked once more, without
    /// one: some old servers understand a report only if nothing else has come with it.
    ///
    /// With a root in `trust` a server that does not show that it may order anything is not obeyed, and no server is
    /// spoken to as an old Pi does.
    ///
    /// # Errors
    /// [`Cause::Network`] if piman cannot be reached or closes without a decision, [`Cause::Refused`] if it may not order
    /// what it orders.
    pub fn open(
        server: &Server,
        start: Start<'_>,
        machine: &mut Machine,
        trust: &Trust,
    ) -> Result<(Self, Decision), Failure> {
        let who = format!("{} port {}", server.host, server.control_port);
        let plain = Start { hello: None, ..start };
        let mut closed = 0;
        while start.hello.is_some() && !machine.old_server {
            match Self::ask(server, start, machine, trust) {
                Err(unheard) if trust.root.is_some() => return Err(unheard.failure(&who)),
                Err(Unheard::Greeting) => {
                    log::warn!("{who} does not answer this agent's greeting: asking again as an old Pi does");
                    break;
                }
                // One of ours that is being started again, or is full, does so too: once is no sign.
                Err(Unheard::Closed(_)) if closed == 0 => {
                    closed += 1;
                    thread::sleep(AFTER_CLOSE);
                }
                Err(Unheard::Closed(_)) => {
                    log::warn!("{who} closes at this agent's greeting: asking again as an old Pi does");
                    break;
                }
                done => return done.map_err(|e| e.failure(&who)),
            }
        }
        if trust.root.is_some() {
            return Err(Unheard::NotTrusted(Refusal::Unsigned).failure(&who));
        }
        let done = Self::ask(server, plain, machine, trust);
        machine.old_server = done.is_ok();
        done.map_err(|e| e.failure(&who))
    }

    fn ask(
        server: &Server,
        start: Start<'_>,
        machine: &mut Machine,
        trust: &Trust,
    ) -> Result<(Self, Decision), Unheard> {
        let greets = start.hello.is_some();
        let mut talk = Self::connect(server, Peer::Unknown, trust).map_err(Unheard::Absent)?;
        let heard = Arc::new(AtomicBool::new(false));
        let now = Instant::now();
        let limits = talk.io.0.inner_mut();
        limits.until = now + DECIDE_TIMEOUT;
        limits.unheard = greets.then(|| Unanswered {
            heard: Arc::clone(&heard),
            answer: Some(now + ANSWER_TIMEOUT),
            decision: now + UNANSWERED_TIMEOUT,
        });
        let mut buf = [0; LINE_MAX];
        let mut pi = TalkingMachine { machine, heard: &heard };
        let asked = run(drive::run_trusted(&mut talk.io, &mut buf, &start, &mut pi, &mut talk.trust));
        let ours = heard.load(Ordering::Relaxed);
        talk.io.0.inner_mut().unheard = None;
        talk.peer = match (ours, greets) {
            (true, _) => Peer::Ours,
            (false, true) => Peer::Unknown,
            (false, false) => Peer::Old,
        };
        match asked {
            Ok(decision) => {
                // What the server says of the time without a signature was not heard.
                if let Some(clock) = talk.trust.clock() {
                    run(drive::Pi::set_clock(machine, clock));
                }
                Ok((talk, decision))
            }
            Err(Error::Peer(PeerError::NotTrusted)) => {
                let refusal = talk.trust.refusal().unwrap_or(Refusal::Unsigned);
                let text = not_trusted(refusal);
                // So that whoever looks at that server sees why its Pis do nothing.
                let _ = talk.notify(Notice::Failed { stage: Stage::Disk, text: &text });
                Err(Unheard::NotTrusted(refusal))
            }
            Err(Error::Io(e)) if e.kind() == io::ErrorKind::TimedOut && greets && !ours => {
                Err(Unheard::Greeting)
            }
            Err(e) if is_closed(&e) && greets && !ours => Err(Unheard::Closed(anyhow!("{e}"))),
            Err(e) => Err(Unheard::Failed(anyhow!("{e}"))),
        }
    }

    /// Connects only to report what has happened since an earlier connection was lost; `peer` is what was known of
    /// the server then.
    ///
    /// # Errors
    /// If piman cannot be reached.
    pub fn resume(server: &Server, hello: Hello<'_>, peer: Peer, trust: &Trust) -> anyhow::Result<Self> {
        let mut talk = Self::connect(server, peer, trust)?;
        let limit = match peer {
            Peer::Ours => REPORT_TIMEOUT,
            Peer::Unknown => KNOWN_TIMEOUT,
            Peer::Old => Duration::ZERO,
        };
        if trust.device.is_none() || limit.is_zero() {
            // An answer would not be read.
            let can = Can { answer: false, ..hello.can };
            talk.notify(Notice::Hello(Hello { can, ..hello }))?;
            return Ok(talk);
        }
        talk.limit(limit);
        let hello = Hello { can: Can { answer: true, ..hello.can }, ..hello };
        let mut buf = [0; LINE_MAX];
        run(drive::greet_trusted(&mut talk.io, &mut buf, hello, &mut talk.trust))
            .map_err(|e| anyhow!("{e}"))?;
        Ok(talk)
    }

    fn connect(server: &Server, peer: Peer, trust: &Trust) -> anyhow::Result<Self> {
        let stream = server.connect(server.control_port)?;
        Ok(Self {
            io: Blocking(FromStd::new(Limited { stream, until: Instant::now(), unheard: None })),
            peer,
            trust: trust.connection()?,
        })
    }

    /// What is known of time and revocations by now.
    #[must_use]
    pub const fn floor(&self) -> Floor {
        self.trust.floor()
    }

    /// What is known of the server.
    #[must_use]
    pub const fn peer(&self) -> Peer {
        self.peer
    }

    /// Reports by a word.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn report(&mut self, report: Report<'_>) -> anyhow::Result<()> {
        self.limit(REPORT_TIMEOUT);
        run(drive::report_trusted(&mut self.io, &report, &mut self.trust)).map_err(|e| anyhow!("{e}"))
    }

    /// Says a line of ours, unless the server is an old one that it could only confuse.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn notify(&mut self, notice: Notice<'_>) -> anyhow::Result<()> {
        match (self.peer, notice) {
            // They would reach it together with the report that follows them.
            (Peer::Old, _) | (Peer::Unknown, Notice::Progress { .. } | Notice::Committed { .. }) => {
                return Ok(());
            }
            _ => {}
        }
        self.limit(REPORT_TIMEOUT);
        let report = Report::Ours(notice);
        run(drive::report_trusted(&mut self.io, &report, &mut self.trust)).map_err(|e| anyhow!("{e}"))
    }

    /// Whether the server's machine has taken all that was said, after `limit` at most: what was only written is
    /// lost with a connection that nobody serves any more.
    #[must_use]
    pub fn is_delivered(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while unsent(&self.io.0.inner().stream).is_ok_and(|bytes| bytes > 0) {
            if Instant::now() > until {
                return false;
            }
            thread::sleep(DELIVERY_LOOK);
        }
        true
    }

    fn limit(&mut self, limit: Duration) {
        self.io.0.inner_mut().until = Instant::now() + limit;
    }
}

/// Why there is no decision.
enum Unheard {
    /// The server is there and does not answer the greeting.
    Greeting,
    /// The server closes, and has said nothing that an old one does not say.
    Closed(anyhow::Error),
    /// No connection.
    Absent(anyhow::Error),
    /// The connection failed or ended.
    Failed(anyhow::Error),
    /// The server may not order what it orders.
    NotTrusted(Refusal),
}

/// Why nothing is done that was ordered, and what to do.
fn not_trusted(refusal: Refusal) -> String {
    let what = match refusal {
        Refusal::NoCertificate | Refusal::Expired { .. } => {
            "`piman key certify` on the server, with the secret key that belongs to this Pi's public key, makes one"
        }
        Refusal::WrongCertificate => "it is another server, or this Pi has another server's public key",
        Refusal::Revoked => {
            "`piman key certify` makes another, unless this is not the server that it should be"
        }
        _ => "an old server, or somebody between it and this Pi",
    };
    format!("{refusal}: {what}; nothing was changed")
}

fn is_closed(e: &Error<io::Error>) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match e {
        Error::Peer(PeerError::Closed) => true,
        Error::Io(e) => matches!(e.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe),
        _ => false,
    }
}

impl Unheard {
    fn failure(self, who: &str) -> Failure {
        let waiting = || format!("waiting for the decision of the server {who}");
        let error = match self {
            Self::NotTrusted(refusal) => {
                let error =
                    anyhow!("{}", not_trusted(refusal)).context(format!("the order of the server {who}"));
                return Failure { stage: Stage::Disk, cause: Cause::Refused, error };
            }
            Self::Greeting => anyhow::Error::new(late()).context(waiting()),
            Self::Absent(e) => e,
            Self::Closed(e) | Self::Failed(e) => e.context(waiting()),
        };
        Failure { stage: Stage::Disk, cause: Cause::Network, error }
    }
}

/// A machine in one talk.
struct TalkingMachine<'a> {
    machine: &'a mut Machine,
    /// The server understands our lines.
    heard: &'a AtomicBool,
}

impl drive::Pi for TalkingMachine<'_> {
    async fn set_date(&mut self, date: Date) -> bool {
        self.machine.set_date(date).await
    }

    async fn set_clock(&mut self, clock: Clock) -> bool {
        self.machine.set_clock(clock).await
    }

    fn addresses(&mut self, out: &mut impl fmt::Write) {
        self.machine.addresses(out);
    }

    async fn wipe(&mut self) -> bool {
        self.machine.wipe().await
    }

    fn waits(&mut self, reason: &[u8]) {
        self.machine.waits(reason);
    }

    fn understood(&mut self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    async fn pause(&mut self) {
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests;
