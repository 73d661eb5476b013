//! Unpacks archives: gzip (of any number of members) or zstd (of any number of frames), told
//! apart by their first bytes.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::prelude::rust_2024::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use flate2::bufread::GzDecoder;
use zstd::zstd_safe::get_error_name;

/// How much is read from the source at once, in bytes.
const READ: usize = 256 << 10;

/// The largest window of zstd, as a power of two: 32 MiB, because the agent's memory is
/// bounded. Level 19 needs 8 MiB; only `--ultra` and `--long` need more.
const WINDOW_LOG: u32 = 25;

/// `ZSTD_error_frameParameter_windowTooLarge`, which zstd promises not to change.
const WINDOW_TOO_LARGE: usize = 16;

/// Unpacked bytes of a packed archive. Every checksum is compared: an archive is whole only
/// if it was read to its very end.
///
/// Errors of the source are passed on as they are. `UnexpectedEof`: it ends within the packed
/// data. `InvalidData`: it is damaged, or packed in another way.
pub struct Decoder<R: Read> {
    packing: Packing,
    /// Empty between a member and the next.
    member: Option<Member<R>>,
    may_end: Arc<AtomicBool>,
    /// Whether a second member has begun.
    several: bool,
    whole: Arc<AtomicBool>,
}

type Source<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// A member of gzip or a frame of zstd.
enum Member<R: Read> {
    Gzip(Box<GzDecoder<Source<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, Source<R>>),
}

impl<R: Read> Decoder<R> {
    /// Reads the first bytes of `source` and chooses.
    ///
    /// # Errors
    /// Of the source; `UnexpectedEof` if there is nothing at all; `InvalidData` if it is
    /// neither gzip nor zstd, with a text that says what it looks like and what to do.
    pub fn new(source: R) -> io::Result<Self> {
        Self::telling(source, Arc::default())
    }

    /// Like [`new`](Self::new). `may_end` is true whenever the source is read at a place where
    /// the packed data may end, between members: an end anywhere else is one too early.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn telling(mut source: R, may_end: Arc<AtomicBool>) -> io::Result<Self> {
        let mut head = Vec::with_capacity(512);
        // Not one byte more than must be there, since a source may wait for it, or for an end.
        source.by_ref().take(4).read_to_end(&mut head)?;
        let Some(packing) = packing(&head) else {
            source.by_ref().take(508).read_to_end(&mut head)?;
            return Err(not_packed(&head));
        };
        let source = BufReader::with_capacity(READ, Cursor::new(head).chain(source));
        let member = Some(Member::new(packing, source)?);
        Ok(Self { packing, member, may_end, several: false, whole: Arc::default() })
    }

    /// Has `whole` become true at the end if all was packed as one member, whose end and checksum are there. It does
    /// not say that nothing is missing: what packs an archive ends its member properly also if what it packs ended
    /// too early, and what is cut behind its first member looks like one.
    #[must_use]
    pub fn telling_whole(self, whole: Arc<AtomicBool>) -> Self {
        Self { whole, ..self }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            let Some(member) = &mut self.member else { return Ok(0) };
            let n = match member {
                Member::Gzip(decoder) => decoder.read(buf).map_err(gzip_error)?,
                Member::Zstd(decoder) => decoder.read(buf).map_err(zstd_error)?,
            };
            if n > 0 {
                return Ok(n);
            }
            let Some(source) = self.member.take().map(Member::into_inner) else { return Ok(0) };
            self.member = next_member(self.packing, source, &self.may_end)?;
            self.several |= self.member.is_some();
            self.whole.store(self.member.is_none() && !self.several, Relaxed);
        }
    }
}

