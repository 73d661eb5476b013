//! A message channel that the Pi has joined: what comes is logged, or given to a hook whose output is sent.
//! One thread serves the connection, one more runs the hook, so that a slow hook makes no slow member.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use embedded_io_adapters::std::FromStd;
use piman_core::blocking::{self, Blocking};
use piman_core::messages::{MessageBuffer, MessageStream, PORT, Role, SendError, Timeless};
use piman_core::text::shown_or_space;

use super::socket::{CONNECT, no_greeting, readable, tune};
use super::{Service, hook};
use piman_core::hosted::dial;

/// The longest message that is taken, in bytes.
const MESSAGE_MAX: u32 = 1 << 20;
/// How many messages may wait for the hook; more are dropped.
const WAITING_MAX: usize = 16;
/// How much of a message is logged, in characters.
const LOGGED_MAX: usize = 200;
/// Answers of the hook that may be sent at once, and how often one more: hooks of two Pis that answer each other
/// would go on for ever.
const ANSWERS_MAX: u32 = 64;
/// See [`ANSWERS_MAX`].
const ANSWER_EVERY: Duration = Duration::from_millis(200);
/// At most this many messages of the channel are taken before one of ours that waits.
const FIRST_MAX: usize = 16;

/// Where a channel is: `HOST` or `HOST:PORT`, as [`dial`] knows hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The server.
    pub host: String,
    /// The channel's port.
    pub port: u16,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no server; write HOST or HOST:PORT, and [ADDRESS]:PORT for IPv6");
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => match rest.split_once(']').ok_or_else(wrong)? {
                (host, "") => (host, None),
                (host, port) => (host, Some(port.strip_prefix(':').ok_or_else(wrong)?)),
            },
            // Serial lines, Bluetooth and IPv6 addresses have colons of their own.
            None if text.starts_with("serial:") => (text, None),
            None => match text.split_once(':').filter(|(_, rest)| !rest.contains(':')) {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = port.map_or(Ok(PORT), |p| p.parse().ok().filter(|p| *p != 0).ok_or_else(wrong))?;
        if host.is_empty() { Err(wrong()) } else { Ok(Self { host: host.to_owned(), port }) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// What becomes of the messages of a channel, over all its connections.
pub(super) struct Member {
    address: Address,
    /// Messages for the hook, if there is one.
    to_hook: Option<SyncSender<Vec<u8>>>,
    /// What the hook wants to send; a byte wakes the connection's thread.
    answers: Receiver<Vec<u8>>,
    woken: UnixStream,
    /// An answer that is not sent yet.
    next: Option<Vec<u8>>,
}

impl Member {
    /// Starts the thread for the hook.
    ///
    /// # Errors
    /// If the system gives no thread or no socket.
    pub(super) fn new(service: &Arc<Service>, address: &Address) -> anyhow::Result<Self> {
        let (answer, answers) = channel();
        let (wake, woken) = UnixStream::pair().context("making a pair of sockets")?;
        woken.set_nonblocking(true).context("setting a socket's options")?;
        let to_hook = match &service.on_message {
            None => None,
            Some(name) => {
                if let Err(e) = hook::find(&service.hooks, name) {
                    // It may be put there later.
                    log::warn!("--on-message: {e}");
                }
                let (to, messages) = sync_channel(WAITING_MAX);
                let (service, name, address) = (Arc::clone(service), name.clone(), address.clone());
                std::thread::Builder::new()
                    .name("messages hook".into())
                    .spawn(move || give(&service, &name, &address, &messages, &answer, wake))
                    .context("starting a thread for the hook")?;
                Some(to)
            }
        };
        Ok(Self { address: address.clone(), to_hook, answers, woken, next: None })
    }

    /// Connects and serves until the connection ends.
    ///
    /// # Errors
    /// If there is no connection, or it fails.
    pub(super) fn serve(&mut self) -> anyhow::Result<()> {
        let Address { host, port } = &self.address;
        let stream = dial::connect(host, *port, CONNECT)?;
        tune(&stream).context("setting the socket's options")?;
        let socket = stream.try_clone().context("sharing the socket")?;
        let mut buf = [0; 4096];
        let io = Blocking(FromStd::new(Timely(stream)));
        let open = MessageStream::open(io, Timeless, Role::Client, MESSAGE_MAX, &mut buf);
        let mut frames = blocking::run(open).map_err(no_greeting)?;
        log::info!("joined the message channel on {}", self.address);
        let mut mail = MessageBuffer::default();
        loop {
            for message in mail.whole.drain(..) {
                self.take(message);
            }
            if self.next.is_none() {
                self.next = self.answers.try_recv().ok();
            }
            // An old peer takes a size that crosses its own for a refusal: what it has begun goes first.
            let mut first = 0;
            while self.next.is_some()
                && first < FIRST_MAX
                && (frames.has_unused() || readable(&socket, &self.woken, Some(Duration::ZERO))?)
            {
                if !blocking::run(frames.receive(&mut mail)).map_err(|e| anyhow!("{e}"))? {
                    return Ok(());
                }
                first += 1;
            }
            if let Some(answer) = &self.next {
                let sent = blocking::run(frames.send(answer.len() as u64, &mut answer.as_slice(), &mut mail));
                match sent {
                    Err(SendError::Link(e)) => return Err(anyhow!("sending a message: {e}")),
                    Err(e) => log::warn!("{}: the hook's message is not sent: {e}", self.address),
                    Ok(()) => {}
                }
                self.next = None;
                continue;
            }
            if !mail.whole.is_empty() {
                continue;
            }
            if !frames.has_unused() && !readable(&socket, &self.woken, None)? {
                // Answers are there.
                while matches!(self.woken.read(&mut [0; 64]), Ok(n) if n > 0) {}
                continue;
            }
            if !blocking::run(frames.receive(&mut mail)).map_err(|e| anyhow!("{e}"))? {
                return Ok(());
            }
        }
    }

    fn take(&self, message: Vec<u8>) {
        let Some(to_hook) = &self.to_hook else {
            return log::info!("message on {}: {}", self.address, shown(&message));
        };
        match to_hook.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => log::warn!(
                "{}: a message is dropped: {WAITING_MAX} others wait for the hook already",
                self.address
            ),
            Err(TrySendError::Disconnected(_)) => {
                log::error!("{}: the hook's thread has ended", self.address)
            }
        }
    }
}

/// Runs the hook for one message after another.
fn give(
    service: &Service,
    name: &str,
    address: &Address,
    messages: &Receiver<Vec<u8>>,
    answer: &Sender<Vec<u8>>,
    mut wake: UnixStream,
) {
    let serial = service.identity.serial.clone().unwrap_or_default();
    let variables = [("PIMAN_CHANNEL", address.to_string()), ("PIMAN_SERIAL", serial)];
    let mut allowance = Allowance::new(Instant::now());
    while let Ok(message) = messages.recv() {
        match hook::answer(&service.hooks, name, &message, &variables) {
            Ok(output) if output.is_empty() => {}
            Ok(_) if !allowance.take(Instant::now()) => {
                if allowance.warn() {
                    log::warn!(
                        "{address}: the hook `{name}` answers more than {ANSWERS_MAX} messages within seconds, so \
                         its answers are dropped for a moment: does it answer the answers of another hook?"
                    );
                }
            }
            Ok(output) => {
                if answer.send(output).is_err() || wake.write_all(&[1]).is_err() {
                    return;
                }
            }
            Err(e) => log::warn!("{address}: {e}"),
        }
    }
}

/// How many answers may still be sent.
struct Allowance {
    left: u32,
    /// When the last one was added.
    since: Instant,
    warned: bool,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { left: ANSWERS_MAX, since: now, warned: false }
    }

    /// Whether one more may be sent now.
    fn take(&mut self, now: Instant) -> bool {
        let more = now.duration_since(self.since).as_millis() / ANSWER_EVERY.as_millis();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(ANSWERS_MAX);
            self.since = now;
        }
        if self.left == ANSWERS_MAX {
            self.warned = false;
        }
        self.left.checked_sub(1).map(|left| self.left = left).is_some()
    }

    /// Whether this is the first that is dropped.
    fn warn(&mut self) -> bool {
        !std::mem::replace(&mut self.warned, true)
    }
}

