//! The archive on its way to being unpacked: counted, hashed, and begun again where it broke.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use piman_core::hash::Hash;

use super::Expected;
use crate::telemetry::progress::Progress;

/// Where an archive comes from.
pub(super) trait Source: Read + Send {
    /// The stream broke, or ended too early, after `at` bytes with the hash `known`: makes
    /// another one, and passes over what is known.
    ///
    /// # Errors
    /// When that is given up: what broke it.
    fn resume(&mut self, broken: io::Error, at: u64, known: Hash) -> io::Result<()>;
}

/// A source that breaks once and for all.
#[derive(Debug)]
pub(super) struct Once<R>(pub(super) R);

impl<R: Read> Read for Once<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R: Read + Send> Source for Once<R> {
    fn resume(&mut self, broken: io::Error, _: u64, _: Hash) -> io::Result<()> {
        Err(broken)
    }
}

/// Counts and hashes what is received, and remembers if the stream itself fails: to those who
/// read from here, that looks like any other error.
pub(super) struct ResumableReader<'p, S> {
    source: S,
    /// `None` if every byte that comes was compared with the right hash already.
    hasher: Option<blake3::Hasher>,
    expected: Option<Expected>,
    bytes: u64,
    /// Whether the packed data may end here.
    pub(super) may_end: Arc<AtomicBool>,
    /// What the stream itself failed by.
    pub(super) broken: Option<io::Error>,
    /// Set when nothing more is wanted.
    pub(super) hurry: &'p AtomicBool,
    progress: &'p Progress,
}

impl<'p, S: Source> ResumableReader<'p, S> {
    /// `checked` says that `source` gives nothing but what is expected.
    pub(super) fn new(
        source: S,
        expected: Option<Expected>,
        checked: bool,
        hurry: &'p AtomicBool,
        progress: &'p Progress,
    ) -> Self {
        Self {
            source,
            hasher: (!checked).then(blake3::Hasher::new),
            expected,
            bytes: 0,
            may_end: Arc::default(),
            broken: None,
            hurry,
            progress,
        }
    }

    /// How many bytes came.
    pub(super) fn received(&self) -> u64 {
        self.bytes
    }

    /// The hash of what came.
    pub(super) fn hash(&self) -> Hash {
        match (&self.hasher, self.expected) {
            (Some(hasher), _) => Hash(*hasher.finalize().as_bytes()),
            (None, expected) => expected.map_or(Hash([0; 32]), |e| e.hash),
        }
    }

    /// Receives what is left, until there is a hurry.
    pub(super) fn drain(&mut self) {
        let mut buf = vec![0; 64 << 10];
        // What is packed may have been unpacked to its end, or be damaged.
        self.may_end.store(true, Relaxed);
        while !self.hurry.load(Relaxed) {
            match self.read(&mut buf) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
    }

    /// Whether an end here is one too early.
    fn is_cut(&self) -> bool {
        match self.expected {
            Some(expected) => self.bytes < expected.bytes,
            None => !self.may_end.load(Relaxed),
        }
    }

    /// After a failure: whether to read on.
    fn resume(&mut self, broken: io::Error) -> io::Result<()> {
        if self.hurry.load(Relaxed) {
            return Err(broken);
        }
        self.source.resume(broken, self.bytes, self.hash())
    }
}

impl<S: Source> Read for ResumableReader<'_, S> {
    /// What is behind the last expected byte is no matter: nobody waits there for a server that does not close.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = self.expected.map_or(u64::MAX, |e| e.bytes.saturating_sub(self.bytes));
        let most = usize::try_from(most).map_or(buf.len(), |most| most.min(buf.len()));
        let buf = buf.get_mut(..most).unwrap_or_default();
        if buf.is_empty() {
            return Ok(0);
        }
        let n = loop {
            match self.source.read(buf) {
                Ok(0) if self.is_cut() => {
                    match self.resume(io::ErrorKind::UnexpectedEof.into()) {
                        Ok(()) => {}
                        // Whoever unpacks knows best what is missing.
                        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break 0,
                        Err(e) => return Err(self.fail(e)),
                    }
                }
                Ok(n) => break n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
                Err(error) => {
                    if let Err(error) = self.resume(error) {
                        return Err(self.fail(error));
                    }
                }
            }
        };
        let piece = buf.get(..n).unwrap_or_default();
        if let Some(hasher) = &mut self.hasher {
            hasher.update(piece);
        }
        self.bytes += n as u64;
        self.progress.add(n as u64);
        Ok(n)
    }
}

impl<S> ResumableReader<'_, S> {
    fn fail(&mut self, error: io::Error) -> io::Error {
        let kind = error.kind();
        if !self.hurry.load(Relaxed) {
            self.broken = Some(error);
        }
        kind.into()
    }
}
