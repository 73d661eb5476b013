//! The partition table of either kind, and the boot partition's file system.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use anyhow::{Context, bail};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use piman_core::install::gpt::{self, Copy, Gpt};
use piman_core::install::layout::{Extent, Layout, SECTOR};
use piman_core::install::mbr::{self, FAT32_LBA, LINUX, Mbr};

use super::{Disk, RootArea, Window};
use crate::card::random::guid;

/// The numbers of the partitions in a table of ours, from 0.
const BOOT: usize = 0;
const ROOT: usize = 1;
const DATA: usize = 2;

/// The largest array of a GPT's entries that is read, in bytes.
const ARRAY_MAX: u64 = 64 << 10;

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Table {
    Mbr(Mbr),
    Gpt(Gpt),
}

/// What a partition is for, as far as a table says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Fat,
    Linux,
    Other,
}

/// A partition in either kind of table, in sectors of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    what: Use,
    first: u64,
    sectors: u64,
}

impl Place {
    /// Where it is in bytes, if it is anywhere.
    fn area(&self, sector: u64) -> Option<RootArea> {
        let length = self.sectors.checked_mul(sector).filter(|length| self.first > 0 && *length > 0)?;
        Some(RootArea { offset: self.first.checked_mul(sector)?, length })
    }
}

impl From<&mbr::Partition> for Place {
    fn from(entry: &mbr::Partition) -> Self {
        let what = match entry.kind {
            FAT32_LBA => Use::Fat,
            LINUX => Use::Linux,
            _ => Use::Other,
        };
        Self { what, first: entry.first.into(), sectors: entry.sectors.into() }
    }
}

impl From<&gpt::Partition> for Place {
    fn from(entry: &gpt::Partition) -> Self {
        let what = match entry.kind {
            gpt::BASIC_DATA => Use::Fat,
            gpt::LINUX => Use::Linux,
            _ => Use::Other,
        };
        Self { what, first: entry.first, sectors: entry.sectors() }
    }
}

impl Table {
    /// Reads the table of a disk of so many bytes. Of a GPT the copy counts where the first one is damaged.
    pub(super) fn read(disk: &File, bytes: u64, sector: u64) -> anyhow::Result<Self> {
        let mbr = read_mbr(disk)?;
        if mbr.partitions.iter().any(|entry| entry.kind == gpt::PROTECTIVE) {
            let sectors = bytes / sector;
            let copies = [Copy::First, Copy::Last];
            if let Some(gpt) = copies.into_iter().find_map(|copy| read_gpt(disk, copy, sector, sectors)) {
                return Ok(Self::Gpt(gpt));
            }
        }
        Ok(Self::Mbr(mbr))
    }

    fn is_gpt(&self) -> bool {
        matches!(self, Self::Gpt(_))
    }

    fn place(&self, number: usize) -> Option<Place> {
        match self {
            Self::Mbr(mbr) => mbr.partitions.get(number).filter(|p| p.is_used()).map(Place::from),
            Self::Gpt(gpt) => gpt.partitions.get(number).filter(|p| p.is_used()).map(Place::from),
        }
    }

    /// Whether it has this partition in the place that another table has it.
    fn has_as(&self, other: &Self, number: usize) -> bool {
        let place = self.place(number);
        self.is_gpt() == other.is_gpt() && place.is_some() && place == other.place(number)
    }

    /// The partition of Linux with this number, in bytes.
    fn linux(&self, number: usize, sector: u64) -> Option<RootArea> {
        self.place(number).filter(|p| p.what == Use::Linux)?.area(sector)
    }

