//! What comes out of a pipe, kept in a file of the state folder while it is not yet clear what it is.

use std::fs::File;
use std::io::{self, Chain, Read, Write};

use anyhow::Context;

use super::kept::Kept;
use super::{Import, UNPACKED_MAX};

/// Keeps what is read. The file goes with this, and after a crash with the next command.
pub(super) struct Spool<R> {
    from: R,
    kept: Kept,
    bytes: u64,
    /// That it could not be written.
    unwritten: Option<anyhow::Error>,
}

impl<R: Read> Spool<R> {
    pub(super) fn new(from: R, import: &Import<'_>) -> anyhow::Result<Self> {
        let kept = Kept::new(import.state, import.name, ".tar")?;
        Ok(Self { from, kept, bytes: 0, unwritten: None })
    }

    /// All of it as a file, which has no name any more.
    ///
    /// # Errors
    /// Of reading and of writing.
    pub(super) fn all(from: R, import: &Import<'_>) -> anyhow::Result<File> {
        let mut spool = Self::new(from, import)?;
        io::copy(&mut spool, &mut io::sink()).map_err(|e| spool.fault(e, import))?;
        spool.file()
    }

    /// What was read so far, as a file.
    ///
    /// # Errors
    /// If it cannot be opened again.
    pub(super) fn file(&self) -> anyhow::Result<File> {
        File::open(self.kept.path()).context("opening what was kept of the pipe")
    }

    /// What was read so far, and then the rest.
    ///
    /// # Errors
    /// If it cannot be opened again.
    pub(super) fn again(self) -> anyhow::Result<Again<R>> {
        let chain = self.file()?.chain(self.from);
        Ok(Again { chain, _kept: self.kept })
    }

    /// What went wrong when it was read.
    pub(super) fn fault(&mut self, e: io::Error, import: &Import<'_>) -> anyhow::Error {
        let unusable = || format!("{} is not usable", import.shown);
        self.unwritten.take().unwrap_or_else(|| anyhow::Error::from(e).context(unusable()))
    }
}

impl<R: Read> Read for Spool<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buf)?;
        self.bytes += n as u64;
        if self.bytes > UNPACKED_MAX {
            return Err(io::Error::other(format!("it unpacks to more than {UNPACKED_MAX} bytes")));
        }
        let written = self.kept.file().write_all(buf.get(..n).unwrap_or_default());
        written.map_err(|e| {
            self.unwritten = Some(self.kept.unwritten(&e));
            io::Error::other("it cannot be kept")
        })?;
        Ok(n)
    }
}

/// Reads from the beginning.
pub(super) struct Again<R> {
    chain: Chain<File, R>,
    _kept: Kept,
}

impl<R: Read> Read for Again<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.chain.read(buf)
    }
}
