//! Path A: an archive from a stream into a mounted directory, in one go.
//!
//! One thread receives, hashes and unpacks, another one parses and creates; between them lie a
//! few buffers, which are all the memory that is needed, whatever the archive's size. Nothing
//! is sent: the server sends the archive from its first byte and closes.
//!
//! | file | what lives there |
//! |---|---|
//! | `ranges` | the archive from the fetch port, in chunks that are checked first |
//! | `whole` | the archive from the rootfs port, as old servers have it |
//! | `beginning` | whether what comes is an archive, before anything is erased |
//! | `tap` | counts, hashes, and has it go on after a break |
//! | `pipe` | buffers between two threads |

mod beginning;
mod buffers;
mod chunks;
pub mod extract;
mod legacy;
mod resumable;

use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::BorrowedFd;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use anyhow::anyhow;
use piman_core::hash::Hash;
use piman_core::install::Stage;

pub use chunks::ChunkSource;
pub use legacy::LegacySource;

use crate::failure::{Cause, Failure};
use crate::fetch::Link;
use crate::telemetry::progress::Progress;
use buffers::{Filler, pipe};
use embedded_io_adapters::std::FromStd;
use extract::extract;
use piman_core::archive::Reader;
use piman_core::hosted::unpack::Decoder;
use resumable::{Once, ResumableReader, Source};

/// Buffers of unpacked data.
const UNPACKED: usize = 8;

/// What the server said it will send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// BLAKE3 of all bytes that are sent.
    pub hash: Hash,
    /// How many that are.
    pub bytes: u64,
}

/// What was received and extracted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// BLAKE3 of all bytes that were received: the image's identity.
    pub hash: Hash,
    /// How many that were.
    pub bytes: u64,
    /// Bytes of the unpacked archive.
    pub unpacked_bytes: u64,
    /// What was created.
    pub extracted: extract::Summary,
}

/// Extracts the archive that comes on `stream` below `root`. The stream is closed, also to
/// have the server stop when nothing more is wanted; set a read time-out on it before. See
/// [`install_from`].
///
/// # Errors
/// As [`install_from`].
pub fn install(
    stream: TcpStream,
    expected: Option<Expected>,
    root: BorrowedFd<'_>,
    progress: &Progress,
) -> Result<Summary, Failure> {
    let close = || {
        // It may be closed already, which is as well.
        let _ = stream.shutdown(Shutdown::Both);
    };
    install_from(&stream, close, expected, root, progress)
}

/// Extracts the archive that `source` gives below `root`, a directory on the mounted
/// filesystem. `source` is read to its very end, or as far as it is expected. `progress` begins the stage `transfer`, and
/// counts the bytes of the archive as they are received. `close` must make a read of
/// `source` that waits return; it may be called from another thread, more than once.
///
/// When this returns, everything is created and nothing is certain to be on the medium: the
/// caller syncs, and writes the proof only then.
///
/// # Errors
/// - `Network`: the connection broke, or ended before `expected.bytes`, or (if nothing is
///   expected) within the packed data; or what came is not what was expected.
/// - `Image`: the archive is damaged or holds what cannot be created. If a hash is expected
///   this is only said when it is right: a damaged copy of a good archive is worth another
///   try. To know, the rest is received first.
/// - `Disk`: the disk is full, fails, or refuses; told at once.
/// - `Refused`: not root.
pub fn install_from(
    source: impl Read + Send,
    close: impl Fn() + Sync,
    expected: Option<Expected>,
    root: BorrowedFd<'_>,
    progress: &Progress,
) -> Result<Summary, Failure> {
    unpack(Once(source), close, expected, false, root, progress)
}

/// Like [`install_from`], with an archive that goes on after a break. `link` is the one it was
/// made with.
///
/// # Errors
/// As [`install_from`].
pub fn install_whole<F: FnMut() -> io::Result<TcpStream> + Send>(
    whole: LegacySource<'_, F>,
    link: &Link,
    expected: Option<Expected>,
    root: BorrowedFd<'_>,
    progress: &Progress,
) -> Result<Summary, Failure> {
    let summary = unpack(whole, || link.end(), expected, false, root, progress);
    // A server that does not close serves nobody else meanwhile.
    link.release();
    summary
}