impl<R: Read> Member<R> {
    fn new(packing: Packing, source: Source<R>) -> io::Result<Self> {
        Ok(match packing {
            Packing::Gzip => Self::Gzip(Box::new(GzDecoder::new(source))),
            Packing::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?.single_frame();
                decoder.window_log_max(WINDOW_LOG)?;
                Self::Zstd(decoder)
            }
        })
    }

    fn into_inner(self) -> Source<R> {
        match self {
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

/// What follows a member: another one, the end, or for gzip zeros up to the end (which tapes
/// and `dd` leave behind).
fn next_member<R: Read>(
    packing: Packing,
    mut source: Source<R>,
    may_end: &AtomicBool,
) -> io::Result<Option<Member<R>>> {
    let mut padded = false;
    loop {
        may_end.store(true, Relaxed);
        let bytes = source.fill_buf()?;
        // A decoder reads from the moment that it is made.
        may_end.store(bytes.is_empty(), Relaxed);
        match (bytes.first(), packing) {
            (None, _) => return Ok(None),
            (Some(_), Packing::Zstd) => return Member::new(packing, source).map(Some),
            (Some(0x1f), _) if !padded => return Member::new(packing, source).map(Some),
            (Some(0), _) if bytes.iter().all(|b| *b == 0) => {}
            _ => return Err(invalid("something that is not gzip follows the packed data")),
        }
        padded = true;
        let length = bytes.len();
        source.consume(length);
    }
}

/// How an archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// How data is packed that begins so; four bytes are enough to tell.
#[must_use]
pub fn packing(head: &[u8]) -> Option<Packing> {
    match head {
        [0x1f, 0x8b, ..] => Some(Packing::Gzip),
        // The second form is a frame to be skipped, with which some tools begin a file.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Packing::Zstd),
        _ => None,
    }
}

/// Whether data that begins so may turn out to be packed, when more of it is there.
pub fn may_be_packed(head: &[u8]) -> bool {
    matches!(
        head,
        [] | [0x1f]
            | [0x28]
            | [0x28, 0xb5]
            | [0x28, 0xb5, 0x2f]
            | [0x50..=0x5f]
            | [0x50..=0x5f, 0x2a]
            | [0x50..=0x5f, 0x2a, 0x4d]
    )
}

/// Says what data is that begins so.
fn not_packed(head: &[u8]) -> io::Error {
    let found = match head {
        [] => return io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is empty"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "an xz file",
        [b'B', b'Z', b'h', ..] => "a bzip2 file",
        [0x04, 0x22, 0x4d, 0x18, ..] => "an lz4 file",
        [b'P', b'K', 3, 4, ..] => "a zip file",
        _ if head.get(257..262) == Some(b"ustar") => "a tar archive that is not compressed",
        _ if head.len() < 4 => {
            return io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends at once");
        }
        _ => {
            let start = head.get(..16).unwrap_or(head).escape_ascii();
            return invalid(format!("the archive is neither gzip nor zstd: it begins with `{start}`"));
        }
    };
    invalid(format!("the archive is {found}: pack the tar archive with gzip or zstd"))
}

/// The library calls a wrong checksum or header invalid input; a source never does.
fn gzip_error(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::InvalidInput => invalid(error.to_string()),
        _ => error,
    }
}

fn zstd_error(error: io::Error) -> io::Error {
    // The library has no kinds, but a name for each code, which is all that the error says.
    if error.to_string() == get_error_name(WINDOW_TOO_LARGE.wrapping_neg()) {
        return invalid(
            "the archive needs more than 32 MiB to unpack: pack it with `zstd --long=25` or less",
        );
    }
    // The library's own errors have no kind, errors of the source keep theirs.
    match error.kind() {
        io::ErrorKind::Other => invalid(format!("corrupt zstd stream: {error}")),
        _ => error,
    }
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(data, 1).unwrap()
    }

    /// Gives one byte at a time: no piece may matter.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = buf.len().min(1);
            self.0.read(&mut buf[..n])
        }
    }

    fn unpack(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let all = |decoder: io::Result<Decoder<_>>| {
            let mut out = Vec::new();
            decoder?.read_to_end(&mut out).map(|_| out)
        };
        let dripped = all(Decoder::new(Drip(bytes)));
        let mut out = Vec::new();
        let whole = Decoder::new(bytes).and_then(|mut d| d.read_to_end(&mut out)).map(|_| out);
        assert_eq!(whole.as_ref().ok(), dripped.as_ref().ok());
        assert_eq!(whole.as_ref().err().map(io::Error::kind), dripped.as_ref().err().map(io::Error::kind));
        whole
    }

    #[test]
    fn members_and_frames_follow_each_other() {
        let data: Vec<u8> = (0..100_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
        for pack in [gzip, zstd] {
            let packed = [pack(&data[..10]), pack(b""), pack(&data[10..])].concat();
            assert_eq!(unpack(&packed).unwrap(), data);
        }
        let padded = [gzip(&data), vec![0; 1000]].concat();
        assert_eq!(unpack(&padded).unwrap(), data);
    }

    #[test]
    fn every_truncation_is_told() {
        let data: Vec<u8> = (0..2000_u32).map(|i| ((i * i) >> 5) as u8).collect();
        for packed in [gzip(&data), zstd(&data)] {
            for length in 0..packed.len() {
                let error = unpack(&packed[..length]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{length}: {error}");
            }
        }
    }

    #[test]
    fn a_wrong_checksum_or_length_is_told() {
        for from_end in 1..=8 {
            let mut packed = gzip(b"some data");
            let at = packed.len() - from_end;
            packed[at] ^= 1;
            assert!(unpack(&packed).is_err(), "{from_end}");
        }
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(b"some data").unwrap();
        let mut packed = encoder.finish().unwrap();
        *packed.last_mut().unwrap() ^= 1;
        assert_eq!(unpack(&packed).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn what_follows_must_be_packed_too() {
        for rest in [&b"x"[..], b"\0x", b"\0\x1f\x8b", b"\x1f\x8c"] {
            let packed = [&gzip(b"data"), rest].concat();
            assert!(unpack(&packed).is_err(), "{}", rest.escape_ascii());
            assert!(unpack(&[&zstd(b"data"), rest].concat()).is_err());
        }
    }

    #[test]
    fn it_may_end_between_members_and_nowhere_else() {
        /// Notes where an end is looked for.
        struct Ends<'a>(&'a [u8], Arc<AtomicBool>, Vec<bool>);
        impl Read for Ends<'_> {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                if self.0.is_empty() {
                    self.2.push(self.1.load(Relaxed));
                }
                let n = buf.len().min(1);
                self.0.read(&mut buf[..n])
            }
        }
        for pack in [gzip, zstd] {
            let (one, two) = (pack(b"one member"), pack(b"and another"));
            let both = [&one[..], &two].concat();
            for length in 4..=both.len() {
                let flag = Arc::<AtomicBool>::default();
                let mut source = Ends(&both[..length], Arc::clone(&flag), Vec::new());
                let unpacked = Decoder::telling(&mut source, flag).unwrap().read_to_end(&mut Vec::new());
                let may = length == one.len() || length == both.len();
                assert_eq!(unpacked.is_ok(), may, "{length}");
                assert_eq!(source.2.first(), Some(&may), "{length} of {}", both.len());
            }
        }
    }

    #[test]
    fn other_files_are_named() {
        let mut tar = [0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (bytes, says) in [
            (&tar[..], "not compressed"),
            (b"\xfd7zXZ\0\0\0", "xz"),
            (b"BZh9....", "bzip2"),
            (b"PK\x03\x04....", "zip"),
            (b"<html><body>404", "begins with `<html>"),
        ] {
            let error = unpack(bytes).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        assert_eq!(unpack(b"").unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_window_beyond_our_memory_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(&vec![7; 70 << 20]).unwrap();
        let packed = encoder.finish().unwrap();
        let error = io::copy(&mut Decoder::new(&packed[..]).unwrap(), &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("--long=25"), "{error}");
    }
}
