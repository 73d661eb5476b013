//! The fetch connection, for both paths: ranges asked for ahead, and a new connection when
//! one breaks.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use piman_core::install::Stage;
use piman_core::install::fetch::{Answer, Request};

use crate::failure::{Cause, Failure};
use piman_core::hosted::backoff::Backoff;

/// The longest answer line, in bytes.
const LINE_MAX: u64 = 512;

/// How often a chunk that came damaged is fetched again.
pub const DAMAGED_MAX: u8 = 5;

/// How often a broken connection is made again.
#[derive(Debug, Clone)]
pub struct Retry {
    /// How many times in a row without getting on.
    pub times: u32,
    /// How long to wait before each time.
    pub backoff: Backoff,
}

/// How often a connection is tried again before the first has brought anything: then it is
/// rather a port that nobody can reach than a server that is being started, and the server is
/// asked again what to do.
pub const UNHEARD_TIMES: u32 = 6;

/// Soon at first, since most connections that break can be made again at once; and for about
/// ten minutes in all, as a server may take to be started again.
impl Default for Retry {
    fn default() -> Self {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(20));
        Self { times: 45, backoff }
    }
}

impl Retry {
    /// As often, but not longer than until somebody should be asked what to do now.
    #[must_use]
    pub fn times(self, times: u32) -> Self {
        Self { times, ..self }
    }
}

/// By which another thread ends a transfer: the connection that is open now, and its pauses.
#[derive(Debug, Default)]
pub struct Link {
    state: Mutex<LinkState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LinkState {
    ended: bool,
    open: Option<TcpStream>,
}

impl Link {
    /// Ends it: what waits returns, and nothing is begun any more.
    pub fn end(&self) {
        self.lock().ended = true;
        self.release();
        self.changed.notify_all();
    }

    /// Closes the connection that is kept.
    pub(crate) fn release(&self) {
        if let Some(stream) = self.lock().open.take() {
            // Already gone is as good.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Whether it was ended.
    pub fn is_ended(&self) -> bool {
        self.lock().ended
    }

    /// Keeps a handle of the connection that is open now.
    ///
    /// # Errors
    /// If it was ended, or the system has no handle left.
    pub(crate) fn hold(&self, stream: &TcpStream) -> io::Result<()> {
        let mut state = self.lock();
        if state.ended {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        state.open = Some(stream.try_clone()?);
        Ok(())
    }

    /// Waits for so long, or for the end.
    pub(crate) fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut state = self.lock();
        while !state.ended {
            let Some(rest) = until.checked_duration_since(Instant::now()).filter(|r| !r.is_zero()) else {
                return;
            };
            let waited = self.changed.wait_timeout(state, rest);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections, one after another.
pub(crate) struct Source<'l, F> {
    connect: F,
    link: &'l Link,
    retry: Retry,
    connection: Option<Connection>,
    /// What is fetched, as the end of a sentence.
    what: &'static str,
    /// Whether any has brought something.
    heard: bool,
    /// Connections that failed in a row.
    failed: u32,
    /// Connections that failed.
    broken: u32,
}

impl<'l, F: FnMut() -> io::Result<TcpStream>> Source<'l, F> {
    /// `connect` makes a connection to the fetch port, with the caller's time-outs.
    pub(crate) fn new(connect: F, link: &'l Link, retry: Retry, what: &'static str) -> Self {
        Self { connect, link, retry, connection: None, what, heard: false, failed: 0, broken: 0 }
    }

    /// The connection, made if there is none.
    pub(crate) fn connection(&mut self) -> Result<&mut Connection, Trouble> {
        if self.connection.is_none() {
            let connection = Connection::new((self.connect)()?);
            self.link.hold(connection.stream.get_ref())?;
            self.connection = Some(connection);
        }
        self.connection.as_mut().ok_or_else(|| Trouble::No("no connection".into()))
    }

    /// Whether the connection that is open now, if any, has brought nothing yet after others failed.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.failed > 0
    }

    /// Connections that failed so far.
    pub(crate) fn broken(&self) -> u32 {
        self.broken
    }

    /// Closes the connection, so that the server knows at once that no more is wanted.
    pub(crate) fn close(&mut self) {
        self.connection = None;
        self.link.release();
    }

    /// Something came: failures are counted anew.
    pub(crate) fn went_well(&mut self) {
        self.heard = true;
        self.failed = 0;
        self.retry.backoff.reset();
    }

    /// After a failure: closes the connection and waits as long as it takes before the next.
    ///
    /// # Errors
    /// [`Cause::Network`], if the server has no such thing any more, or too many failed in a row.
    pub(crate) fn pause(&mut self, trouble: Trouble) -> Result<(), Failure> {
        self.close();
        let what = self.what;
        let network = |error| Failure { stage: Stage::Transfer, cause: Cause::Network, error };
        let error = match trouble {
            Trouble::Broken(e) => anyhow::Error::from(e),
            Trouble::No(reason) => {
                return Err(network(anyhow!("the server has {what} no longer: {reason}")));
            }
        };
        self.failed += 1;
        self.broken += 1;
        let times = if self.heard { self.retry.times } else { self.retry.times.min(UNHEARD_TIMES) };
        if self.failed > times {
            let hint = if self.heard { "" } else { "; is the server's fetch port open to this Pi?" };
            let context = format!("fetching {what}, {} connections failed in a row{hint}", self.failed);
            return Err(network(error.context(context)));
        }
        let pause = self.retry.backoff.wait();
        if !self.link.is_ended() {
            log::warn!("fetching {what}: {error}; again in {:.1} s", pause.as_secs_f32());
        }
        self.link.pause(pause);
        if self.link.is_ended() {
            return Err(network(anyhow!("fetching {what} was ended")));
        }
        Ok(())
    }

    /// Fetches a table whole; again if it is not `right` as it came. `advice` says what may help if it stays so.
    ///
    /// # Errors
    /// [`Cause::Network`] as [`pause`](Self::pause), [`Cause::Image`] if it stays damaged.
    pub(crate) fn table(
        &mut self,
        request: &Request,
        right: impl Fn(&[u8]) -> bool,
        advice: &str,
    ) -> Result<Vec<u8>, Failure> {
        let name = format!("the chunk table of {}", self.what);
        self.whole(&name, request, &right, advice)
    }

    /// Like [`table`](Self::table), for something that is called so.
    ///
    /// # Errors
    /// Like those of [`table`](Self::table).
    pub(crate) fn whole(
        &mut self,
        name: &str,
        request: &Request,
        right: &dyn Fn(&[u8]) -> bool,
        advice: &str,
    ) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; usize::try_from(request.length).unwrap_or(usize::MAX)];
        for _ in 0..=DAMAGED_MAX {
            while let Err(trouble) = self.connection().and_then(|c| {
                c.ask(request)?;
                c.receive(&mut bytes)
            }) {
                self.pause(trouble)?;
            }
            if right(&bytes) {
                self.went_well();
                return Ok(bytes);
            }
            log::warn!("{name} came damaged and is fetched again");
        }
        let error = anyhow!("its hash is not the one that was offered; {advice}");
        let error = error.context(format!("fetching {name}"));
        Err(Failure { stage: Stage::Transfer, cause: Cause::Image, error })
    }
}

/// Why a range did not come.
#[derive(Debug)]
pub(crate) enum Trouble {
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
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream: BufReader::with_capacity(64 << 10, stream) }
    }

