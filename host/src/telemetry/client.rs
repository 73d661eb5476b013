//! Sends records and waits for each to be written, over as many connections as it takes.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use piman_core::telemetry::{self, Acks, Reply};

use crate::net::socket::{dial, timely};

/// How long is waited, and how often tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// For a connection.
    pub connect: Duration,
    /// For the greeting of a server that greets first. One that greets later, or never, gets the record then.
    pub greeting: Duration,
    /// For a record to be written.
    pub silence: Duration,
    /// After the very first acknowledgement, whether more follows.
    pub moment: Duration,
    /// Between two attempts at first; it doubles up to 30 s.
    pub pause: Duration,
    /// So many attempts in a row may fail; 0: for ever.
    pub tries: u32,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            greeting: Duration::from_secs(1),
            silence: Duration::from_secs(60),
            moment: Duration::from_millis(500),
            pause: Duration::from_secs(1),
            tries: 0,
        }
    }
}

/// A client of the telemetry service.
#[derive(Debug)]
pub struct Client {
    host: String,
    port: u16,
    waits: Waits,
    acks: Acks,
    /// Whether the server greets before it reads; it is taken for one that does until it is seen not to.
    greets: bool,
    /// Whether the server closed the connection after a record that it had acknowledged: perhaps it takes one
    /// record a connection.
    hangs_up: bool,
    line: Option<Line>,
}

#[derive(Debug)]
struct Line {
    stream: TcpStream,
    talk: telemetry::Client,
    /// It greeted before it got anything.
    greeted: bool,
    /// Records that were acknowledged on it.
    written: u64,
    /// What it said since the last record that is no acknowledgement, for the message.
    said: Vec<u8>,
}

/// How long a server that was seen to receive first has for a greeting nevertheless.
const ALREADY: Duration = Duration::from_millis(50);
/// How much of what a server says a message shows, in bytes.
const SAID_MAX: usize = 64;

impl Client {
    /// For the service on `host` and `port`; it connects when there is something to send.
    #[must_use]
    pub fn new(host: &str, port: u16, waits: Waits) -> Self {
        Self {
            host: host.to_owned(),
            port,
            waits,
            acks: Acks::Unknown,
            greets: true,
            hangs_up: false,
            line: None,
        }
    }

    /// Sends one record with its newline; returns when the server has written it. `tell` hears why
    /// it is tried again.
    ///
    /// # Errors
    /// The last failure, when it was tried often enough.
    pub fn send(&mut self, record: &[u8], tell: &mut dyn FnMut(&io::Error)) -> io::Result<()> {
        let (mut failed, mut pause) = (0u32, self.waits.pause);
        loop {
            let e = match self.attempt(record) {
                Ok(()) => return Ok(()),
                Err(e) => e,
            };
            if let Some(line) = self.line.take() {
                self.acks = line.talk.acks();
                self.hangs_up |= line.written > 0 && is_closed(&e);
            }
            failed = failed.saturating_add(1);
            if failed == self.waits.tries {
                return Err(e);
            }
            tell(&e);
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(30));
        }
    }

    fn attempt(&mut self, record: &[u8]) -> io::Result<()> {
        self.leave_closed();
        let waits = self.waits;
        let line = match &mut self.line {
            Some(line) => line,
            None => {
                let line = Line::open((&self.host, self.port), self.acks, waits, self.greets)?;
                self.greets = line.greeted;
                self.line.insert(line)
            }
        };
        line.said.clear();
        line.stream.write_all(record).map_err(|e| line.explain(e, waits.silence))?;
        line.written(waits).map_err(|e| line.explain(e, waits.silence))?;
        line.written += 1;
        Ok(())
    }

    /// Looks whether the server has closed the connection since the last record, so that the next one is not
    /// lost on it; reads late acknowledgements of the last one, so that they do not count for the next.
    fn leave_closed(&mut self) {
        let Some(line) = &mut self.line else { return };
        // One that hung up before may need a moment to do it again.
        let wait = if self.hangs_up { self.waits.moment } else { Duration::ZERO };
        match line.is_closed(wait) {
            Ok(closed) => self.hangs_up = closed,
            Err(_) => self.hangs_up = true,
        }
        if self.hangs_up {
            self.acks = line.talk.acks();
            self.line = None;
        }
    }

    /// Ends the connection. A server that has more to say, as one that read the last record in several pieces, is
    /// heard to its end or for a moment: an end in the middle of it would be a reset and could cost it the record.
    pub fn finish(mut self) {
        let Some(mut line) = self.line.take() else { return };
        if line.stream.shutdown(Shutdown::Write).is_ok() {
            let deadline = Instant::now() + self.waits.moment;
            while line.listen_until(deadline).is_ok() {}
        }
    }
}

