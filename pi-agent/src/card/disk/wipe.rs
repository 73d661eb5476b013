//! Takes away what others would recognise: a signature of an old filesystem or RAID behind the new one makes mounting
//! by UUID fail, and a copy of a GPT comes back to life.

use std::os::unix::fs::FileExt;

use piman_core::install::gpt::{self, Copy};
use piman_core::install::layout::{Layout, SECTOR};

use super::{Disk, RootArea};
use crate::card::content::filesystem;
use crate::card::content::source::{DiskSource, Region};
use crate::card::content::table::gpt_headers;

/// What stays as it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    /// The boot partition.
    pub(super) boot: bool,
    /// The partition behind the root partition.
    pub(super) data: bool,
    /// The GPT, which is ours.
    pub(super) gpt: bool,
}

/// Wipes signatures on the whole disk and where its partitions will be, but for what is kept.
pub(super) fn signatures(
    disk: &Disk,
    layout: &Layout,
    root: &RootArea,
    data: Option<RootArea>,
    kept: Kept,
) -> std::io::Result<()> {
    let source = DiskSource { file: disk.file(), bytes: disk.bytes(), sector: disk.sector() };
    let whole = Region::whole(&source);
    let boot = RootArea { offset: layout.boot_start * SECTOR, length: layout.boot_sectors * SECTOR };
    let mut found: Vec<(u64, u64)> = gpt_headers(&whole).into_iter().map(|at| (at, SECTOR)).collect();
    let parts = [Some(boot), Some(*root), data].into_iter().flatten();
    for region in [whole].into_iter().chain(parts.map(|area| whole.part(area.offset, area.length))) {
        let places = filesystem::signatures(&region).into_iter();
        found.extend(places.map(|(at, length)| (region.offset() + at, length)));
    }
    // The first sector is the table.
    let mut keep = vec![RootArea { offset: 0, length: SECTOR }];
    if kept.gpt {
        let copies = [Copy::First, Copy::Last];
        let places = copies.map(|copy| gpt::place(copy, disk.sector(), disk.bytes() / disk.sector()));
        keep.extend(places.map(|(offset, length)| RootArea { offset, length }));
    }
    keep.extend(Some(boot).filter(|_| kept.boot).into_iter().chain(data.filter(|_| kept.data)));
    let is_kept = |at: u64| keep.iter().any(|area| (area.offset..area.offset + area.length).contains(&at));
    for (at, length) in found.into_iter().filter(|(at, _)| !is_kept(*at)) {
        zero(disk, at, length)?;
    }
    if !kept.gpt {
        // Where a GPT has its entries. A partition that begins there may be one that is kept.
        let end = gpt::table_bytes(disk.sector()).min(boot.offset).min(root.offset);
        zero(disk, SECTOR, end.saturating_sub(SECTOR))?;
    }
    disk.file().sync_data()
}

fn zero(disk: &Disk, at: u64, length: u64) -> std::io::Result<()> {
    let zeros = vec![0; usize::try_from(length).unwrap_or(0)];
    disk.file().write_all_at(&zeros, at)
}
