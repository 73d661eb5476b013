//! A root partition that no boot loader and no kernel finds until what is in it is proven.
//!
//! The archive path extracts into a filesystem that the kernel has mounted, and the kernel keeps
//! that filesystem valid all the time. So it is the partition table on the disk that says
//! "nothing here yet": the root partition's entry has its start but a size of zero, which every
//! reader of such a table passes over. The running kernel goes on with the partition that it
//! knows. The entry gets its size back after the proof is on the medium.

use std::fs::File;
use std::os::unix::fs::FileExt;

use piman_core::install::Stage;
use piman_core::install::layout::SECTOR;

use super::Disk;
use crate::failure::{Cause, Failure, OrFail};

/// Where the second entry of the table begins.
const ENTRY: usize = 446 + 16;
/// Where the entry has its partition's type, start and size.
const TYPE: usize = ENTRY + 4;
const START: std::ops::Range<usize> = ENTRY + 8..ENTRY + 12;
const SIZE: std::ops::Range<usize> = ENTRY + 12..ENTRY + 16;

type Sector = [u8; SECTOR as usize];

/// The first sector as it is to be when the root partition is complete.
#[derive(Debug)]
#[must_use = "the disk has no root partition until it is shown"]
pub struct Withheld(Sector);

impl Disk {
    /// Takes the root partition out of the table on the disk. Call it after the kernel took note
    /// of the partitions.
    ///
    /// # Errors
    /// [`Cause::Disk`] if the disk cannot be read or written.
    pub fn withhold_root(&self) -> Result<Withheld, Failure> {
        let mut sector: Sector = [0; SECTOR as usize];
        let what = format!("reading the partition table of {self}");
        self.file.read_exact_at(&mut sector, 0).or_fail(Stage::Partition, Cause::Disk, what)?;
        let whole = Withheld(sector);
        if let Some(size) = sector.get_mut(SIZE) {
            size.fill(0);
        }
        self.put_table(&sector, Stage::Partition)?;
        Ok(whole)
    }

    /// Gives the root partition back to the table on the disk.
    ///
    /// # Errors
    /// [`Cause::Disk`] if the disk cannot be written.
    pub fn show_root(&self, withheld: &Withheld) -> Result<(), Failure> {
        self.put_table(&withheld.0, Stage::Commit)
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
    let mut sector: Sector = [0; SECTOR as usize];
    let read = disk.read_exact_at(&mut sector, 0).is_ok();
    let is_zero = |range| sector.get(range).is_some_and(|bytes: &[u8]| bytes.iter().all(|b| *b == 0));
    read && sector.ends_with(&[0x55, 0xaa])
        && sector.get(TYPE) == Some(&0x83)
        && is_zero(SIZE)
        && !is_zero(START)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::disk::root_in_table;
    use piman_core::install::layout::Layout;

    #[test]
    fn nobody_finds_a_root_partition_until_it_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::create(&folder.path().join("card"), 128 << 20).unwrap();
        let area = disk.partition(&Layout::default()).unwrap();
        let first = || {
            let mut sector = [0; 512];
            disk.file().read_exact_at(&mut sector, 0).unwrap();
            sector
        };
        let before = first();
        assert!(!is_root_withheld(disk.file()));
        let withheld = disk.withhold_root().unwrap();
        assert_eq!(root_in_table(disk.file(), disk.bytes()), None);
        assert!(is_root_withheld(disk.file()));
        let changed: Vec<usize> = (0..512).filter(|at| first()[*at] != before[*at]).collect();
        assert!(!changed.is_empty() && changed.iter().all(|at| SIZE.contains(at)), "{changed:?}");
        disk.show_root(&withheld).unwrap();
        assert_eq!(first(), before);
        assert_eq!(root_in_table(disk.file(), disk.bytes()), Some(area));
        // An installation that begins anew gives it its size back, too.
        let _ = disk.withhold_root().unwrap();
        assert_eq!(disk.partition(&Layout::default()).unwrap(), area);
        assert_eq!(first(), before);
    }
}