    /// Takes the entry of the partition that is kept, of whatever type, from the old table.
    fn take_data(&mut self, old: Option<&Self>, kept: RootArea, sector: u64) -> Result<(), &'static str> {
        let is_there = |table: &Self| table.place(DATA).and_then(|p| p.area(sector)) == Some(kept);
        let old = old.ok_or("there is no partition table that can be read any more")?;
        if !is_there(old) {
            return Err("the partition table has it no more, or is damaged");
        }
        if !is_there(self) {
            return Err("the new partition table has no partition there");
        }
        match (self, old) {
            (Self::Mbr(new), Self::Mbr(old)) => new.partitions[DATA] = old.partitions[DATA],
            (Self::Gpt(new), Self::Gpt(old)) => new.partitions[DATA] = old.partitions[DATA],
            _ => return Err("the new partition table is of another kind (MBR, GPT) than the old one"),
        }
        Ok(())
    }

    fn is_root_withheld(&self) -> bool {
        match self {
            Self::Mbr(Mbr { partitions: [_, root, ..], .. }) => {
                root.kind == LINUX && root.first > 0 && root.sectors == 0
            }
            Self::Gpt(Gpt { partitions: [_, root, ..], .. }) => root.is_withheld(),
        }
    }

    /// This one with a root partition that no reader finds, and without those of the others that are not to be seen.
    pub(super) fn withheld(&self, boot: bool, data: bool) -> Self {
        let mut table = self.clone();
        match &mut table {
            Self::Mbr(mbr) => {
                let [first, root, third, _] = &mut mbr.partitions;
                root.sectors = 0;
                for (entry, _) in [(first, boot), (third, data)].into_iter().filter(|(_, shown)| !shown) {
                    *entry = mbr::Partition::default();
                }
            }
            Self::Gpt(gpt) => {
                let [first, root, third, _] = &mut gpt.partitions;
                *root = root.withheld();
                for (entry, _) in [(first, boot), (third, data)].into_iter().filter(|(_, shown)| !shown) {
                    *entry = gpt::Partition::NONE;
                }
            }
        }
        table
    }

    /// What has to be written, each part where it belongs and on the medium before the next: one that is broken off
    /// between them is what it was, or what it is to be. `before` is the table that is there.
    pub(super) fn parts(&self, before: Option<&Self>, sector: u64, sectors: u64) -> Vec<(u64, Vec<u8>)> {
        let gpt = match self {
            Self::Mbr(mbr) => return vec![(0, mbr.write().to_vec())],
            Self::Gpt(gpt) => gpt,
        };
        let mut parts = Vec::new();
        if !before.is_some_and(Self::is_gpt) {
            // What lies at the end of the disk belonged to the old filesystem, which ends here.
            let [_, root, ..] = &gpt.partitions;
            let first = if root.is_withheld() { root.attributes } else { root.first };
            let mut mark = Mbr::new(0);
            let [_, entry, ..] = &mut mark.partitions;
            *entry = mbr::Partition::new(LINUX, u32::try_from(first).unwrap_or(u32::MAX), 0);
            parts.push((0, mark.write().to_vec()));
        }
        for copy in [Copy::Last, Copy::First] {
            let (offset, length) = gpt::place(copy, sector, sectors);
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            let (header_at, array_at) =
                if copy == Copy::First { (0, sector) } else { (length.saturating_sub(sector), 0) };
            put(&mut bytes, header_at, &gpt.header(copy, sector, sectors));
            put(&mut bytes, array_at, &gpt.entries());
            parts.push((offset, bytes));
        }
        parts.push((0, Gpt::protective(sectors).write().to_vec()));
        parts
    }
}

fn put(bytes: &mut [u8], at: u64, what: &[u8]) {
    let places = bytes.iter_mut().skip(usize::try_from(at).unwrap_or(usize::MAX));
    places.zip(what).for_each(|(place, byte)| *place = *byte);
}

/// The table that a layout makes, and what the disk has of it already.
pub(super) struct Planned {
    /// The table as it is to be.
    pub(super) table: Table,
    /// Whether the boot partition is in its place already.
    pub(super) keep_boot: bool,
}

impl Planned {
    /// `old` is the table that the disk has. An MBR that says the same as ours stays as it is, whoever made it; a GPT's
    /// partitions that stay keep their identifiers. The entry of what is `kept` stays as it is, with its type; a table
    /// that cannot name it as the old one does is an error.
    pub(super) fn new(
        disk: &Disk,
        layout: &Layout,
        old: Option<&Table>,
        kept: Option<RootArea>,
    ) -> anyhow::Result<Self> {
        let places = layout.places(disk.bytes(), disk.sector())?;
        let boot = Extent { start: layout.boot_start, sectors: layout.boot_sectors };
        let boot = in_sectors(disk, boot)?;
        let scale = disk.sector() / SECTOR;
        let root = in_sectors(disk, Extent { sectors: places.root.sectors / scale * scale, ..places.root })?;
        let data = places.data.map(|data| in_sectors(disk, data)).transpose()?;
        let mut table =
            if places.gpt { gpt_of(boot, root, data, old)? } else { mbr_of(layout, boot, root, data)? };
        if let Some(kept) = kept
            && let Err(why) = table.take_data(old, kept, disk.sector())
        {
            bail!(
                "the partition that is to be kept, {} bytes at byte {}, would be lost: {why}; nothing was changed",
                kept.length,
                kept.offset
            );
        }
        let keep_boot = old.is_some_and(|old| old.has_as(&table, BOOT));
        Ok(Self { table: old.and_then(|old| same(old, &table)).unwrap_or(table), keep_boot })
    }
}

