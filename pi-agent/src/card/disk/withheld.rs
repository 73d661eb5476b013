//! A root partition that no boot loader and no kernel finds until what is in it is proven, and the mark of an
//! installation that is under way.
//!
//! It is the partition table that says "nothing here yet": before anything else is touched the disk gets our table,
//! with the root partition's start and a size of zero, which every reader of such a table passes over. The kernel
//! is told of the partition in so many words. The entry gets its size after the proof is on the medium. So an
//! installation that is broken off anywhere leaves a disk that is known for what it is.

use std::fs::File;
use std::os::unix::fs::FileExt;

use piman_core::install::Stage;
use piman_core::install::layout::{Layout, SECTOR};
use piman_core::install::mbr::{LINUX, Mbr, Partition};

use super::table::{Planned, read_table};
use super::{Disk, RootArea, wipe};
use crate::failure::{Cause, Failure, OrFail};

type Sector = [u8; SECTOR as usize];

/// An installation that is under way.
#[derive(Debug)]
#[must_use = "the disk has no root partition until it is shown"]
pub struct Begun {
    /// The first sector as it was.
    before: Sector,
    /// The table as it is to be when the root partition is complete.
    table: Mbr,
    /// Whether the boot partition that is there stays.
    keep_boot: bool,
}

/// The table without its root partition.
fn withheld(table: &Mbr) -> Mbr {
    let mut table = table.clone();
    let [_, root, ..] = &mut table.partitions;
    root.sectors = 0;
    table
}

impl Disk {
    /// Writes down that an installation begins. From here on the disk counts as one whose installation was not
    /// finished.
    ///
    /// # Errors
    /// [`Cause::Disk`] if the layout does not fit, and nothing was changed then; or if the disk cannot be written.
    pub fn begin(&self, layout: &Layout) -> Result<Begun, Failure> {
        let root = self.root_area(layout)?;
        let what = format!("making the partition table of {self}");
        let planned = Planned::new(self, layout, &root, read_table(&self.file).ok()).or_fail(
            Stage::Partition,
            Cause::Disk,
            what,
        )?;
        let mut before = [0; SECTOR as usize];
        if let Err(e) = self.file.read_exact_at(&mut before, 0) {
            // It was ordered to erase what cannot be read.
            log::warn!("the first sector of {self} cannot be read: {e}");
        }
        let keep_boot = planned.keep_boot && self.has_boot_filesystem(layout);
        let begun = Begun { before, table: planned.table, keep_boot };
        let mut mark = withheld(&begun.table);
        if let ([boot, ..], false) = (&mut mark.partitions, keep_boot) {
            // One that comes back to this disk must not take what lies there for a boot partition of ours.
            *boot = Partition::default();
        }
        self.put_table(&mark.write(), Stage::Partition)?;
        Ok(begun)
    }

    /// Undoes [`Self::begin`].
    ///
    /// # Errors
    /// [`Cause::Disk`] if the disk cannot be written.
    pub fn give_back(&self, begun: &Begun) -> Result<(), Failure> {
        self.put_table(&begun.before, Stage::Disk)
    }

    /// Wipes what others would recognise, and writes the partition table, still without the root partition, and an
    /// empty boot partition. A boot partition in its place keeps what is in it, whoever made it.
    ///
    /// # Errors
    /// [`Cause::Disk`] if the disk cannot be written.
    pub fn partition(&self, layout: &Layout, begun: &Begun) -> Result<RootArea, Failure> {
        let root = self.root_area(layout)?;
        let what = format!("wiping what is left of other filesystems and tables on {self}");
        wipe::signatures(self, layout, &root, begun.keep_boot).or_fail(
            Stage::Partition,
            Cause::Disk,
            what,
        )?;
        let what = format!("making the boot partition of {self}");
        self.boot_partition(layout, begun.keep_boot).or_fail(Stage::Partition, Cause::Disk, what)?;
        self.sync(Stage::Partition)?;
        self.put_table(&withheld(&begun.table).write(), Stage::Partition)?;
        Ok(root)
    }

    /// Gives the root partition to the table on the disk.
    ///
    /// # Errors
    /// [`Cause::Disk`] if the disk cannot be written.
    pub fn show_root(&self, begun: &Begun) -> Result<(), Failure> {
        self.put_table(&begun.table.write(), Stage::Commit)
    }

    fn put_table(&self, sector: &Sector, stage: Stage) -> Result<(), Failure> {
        let what = format!("writing the partition table of {self}");
        self.file.write_all_at(sector, 0).or_fail(stage, Cause::Disk, what)?;
        self.sync(stage)
    }
}

/// Whether a disk's root partition is withheld: an installation began and did not end.
#[must_use]
pub fn is_root_withheld(disk: &File) -> bool {
    read_table(disk).is_ok_and(|table| {
        let [_, root, ..] = table.partitions;
        root.kind == LINUX && root.first > 0 && root.sectors == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::disk::root_in_table;

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
        let begun = disk.begin(&layout).unwrap();
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
        let begun = disk.begin(&layout).unwrap();
        assert!(begun.keep_boot && is_root_withheld(disk.file()));
        disk.give_back(&begun).unwrap();
        assert_eq!(first(&disk), shown);
        let _ = disk.begin(&layout).unwrap();
        let again = disk.begin(&layout).unwrap();
        assert!(again.keep_boot);
        disk.show_root(&again).unwrap();
        assert_eq!(first(&disk), shown);
    }
}
