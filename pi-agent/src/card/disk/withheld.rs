//! A root partition that no boot loader and no kernel finds until what is in it is proven, and the mark of an
//! installation that is under way.
//!
//! It is the partition table that says "nothing here yet": before anything else is touched the disk gets our table,
//! with the root partition's start and, in an MBR, a size of zero, which every reader of such a table passes over; in a
//! GPT, an entry without a type. The kernel is told of the partition in so many words. The entry becomes a partition
//! after the proof is on the medium. So an installation that is broken off anywhere leaves a disk that is known for
//! what it is.

use std::io;
use std::os::unix::fs::FileExt;

use piman_core::hosted::ext4;
use piman_core::install::Stage;
use piman_core::install::gpt::{self, Copy};
use piman_core::install::layout::{Layout, SECTOR};
use piman_core::install::mbr::Mbr;

use super::table::{Planned, Table};
use super::{Disk, RootArea, wipe};
use crate::card::identifier as text;
use crate::card::random;
use crate::failure::{Cause, Failure, OrFail};

/// An installation that is under way.
#[derive(Debug)]
#[must_use = "the disk has no root partition until it is shown"]
pub struct Begun {
    /// What was where the table is.
    before: Vec<(u64, Vec<u8>)>,
    /// The table as it is to be when the root partition is complete.
    table: Table,
    /// Whether the boot partition that is there stays.
    keep_boot: bool,
    /// Whether the partition for data that is there stays.
    keep_data: bool,
}

impl Begun {
    /// Has the disk get another number with its root partition: old ones, which text may name, and the new one. A GPT was
    /// made with random identifiers.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub(crate) fn renew(&mut self) -> io::Result<Vec<(u32, u32)>> {
        let Table::Mbr(mbr) = &mut self.table else { return Ok(Vec::new()) };
        let (planned, new) = (mbr.disk_id, random::number()?);
        mbr.disk_id = new;
        // A boot partition that stays was made when the disk had this one.
        let before = self.before.iter().find(|(at, _)| *at == 0).and_then(|(_, bytes)| bytes.first_chunk());
        let before = before.and_then(|sector| Mbr::read(sector).ok()).map(|mbr| mbr.disk_id);
        let before = before.filter(|id| self.keep_boot && *id != 0 && *id != planned);
        Ok([Some(planned), before].into_iter().flatten().map(|old| (old, new)).collect())
    }

    /// What a partition, counted from 1, is called after `PARTUUID=`.
    pub(crate) fn part_uuid(&self, number: u32) -> Option<String> {
        match &self.table {
            Table::Mbr(mbr) => Some(text::partition(mbr.disk_id, number)),
            Table::Gpt(gpt) => {
                let index = usize::try_from(number.checked_sub(1)?).ok()?;
                gpt.partitions.get(index).map(|partition| text::guid(&partition.id))
            }
        }
    }
}

impl Disk {
    /// Writes down that an installation begins. From here on the disk counts as one whose installation was not
    /// finished. `kept` is the partition behind the root partition that is there and stays, byte for byte; without it,
    /// one that the layout has is made anew.
    ///
    /// # Errors
    /// Those of [`Self::prepare`]; [`Cause::Disk`] if the disk cannot be written.
    pub fn begin(&self, layout: &Layout, kept: Option<RootArea>) -> Result<Begun, Failure> {
        let begun = self.prepare(layout, kept)?;
        // One that comes back to this disk must not take what lies there for a boot partition of ours.
        self.put_table(&begun.table.withheld(begun.keep_boot, begun.keep_data), Stage::Partition)?;
        Ok(begun)
    }

    /// What [`Self::begin`] would do; nothing is written.
    ///
    /// # Errors
    /// [`Cause::Disk`] if the layout does not fit; [`Cause::Refused`] if the new table would not name what is kept.
    pub fn prepare(&self, layout: &Layout, kept: Option<RootArea>) -> Result<Begun, Failure> {
        let what = || format!("making the partition table of {self}");
        self.root_area(layout)?;
        let old = self.table();
        // Whatever else was wrong with the layout has been said by now.
        let cause = if kept.is_some() { Cause::Refused } else { Cause::Disk };
        let planned =
            Planned::new(self, layout, old.as_ref(), kept).or_fail(Stage::Partition, cause, what())?;
        let keep_boot = planned.keep_boot && self.has_boot_filesystem(layout);
        let before = self.table_areas(matches!(planned.table, Table::Gpt(_)));
        Ok(Begun { before, table: planned.table, keep_boot, keep_data: kept.is_some() })
    }

    /// Undoes [`Self::begin`].
    ///
    /// # Errors
    /// [`Cause::Disk`] if the disk cannot be written.
    pub fn give_back(&self, begun: &Begun) -> Result<(), Failure> {
        // The first sector last: it says which table counts.
        for (at, bytes) in begun.before.iter().rev() {
            self.put(*at, bytes, Stage::Disk)?;
        }
        Ok(())
    }

    /// The parts of the disk that are written from now on.
    ///
    /// # Errors
    /// [`Cause::Disk`] if the layout does not fit.
    pub fn to_be_written(&self, layout: &Layout, begun: &Begun) -> Result<Vec<RootArea>, Failure> {
        let boot = RootArea { offset: layout.boot_start * SECTOR, length: layout.boot_sectors * SECTOR };
        let boot = Some(boot).filter(|_| !begun.keep_boot);
        let data = self.data_area(layout)?.filter(|_| !begun.keep_data);
        Ok([boot, Some(self.root_area(layout)?), data].into_iter().flatten().collect())
    }