/// The first sector and the number of sectors, in those of the disk.
fn in_sectors(disk: &Disk, extent: Extent) -> anyhow::Result<(u64, u64)> {
    let (sector, offset, length) = (disk.sector(), extent.start * SECTOR, extent.sectors * SECTOR);
    if !offset.is_multiple_of(sector) || !length.is_multiple_of(sector) {
        bail!(
            "a partition of {length} bytes at byte {offset} does not fit the disk's sectors of {sector} bytes"
        );
    }
    Ok((offset / sector, length / sector))
}

fn mbr_of(
    layout: &Layout,
    boot: (u64, u64),
    root: (u64, u64),
    data: Option<(u64, u64)>,
) -> anyhow::Result<Table> {
    let partition = |kind, (first, sectors): (u64, u64)| -> anyhow::Result<mbr::Partition> {
        Ok(mbr::Partition::new(kind, u32::try_from(first)?, u32::try_from(sectors)?))
    };
    let data = data.map(|data| partition(LINUX, data)).transpose()?.unwrap_or_default();
    let partitions = [partition(FAT32_LBA, boot)?, partition(LINUX, root)?, data, mbr::Partition::default()];
    Ok(Table::Mbr(Mbr { partitions, ..Mbr::new(layout.disk_id) }))
}

fn gpt_of(
    boot: (u64, u64),
    root: (u64, u64),
    data: Option<(u64, u64)>,
    old: Option<&Table>,
) -> anyhow::Result<Table> {
    let old = match old {
        Some(Table::Gpt(old)) => Some(old),
        _ => None,
    };
    // Whoever knows a partition by its identifier finds it again.
    let partition = |number: usize, kind, (first, sectors), name| -> anyhow::Result<gpt::Partition> {
        let before = old.and_then(|old| old.partitions.get(number));
        let before = before.filter(|p| p.first == first && p.kind == kind);
        let id = before.map_or_else(guid, |p| Ok(p.id))?;
        Ok(gpt::Partition::new(kind, id, first, sectors, name))
    };
    let disk = old.map_or_else(guid, |old| Ok(old.disk))?;
    let data = data.map(|data| partition(DATA, gpt::LINUX, data, "data")).transpose()?;
    let partitions = [
        partition(BOOT, gpt::BASIC_DATA, boot, "boot")?,
        partition(ROOT, gpt::LINUX, root, "root")?,
        data.unwrap_or(gpt::Partition::NONE),
        gpt::Partition::NONE,
    ];
    Ok(Table::Gpt(Gpt { disk, partitions }))
}

/// The MBR that is there, if it says what the new one does; one whose root partition is withheld says it, too. What
/// else is in it differs from one program to another: places in cylinders, which nobody reads any more, and which
/// partition is active.
fn same(old: &Table, new: &Table) -> Option<Table> {
    let (Table::Mbr(old), Table::Mbr(new)) = (old, new) else { return None };
    let mut old = old.clone();
    let places = |table: &Mbr| table.partitions.map(|entry| (entry.kind, entry.first, entry.sectors));
    let ([_, withheld, ..], [_, root, ..]) = (&mut old.partitions, &new.partitions);
    if (withheld.kind, withheld.first, withheld.sectors) == (LINUX, root.first, 0) {
        withheld.sectors = root.sectors;
    }
    (old.disk_id == new.disk_id && places(&old) == places(new)).then_some(Table::Mbr(old))
}

impl Disk {
    /// Makes the boot partition's filesystem, unless the one that is there is to be kept and is one.
    pub(super) fn boot_partition(&self, layout: &Layout, keep: bool) -> anyhow::Result<()> {
        let length = layout.boot_sectors * SECTOR;
        let window = || Window::new(&self.file, layout.boot_start * SECTOR, length);
        if keep && self.has_boot_filesystem(layout) {
            return Ok(());
        }
        let sectors = u32::try_from(length / self.sector())?;
        let mut options = FormatVolumeOptions::new()
            .total_sectors(sectors)
            .bytes_per_sector(u16::try_from(self.sector())?)
            .volume_id(layout.disk_id)
            .volume_label(*b"BOOT       ");
        if self.sector() == SECTOR {
            options = shape(options, sectors);
        }
        fatfs::format_volume(window(), options)?;
        Ok(())
    }