impl Line {
    /// Connects, and waits for the greeting if the server `greets` first.
    fn open((host, port): (&str, u16), acks: Acks, waits: Waits, greets: bool) -> io::Result<Self> {
        let stream = dial(host, port, waits.connect, waits.silence)?;
        let talk = telemetry::Client::new(acks);
        let mut line = Self { stream, talk, greeted: false, written: 0, said: Vec::new() };
        let begun = Instant::now();
        loop {
            let deadline = begun
                + match (line.said.is_empty(), greets) {
                    // It has begun to say something.
                    (false, _) => waits.silence,
                    (true, true) => waits.greeting,
                    (true, false) => waits.greeting.min(ALREADY),
                };
            match line.listen_until(deadline) {
                Ok(Reply::Greeting) => {
                    line.greeted = true;
                    return Ok(line);
                }
                Ok(_) if line.said.len() < SAID_MAX => {}
                Ok(_) => return Err(line.stranger()),
                // It receives first.
                Err(e) if e.kind() == io::ErrorKind::TimedOut && line.said.is_empty() => return Ok(line),
                Err(e) if e.kind() == io::ErrorKind::TimedOut => return Err(line.stranger()),
                Err(e) => return Err(e),
            }
        }
    }

    fn stranger(&self) -> io::Error {
        let said = self.said.escape_ascii();
        io::Error::other(format!("what answers there is no service for records: it said \"{said}\""))
    }

    /// Waits until the record has been written.
    fn written(&mut self, waits: Waits) -> io::Result<()> {
        let mut part = false;
        loop {
            // An old server has said all that it will; one of ours says more soon.
            let wait = if part { waits.moment } else { waits.silence };
            match self.listen_until(Instant::now() + wait) {
                Ok(Reply::Written) => return Ok(()),
                Ok(Reply::Part) => part = self.talk.acks() == Acks::Unknown,
                Ok(Reply::Nothing | Reply::Greeting) => {}
                Err(e)
                    // An end in good order comes after all was read; a reset may not.
                    if part
                        && (matches!(e.kind(), io::ErrorKind::TimedOut | io::ErrorKind::UnexpectedEof)
                            || (!self.greeted && is_closed(&e))) =>
                {
                    self.talk.is_old();
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// What became of a record that was not acknowledged.
    fn explain(&self, e: io::Error, silence: Duration) -> io::Error {
        let heard = if self.said.is_empty() {
            String::new()
        } else {
            format!("; it said only \"{}\"", self.said.escape_ascii())
        };
        match e.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "the server did not acknowledge a record within {} s{heard}. Its disk may be full; its log says more",
                    silence.as_secs_f64()
                ),
            ),
            kind if is_closed(&e) => io::Error::new(
                kind,
                format!("the server closed the connection and did not acknowledge the record{heard}"),
            ),
            _ => e,
        }
    }

    /// Reads what is there without waiting for longer; returns whether the server has closed.
    fn is_closed(&mut self, wait: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + wait;
        loop {
            match self.listen_until(deadline) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::TimedOut => return Ok(false),
                Err(e) if is_closed(&e) => return Ok(true),
                Err(e) => return Err(e),
            }
        }
    }

    /// Reads what is there, and says the last that it meant. What has come by the deadline is read in any case.
    fn listen_until(&mut self, deadline: Instant) -> io::Result<Reply> {
        let mut buf = [0; 256];
        let left = deadline.saturating_duration_since(Instant::now());
        let read = if left.is_zero() {
            self.stream.set_nonblocking(true)?;
            let read = self.stream.read(&mut buf);
            self.stream.set_nonblocking(false)?;
            read
        } else {
            self.stream.set_read_timeout(Some(left))?;
            self.stream.read(&mut buf)
        };
        let n = match read {
            Ok(0) => {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
            }
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(Reply::Nothing),
            Err(e) => return Err(timely(e, "the server says nothing")),
        };
        let mut last = Reply::Nothing;
        for byte in buf.iter().take(n) {
            if self.said.len() < SAID_MAX {
                self.said.push(*byte);
            }
            match self.talk.receive(*byte) {
                Reply::Nothing => {}
                heard => last = heard,
            }
        }
        Ok(last)
    }
}

/// The connection has ended, in whatever way.
fn is_closed(e: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(e.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}
