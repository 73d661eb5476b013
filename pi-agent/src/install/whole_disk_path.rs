//! Path B for the image of a whole disk: its chunks, its table fitted to this disk, its last filesystem grown, and a
//! proof in the gap before the first partition.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::anyhow;
use piman_core::install::layout::SECTOR;
use piman_core::install::mbr::{LINUX, Mbr, Partition};
use piman_core::install::receipt::{Proof, Way};
use piman_core::install::table::{Scope, WholeDisk};
use piman_core::install::{ImageOffer, Offer, Stage};

use super::capacity::probe;
use super::personal::Personality;
use super::{Done, Plan};
use crate::card::content::filesystem::{is_ext, signatures};
use crate::card::content::source::Region;
use crate::card::content::table::{self, Part, Table, gpt_headers};
use crate::card::disk::{Disk, Planned, RootArea};
use crate::card::mount::Mounted;
use crate::card::scratch_dir::ScratchDir;
use crate::card::whole_disk::{is_in_gap, marks, proofs_at, root_of};
use crate::failure::{Cause, Failure, OrFail};
use crate::image::{self, Area, Order, Retry};
use crate::telemetry::display::size;
use crate::telemetry::progress::Progress;
use crate::trust;

/// What offsets and lengths on the disk are a multiple of, in bytes.
const BLOCK: u64 = 4096;

pub(super) fn install(
    plan: &Plan,
    disk: &Disk,
    as_root: bool,
    (offer, image, personal): (&Offer, &ImageOffer, &Personality),
    progress: &Arc<Progress>,
) -> Result<Done, Failure> {
    let direct = disk.direct()?;
    let whole = RootArea { offset: 0, length: disk.bytes() / BLOCK * BLOCK };
    let area = Area::new(disk.file(), &direct, whole);
    let order = Order { offer: image, archive: offer.id, retry: Retry::default(), progress };
    let connect = || super::dial(plan, offer.fetch_port);
    progress.begin(Stage::Partition, 0);
    // Nothing is erased before the chunk table is here and right.
    let mut found = None;
    let erase = |scope: &Scope| {
        let Scope::Disk(of) = *scope else { return Ok(()) };
        check_sector(disk, of)?;
        personal.check_whole_disk(of.root)?;
        found = Some(of);
        erase_disk(plan, disk, &area)
    };
    let mut pending = image::install(connect, &order, &area, erase)?;
    let of = found.unwrap_or(WholeDisk { root: 0, grows: false, sector: 512 });

    let what = || format!("fitting the image's partition table to {disk}");
    let planned = Planned::new(disk, pending.first().to_vec(), of.grows);
    let mut planned = planned.or_fail(Stage::Commit, Cause::Image, what())?;
    planned.write_rest().or_fail(Stage::Commit, Cause::Disk, what())?;
    let table = table::read(&Region::whole(&planned)).map_err(|wrong| anyhow!("{wrong}"));
    let table = table.or_fail(Stage::Commit, Cause::Disk, what())?;
    if !is_in_gap(&table, pending.proof_offset()) {
        return Err(no_gap());
    }
    let region = Region::whole(&planned);
    wipe_left_over(disk, &region, &table, pending.covered()).or_fail(Stage::Commit, Cause::Disk, what())?;
    if of.grows {
        grow(disk, as_root, &region, &table, progress)?;
    }
    let root = root_of(&region, &table, of.root).map_err(|wrong| anyhow!("{wrong}"));
    let root = root.or_fail(Stage::Commit, Cause::Disk, what())?;
    personal.whole_disk(disk, &mut planned, (&table, root), progress)?;
    // Bound to the identifiers that the disk has in the end.
    let marks = marks(&Region::whole(&planned), of.root).map_err(|wrong| anyhow!("{wrong}"));
    let marks = marks.or_fail(Stage::Commit, Cause::Disk, what())?.0;

    progress.begin(Stage::Commit, 0);
    pending.set_first(planned.first().to_vec());
    let proof = Proof { disk: Some(marks), ..Proof::now(offer.id, Way::Image, offer.more) };
    image::commit(&area, &pending, &proof.encode())?;
    let summary = pending.summary;
    summary.log();
    // Whoever mounts it next must not see what the kernel knew of the old partitions.
    disk.show_partitions();
    let mounted = plan.boot_from.as_ref().zip(root.as_ref()).and_then(|(place, root)| {
        progress.begin(Stage::Mount, 0);
        let mounted = disk.root_node(root).and_then(|node| Mounted::new(&node, place));
        // It is installed all the same.
        mounted.inspect_err(|failure| log::warn!("{failure}")).ok()
    });
    Ok(Done {
        image: offer.id,
        way: Way::Image,
        received: summary.fetched_bytes,
        written: summary.written_bytes,
        area: root,
        root: mounted,
    })
}

/// What has the proof somewhere else would never be known again.
fn no_gap() -> Failure {
    let error = anyhow!(
        "the chunk table of the image leaves no room in front of the first partition for a proof: add the image again on the \
         server"
    );
    Failure { stage: Stage::Commit, cause: Cause::Image, error }
}

/// The system on the disk cannot be switched into.
pub(super) fn boots_by_itself(disk: &Disk) -> Failure {
    let error = anyhow!(
        "{disk} holds an image whose root filesystem this agent cannot mount: it is a system that boots by itself; let \
         this Pi boot from its card first, and from the network only without a card (BOOT_ORDER in its EEPROM)"
    );
    Failure { stage: Stage::Mount, cause: Cause::Refused, error }
}