/// A message as one line of a log.
fn shown(message: &[u8]) -> String {
    let text = String::from_utf8_lossy(message);
    let line = text.chars().map(shown_or_space);
    let short: String = line.take(LOGGED_MAX).collect();
    if text.chars().nth(LOGGED_MAX).is_some() {
        format!("{short}... ({} bytes)", message.len())
    } else {
        short
    }
}

/// A blocking socket whose time-outs are called what they are: the driver knows a refusal by them.
struct Timely(TcpStream);

fn timely<T>(result: io::Result<T>) -> io::Result<T> {
    result.map_err(|e| match e.kind() {
        ErrorKind::WouldBlock => io::Error::new(ErrorKind::TimedOut, "the peer stands still"),
        _ => e,
    })
}

impl Read for Timely {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        timely(self.0.read(buf))
    }
}

impl Write for Timely {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        timely(self.0.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        timely(self.0.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, host, port) in [
            ("hub.lab", "hub.lab", 9123),
            ("hub.lab:7", "hub.lab", 7),
            ("::1", "::1", 9123),
            ("[::1]:7", "::1", 7),
            ("serial:/dev/ttyS0:115200", "serial:/dev/ttyS0:115200", 9123),
            ("dc:a6:32:00:00:01", "dc:a6:32:00:00:01", 9123),
        ] {
            assert_eq!(text.parse(), Ok(Address { host: host.into(), port }), "{text}");
        }
        for bad in ["", ":7", "hub:", "hub:0", "hub:x", "[::1", "[]:7"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hooks_that_answer_each_other_come_to_an_end() {
        let mut now = Instant::now();
        let mut allowance = Allowance::new(now);
        let sent = (0..10_000).filter(|_| {
            now += Duration::from_millis(10);
            allowance.take(now)
        });
        // A conversation ends with the first answer that is dropped; a busy hook goes on at this pace.
        assert!((500..700).contains(&sent.count()));
        assert!(allowance.warn() && !allowance.warn());
        now += Duration::from_secs(60);
        assert!(allowance.take(now) && allowance.warn(), "it is quiet again");
    }

    #[test]
    fn a_message_is_one_short_line_of_a_log() {
        assert_eq!(shown(b"a\nb\x1b[2J"), "a b [2J");
        assert_eq!(shown("a\u{202e}b".as_bytes()), "a b");
        let long = shown(&[b'x'; 300]);
        assert!(long.len() < 220 && long.ends_with("... (300 bytes)"), "{long}");
    }
}
