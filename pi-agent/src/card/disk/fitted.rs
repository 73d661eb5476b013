//! The partition table that the image of a whole disk brought, fitted to the disk that it is on.

use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, bail, ensure};
use piman_core::install::gpt::{self, Fitted, HEADER};
use piman_core::install::mbr::{self, Mbr};

use super::Disk;
use crate::card::content::source::Source;
use crate::card::random;

/// The largest array of a GPT's entries that is taken, in bytes.
const ARRAY_MAX: u64 = 1 << 20;
/// What a partition that grows ends on a multiple of, in bytes.
const GRAIN: u64 = 1 << 20;
/// The kinds of partitions that have others inside.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// A disk as it will be when its first block is written.
pub(crate) struct Planned<'d> {
    disk: &'d Disk,
    first: Vec<u8>,
    /// What else is to be written, and where, in bytes.
    rest: Vec<(u64, Vec<u8>)>,
}

impl Source for Planned<'_> {
    fn bytes(&self) -> u64 {
        self.disk.bytes
    }

    fn sector(&self) -> u64 {
        self.disk.sector
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.disk.file.read_exact_at(buf, at)?;
        let pieces = self.rest.iter().map(|(at, bytes)| (*at, bytes)).chain([(0, &self.first)]);
        for (start, bytes) in pieces {
            // What of the piece lies in what is read.
            let skip = usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
            let place = usize::try_from(start.saturating_sub(at)).unwrap_or(usize::MAX);
            let from = bytes.get(skip..).unwrap_or_default();
            let to = buf.get_mut(place..).unwrap_or_default();
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
        Ok(())
    }
}

impl<'d> Planned<'d> {
    /// `first` is the first block of the image, all else of which is on the disk. The copy of a GPT moves to the end of
    /// the disk; with `grows` the last partition reaches there. Nothing is written.
    ///
    /// # Errors
    /// If the table is damaged, does not fit the disk, or the disk cannot be read.
    pub(crate) fn new(disk: &'d Disk, first: Vec<u8>, grows: bool) -> anyhow::Result<Self> {
        let mut planned = Self { disk, first, rest: Vec::new() };
        let sector = planned.first.first_chunk::<{ mbr::BYTES }>().context("the first block is too short")?;
        let mut mbr = Mbr::read(sector).ok().context("there is no partition table in it")?;
        if mbr.partitions.iter().any(|entry| entry.kind == gpt::PROTECTIVE) {
            planned.fit_gpt(grows).context("its GPT")?;
            protect(&mut mbr, disk.bytes / disk.sector);
        } else if grows {
            grow_last(&mut mbr, disk.bytes / disk.sector, GRAIN / disk.sector);
        }
        planned.put(0, &mbr.write());
        Ok(planned)
    }

    /// The first block.
    pub(crate) fn first(&self) -> &[u8] {
        &self.first
    }

