//! Sends records and waits for each to be written, over as many connections as it takes.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use piman_core::stream::{self, Acks, Heard};

use crate::transport::{dial, timely};

/// How long is waited, and how often tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// For a connection.
    pub connect: Duration,
    /// For the greeting, and for a record to be written.
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
            silence: Duration::from_secs(60),
            moment: Duration::from_millis(500),
            pause: Duration::from_secs(1),
            tries: 0,
        }
    }
}

/// A client of the stream service.
#[derive(Debug)]
pub struct Client {
    host: String,
    port: u16,
    waits: Waits,
    acks: Acks,
    line: Option<Line>,
}

#[derive(Debug)]
struct Line {
    stream: TcpStream,
    talk: stream::Client,
}

impl Client {
    /// For the service on `host` and `port`; it connects when there is something to send.
    #[must_use]
    pub fn new(host: &str, port: u16, waits: Waits) -> Self {
        Self { host: host.to_owned(), port, waits, acks: Acks::Unknown, line: None }
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
        let line = match &mut self.line {
            Some(line) => line,
            None => {
                let line = Line::open((&self.host, self.port), self.acks, self.waits)?;
                self.line.insert(line)
            }
        };
        line.stream.write_all(record).map_err(late)?;
        line.written(self.waits)
    }
}

impl Line {
    fn open((host, port): (&str, u16), acks: Acks, waits: Waits) -> io::Result<Self> {
        let stream = dial(host, port, waits.connect, waits.silence)?;
        let mut line = Self { stream, talk: stream::Client::new(acks) };
        let deadline = Instant::now() + waits.silence;
        while line.listen()? != Heard::Greeting {
            if Instant::now() > deadline {
                return Err(io::Error::other("what answers there is no stream service"));
            }
        }
        Ok(line)
    }

    /// Waits until the record has been written.
    fn written(&mut self, waits: Waits) -> io::Result<()> {
        loop {
            match self.listen()? {
                Heard::Written => return Ok(()),
                Heard::Part if self.talk.acks() == Acks::Unknown => {
                    // An old server has said all that it will; one of ours says more soon.
                    self.stream.set_read_timeout(Some(waits.moment))?;
                    let more = self.listen();
                    self.stream.set_read_timeout(Some(waits.silence))?;
                    match more {
                        Ok(Heard::Written) => return Ok(()),
                        Ok(_) => {}
                        Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                            self.talk.is_old();
                            return Ok(());
                        }
                        Err(e) => return Err(e),
                    }
                }
                Heard::Part | Heard::Nothing | Heard::Greeting => {}
            }
        }
    }

    /// Reads what is there, and says the last that it meant.
    fn listen(&mut self) -> io::Result<Heard> {
        let mut buf = [0; 256];
        let n = match self.stream.read(&mut buf) {
            Ok(0) => {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
            }
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(Heard::Nothing),
            Err(e) => return Err(late(e)),
        };
        let mut last = Heard::Nothing;
        for byte in buf.iter().take(n) {
            match self.talk.hear(*byte) {
                Heard::Nothing => {}
                heard => last = heard,
            }
        }
        Ok(last)
    }
}

fn late(e: io::Error) -> io::Error {
    timely(e, "the server acknowledges nothing; its disk may be full, its log says more")
}