/// Like [`install_from`], with an archive of which every byte is checked before it is unpacked.
/// `link` is the one it was made with. What fails then is not the archive's copy: it is said
/// at once.
///
/// # Errors
/// As [`install_from`]; `Image` also if a chunk stays damaged, which is named.
pub fn install_ranges<F: FnMut() -> io::Result<TcpStream> + Send>(
    ranges: &mut ChunkSource<'_, F>,
    link: &Link,
    root: BorrowedFd<'_>,
    progress: &Progress,
) -> Result<Summary, Failure> {
    let expected = ranges.expected();
    let (filler, drainer) = pipe(chunks::BUFFERS);
    thread::scope(|scope| {
        let fetcher = thread::Builder::new()
            .name("fetch".to_owned())
            .spawn_scoped(scope, || ranges.fetch(filler))
            .map_err(|error| no_thread(&error))?;
        let unpacked = unpack(Once(drainer), || link.end(), Some(expected), true, root, progress);
        let fetched = fetcher.join().unwrap_or_else(|panic| resume_unwind(panic));
        match (unpacked, fetched) {
            // That nothing more came is only what followed from it.
            (Err(failure), Err(cause)) if failure.cause == Cause::Network => Err(cause),
            (unpacked, _) => unpacked,
        }
    })
}

/// Extracts what `source` gives. `checked` says that it is what is expected, byte for byte.
fn unpack(
    source: impl Source,
    close: impl Fn() + Sync,
    expected: Option<Expected>,
    checked: bool,
    root: BorrowedFd<'_>,
    progress: &Progress,
) -> Result<Summary, Failure> {
    progress.begin(Stage::Transfer, expected.map_or(0, |e| e.bytes));
    let hurry = AtomicBool::new(false);
    let tap = ResumableReader::new(source, expected, checked, &hurry, progress);
    // Whether the copy may be damaged although the archive is good.
    let in_doubt = expected.is_some() && !checked;
    let (filler, drainer) = pipe(UNPACKED);
    let whole = Arc::<AtomicBool>::default();
    let (received, extracted) = thread::scope(|scope| {
        let receiver = thread::Builder::new()
            .name("receive".to_owned())
            .spawn_scoped(scope, || receive(tap, filler, in_doubt, Arc::clone(&whole)))?;
        let mut reader = Reader::new(FromStd::new(drainer));
        // Only a server that says what comes has looked at its end, and vouches for these bytes.
        if expected.is_some() {
            reader = reader.ending_with(Arc::clone(&whole));
        }
        let extracted = extract(&mut reader, root).and_then(|summary| {
            reader.drain()?;
            Ok((summary, reader.position()))
        });
        // If reading failed, the receiver knows it already and has ended.
        if let Some(cause) = extracted.as_ref().err().and_then(extract::Error::cause)
            && (!in_doubt || cause != Cause::Image)
        {
            hurry.store(true, Relaxed);
            close();
        }
        // Without anyone to drain the pipe, the receiver stops unpacking.
        drop(reader);
        let received = receiver.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok((received, extracted))
    })
    .map_err(|error: io::Error| no_thread(&error))?;
    judge(&received, extracted, expected)
}

fn no_thread(error: &io::Error) -> Failure {
    fail(Cause::Refused, anyhow!("starting a thread: {error}"))
}

/// What came of receiving.
struct Received {
    hash: Hash,
    bytes: u64,
    end: End,
}

/// How it ended.
enum End {
    /// With the stream, all of it unpacked.
    LegacySource,
    /// The other thread had enough.
    Unwanted,
    /// The stream itself failed.
    Broken(io::Error),
    /// The packed data is damaged, or ends too early.
    Damaged(io::Error),
}

/// Receives and unpacks until the end. If a copy is in doubt, the rest of a damaged one is
/// received nonetheless, to know its hash, unless there is a hurry.
fn receive<S: Source>(
    mut tap: ResumableReader<'_, S>,
    mut filler: Filler,
    in_doubt: bool,
    whole: Arc<AtomicBool>,
) -> Received {
    let may_end = Arc::clone(&tap.may_end);
    let unpacked = Decoder::telling(&mut tap, may_end)
        .and_then(|decoder| filler.fill_from(&mut decoder.telling_whole(whole)));
    let mut end = match unpacked {
        Ok(buffers::Filled::All) => End::LegacySource,
        Ok(buffers::Filled::Unwanted) => End::Unwanted,
        // It comes from the close that the other thread asked for.
        Err(_) if tap.hurry.load(Relaxed) => End::Unwanted,
        Err(error) => {
            filler.fail(&error);
            End::Damaged(error)
        }
    };
    // The other thread must not wait for us from here on.
    drop(filler);
    if in_doubt && tap.broken.is_none() {
        tap.drain();
    }
    if let Some(error) = tap.broken.take() {
        end = End::Broken(error);
    }
    Received { hash: tap.hash(), bytes: tap.received(), end }
}

