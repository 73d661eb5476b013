//! Judges an archive by its beginning, which waits in the socket and is left there: what is no
//! archive, or holds nothing, is refused before the disk is touched.

use std::io::{self, BufReader, Read};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use embedded_io_adapters::std::FromStd;
use piman_core::archive::{Error, Reader};
use piman_core::hosted::unpack::{Decoder, may_be_packed, packing};

/// As much as is looked at, in bytes: a block of zstd has 128 KiB at most.
const MOST: usize = 256 << 10;

/// How long nothing more may come before what cannot be judged yet is taken: the kernel holds
/// only so much for a program that does not read.
const STALLED: Duration = Duration::from_secs(2);

const PAUSE: Duration = Duration::from_millis(5);

/// What a beginning says.
enum Verdict {
    /// The first entry is there.
    Good,
    /// It is too short to tell.
    More,
}

/// Why a connection brings no archive.
#[derive(Debug)]
pub(super) enum Unfit {
    /// It broke, or ended too early to tell: another one may do.
    Broken(anyhow::Error),
    /// What the server sends cannot be installed.
    Refused(anyhow::Error),
}

impl From<anyhow::Error> for Unfit {
    fn from(error: anyhow::Error) -> Self {
        Self::Refused(error)
    }
}

/// Waits for the beginning of an archive with an entry.
///
/// # Errors
/// [`Unfit`] if the server closes first, sends something else, or an archive without entries.
pub(super) fn expect_archive(stream: &TcpStream, patience: Duration) -> Result<(), Unfit> {
    let mut start = vec![0; MOST];
    let deadline = Instant::now() + patience;
    let (mut seen, mut grew) = (0, Instant::now());
    loop {
        let n = stream.peek(&mut start).context("waiting for its first bytes").map_err(Unfit::Broken)?;
        let head = start.get(..n).unwrap_or_default();
        if n == 0 {
            let text = "the server closed the connection without sending anything: it has no archive to send";
            return Err(anyhow!(text).into());
        }
        if n > seen {
            (seen, grew) = (n, Instant::now());
            if let Verdict::Good = judge(head)? {
                return Ok(());
            }
        }
        let is_packed = packing(head).is_some();
        let stalled = is_packed && (n == MOST || grew.elapsed() > STALLED);
        if has_closed(stream) && stream.peek(&mut start).is_ok_and(|now| now == n) {
            let error =
                anyhow!("the server closed the connection after {n} bytes, without an entry of an archive");
            return Err(Unfit::Broken(error));
        }
        if stalled {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Unfit::Broken(anyhow!("the server sends nothing more after {n} bytes")));
        }
        thread::sleep(PAUSE);
    }
}

fn judge(head: &[u8]) -> anyhow::Result<Verdict> {
    if packing(head).is_none() {
        if may_be_packed(head) {
            return Ok(Verdict::More);
        }
        bail!("the server sends something that is neither gzip nor zstd");
    }
    let first = Decoder::new(head.chain(NotYet)).map_err(Error::Read).and_then(|decoder| {
        let mut reader = Reader::new(FromStd::new(BufReader::new(decoder)));
        reader.next_entry()
    });
    match first {
        Ok(Some(_)) => Ok(Verdict::Good),
        Ok(None) => bail!("the server sends an archive without entries: there is nothing to install"),
        Err(Error::Read(e)) if e.kind() == io::ErrorKind::WouldBlock => Ok(Verdict::More),
        Err(e) => Err(e).context("the server sends a damaged archive"),
    }
}

/// Whether the server has sent all that it will send.
fn has_closed(stream: &TcpStream) -> bool {
    let mut wait = [PollFd::new(stream, PollFlags::RDHUP)];
    poll(&mut wait, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

/// Where the bytes end that have come so far.
struct NotYet;

impl Read for NotYet {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(data, 3).unwrap()
    }

    /// An archive with a file of so many bytes that cannot be packed.
    fn archive(length: usize) -> Vec<u8> {
        let mut tar = vec![0; 512 + length.next_multiple_of(512) + 1024];
        tar[..4].copy_from_slice(b"file");
        tar[124..136].copy_from_slice(format!("{length:011o}\0").as_bytes());
        tar[148..156].fill(b' ');
        tar[156] = b'0';
        let sum: u32 = tar[..512].iter().map(|byte| u32::from(*byte)).sum();
        tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        blake3::Hasher::new().finalize_xof().fill(&mut tar[512..512 + length]);
        tar
    }

    /// What comes of a server that sends these pieces, and closes.
    fn receive(pieces: &[&[u8]]) -> Result<(), Unfit> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut server = listener.accept().unwrap().0;
        server.set_nodelay(true).unwrap();
        thread::scope(|scope| {
            scope.spawn(move || pieces.iter().for_each(|piece| server.write_all(piece).unwrap()));
            expect_archive(&stream, Duration::from_secs(20))
        })
    }

    #[test]
    fn an_archive_is_known_by_its_first_entry() {
        for length in [0, 10, 600_000] {
            for packed in [gzip(&archive(length)), zstd(&archive(length))] {
                receive(&[&packed[..packed.len().min(200_000)]]).unwrap();
                receive(&[&packed[..1], &packed[1..3], &packed[3..20], &packed[20..]]).unwrap();
            }
        }
    }

    #[test]
    fn what_holds_nothing_is_refused() {
        let good = gzip(&archive(10));
        let mut damaged = archive(10);
        damaged[150] ^= 1;
        for (pieces, word) in [
            (vec![&b""[..]], "without sending anything"),
            (vec![&b"no"[..]], "neither"),
            (vec![&b"\x1f\x8c"[..]], "neither"),
            (vec![&b"\x50\x2a\x4d\x19"[..]], "neither"),
            (vec![&b"\x28\xb5\x2f"[..]], "after 3 bytes"),
            (vec![&good[..20]], "after 20 bytes"),
            (vec![&gzip(&[0; 10_240])[..]], "without entries"),
            (vec![&zstd(&[0; 1024])[..]], "without entries"),
            (vec![&gzip(b"")[..]], "after 20"),
            (vec![&gzip(&damaged)[..]], "damaged"),
            (vec![&gzip(&b"<html><body>no such file</body></html>".repeat(20))[..]], "damaged"),
        ] {
            let (passing, error) = match receive(&pieces).unwrap_err() {
                Unfit::Broken(error) => (true, format!("{error:#}")),
                Unfit::Refused(error) => (false, format!("{error:#}")),
            };
            assert!(error.contains(word), "{error} ({word})");
            assert_eq!(passing, word.starts_with("after"), "{error}");
        }
    }
}