/// A table counts in sectors: on a disk with others its partitions would lie elsewhere.
fn check_sector(disk: &Disk, of: WholeDisk) -> Result<(), Failure> {
    let (made_for, has) = (u64::from(of.sector), disk.sector());
    if made_for == has {
        return Ok(());
    }
    let error = anyhow!(
        "the image is one for disks with sectors of {made_for} bytes, and {disk} has sectors of {has} bytes: take \
         another disk or another image; nothing was changed"
    );
    Err(Failure { stage: Stage::Disk, cause: Cause::Refused, error })
}

/// Marks the disk as one whose installation is under way, tries whether it has the room that it says, and takes away
/// what others would recognise of what was on it. A disk that has not the room gets back what was taken from it.
fn erase_disk(plan: &Plan, disk: &Disk, area: &Area<'_>) -> Result<(), Failure> {
    let what = || format!("erasing what was on {disk}");
    let counter = trust::raise(disk.file(), disk.bytes(), &plan.layout).or_fail(
        Stage::Partition,
        Cause::Disk,
        format!("keeping on {disk} which image it had"),
    )?;
    let mut before = [0; SECTOR as usize];
    if let Err(e) = disk.file().read_exact_at(&mut before, 0) {
        // It was ordered to erase what cannot be read; what cannot be written ends the installation.
        log::warn!("byte 0 of {disk} cannot be read: {e}");
    }
    // Where a proof lies is known by the table that goes now.
    let proofs = proofs_at(disk.file(), disk.bytes()).unwrap_or_default();
    let mut withheld = Mbr::new(0);
    let [_, root, ..] = &mut withheld.partitions;
    *root = Partition::new(LINUX, 8192, 0);
    put(disk, 0, &withheld.write()).or_fail(Stage::Partition, Cause::Disk, what())?;
    if let Err(failure) = probe(area) {
        put(disk, 0, &before).or_fail(Stage::Disk, Cause::Disk, what())?;
        return Err(failure);
    }
    let first = trust::first_block(&withheld.write(), counter, plan.device.as_ref());
    put(disk, 0, &first).or_fail(Stage::Partition, Cause::Disk, what())?;
    if plan.discard {
        let behind = RootArea { offset: BLOCK, length: disk.bytes().saturating_sub(BLOCK) };
        match disk.discard(behind) {
            Ok(()) => log::info!("{disk} was told that what is on it is not needed"),
            Err(e) => log::warn!("{disk} cannot be told that what is on it is not needed (--discard): {e}"),
        }
    }
    let wipe = || {
        for at in proofs {
            put(disk, at, &[0; BLOCK as usize])?;
        }
        let source = crate::card::content::source::DiskSource {
            file: disk.file(),
            bytes: disk.bytes(),
            sector: disk.sector(),
        };
        for at in gpt_headers(&Region::whole(&source)) {
            put(disk, at, &[0; SECTOR as usize])?;
        }
        Ok::<(), std::io::Error>(())
    };
    wipe().or_fail(Stage::Partition, Cause::Disk, what())
}

fn put(disk: &Disk, at: u64, bytes: &[u8]) -> std::io::Result<()> {
    disk.file().write_all_at(bytes, at)?;
    disk.file().sync_data()
}

/// Wipes what others would recognise on the disk and in its partitions, where the image has nothing of its own.
fn wipe_left_over(
    disk: &Disk,
    whole: &Region<'_>,
    table: &Table,
    covered: &[(u64, u64)],
) -> std::io::Result<()> {
    let parts = table.parts.iter().map(|part| whole.part(part.offset, part.length));
    for region in [*whole].into_iter().chain(parts) {
        for (at, length) in signatures(&region) {
            let at = region.offset() + at;
            let next = covered.partition_point(|(_, end)| *end <= at);
            if covered.get(next).is_none_or(|(start, _)| at + length <= *start) {
                put(disk, at, &vec![0; usize::try_from(length).unwrap_or(0)])?;
            }
        }
    }
    Ok(())
}

/// Grows the filesystem of the last partition. What cannot be grown boots all the same, and says so.
fn grow(
    disk: &Disk,
    as_root: bool,
    whole: &Region<'_>,
    table: &Table,
    progress: &Progress,
) -> Result<(), Failure> {
    let Some(Part { offset, length, .. }) = table.parts.iter().max_by_key(|part| part.offset) else {
        return Ok(());
    };
    let area = RootArea { offset: *offset, length: length / BLOCK * BLOCK };
    if !is_ext(&whole.part(area.offset, area.length)).unwrap_or(false) {
        return Ok(());
    }
    if !as_root {
        log::warn!("the last filesystem on {disk} keeps its size: to grow it needs root");
        return Ok(());
    }
    progress.begin(Stage::Filesystem, 0);
    let place = ScratchDir::scratch()?;
    let mounted = match disk.root_node(&area).and_then(|node| Mounted::new(&node, place.path())) {
        Ok(mounted) => mounted,
        Err(failure) => {
            log::warn!("the last filesystem on {disk} keeps its size: {failure}");
            return Ok(());
        }
    };
    match mounted.grow(area.length) {
        Ok(()) => log::info!("the last filesystem on {disk} has {} now", size(area.length)),
        Err(e) => log::warn!("the last filesystem on {disk} keeps its size: growing it: {e:#}"),
    }
    mounted.sync().or_fail(Stage::Sync, Cause::Disk, format!("bringing the grown filesystem to {disk}"))
}
