//! What is expected of a peer that takes bytes: that its system answers, and what the operator demands beyond that.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::pin::pin;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::net::gate;
use crate::net::tcp::Info;

/// Bytes a second: a tenth of what the slowest serial line moves.
pub const SLOWEST: u64 = 12;
/// A peer whose system answers nothing for so long has lost power, or its network.
pub const UNANSWERED: Duration = Duration::from_secs(120);
/// It is looked after a peer at least so often while something is expected of it.
const LOOK: Duration = Duration::from_secs(5);

/// What a peer that takes bytes must do.
///
/// A slow reader takes nothing for minutes: its system has megabytes for it, and asks for more only when much of
/// that is read. So nothing but the operator says that this is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long it may acknowledge no byte at all. `None`: for as long as its system answers.
    pub stall: Option<Duration>,
    /// The least bytes a second that it must acknowledge in any `span`; 0: any pace will do.
    pub slowest: u64,
    /// See `slowest`.
    pub span: Duration,
    /// How long its system may leave unanswered what it was sent or asked.
    pub unanswered: Duration,
}

impl Limits {
    /// No more than that the peer's system answers.
    pub const NONE: Self =
        Self { stall: None, slowest: 0, span: Duration::from_secs(300), unanswered: UNANSWERED };

    /// How often it is looked.
    fn tick(&self) -> Duration {
        let shortest = self.stall.unwrap_or(LOOK).min(self.span).min(self.unanswered);
        (shortest / 8).clamp(Duration::from_millis(20), LOOK)
    }
}

/// Looks after one peer while bytes are on their way to it.
#[derive(Debug)]
pub struct Watch<'a, S> {
    stream: &'a S,
    limits: Limits,
    tick: Duration,
    /// Acknowledged when this began.
    first: u64,
    /// Acknowledged when it was last looked.
    acked: u64,
    /// Waited for the peer since it was last looked.
    waited: Duration,
    /// Waited for the peer since it last acknowledged something.
    idle: Duration,
    pace: MinRate,
}

impl<'a, S: AsFd> Watch<'a, S> {
    /// # Errors
    /// If `stream` is no TCP socket.
    pub fn new(stream: &'a S, limits: Limits) -> io::Result<Self> {
        let first = Info::of(stream)?.acked();
        Ok(Self {
            stream,
            limits,
            tick: limits.tick(),
            first,
            acked: first,
            waited: Duration::ZERO,
            idle: Duration::ZERO,
            pace: MinRate::new(limits.slowest, limits.span),
        })
    }

    /// How often [`waited`](Self::waited) wants to be called.
    #[must_use]
    pub fn tick(&self) -> Duration {
        self.tick
    }

    /// The peer was waited for so long.
    ///
    /// # Errors
    /// `TimedOut` if it does not answer any more or is too slow.
    pub fn waited(&mut self, time: Duration) -> io::Result<()> {
        self.waited += time;
        if self.waited < self.tick {
            return Ok(());
        }
        let info = Info::of(self.stream)?;
        if let Some(silence) = info.unanswered().filter(|silence| *silence >= self.limits.unanswered) {
            let seconds = silence.as_secs_f64();
            let text = format!("the peer's system has not answered for {seconds:.0} s: has it lost power?");
            return Err(io::Error::new(ErrorKind::TimedOut, text));
        }
        let moved = info.acked().saturating_sub(self.acked);
        let waited = std::mem::take(&mut self.waited);
        self.acked += moved;
        if moved > 0 {
            gate::moved();
        }
        self.idle = if moved > 0 { Duration::ZERO } else { self.idle + waited };
        if let Some(stall) = self.limits.stall.filter(|stall| self.idle >= *stall) {
            let text = format!("the peer takes no more bytes: none in {:.0} s", stall.as_secs_f64());
            return Err(io::Error::new(ErrorKind::TimedOut, text));
        }
        self.pace.note(waited, moved)
    }
}

