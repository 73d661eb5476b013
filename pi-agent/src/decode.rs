//! Unpacks archives: gzip (of any number of members) or zstd (of any number of frames), told
//! apart by their first bytes.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use flate2::bufread::GzDecoder;

/// How much is read from the source at once, in bytes.
const READ: usize = 256 << 10;

/// The largest window of zstd, as a power of two: 32 MiB, because the agent's memory is
/// bounded. Level 19 needs 8 MiB; only `--ultra` and `--long` need more.
const WINDOW_LOG: u32 = 25;

/// Unpacked bytes of a packed archive. Every checksum is compared: an archive is whole only
/// if it was read to its very end.
///
/// Errors of the source are passed on as they are. `UnexpectedEof`: it ends within the packed
/// data. `InvalidData`: it is damaged, or packed in another way.
pub struct Decoder<R: Read>(Inner<R>);

type Source<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

enum Inner<R: Read> {
    /// Empty between a member and the next.
    Gzip(Option<Box<GzDecoder<Source<R>>>>),
    Zstd(zstd::stream::read::Decoder<'static, Source<R>>),
}

impl<R: Read> Decoder<R> {
    /// Reads the first bytes of `source` and chooses.
    ///
    /// # Errors
    /// Of the source; `UnexpectedEof` if there is nothing at all; `InvalidData` if it is
    /// neither gzip nor zstd, with a text that says what it looks like and what to do.
    pub fn new(mut source: R) -> io::Result<Self> {
        let mut head = Vec::with_capacity(512);
        source.by_ref().take(512).read_to_end(&mut head)?;
        let packing = packing(&head)?;
        let source = BufReader::with_capacity(READ, Cursor::new(head).chain(source));
        Ok(Self(match packing {
            Packing::Gzip => Inner::Gzip(Some(Box::new(GzDecoder::new(source)))),
            Packing::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(WINDOW_LOG)?;
                Inner::Zstd(decoder)
            }
        }))
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        match &mut self.0 {
            Inner::Gzip(member) => loop {
                let Some(decoder) = member else { return Ok(0) };
                let n = decoder.read(buf).map_err(gzip_error)?;
                if n > 0 {
                    return Ok(n);
                }
                *member = member.take().map(|m| m.into_inner()).map_or(Ok(None), next_member)?;
            },
            Inner::Zstd(decoder) => decoder.read(buf).map_err(zstd_error),
        }
    }
}

/// What follows a member of gzip: another one, the end, or zeros up to the end (which tapes
/// and `dd` leave behind).
fn next_member<R: Read>(mut source: Source<R>) -> io::Result<Option<Box<GzDecoder<Source<R>>>>> {
    let mut padded = false;
    loop {
        let bytes = source.fill_buf()?;
        match bytes.first() {
            None => return Ok(None),
            Some(0x1f) if !padded => return Ok(Some(Box::new(GzDecoder::new(source)))),
            Some(0) if bytes.iter().all(|b| *b == 0) => {}
            Some(_) => return Err(invalid("something that is not gzip follows the packed data")),
        }
        padded = true;
        let length = bytes.len();
        source.consume(length);
    }
}

enum Packing {
    Gzip,
    Zstd,
}

fn packing(head: &[u8]) -> io::Result<Packing> {
    let found = match head {
        [0x1f, 0x8b, ..] => return Ok(Packing::Gzip),
        // The second form is a frame to be skipped, with which some tools begin a file.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => return Ok(Packing::Zstd),
        [] => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is empty")),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "an xz file",
        [b'B', b'Z', b'h', ..] => "a bzip2 file",
        [0x04, 0x22, 0x4d, 0x18, ..] => "an lz4 file",
        [b'P', b'K', 3, 4, ..] => "a zip file",
        _ if head.get(257..262) == Some(b"ustar") => "a tar archive that is not compressed",
        _ if head.len() < 4 => {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends at once"));
        }
        _ => {
            let start = head.get(..16).unwrap_or(head).escape_ascii();
            return Err(invalid(format!("the archive is neither gzip nor zstd: it begins with `{start}`")));
        }
    };
    Err(invalid(format!("the archive is {found}: pack the tar archive with gzip or zstd")))
}

/// The library calls a wrong checksum or header invalid input; a source never does.
fn gzip_error(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::InvalidInput => invalid(error.to_string()),
        _ => error,
    }
}

fn zstd_error(error: io::Error) -> io::Error {
    if error.to_string().contains("too much memory") {
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
