//! The tar archive in what was given, with the place of what is wrong.

use std::cell::Cell;
use std::io::{self, BufReader, ErrorKind, Read};
use std::rc::Rc;

use anyhow::Context;
use liblzma::stream::{CONCATENATED, Error as XzError, Stream, TELL_UNSUPPORTED_CHECK};
use piman_core::hosted::unpack::Decoder;

use super::Form;

/// How much memory unpacking xz may take, in bytes; `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;

/// Counts what is read.
pub(super) struct Counting<'p, R> {
    from: R,
    at: Position,
    progress: &'p dyn Fn(u64),
}

/// How many bytes of the source were read.
type Position = Rc<Cell<u64>>;

impl<'p, R: Read> Counting<'p, R> {
    pub(super) fn new(from: R, progress: &'p dyn Fn(u64)) -> Self {
        Self { from, at: Position::default(), progress }
    }
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buf)?;
        let at = self.at.get() + n as u64;
        self.at.set(at);
        (self.progress)(at);
        Ok(n)
    }
}

/// What is packed; the packing's checksums are compared to its very end.
///
/// # Errors
/// If there is no memory for it, or its first bytes cannot be read.
pub(super) fn unpacked<'r, R: Read + 'r>(
    form: Form,
    from: Counting<'r, R>,
) -> anyhow::Result<Box<dyn Read + 'r>> {
    let at = Rc::clone(&from.at);
    let from = BufReader::with_capacity(1 << 16, from);
    Ok(match form {
        Form::Xz => {
            let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED | TELL_UNSUPPORTED_CHECK)
                .context("starting to unpack xz")?;
            Box::new(Faults { from: liblzma::bufread::XzDecoder::new_stream(from, stream), at })
        }
        Form::Bzip2 => Box::new(Faults { from: bzip2::bufread::MultiBzDecoder::new(from), at }),
        Form::Gzip | Form::Zstd => Box::new(Faults { from: Decoder::new(from)?, at }),
        _ => Box::new(from),
    })
}

/// Says in words, and with the place, what a decoder says in its own way.
struct Faults<R> {
    from: R,
    at: Position,
}

impl<R: Read> Read for Faults<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.from.read(buf).map_err(|e| {
            let at = self.at.get();
            let xz = e.get_ref().and_then(|inner| inner.downcast_ref::<XzError>());
            match (xz, e.kind()) {
                (Some(XzError::MemLimit), _) => io::Error::other(
                    "unpacking it takes more than 256 MiB of memory: unpack it with `xz -d`, and add the tar archive",
                ),
                (Some(XzError::UnsupportedCheck), _) => io::Error::new(
                    ErrorKind::InvalidData,
                    "its checksums are of a kind that is not known, so it cannot be checked",
                ),
                (Some(XzError::Mem), _) => ErrorKind::OutOfMemory.into(),
                (None, ErrorKind::UnexpectedEof) => io::Error::new(
                    ErrorKind::UnexpectedEof,
                    format!("it ends too early, after {at} bytes"),
                ),
                (Some(_), _) | (None, ErrorKind::InvalidInput | ErrorKind::InvalidData) => io::Error::new(
                    ErrorKind::InvalidData,
                    format!("it is damaged before byte {at}, or something else follows the packed data"),
                ),
                // Of the source, as it is.
                (None, _) => e,
            }
        })
    }
}