    /// Asks for a range; answers come in the order of the requests.
    pub(crate) fn ask(&mut self, request: &Request) -> io::Result<()> {
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes())
    }

    /// Reads the answer to the oldest request into all of `buf`.
    pub(crate) fn receive(&mut self, buf: &mut [u8]) -> Result<(), Trouble> {
        self.receive_rest(buf, &mut 0)
    }

    /// Reads the answer to the oldest request into what is left of `buf` behind `filled`, which
    /// counts on; also if it breaks.
    pub(crate) fn receive_rest(&mut self, buf: &mut [u8], filled: &mut usize) -> Result<(), Trouble> {
        let mut waits = false;
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\n") {
                let room = LINE_MAX.saturating_sub(line.len() as u64);
                match (&mut self.stream).take(room).read_until(b'\n', &mut line) {
                    Ok(0) if room == 0 => return Err(protocol("an answer that is too long")),
                    Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                    Ok(_) => {}
                    // Whoever was told to wait waits; a dead server is noticed by keepalive. Process 1 would
                    // kill an agent that says nothing, and its place in the row would be lost.
                    Err(e) if waits && is_time_out(&e) => log::warn!("still waiting for our turn"),
                    Err(e) => return Err(e.into()),
                }
            }
            match Answer::parse(&line) {
                Some(Answer::Ok(length)) if length == buf.len().saturating_sub(*filled) as u64 => break,
                Some(Answer::Ok(_)) => return Err(protocol("another length than was asked for")),
                Some(Answer::Wait(place)) => {
                    match place {
                        0 => log::info!("the server is preparing what comes next"),
                        _ => log::info!("the server is busy, {place} others are first"),
                    }
                    waits = true;
                }
                Some(Answer::No(reason)) => return Err(Trouble::No(reason.to_owned())),
                None => return Err(protocol("an answer that makes no sense")),
            }
        }
        while let Some(rest) = buf.get_mut(*filled..).filter(|rest| !rest.is_empty()) {
            match self.stream.read(rest) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(n) => *filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
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
    fn receive(said: &'static [u8]) -> Result<Vec<u8>, Trouble> {
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
        assert_eq!(receive(b"ok 5\nhello").unwrap(), b"hello");
        assert_eq!(receive(b"wait 2\nwait 1\nok 5\nhello").unwrap(), b"hello");
        assert!(matches!(receive(b"no such image\n"), Err(Trouble::No(reason)) if reason == "such image"));
        let noise: &[u8] = &[b'x'; 600];
        let bad: [&[u8]; 6] = [b"ok 6\nhello!", b"", b"ok 5", b"ok 5\nhell", b"what\n", noise];
        for bad in bad {
            assert!(matches!(receive(bad), Err(Trouble::Broken(_))), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
