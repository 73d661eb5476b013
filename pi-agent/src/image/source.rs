//! The fetch connection: ranges asked for ahead, and a new connection when one breaks.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use piman_core::install::fetch::{Answer, Request};

use crate::backoff::Backoff;

/// The longest answer line, in bytes.
const LINE_MAX: u64 = 512;

/// How often a broken connection is made again.
#[derive(Debug, Clone)]
pub struct Retry {
    /// How many times in a row without one chunk in between.
    pub times: u32,
    /// How long to wait before each time.
    pub backoff: Backoff,
}

impl Default for Retry {
    fn default() -> Self {
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(20));
        Self { times: 8, backoff }
    }
}

/// Why a range did not come.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The connection: another one may help.
    Broken(io::Error),
    /// The server has no such thing, for this reason.
    No(String),
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Self {
        Self::Broken(e)
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream: BufReader::with_capacity(64 << 10, stream) }
    }

    /// A second handle, by which another thread can end a read.
    pub(super) fn handle(&self) -> Option<TcpStream> {
        self.stream.get_ref().try_clone().ok()
    }

    /// Asks for a range; answers come in the order of the requests.
    pub(super) fn ask(&mut self, request: &Request) -> io::Result<()> {
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes())
    }

    /// Reads the answer to the oldest request into all of `buf`.
    pub(super) fn receive(&mut self, buf: &mut [u8]) -> Result<(), Trouble> {
        let mut waits = false;
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\n") {
                let room = LINE_MAX.saturating_sub(line.len() as u64);
                match (&mut self.stream).take(room).read_until(b'\n', &mut line) {
                    Ok(0) if room == 0 => return Err(protocol("an answer that is too long")),
                    Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                    Ok(_) => {}
                    // Whoever was told to wait waits; a dead server is noticed by keepalive.
                    Err(e) if waits && is_time_out(&e) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            match Answer::parse(&line) {
                Some(Answer::Ok(length)) if length == buf.len() as u64 => break,
                Some(Answer::Ok(_)) => return Err(protocol("another length than was asked for")),
                Some(Answer::Wait(place)) => {
                    log::info!("the server is busy, {place} others are first");
                    waits = true;
                }
                Some(Answer::No(reason)) => return Err(Trouble::No(reason.to_owned())),
                None => return Err(protocol("an answer that is none")),
            }
        }
        Ok(self.stream.read_exact(buf)?)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Other handles may live on; the server is to know at once. A dead one is no matter.
        let _ = self.stream.get_ref().shutdown(Shutdown::Both);
    }
}

fn is_time_out(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn protocol(what: &str) -> Trouble {
    Trouble::Broken(io::Error::new(io::ErrorKind::InvalidData, format!("the server gave {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a server that says this.
    fn hear(said: &'static [u8]) -> Result<Vec<u8>, Trouble> {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let said = std::thread::spawn(move || server.accept().unwrap().0.write_all(said).unwrap());
        let mut buf = vec![0; 5];
        let outcome = Connection::new(stream).receive(&mut buf);
        said.join().unwrap();
        outcome.map(|()| buf)
    }

    #[test]
    fn answers() {
        assert_eq!(hear(b"ok 5\nhello").unwrap(), b"hello");
        assert_eq!(hear(b"wait 2\nwait 1\nok 5\nhello").unwrap(), b"hello");
        assert!(matches!(hear(b"no such image\n"), Err(Trouble::No(reason)) if reason == "such image"));
        let noise: &[u8] = &[b'x'; 600];
        let bad: [&[u8]; 6] = [b"ok 6\nhello!", b"", b"ok 5", b"ok 5\nhell", b"what\n", noise];
        for bad in bad {
            assert!(matches!(hear(bad), Err(Trouble::Broken(_))), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
