//! Takes away what others would recognise: a signature of an old filesystem or RAID behind the new one makes mounting
//! by UUID fail, and a copy of a GPT comes back to life.

use std::os::unix::fs::FileExt;

use piman_core::install::layout::{Layout, SECTOR};

use super::{Disk, RootArea};
use crate::card::content::filesystem;
use crate::card::content::source::{DiskSource, Region};
use crate::card::content::table::gpt_headers;

/// Wipes signatures on the whole disk and where its partitions will be. A boot partition that is kept stays as it is.
pub(super) fn signatures(
    disk: &Disk,
    layout: &Layout,
    root: &RootArea,
    keep_boot: bool,
) -> std::io::Result<()> {
    let source = DiskSource { file: disk.file(), bytes: disk.bytes(), sector: disk.sector() };
    let whole = Region::whole(&source);
    let (boot_start, boot_bytes) = (layout.boot_start * SECTOR, layout.boot_sectors * SECTOR);
    let mut found: Vec<(u64, u64)> = gpt_headers(&whole).into_iter().map(|at| (at, SECTOR)).collect();
    for region in [whole, whole.part(boot_start, boot_bytes), whole.part(root.offset, root.length)] {
        let places = filesystem::signatures(&region).into_iter();
        found.extend(places.map(|(at, length)| (region.offset() + at, length)));
    }
    // The first sector is the table.
    let kept = |at: u64| at < SECTOR || keep_boot && (boot_start..boot_start + boot_bytes).contains(&at);
    for (at, length) in found.into_iter().filter(|(at, _)| !kept(*at)) {
        zero(disk, at, length)?;
    }
    // Where a GPT has its entries. A partition that begins there may be one that is kept.
    let entries = if disk.sector() == SECTOR { 34 * SECTOR } else { 6 * disk.sector() };
    let end = entries.min(boot_start).min(root.offset);
    zero(disk, SECTOR, end.saturating_sub(SECTOR))?;
    disk.file().sync_data()
}

fn zero(disk: &Disk, at: u64, length: u64) -> std::io::Result<()> {
    let zeros = vec![0; usize::try_from(length).unwrap_or(0)];
    disk.file().write_all_at(&zeros, at)
}
