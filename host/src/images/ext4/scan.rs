//! An archive read from its first byte to its last, entry by entry.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use embedded_io_adapters::std::FromStd;
use piman_core::archive::{self, Entry, Reader};
use piman_core::hash::Hash;
use piman_core::hosted::unpack::Decoder;

use super::{Error, Progress};

/// Bytes that are read and hashed at once.
const PIECE: usize = 1 << 20;

/// The bytes of the archive's file, hashed and counted as they are read.
pub(super) struct Source<'a> {
    file: &'a File,
    at: u64,
    total: u64,
    hasher: blake3::Hasher,
    progress: &'a Progress,
    part: (u32, u32),
    stop: &'a AtomicBool,
}

impl Read for Source<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Relaxed) {
            return Err(io::Error::other("stopped"));
        }
        let n = self.file.read_at(buf, self.at)?;
        self.hasher.update(buf.get(..n).unwrap_or_default());
        self.at += n as u64;
        self.progress.set(self.part, self.at, self.total);
        Ok(n)
    }
}

/// An archive and how reading it is watched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scan<'a> {
    pub(super) archive: &'a File,
    pub(super) progress: &'a Progress,
    /// From which percentage to which this reading takes the progress.
    pub(super) part: (u32, u32),
    pub(super) stop: &'a AtomicBool,
}

impl Scan<'_> {
    /// Gives every entry to `each`, which may read its content; returns BLAKE3 of the whole
    /// file.
    pub(super) fn run(
        &self,
        mut each: impl FnMut(Entry, &mut dyn Read) -> Result<(), Error>,
    ) -> Result<Hash, Error> {
        let total = self.archive.metadata().map_err(Error::io("looking at the archive"))?.len();
        let mut source = Source {
            file: self.archive,
            at: 0,
            total,
            hasher: blake3::Hasher::new(),
            progress: self.progress,
            part: self.part,
            stop: self.stop,
        };
        let stopped = |e| if self.stop.load(Relaxed) { Error::Stopped } else { e };
        self.entries(&mut source, &mut each).map_err(stopped)?;
        Ok(Hash(*source.hasher.finalize().as_bytes()))
    }

    fn entries(
        &self,
        source: &mut Source<'_>,
        each: &mut dyn FnMut(Entry, &mut dyn Read) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let decoder = Decoder::new(source).map_err(archive::Error::Read)?;
        let whole = Arc::<AtomicBool>::default();
        let decoder = decoder.telling_whole(Arc::clone(&whole));
        let buffered = FromStd::new(BufReader::with_capacity(PIECE, decoder));
        // An end without its marker is a finding of the archive's check, which came before.
        let mut reader = Reader::new(buffered).ending_with(whole);
        while let Some(entry) = reader.next_entry()? {
            each(entry, &mut reader)?;
        }
        Ok(reader.drain()?)
    }
}