impl Watch<'_, TcpStream> {
    /// Waits for what only the peer can bring about.
    ///
    /// # Errors
    /// Those of `what` and of [`waited`](Self::waited).
    pub async fn over<T>(&mut self, what: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let mut what = pin!(what);
        loop {
            let began = Instant::now();
            let done = timeout(self.tick, &mut what).await;
            let waited = self.waited(began.elapsed());
            if let Ok(done) = done {
                let done = done?;
                return waited.map(|()| done);
            }
            waited?;
        }
    }

    /// Ends our direction and waits until the peer's system has acknowledged every one of `sent` bytes, which were
    /// all since this watch began. What the peer sends is read and dropped: unread bytes would turn the end
    /// into a reset, and the peer would lose what is still on its way.
    ///
    /// # Errors
    /// If the peer does not take it all.
    pub async fn delivered(&mut self, sent: u64) -> io::Result<()> {
        let stream = self.stream;
        SockRef::from(stream).shutdown(std::net::Shutdown::Write)?;
        let mut ended = false;
        let mut pause = Duration::from_millis(1);
        loop {
            let info = Info::of(stream)?;
            // The kernel may have forgotten by now what is behind the failure of a connection.
            let all = info.acked().saturating_sub(self.first) >= sent;
            if info.end_is_acked() {
                return Ok(());
            }
            if info.is_closed() {
                return match stream.take_error()? {
                    Some(e) if !all => Err(e),
                    _ => Ok(()),
                };
            }
            self.over(async {
                if ended {
                    sleep(pause).await;
                    return Ok(());
                }
                timeout(pause, stream.ready(Interest::READABLE)).await.map_or(Ok(()), |ready| ready.map(drop))
            })
            .await?;
            match stream.try_read(&mut [0; 512]) {
                Ok(0) => ended = true,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) if !all => return Err(e),
                Ok(_) | Err(_) => {}
            }
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }
}

/// Whether bytes keep moving. A peer that moves one now and then is never silent, and would hold its
/// place for ever.
#[derive(Debug)]
pub struct MinRate {
    slowest: u64,
    span: Duration,
    took: Duration,
    moved: u64,
}

impl MinRate {
    /// In each `span` of waiting for the peer so many bytes a second must move; 0: any number.
    #[must_use]
    pub fn new(slowest: u64, span: Duration) -> Self {
        Self { slowest, span, took: Duration::ZERO, moved: 0 }
    }

    /// The peer was waited for so long, and then so many bytes moved.
    ///
    /// # Errors
    /// `TimedOut` if that was too little for too long.
    pub fn note(&mut self, took: Duration, moved: u64) -> io::Result<()> {
        self.took += took;
        self.moved = self.moved.saturating_add(moved);
        if self.took < self.span {
            return Ok(());
        }
        if (self.moved as f64) < self.slowest as f64 * self.took.as_secs_f64() {
            let (moved, took, least) = (self.moved, self.took.as_secs_f64(), self.slowest);
            let text = format!(
                "the peer is too slow: {moved} bytes in {took:.0} s, with a minimum rate of {least} bytes/s"
            );
            return Err(io::Error::new(ErrorKind::TimedOut, text));
        }
        (self.took, self.moved) = (Duration::ZERO, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_now_and_then_is_not_enough() {
        let second = Duration::from_secs(1);
        let mut pace = MinRate::new(10, 5 * second);
        for _ in 0..4 {
            pace.note(second, 1).unwrap();
        }
        assert_eq!(pace.note(second, 1).unwrap_err().kind(), ErrorKind::TimedOut);
        let mut pace = MinRate::new(10, 5 * second);
        for round in 0..100 {
            // All of it at the end of each span does as well.
            pace.note(second, if round % 5 == 4 { 50 } else { 0 }).unwrap();
        }
        let mut pace = MinRate::new(10, 5 * second);
        pace.note(Duration::ZERO, u64::MAX).unwrap();
        pace.note(Duration::ZERO, u64::MAX).unwrap();
        let mut pace = MinRate::new(0, 5 * second);
        for _ in 0..100 {
            pace.note(second, 0).unwrap();
        }
    }
}
