//! Path B: the image that the server made, chunk by chunk at its place, and then as large as the partition.

use std::sync::Arc;

use piman_core::install::table::Scope;
use piman_core::install::{ImageOffer, Offer, Stage};

use super::erase::erase_proof;
use super::personal::Personality;
use super::{Done, Plan};
use crate::card::disk::{Disk, RootArea};
use crate::card::mount::Mounted;
use crate::failure::{Cause, Failure, OrFail};
use crate::image::{self, Area, Order, Retry};
use crate::telemetry::progress::Progress;
use piman_core::install::receipt::{Proof, Way};

pub(super) fn install(
    plan: &Plan,
    disk: &Disk,
    kept: Option<RootArea>,
    (offer, image, personal): (&Offer, &ImageOffer, &Personality),
    progress: &Arc<Progress>,
) -> Result<Done, Failure> {
    let root = disk.root_area(&plan.layout)?;
    let direct = disk.direct()?;
    let area = Area::new(disk.file(), &direct, root);
    let order = Order { offer: image, archive: offer.id, retry: Retry::default(), progress };
    let connect = || super::dial(plan, offer.fetch_port);
    progress.begin(Stage::Partition, 0);
    // Nothing is erased before the chunk table is here and right.
    let mut begun = None;
    let erase = |_: &Scope| {
        begun = Some(erase_proof(disk, plan, kept)?.1);
        Ok(())
    };
    let mut pending = image::install(connect, &order, &area, erase)?;
    progress.begin(Stage::Filesystem, 0);
    image::grow(&area, &mut pending)?;
    if let Some(begun) = &mut begun {
        personal.image((plan, disk), begun, (&area, root), &mut pending, progress)?;
    }
    progress.begin(Stage::Commit, 0);
    let proof = Proof::now(offer.id, Way::Image, offer.more).encode();
    image::commit(&area, &pending, &proof)?;
    if let Some(begun) = &begun {
        disk.show_root(begun)?;
    }
    let summary = pending.summary;
    summary.log();
    let mounted = plan.boot_from.as_ref().map(|place| {
        progress.begin(Stage::Mount, 0);
        Mounted::new(&disk.root_node(&root)?, place)
    });
    if disk.is_device() && mounted.is_none() {
        // Whoever mounts it next must not see what the kernel knew of the old partitions.
        disk.root_node(&root).map(drop).or_fail(
            Stage::Mount,
            Cause::Disk,
            "showing the partitions to the kernel",
        )?;
    }
    Ok(Done {
        image: offer.id,
        way: Way::Image,
        received: summary.fetched_bytes,
        written: summary.written_bytes,
        area: Some(root),
        root: mounted.transpose()?,
    })
}
