//! A layer of an image: its entries, checked against the digests that the image has of it.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use anyhow::{Context, ensure};
use embedded_io_adapters::std::FromStd;
use piman_core::archive::{Entry, Kind, Reader};

use super::digest::{Digest, Sum};
use super::store::Blob;
use crate::images::import::form::Form;
use crate::images::import::unpacking::{self, Counting};
use crate::images::import::{HEAD, head};

/// A layer.
pub(super) struct Layer {
    /// What it is called in messages.
    pub(super) label: String,
    pub(super) blob: Blob,
    pub(super) check: Check,
}

/// What a layer must hash to.
pub(super) struct Check {
    /// As it is stored, if the image says so.
    pub(super) packed: Option<Digest>,
    /// Unpacked.
    pub(super) unpacked: Digest,
}

/// Reads the content of the entries of a layer.
pub(super) type Content<'r> = Reader<FromStd<BufReader<Box<dyn Read + 'r>>>>;

impl Layer {
    /// Passes on all entries with their numbers, and then compares the digests. No more than `room` bytes are
    /// unpacked, from which they are taken; the bytes that are read are added to `count`.
    ///
    /// # Errors
    /// Of reading, of the layer and of `each`, with the layer's name.
    pub(super) fn each(
        &self,
        room: &Cell<u64>,
        count: &AtomicU64,
        each: &mut dyn FnMut(u32, Entry, &mut Content<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let read = self.read(room, count, each).or_else(|e| {
            // What is damaged may look like anything.
            self.whole()?;
            Err(e)
        });
        read.with_context(|| self.label.clone())
    }

    fn read(
        &self,
        room: &Cell<u64>,
        count: &AtomicU64,
        each: &mut dyn FnMut(u32, Entry, &mut Content<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let (packed, unpacked) = (Sum::default(), Sum::default());
        let form = Form::of_archive(&head(&mut self.blob.read(&AtomicU64::new(0)), "it")?);
        // A layer without entries is nothing but zeros, or nothing at all.
        let form = form.or_else(|e| self.is_blank().then_some(Form::Tar).ok_or(e))?;
        let blob = self.blob.read(count);
        let from: Box<dyn Read + '_> = match self.check.packed {
            Some(_) if form != Form::Tar => Box::new(packed.over(blob)),
            _ => Box::new(blob),
        };
        let plain = unpacking::unpacked(form, Counting::new(from, &|_| ()))?;
        let limited: Box<dyn Read + '_> = Box::new(Limited { from: unpacked.over(plain), room });
        let buffered = FromStd::new(BufReader::with_capacity(1 << 18, limited));
        // Its digest says whether it is whole; some writers leave out the end marker.
        let mut reader = Reader::new(buffered).ending_with(Arc::new(AtomicBool::new(true)));
        let mut number = 0;
        while let Some(entry) = reader.next_entry()? {
            let stored = match &entry.kind {
                Kind::File(file) => file.segments().map(|s| s.length).fold(0, u64::saturating_add),
                _ => 0,
            };
            // Said before anything of it is unpacked.
            ensure!(stored <= room.get().saturating_add(1 << 18), TOO_LARGE);
            each(number, entry, &mut reader)?;
            number += 1;
        }
        reader.drain()?;
        drop(reader);
        let found = unpacked.finish();
        let packed = if form == Form::Tar { found } else { packed.finish() };
        if let Some(want) = self.check.packed {
            ensure!(packed == want, "it is damaged: its digest is {packed}");
        }
        let want = self.check.unpacked;
        ensure!(found == want, "it is damaged: unpacked it should be {want}, and is {found}");
        Ok(())
    }

    /// Whether what is stored is what the image says.
    fn whole(&self) -> anyhow::Result<()> {
        let Some(want) = self.check.packed else { return Ok(()) };
        let (sum, count) = (Sum::default(), AtomicU64::new(0));
        io::copy(&mut sum.over(self.blob.read(&count)), &mut io::sink()).context("reading it")?;
        let found = sum.finish();
        ensure!(found == want, "it is damaged: its digest is {found}");
        Ok(())
    }

    fn is_blank(&self) -> bool {
        let mut begin = Vec::with_capacity(HEAD);
        let count = AtomicU64::new(0);
        let read = self.blob.read(&count).take(HEAD as u64).read_to_end(&mut begin);
        read.is_ok() && begin.iter().all(|b| *b == 0)
    }
}

const TOO_LARGE: &str = "the layers unpack to more than any card holds";

/// Ends with an error where there is no room any more.
struct Limited<'l, R> {
    from: R,
    room: &'l Cell<u64>,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buf)?;
        let left = self.room.get().checked_sub(n as u64).ok_or_else(|| io::Error::other(TOO_LARGE))?;
        self.room.set(left);
        Ok(n)
    }
}