    /// Wipes what others would recognise, and writes the partition table, still without the root partition, and an
    /// empty boot partition. A boot partition in its place keeps what is in it, whoever made it.
    ///
    /// # Errors
    /// [`Cause::Disk`] if the disk cannot be written.
    pub fn partition(&self, layout: &Layout, begun: &Begun) -> Result<RootArea, Failure> {
        let root = self.root_area(layout)?;
        let what = format!("wiping what is left of other filesystems and tables on {self}");
        let data = self.data_area(layout)?;
        let kept = wipe::Kept {
            boot: begun.keep_boot,
            data: begun.keep_data,
            gpt: matches!(begun.table, Table::Gpt(_)),
        };
        wipe::signatures(self, layout, &root, data, kept).or_fail(Stage::Partition, Cause::Disk, what)?;
        let what = format!("making the boot partition of {self}");
        self.boot_partition(layout, begun.keep_boot).or_fail(Stage::Partition, Cause::Disk, what)?;
        self.sync(Stage::Partition)?;
        self.put_table(&begun.table.withheld(true, begun.keep_data), Stage::Partition)?;
        Ok(root)
    }

    /// Makes the filesystem of the partition behind the root partition, if the layout has one and it is not there
    /// yet, and then shows it.
    ///
    /// # Errors
    /// [`Cause::Disk`] if the disk cannot be written, or it has no room for a filesystem.
    pub fn make_data(&self, layout: &Layout, begun: &Begun, label: &str, now: i64) -> Result<(), Failure> {
        let Some(area) = self.data_area(layout)?.filter(|_| !begun.keep_data) else { return Ok(()) };
        let what = format!("making the filesystem that installations keep, {label}, on {self}");
        ext4::format(&self.file, area.offset, area.length, 0, label, now).or_fail(
            Stage::Filesystem,
            Cause::Disk,
            what,
        )?;
        self.sync(Stage::Filesystem)?;
        self.put_table(&begun.table.withheld(true, true), Stage::Partition)
    }

    /// Gives the root partition to the table on the disk.
    ///
    /// # Errors
    /// [`Cause::Disk`] if the disk cannot be written.
    pub fn show_root(&self, begun: &Begun) -> Result<(), Failure> {
        self.put_table(&begun.table, Stage::Commit)
    }

    fn table(&self) -> Option<Table> {
        Table::read(&self.file, self.bytes, self.sector).ok()
    }

    /// What is where a table will be, the first sector first. What cannot be read cannot be given back.
    fn table_areas(&self, gpt: bool) -> Vec<(u64, Vec<u8>)> {
        let copies = [Copy::First, Copy::Last].into_iter().filter(|_| gpt);
        let copies = copies.map(|copy| gpt::place(copy, self.sector, self.bytes / self.sector));
        let read = |(at, length): (u64, u64)| {
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            match self.file.read_exact_at(&mut bytes, at) {
                Ok(()) => Some((at, bytes)),
                Err(e) => {
                    // It was ordered to erase what cannot be read.
                    log::warn!("byte {at} of {self} cannot be read: {e}");
                    None
                }
            }
        };
        [(0, SECTOR)].into_iter().chain(copies).filter_map(read).collect()
    }

    fn put_table(&self, table: &Table, stage: Stage) -> Result<(), Failure> {
        for (at, bytes) in table.parts(self.table().as_ref(), self.sector, self.bytes / self.sector) {
            self.put(at, &bytes, stage)?;
        }
        Ok(())
    }

    fn put(&self, at: u64, bytes: &[u8], stage: Stage) -> Result<(), Failure> {
        let what = format!("writing the partition table of {self}");
        self.file.write_all_at(bytes, at).or_fail(stage, Cause::Disk, what)?;
        self.sync(stage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::disk::{is_root_withheld, root_in_table};

    type Sector = [u8; 512];

    const SIZE: std::ops::Range<usize> = 446 + 16 + 12..446 + 16 + 16;

    fn first(disk: &Disk) -> Sector {
        let mut sector = [0; 512];
        disk.file().read_exact_at(&mut sector, 0).unwrap();
        sector
    }

    #[test]
    fn nobody_finds_a_root_partition_until_it_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::create(&folder.path().join("card"), 128 << 20).unwrap();
        let layout = Layout::default();
        assert!(!is_root_withheld(disk.file()));
        let begun = disk.begin(&layout, None).unwrap();
        assert!(is_root_withheld(disk.file()), "before anything else");
        let area = disk.partition(&layout, &begun).unwrap();
        assert_eq!(root_in_table(disk.file(), disk.bytes()), None);
        assert!(is_root_withheld(disk.file()));
        let before = first(&disk);
        disk.show_root(&begun).unwrap();
        let shown = first(&disk);
        assert_eq!(root_in_table(disk.file(), disk.bytes()), Some(area));
        let changed: Vec<usize> = (0..512).filter(|at| before[*at] != shown[*at]).collect();
        assert!(!changed.is_empty() && changed.iter().all(|at| SIZE.contains(at)), "{changed:?}");
        // One that is broken off anywhere is begun anew, and one that is taken back was none.
        let begun = disk.begin(&layout, None).unwrap();
        assert!(begun.keep_boot && is_root_withheld(disk.file()));
        disk.give_back(&begun).unwrap();
        assert_eq!(first(&disk), shown);
        let _ = disk.begin(&layout, None).unwrap();
        let again = disk.begin(&layout, None).unwrap();
        assert!(again.keep_boot);
        disk.show_root(&again).unwrap();
        assert_eq!(first(&disk), shown);
    }
}
