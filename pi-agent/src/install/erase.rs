//! What both paths do first: from here on the card does not count as installed.

use std::os::unix::fs::FileExt;

use piman_core::install::Stage;
use piman_core::install::layout::Layout;

use super::Plan;
use super::capacity::probe;
use crate::card::disk::{Begun, Disk, RootArea};
use crate::card::inspect;
use crate::card::whole_disk::proofs_at;
use crate::failure::{Cause, Failure, OrFail};
use crate::image::Area;
use crate::trust;

/// The size of a first block, in bytes.
const BLOCK: usize = 4096;

/// Marks the disk as one whose installation is under way, destroys the proof of what is installed, tries whether the
/// disk has the room that it says, and then partitions it. A disk that has not gets back what was taken from it. `kept`
/// is what [`super::keep::check`] found.
pub(super) fn erase_proof(
    disk: &Disk,
    plan: &Plan,
    kept: Option<RootArea>,
) -> Result<(RootArea, Begun), Failure> {
    let layout = &plan.layout;
    let root = disk.root_area(layout)?;
    let keeping = || format!("keeping on {disk} which image it had");
    let counter = trust::raise(disk.file(), disk.bytes(), layout);
    let counter = counter.or_fail(Stage::Partition, Cause::Disk, keeping())?;
    // Where the old table has its root filesystem, which may be another place than ours.
    let old = inspect::root(disk.file(), disk.bytes()).filter(|old| old.offset != root.offset);
    // And the proofs of a whole disk's image, which are found by that table.
    let proofs = proofs_at(disk.file(), disk.bytes()).unwrap_or_default();
    let areas = old.iter().chain([&root]).map(|area| area.offset);
    let firsts: Vec<u64> = areas.chain(proofs).collect();
    let mut before = vec![[0; BLOCK]; firsts.len()];
    for (at, block) in firsts.iter().zip(&mut before) {
        if let Err(e) = disk.file().read_exact_at(block, *at) {
            // It was ordered to erase what cannot be read; what cannot be written ends the installation.
            log::warn!("byte {at} of {disk} cannot be read: {e}");
        }
    }
    let begun = disk.begin(layout, kept)?;
    // Without its first block nothing is a filesystem.
    for at in &firsts {
        write_first_block(disk, *at, &[0; BLOCK])?;
    }
    disk.sync(Stage::Partition)?;
    let direct = disk.direct()?;
    if let Err(failure) = probe(&Area::new(disk.file(), &direct, root)) {
        for (at, block) in firsts.iter().zip(&before) {
            write_first_block(disk, *at, block)?;
        }
        disk.sync(Stage::Disk)?;
        disk.give_back(&begun)?;
        return Err(failure);
    }
    // Also where the image of a whole disk had something of its own, which goes now.
    trust::remember(disk.file(), counter, layout, None).or_fail(Stage::Partition, Cause::Disk, keeping())?;
    super::keep_device(plan, disk, None);
    if plan.discard {
        discard(disk, layout, &begun)?;
    }
    let root = disk.partition(layout, &begun)?;
    if let Some(label) = plan.keep.label() {
        disk.make_data(layout, &begun, label, now())?;
    }
    write_first_block(disk, root.offset, &[0; BLOCK])?;
    disk.sync(Stage::Partition)?;
    Ok((root, begun))
}

/// That the disk does not take it is no reason to fail: it is only faster where it does.
fn discard(disk: &Disk, layout: &Layout, begun: &Begun) -> Result<(), Failure> {
    for area in disk.to_be_written(layout, begun)? {
        if let Err(e) = disk.discard(area) {
            log::warn!("{disk} cannot be told that what is on it is not needed (--discard): {e}");
            return Ok(());
        }
    }
    log::info!("{disk} was told that what is on it is not needed");
    Ok(())
}

/// The time, in seconds since 1970.
pub(super) fn now() -> i64 {
    i64::try_from(std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_secs())).unwrap_or(0)
}

fn write_first_block(disk: &Disk, at: u64, block: &[u8; BLOCK]) -> Result<(), Failure> {
    let what = format!("erasing the old root filesystem of {disk}");
    disk.file().write_all_at(block, at).or_fail(Stage::Partition, Cause::Disk, what)
}
