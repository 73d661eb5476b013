//! What both paths do first: from here on the card does not count as installed.

use std::os::unix::fs::FileExt;

use piman_core::install::Stage;

use crate::disk::{Disk, RootArea, root_in_table};
use crate::failure::{Cause, Failure, OrFail};

/// Destroys the proof of what is installed, and then partitions the disk.
pub(super) fn erase_proof(
    disk: &Disk,
    layout: &piman_core::install::layout::Layout,
) -> Result<RootArea, Failure> {
    // Where the old table has its root filesystem, which may be another place than ours.
    if let Some(old) = root_in_table(disk.file(), disk.bytes()) {
        zero_first_block(disk, &old)?;
    }
    let root = disk.partition(layout)?;
    zero_first_block(disk, &root)?;
    Ok(root)
}

/// Without its first block a filesystem is none.
fn zero_first_block(disk: &Disk, root: &RootArea) -> Result<(), Failure> {
    let what = || format!("erasing the old root filesystem of {disk}");
    disk.file().write_all_at(&[0; 4096], root.offset).or_fail(Stage::Partition, Cause::Disk, what())?;
    disk.sync(Stage::Partition)
}