/// Whose fault it is. What is certain goes first: the disk; then the connection, which
/// explains everything that the archive seems to lack; then the archive.
fn judge(
    received: &Received,
    extracted: Result<(extract::Summary, u64), extract::Error>,
    expected: Option<Expected>,
) -> Result<Summary, Failure> {
    let bytes = received.bytes;
    let extracted = match extracted {
        Err(error) if matches!(error.cause(), Some(Cause::Disk | Cause::Refused)) => {
            return Err(unextracted(error));
        }
        other => other,
    };
    let of = expected.map_or(String::new(), |e| format!(" of {}", e.bytes));
    if let End::Broken(error) = &received.end {
        let why = match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "the server fell silent".to_owned(),
            _ => error.to_string(),
        };
        return Err(fail(Cause::Network, anyhow!("receiving the archive: {why}, after {bytes}{of} bytes")));
    }
    if let Some(expected) = expected {
        if bytes < expected.bytes {
            return Err(fail(
                Cause::Network,
                anyhow!("receiving the archive: the connection ended after {bytes}{of} bytes"),
            ));
        }
        if received.hash != expected.hash {
            return Err(fail(
                Cause::Network,
                anyhow!(
                    "the archive that came is not the one that was offered ({:.12} instead of {:.12}): \
                     it was replaced meanwhile, or damaged on its way",
                    received.hash,
                    expected.hash
                ),
            ));
        }
    }
    match &received.end {
        End::Damaged(error) if error.kind() == io::ErrorKind::UnexpectedEof && expected.is_none() => {
            return Err(fail(
                Cause::Network,
                anyhow!(
                    "receiving the archive: it ended too early, after {bytes} bytes ({error}); either the \
                     connection broke, or the archive on the server is not complete"
                ),
            ));
        }
        End::Damaged(error) => {
            return Err(fail(Cause::Image, anyhow!("unpacking the archive: {error}")));
        }
        _ => {}
    }
    match extracted {
        Ok((extracted, unpacked_bytes)) => {
            Ok(Summary { hash: received.hash, bytes, unpacked_bytes, extracted })
        }
        Err(error) => Err(unextracted(error)),
    }
}

fn unextracted(error: extract::Error) -> Failure {
    let cause = error.cause().unwrap_or(Cause::Image);
    fail(cause, anyhow::Error::new(error).context("extracting the archive"))
}

fn fail(cause: Cause, error: anyhow::Error) -> Failure {
    Failure { stage: Stage::Transfer, cause, error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    /// An archive of one folder that ends as its packing does, without its own end marker.
    fn without_end() -> Vec<u8> {
        let mut block = [0_u8; 512];
        for (at, field) in
            [(0, &b"etc/"[..]), (100, b"0000755"), (108, b"0"), (116, b"0"), (124, b"0"), (136, b"0")]
        {
            block[at..at + field.len()].copy_from_slice(field);
        }
        block[156] = b'5';
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&block).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    #[cfg_attr(lacks = "root", ignore = "needs root")]
    fn a_missing_end_marker_is_taken_only_if_the_server_says_what_comes() {
        let archive = without_end();
        let expected =
            Expected { hash: Hash(*blake3::hash(&archive).as_bytes()), bytes: archive.len() as u64 };
        for expected in [Some(expected), None] {
            let folder = tempfile::tempdir().unwrap();
            let root = std::fs::File::open(folder.path()).unwrap();
            let done = install_from(&archive[..], || (), expected, root.as_fd(), &Progress::new());
            match (expected, done) {
                (Some(_), Ok(_)) => assert!(folder.path().join("etc").is_dir()),
                (None, Err(failure)) => assert_eq!(failure.cause, Cause::Image, "{failure}"),
                (expected, done) => panic!("{expected:?}: {done:?}"),
            }
        }
    }
}
