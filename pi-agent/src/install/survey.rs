//! Opens the disk and finds out what is on it.

use std::path::Path;

use piman_core::install::layout::SECTOR;

use super::Plan;
use crate::card::disk::{Disk, RootArea, read_only_node};
use crate::card::inspect::{self, Card, Found};
use crate::card::mount::Mounted;
use crate::card::scratch_dir::ScratchDir;
use crate::failure::Failure;

pub(super) fn open(plan: &Plan, path: &Path) -> Result<(Disk, RootArea), Failure> {
    let disk = match plan.size {
        Some(bytes) => Disk::create(path, bytes)?,
        None => Disk::open(path)?,
    };
    let root = disk
        .root_area(&plan.layout)
        .map_err(|f| Failure { error: f.error.context(format!("{disk}, of {} bytes", disk.bytes())), ..f })?;
    Ok((disk, root))
}

/// Finds out what is on a disk. Nothing is written, but for the journal of what is ours, which the kernel
/// replays as it would to boot it.
pub(super) fn judge(plan: &Plan, disk: Disk, as_root: bool) -> Result<(Disk, Found), Failure> {
    let (disk, found) = survey(plan, disk, as_root)?;
    let is_ours = matches!(found.card, Card::Installed(_));
    if !(is_ours && as_root && inspect::has_journal_to_replay(disk.file(), disk.bytes())) {
        return Ok((disk, found));
    }
    let replayed = replay(&disk);
    // The kernel has let go of the partition; from here on it is ours alone again.
    let disk = reopen(plan, disk)?;
    match (replayed, found) {
        (Err(failure), Found { card: Card::Installed(proof), contents, print }) => {
            let why = format!("its journal cannot be replayed ({failure})");
            let card = Card::Damaged { proof, why, mounts: false };
            Ok((disk, Found { card, contents, print }))
        }
        _ => survey(plan, disk, as_root),
    }
}

fn survey(plan: &Plan, disk: Disk, as_root: bool) -> Result<(Disk, Found), Failure> {
    let found = {
        let node = |root: &RootArea| {
            let looped = read_only_node(disk.file(), root);
            // Without loop devices by the partition itself.
            looped.or_else(
                |e| if disk.is_device() { disk.root_node(root).map_err(|f| f.error) } else { Err(e) },
            )
        };
        let node: inspect::Node<'_> = &node;
        let id = disk.id();
        let places = [plan.layout.boot_start * SECTOR, plan.layout.root_start * SECTOR];
        inspect::survey(disk.file(), disk.bytes(), id.as_deref(), &places, as_root.then_some(node))
    };
    if disk.is_claimed() {
        return Ok((disk, found));
    }
    Ok((reopen(plan, disk)?, found))
}

/// The same disk again, after something else had it.
fn reopen(plan: &Plan, disk: Disk) -> Result<Disk, Failure> {
    let (path, seen) = (disk.path().to_owned(), disk.seen());
    drop(disk);
    let disk = open(plan, &path)?.0;
    disk.is_still(&seen)?;
    Ok(disk)
}

/// Has the kernel replay the journal of a system that was switched off, as it would to boot it.
fn replay(disk: &Disk) -> Result<(), Failure> {
    let Some(root) = inspect::root(disk.file(), disk.bytes()) else { return Ok(()) };
    let place = ScratchDir::scratch()?;
    Mounted::new(&disk.root_node(&root)?, place.path()).map(drop)
}