    /// Writes all but the first block.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn write_rest(&self) -> io::Result<()> {
        for (at, bytes) in &self.rest {
            self.disk.file.write_all_at(bytes, *at)?;
        }
        self.disk.file.sync_data()
    }

    fn fit_gpt(&mut self, grows: bool) -> anyhow::Result<()> {
        let (sector, sectors) = (self.disk.sector, self.disk.bytes / self.disk.sector);
        let mut header = [0; HEADER];
        self.read(sector, &mut header)?;
        let found = gpt::Header::read(&header, 1).context("its header is damaged")?;
        let length = u64::from(found.entries).saturating_mul(found.entry_bytes.into());
        ensure!(length <= ARRAY_MAX, "it has {} partitions", found.entries);
        let mut array = vec![0; usize::try_from(length)?];
        let place = found.array.checked_mul(sector).context("its partitions are nowhere")?;
        self.read(place, &mut array)?;
        let Some(Fitted { first, last, array_copy }) = gpt::fit(&header, &mut array, sector, sectors, grows)
        else {
            bail!("it is damaged, or its partitions do not fit this disk");
        };
        self.put(sector, &first);
        self.put(place, &array);
        let mut end = vec![0; usize::try_from((sectors - array_copy).saturating_mul(sector))?];
        end.iter_mut().zip(&array).for_each(|(to, from)| *to = *from);
        let header_at = end.len().saturating_sub(usize::try_from(sector)?);
        end.iter_mut().skip(header_at).zip(last).for_each(|(to, from)| *to = from);
        self.rest.push((array_copy * sector, end));
        Ok(())
    }

    /// Gives the disk another number in its MBR: the old one and the new one.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub(crate) fn renew_mbr(&mut self) -> anyhow::Result<(u32, u32)> {
        let sector = self.first.first_chunk::<{ mbr::BYTES }>().context("the first block is too short")?;
        let mut mbr = Mbr::read(sector)?;
        let (old, new) = (mbr.disk_id, random::number()?);
        mbr.disk_id = new;
        self.put(0, &mbr.write());
        Ok((old, new))
    }

    /// Gives the disk and those of its partitions that are to have others new identifiers in both copies of the GPT: the
    /// old and the new ones of the partitions. Written by [`Self::write_rest`].
    ///
    /// # Errors
    /// If the GPT is damaged, or the system has no random numbers.
    pub(crate) fn renew_gpt(
        &mut self,
        of: &dyn Fn(u32) -> bool,
    ) -> anyhow::Result<Vec<(gpt::Guid, gpt::Guid)>> {
        let (sector, end) = (self.disk.sector, (self.disk.bytes / self.disk.sector).saturating_sub(1));
        let disk = random::guid()?;
        let mut renewed = Vec::<(gpt::Guid, gpt::Guid)>::new();
        for at in [1, end] {
            let mut header = [0; HEADER];
            self.read(at * sector, &mut header)?;
            let found = gpt::Header::read(&header, at).context("a header of the GPT is damaged")?;
            let length = u64::from(found.entries).saturating_mul(found.entry_bytes.into());
            ensure!(length <= ARRAY_MAX, "the GPT has {} partitions", found.entries);
            let mut array = vec![0; usize::try_from(length)?];
            let place = found.array.checked_mul(sector).context("the GPT's partitions are nowhere")?;
            self.read(place, &mut array)?;
            // The copy gets what the first one got.
            let id = |number, partition: &gpt::Partition| {
                if !of(number) {
                    return None;
                }
                let known = renewed.iter().find(|(old, _)| *old == partition.id).map(|(_, new)| *new);
                known.or_else(|| {
                    let new = random::guid().ok()?;
                    renewed.push((partition.id, new));
                    Some(new)
                })
            };
            let header = gpt::renew(&header, at, &mut array, disk, id).context("the GPT is damaged")?;
            self.put(at * sector, &header);
            self.put(place, &array);
        }
        Ok(renewed)
    }

    /// Notes what is to be written somewhere: in the first block, and behind it.
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let skip = usize::try_from(at).unwrap_or(usize::MAX);
        let room = self.first.len().saturating_sub(skip);
        self.first.iter_mut().skip(skip).zip(bytes).for_each(|(to, from)| *to = *from);
        if let Some(behind) = bytes.get(room..).filter(|behind| !behind.is_empty()) {
            self.rest.push((at + room as u64, behind.to_vec()));
        }
    }
}

/// A protective MBR covers the whole disk; a hybrid one, with partitions of its own, stays as it is.
fn protect(mbr: &mut Mbr, sectors: u64) {
    let mut used = mbr.partitions.iter_mut().filter(|entry| entry.is_used());
    if let (Some(entry), None) = (used.next(), used.next()) {
        entry.sectors = u32::try_from(sectors.saturating_sub(entry.first.into())).unwrap_or(u32::MAX);
    }
}

/// The last partition reaches to the end of the disk, or of what an MBR can say. One with others inside stays as it is.
fn grow_last(mbr: &mut Mbr, sectors: u64, grain: u64) {
    let end = |entry: &mbr::Partition| u64::from(entry.first) + u64::from(entry.sectors);
    let used = mbr.partitions.iter_mut().filter(|entry| entry.is_used());
    let Some(last) = used.max_by_key(|entry| end(entry)).filter(|last| !EXTENDED.contains(&last.kind)) else {
        return;
    };
    let limit = sectors.min(u32::MAX.into()) / grain.max(1) * grain.max(1);
    if limit > end(last) {
        last.sectors = u32::try_from(limit - u64::from(last.first)).unwrap_or(last.sectors);
    }
}
