//! The archive from the rootfs port, as every server sends it: from its first byte, without a
//! word. So after a break all of it is sent again; the part that is known is hashed, compared
//! and passed over, so that what is unpacked goes on where it was.

use std::io::{self, Read};
use std::net::TcpStream;
use std::time::Duration;

use piman_core::hash::Hash;

use super::beginning::{Unfit, expect_archive};
use super::resumable::Source;
use crate::fetch::{Link, Retry, UNHEARD_TIMES};

/// So often the same is believed: an end at the same place, each time a clean one, or another
/// archive than before.
const SAME: u32 = 3;

/// The archive from its first byte to its last, over as many connections as it takes.
#[derive(Debug)]
pub struct LegacySource<'l, F> {
    connect: F,
    link: &'l Link,
    retry: Retry,
    /// None after a break.
    stream: Option<TcpStream>,
    /// How far it was at the last break.
    at: u64,
    /// Breaks since it got on.
    failed: u32,
    /// How many of them were no fault of a connection.
    same: u32,
}

impl<'l, F: FnMut() -> io::Result<TcpStream> + Send> LegacySource<'l, F> {
    /// Connects, and waits until an archive's first entry is there. `connect` sets the
    /// time-outs, and is called again when a connection breaks.
    ///
    /// # Errors
    /// If it cannot, or something else is sent.
    pub fn open(
        mut connect: F,
        link: &'l Link,
        mut retry: Retry,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let mut tries = 1;
        let stream = loop {
            let begun = connect().map_err(|e| Unfit::Broken(e.into()));
            let begun = begun.and_then(|stream| expect_archive(&stream, patience).map(|()| stream));
            match begun {
                Ok(stream) => break stream,
                Err(Unfit::Refused(error)) => return Err(error),
                Err(Unfit::Broken(error)) if tries >= UNHEARD_TIMES => return Err(error),
                Err(Unfit::Broken(error)) => log::warn!("asking for the archive: {error:#}; trying again"),
            }
            tries += 1;
            link.pause(retry.backoff.wait());
        };
        link.hold(&stream)?;
        retry.backoff.reset();
        Ok(Self { connect, link, retry, stream: Some(stream), at: 0, failed: 0, same: 0 })
    }

    /// A new connection, on which all that is known has been passed over.
    fn again(&mut self, at: u64, known: Hash) -> io::Result<()> {
        let mut stream = (self.connect)()?;
        self.link.hold(&stream)?;
        let (mut hasher, mut left) = (blake3::Hasher::new(), at);
        let mut buf = vec![0; 256 << 10];
        while left > 0 {
            let most = usize::try_from(left).map_or(buf.len(), |l| l.min(buf.len()));
            let n = match stream.read(buf.get_mut(..most).unwrap_or_default()) {
                // That it ended before says nothing about the archive, only the connection.
                Ok(0) => return Err(io::ErrorKind::ConnectionAborted.into()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                n => n?,
            };
            hasher.update(buf.get(..n).unwrap_or_default());
            left -= n as u64;
        }
        if hasher.finalize().as_bytes() != &known.0 {
            let text = "the server sends another archive than before, or it came damaged";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        self.stream = Some(stream);
        Ok(())
    }
}

impl<F> Read for LegacySource<'_, F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.as_mut().map_or(Ok(0), |stream| stream.read(buf))
    }
}

impl<F: FnMut() -> io::Result<TcpStream> + Send> Source for LegacySource<'_, F> {
    fn resume(&mut self, mut broken: io::Error, at: u64, known: Hash) -> io::Result<()> {
        if at > self.at {
            (self.at, self.failed, self.same) = (at, 0, 0);
            self.retry.backoff.reset();
        }
        // A server may serve nobody else as long as this one is open.
        self.stream = None;
        self.link.release();
        loop {
            self.failed += 1;
            let same = matches!(broken.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData);
            self.same += u32::from(same);
            if self.same >= SAME || self.failed > self.retry.times || self.link.is_ended() {
                return Err(broken);
            }
            let pause = self.retry.backoff.wait();
            log::warn!(
                "receiving the archive: {broken}, after {at} bytes; again in {:.1} s",
                pause.as_secs_f32()
            );
            self.link.pause(pause);
            match self.again(at, known) {
                Ok(()) => return Ok(()),
                Err(error) => broken = error,
            }
        }
    }
}