    /// Makes the filesystem of a boot partition that the firmware is to boot from, whatever is there: where it is.
    ///
    /// # Errors
    /// If the disk cannot be written.
    pub(crate) fn make_boot(&self, layout: &Layout, serial: u32) -> anyhow::Result<RootArea> {
        let area = RootArea { offset: layout.boot_start * SECTOR, length: layout.boot_sectors * SECTOR };
        let sectors = u32::try_from(area.length / self.sector())?;
        let mut options = FormatVolumeOptions::new()
            .total_sectors(sectors)
            .bytes_per_sector(u16::try_from(self.sector())?)
            .volume_id(serial)
            .volume_label(*b"bootfs     ");
        if self.sector() == SECTOR {
            options = shape(options, sectors);
            // Fewer clusters are written faster; a FAT32 has 65,525 at least.
            let clusters = |bytes: u32| u64::from(sectors) * SECTOR / u64::from(bytes);
            if let Some(bytes) = [4096, 2048, 1024].into_iter().find(|bytes| clusters(*bytes) > 66_600) {
                options = options.bytes_per_cluster(bytes.max(cluster_min(sectors)));
            }
        }
        fatfs::format_volume(Window::new(&self.file, area.offset, area.length), options)?;
        Ok(area)
    }

    /// Whether there is a FAT filesystem in the boot partition's place that ends in it.
    pub(super) fn has_boot_filesystem(&self, layout: &Layout) -> bool {
        let window = Window::new(&self.file, layout.boot_start * SECTOR, layout.boot_sectors * SECTOR);
        FileSystem::new(window, FsOptions::new()).is_ok()
    }
}

/// The type and the clusters of a filesystem in sectors of 512 bytes.
fn shape(options: FormatVolumeOptions, sectors: u32) -> FormatVolumeOptions {
    // The type of the partition says FAT32 with LBA; it takes 65,525 clusters at least.
    let fat_type = if sectors > 66_600 { FatType::Fat32 } else { FatType::Fat16 };
    let options = match sectors {
        8401.. => options.fat_type(fat_type),
        // Of some sizes clusters of 1 KiB would be too many for FAT12, and too few for FAT16.
        8193..8401 => options.bytes_per_cluster(2048),
        _ => options,
    };
    if sectors > 66_600 && sectors < 532_480 { options.bytes_per_cluster(512) } else { options }
}

/// The smallest clusters of a filesystem of more than 8 GiB, in bytes, as others make them.
fn cluster_min(sectors: u32) -> u32 {
    match sectors {
        ..16_777_217 => 512,
        16_777_217..33_554_433 => 8192,
        33_554_433..67_108_865 => 16_384,
        _ => 32_768,
    }
}

/// Reads the table in a disk's first sector.
fn read_mbr(disk: &File) -> anyhow::Result<Mbr> {
    let mut sector = [0; mbr::BYTES];
    Window::new(disk, 0, SECTOR).read_exact(&mut sector).context("reading the partition table")?;
    Ok(Mbr::read(&sector)?)
}

/// One copy of a GPT, if it is whole.
fn read_gpt(disk: &File, copy: Copy, sector: u64, sectors: u64) -> Option<Gpt> {
    let at = gpt::header_at(copy, sectors);
    let mut bytes = [0; gpt::HEADER];
    disk.read_exact_at(&mut bytes, at.checked_mul(sector)?).ok()?;
    let header = gpt::Header::read(&bytes, at)?;
    let length = u64::from(header.entries).checked_mul(header.entry_bytes.into())?;
    let mut array = vec![0; usize::try_from(length).ok().filter(|_| length <= ARRAY_MAX)?];
    disk.read_exact_at(&mut array, header.array.checked_mul(sector)?).ok()?;
    let sum = gpt::crc32(array.iter().copied());
    Gpt::read(&header, array.first_chunk()?, sum)
}

fn read_table(disk: &File) -> anyhow::Result<Table> {
    Table::read(disk, super::size_of(disk)?, super::sector_bytes(disk))
}

fn partition_in_table(disk: &File, bytes: u64, number: usize) -> Option<RootArea> {
    let area = Table::read(disk, bytes, super::sector_bytes(disk)).ok()?;
    let area = area.linux(number, super::sector_bytes(disk))?;
    area.offset.checked_add(area.length).is_some_and(|end| end <= bytes).then_some(area)
}

/// Where the partition table of a disk of so many bytes has the root partition.
#[must_use]
pub fn root_in_table(disk: &File, bytes: u64) -> Option<RootArea> {
    partition_in_table(disk, bytes, ROOT)
}

/// Where it has the partition behind that one.
#[must_use]
pub fn data_in_table(disk: &File, bytes: u64) -> Option<RootArea> {
    partition_in_table(disk, bytes, DATA)
}

/// Whether a disk's root partition is withheld: an installation began and did not end.
#[must_use]
pub fn is_root_withheld(disk: &File) -> bool {
    read_table(disk).is_ok_and(|table| table.is_root_withheld())
}

#[cfg(test)]
mod tests;
