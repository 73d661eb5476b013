//! What makes a card one Pi's own, and able to boot by itself: done when the image is on the card, and before the proof.
//!
//! | file | what lives there |
//! |---|---|
//! | `places` | the two places of a card, open to be changed |
//! | `apply` | the items of a bundle |
//! | `accounts` | accounts, as useradd makes them |
//! | `lines` | lines and words of texts |
//! | `identity` | what must differ between cards of one image |
//! | `boot` | boot files on the partition that the firmware reads |
//!
//! The card may hold anything. Nothing here knows a distribution: the server says what its system reads.

mod accounts;
mod apply;
mod boot;
mod identity;
mod lines;
mod places;

use std::path::Path;

use anyhow::{Context, ensure};
use piman_core::install::layout::{Layout, SECTOR};
use piman_core::install::personal::{Bundle, Item, Place, Renew};

use crate::card::content::filesystem::detect;
use crate::card::content::source::{DiskSource, Region};
use crate::card::content::table::Table;
use crate::card::content::table_of;
use crate::card::disk::{Begun, Disk, Planned, RootArea};
use crate::card::random;
pub(crate) use identity::Identifiers;
use places::Places;

/// What a bundle wants to be made new.
fn renewed(bundle: &Bundle<'_>) -> Renew {
    let mut all = Renew::default();
    for item in bundle.items() {
        if let Item::Identity(Renew { machine, host_keys, disk }) = item {
            all.machine |= machine;
            all.host_keys |= host_keys;
            all.disk |= disk;
        }
    }
    all
}

/// Whether a bundle wants new identifiers of the disk, its partitions and filesystems.
pub(crate) fn renews_disk(bundle: &Bundle<'_>) -> bool {
    renewed(bundle).disk
}

/// The first item that can only be carried out in a root filesystem. An identity is made new as far as there is one.
pub(crate) fn needs_root(bundle: &Bundle<'_>) -> Option<String> {
    let needs = |item: &Item<'_>| match item {
        Item::Identity(_) | Item::Word { .. } => false,
        Item::Folder { place, .. }
        | Item::File { place, .. }
        | Item::Remove { place, .. }
        | Item::Line { place, .. } => *place == Place::Root,
        Item::Link { .. } | Item::User(_) => true,
    };
    bundle.items().find(needs).map(|item| apply::name(&item))
}

/// Whether there is anything to do in a root filesystem.
pub(crate) fn is_nothing(bundle: &Bundle<'_>) -> bool {
    bundle.items().next().is_none()
}

/// Makes a card of our layout one Pi's own, and with `boots` able to boot by itself. Its root filesystem is mounted at
/// `root`; with `shared`, that came with the image and has its identifiers. What is returned has to be written when it is
/// not mounted any more.
///
/// # Errors
/// The first thing that cannot be done.
pub(crate) fn own_layout(
    disk: &Disk,
    (layout, begun): (&Layout, &mut Begun),
    (root, shared): (&Path, Option<RootArea>),
    boots: bool,
    bundle: &Bundle<'_>,
) -> anyhow::Result<Identifiers> {
    let renew = renewed(bundle);
    let mut identifiers = Identifiers::default();
    let boot = RootArea { offset: layout.boot_start * SECTOR, length: layout.boot_sectors * SECTOR };
    if renew.disk {
        for (old, new) in begun.renew()? {
            identifiers.mbr(old, new, 1..=4);
        }
        if let Some(area) = shared {
            identifiers.ext4(disk.file(), area, true)?;
        }
    }
    if boots {
        // With a number of its own, which is the same on all cards where nobody wants another.
        let serial = if renew.disk { random::number()? } else { layout.disk_id };
        disk.make_boot(layout, serial).context("making the boot partition's filesystem")?;
        let name = |number| begun.part_uuid(number).context("a partition has no identifier");
        boot::fill(disk.file(), &boot, root, (&name(1)?, &name(2)?))?;
    } else if renew.disk
        && let Err(e) = identifiers.fat(disk.file(), boot)
    {
        log::info!("the filesystem of the boot partition keeps its identifier: {e:#}");
    }
    change(disk, &[boot], Some(root), bundle, &identifiers)?;
    Ok(identifiers)
}

/// Makes a card with the image of a whole disk one Pi's own, before its first block and its proof are written. Its root
/// filesystem is mounted at the place in `root`, if an agent can, and `others_mount` says whether all other ext4 filesystems
/// can be; what is returned has to be written when it is not any more.
///
/// # Errors
/// The first thing that cannot be done.
pub(crate) fn whole_disk(
    disk: &Disk,
    (planned, table): (&mut Planned<'_>, &Table),
    (root, others_mount): (Option<(&Path, RootArea)>, bool),
    bundle: &Bundle<'_>,
) -> anyhow::Result<Identifiers> {
    let mut identifiers = Identifiers::default();
    let fats = fats(&Region::whole(planned), table);
    if renewed(bundle).disk {
        // Where text names disks that cannot be changed the system would not find them any more.
        let all_change = others_mount && places::are_readable(disk.file(), &fats);
        match root.as_ref().filter(|_| all_change) {
            Some((_, area)) => identifiers.whole_disk(disk.file(), planned, table, area)?,
            None => log::warn!(
                "{disk} keeps the identifiers of the image: not all that may name them can be changed"
            ),
        }
    }
    change(disk, &fats, root.map(|(path, _)| path), bundle, &identifiers)?;
    Ok(identifiers)
}

/// Does to a card that is installed what a bundle says. Its root filesystem is mounted at `root`, if an agent can.
///
/// # Errors
/// The first thing that cannot be done: what was done before it stays.
pub(crate) fn again(disk: &Disk, root: Option<&Path>, bundle: &Bundle<'_>) -> anyhow::Result<()> {
    ensure!(
        !renewed(bundle).disk,
        "the identifiers of a disk are only made new by an installation (a power cut in the middle of it would leave a \
         card that does not boot): order `piman reinstall` for this Pi"
    );
    let source = DiskSource { file: disk.file(), bytes: disk.bytes(), sector: disk.sector() };
    let whole = Region::whole(&source);
    let table = table_of(&whole).map_err(|wrong| anyhow::anyhow!("reading the partition table: {wrong}"))?;
    change(disk, &fats(&whole, &table), root, bundle, &Identifiers::default())
}

/// Where a table has FAT filesystems, in the order of their numbers.
fn fats(whole: &Region<'_>, table: &Table) -> Vec<RootArea> {
    let is_fat = |area: &RootArea| matches!(detect(&whole.part(area.offset, area.length)), Ok(Some(found)) if found.kind == "vfat");
    let areas = table.parts.iter().map(|part| RootArea { offset: part.offset, length: part.length });
    areas.filter(is_fat).collect()
}

fn change(
    disk: &Disk,
    fats: &[RootArea],
    root: Option<&Path>,
    bundle: &Bundle<'_>,
    identifiers: &Identifiers,
) -> anyhow::Result<()> {
    let renew = renewed(bundle);
    let places = Places::new(disk.file(), fats, root);
    if let Some(root) = root {
        identity::renew_system(root, renew)?;
    }
    apply::items(&places, bundle)?;
    identifiers.rewrite(&places)?;
    places.close()
}
