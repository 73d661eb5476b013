//! A FAT filesystem has no journal, and a disk may write what it is given in any order. So what an operation changes is
//! kept in memory first, and then written in an order in which the filesystem is whole whenever the power is cut: what no
//! file has yet; the table with what is new; names that are added, then those that go; and the table without what is free.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::rc::Rc;

use anyhow::Context;

use super::check::{ENTRY, Volume, is_free};
use crate::card::disk::Window;

/// What a disk writes whole or not at all, in bytes.
const SECTOR: u64 = 512;
const SIZE: usize = 512;

type Sector = [u8; SIZE];
/// Sectors by where they are, in bytes.
type Sectors = BTreeMap<u64, Sector>;
/// Those that are kept back, of a filesystem and of whoever writes them to the disk.
pub(super) type Kept = Rc<RefCell<Sectors>>;

/// A part of a disk whose changes may be kept back.
pub(super) struct Overlay<'d> {
    window: Window<'d>,
    /// `None`: they are written at once.
    kept: Option<Kept>,
    at: u64,
}

impl<'d> Overlay<'d> {
    pub(super) fn new(window: Window<'d>, kept: Option<Kept>) -> Self {
        Self { window, kept, at: 0 }
    }

    /// How many of so many bytes are in one sector, and inside.
    fn room(&self, wanted: usize) -> usize {
        let left = self.window.length().saturating_sub(self.at).min(SECTOR - self.at % SECTOR);
        wanted.min(usize::try_from(left).unwrap_or(SIZE))
    }

    /// Where this place is in its sector.
    fn inside(&self) -> (u64, usize) {
        let inside = self.at % SECTOR;
        (self.at - inside, usize::try_from(inside).unwrap_or(0))
    }
}

impl Read for Overlay<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(kept) = &self.kept else {
            self.window.seek(SeekFrom::Start(self.at))?;
            let n = self.window.read(buf)?;
            self.at += n as u64;
            return Ok(n);
        };
        let length = self.room(buf.len());
        let buf = buf.get_mut(..length).unwrap_or_default();
        let (sector, inside) = self.inside();
        match kept.borrow().get(&sector).and_then(|bytes| bytes.get(inside..inside + length)) {
            Some(bytes) => buf.copy_from_slice(bytes),
            None => self.window.read_exact_at(self.at, buf)?,
        }
        self.at += length as u64;
        Ok(length)
    }
}

impl Write for Overlay<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let Some(kept) = &self.kept else {
            self.window.seek(SeekFrom::Start(self.at))?;
            let n = self.window.write(buf)?;
            self.at += n as u64;
            return Ok(n);
        };
        let length = self.room(buf.len());
        let (sector, inside) = self.inside();
        let mut kept = kept.borrow_mut();
        let whole = match kept.entry(sector) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => place.insert(old(&self.window, sector)?),
        };
        let place = whole.get_mut(inside..inside + length);
        place.unwrap_or_default().copy_from_slice(buf.get(..length).unwrap_or_default());
        self.at += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Overlay<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.window.length().checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// What is on the disk; behind the end of the part there is nothing.
fn old(window: &Window<'_>, at: u64) -> io::Result<Sector> {
    let mut bytes = [0; SIZE];
    let length = usize::try_from(window.length().saturating_sub(at)).unwrap_or(SIZE).min(SIZE);
    window.read_exact_at(at, bytes.get_mut(..length).unwrap_or_default())?;
    Ok(bytes)
}

/// What is written together, in any order, before anything of the next one.
pub(super) type Step = Vec<(u64, Sector)>;

/// In which order the disk gets these sectors.
///
/// # Errors
/// If it cannot be read.
pub(super) fn steps(window: &Window<'_>, kept: &Sectors) -> anyhow::Result<Vec<Step>> {
    let volume = Volume::read(window)?;
    let (mut fresh, mut table, mut rest) = (Step::new(), Step::new(), Step::new());
    let (mut added, mut final_names) = (Vec::new(), Vec::new());
    for (at, new) in kept {
        let old = old(window, *at).with_context(|| format!("reading byte {at} of the boot partition"))?;
        if old == *new {
            continue;
        }
        if volume.is_folder(*at) {
            let merged = with_added(&old, new);
            added.extend((merged != old).then(|| vec![(*at, merged)]));
            final_names.extend((merged != *new).then(|| vec![(*at, *new)]));
        } else if volume.is_table(*at) {
            table.push((*at, *new));
        } else if volume.is_data(*at) {
            fresh.push((*at, *new));
        } else {
            rest.push((*at, *new));
        }
    }
    let grown = table.iter().map(|(at, new)| (*at, volume.with_old(*at, new, kept))).collect();
    let last = table.into_iter().chain(rest).collect();
    let all = [fresh, grown].into_iter().chain(added).chain(final_names).chain([last]);
    Ok(all.filter(|step: &Step| !step.is_empty()).collect())
}

/// A sector of a folder in which all names that it had are still there.
fn with_added(old: &Sector, new: &Sector) -> Sector {
    let mut merged = *old;
    let entries = merged.as_chunks_mut::<ENTRY>().0.iter_mut();
    for (entry, new) in entries.zip(new.as_chunks::<ENTRY>().0).filter(|(entry, _)| is_free(entry)) {
        *entry = *new;
    }
    merged
}
