//! Path A: the archive as every server sends it, extracted into a filesystem made here.

use std::io;
use std::net::TcpStream;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use anyhow::anyhow;
use piman_core::install::sums::CHUNK;
use piman_core::install::{Offer, Stage};

use super::erase::{erase_proof, now};
use super::personal::Personality;
use super::{Done, Plan, readback, room};
use crate::card::disk::{Disk, RootArea};
use crate::card::mount::Mounted;
use crate::card::scratch_dir::ScratchDir;
use crate::failure::{Cause, Failure, OrFail};
use crate::fetch::{Link, Retry};
use crate::telemetry::progress::Progress;
use crate::unpack::{self, ChunkSource, Expected, LegacySource, Summary};
use piman_core::hosted::ext4;
use piman_core::install::receipt::{Proof, Way};

pub(super) fn install(
    plan: &Plan,
    disk: &Disk,
    kept: Option<RootArea>,
    (offer, personal): (Option<Offer>, &Personality),
    progress: &Arc<Progress>,
) -> Result<Done, Failure> {
    let checked = offer.is_some_and(|offer| offer.more.sums_chunk == CHUNK);
    if let (Some(key), false) = (&plan.key, checked) {
        // What is unpacked before it was checked may stay on the card, whatever comes of it later.
        let error = anyhow!(
            "the server has no chunk hashes of the archive, so nothing of it can be checked before it is unpacked \
             ({key}); give the Pi a server of this version; nothing was changed"
        );
        return Err(Failure { stage: Stage::Disk, cause: Cause::Refused, error });
    }
    if let Some(offer) = &offer {
        room::archive(offer, &disk.root_area(&plan.layout)?)?;
    }
    // Nothing is erased before the server has shown that it sends an archive.
    let link = Link::default();
    let connect = |port| move || super::dial(plan, port);
    let supply = Supply::open(connect, plan, offer, &link)?;
    progress.begin(Stage::Partition, 0);
    let (root, mut begun) = erase_proof(disk, plan, kept)?;
    progress.begin(Stage::Filesystem, 0);
    let entries = offer.map_or(0, |o| o.more.entries);
    ext4::format(disk.file(), root.offset, root.length, entries, "root", now()).or_fail(
        Stage::Filesystem,
        Cause::Disk,
        format!("making the root filesystem on {disk}"),
    )?;
    let node = disk.root_node(&root)?;
    progress.begin(Stage::Mount, 0);
    let place = ScratchDir::of(plan.boot_from.as_deref())?;
    let mounted = Mounted::new(&node, place.path())?;
    drop(node);

    mounted.begin().or_fail(Stage::Mount, Cause::Disk, format!("writing to the new filesystem on {disk}"))?;
    let directory = mounted.directory().or_fail(Stage::Transfer, Cause::Disk, "extracting")?;
    let summary = supply.install(&link, directory, progress)?;
    if summary.extracted.entries == 0 {
        let error = anyhow!("the archive has no entries: there is nothing to install");
        return Err(Failure { stage: Stage::Transfer, cause: Cause::Image, error });
    }
    personal.archive((plan, disk), &mut begun, &mounted, progress)?;

    progress.begin(Stage::Sync, 0);
    mounted.sync().or_fail(Stage::Sync, Cause::Disk, format!("bringing everything to {disk}"))?;
    readback::check(mounted.place())?;
    progress.begin(Stage::Commit, 0);
    let proof = Proof::now(summary.hash, Way::Archive, offer.map(|o| o.more).unwrap_or_default());
    mounted.write_proof(&proof).or_fail(
        Stage::Commit,
        Cause::Disk,
        format!("writing the proof to {disk}"),
    )?;
    disk.sync(Stage::Commit)?;
    disk.show_root(&begun)?;
    let root_area = root;
    let root = if plan.boot_from.is_some() {
        Some(mounted)
    } else {
        drop(mounted);
        None
    };
    drop(place);
    Ok(Done {
        image: summary.hash,
        way: Way::Archive,
        received: summary.bytes,
        written: summary.unpacked_bytes,
        area: Some(root_area),
        root,
    })
}

/// Where the archive comes from.
enum Supply<'l, F> {
    /// In checked chunks, from a server that has their hashes.
    ChunkSource(Box<ChunkSource<'l, F>>),
    /// As a whole, from any other.
    LegacySource(LegacySource<'l, F>, Option<Expected>),
}

impl<'l, F: FnMut() -> io::Result<TcpStream> + Send> Supply<'l, F> {
    /// Connects; the server has shown that it has what it offers.
    fn open(
        connect: impl FnOnce(u16) -> F,
        plan: &Plan,
        offer: Option<Offer>,
        link: &'l Link,
    ) -> Result<Self, Failure> {
        let expected = offer.map(|o| Expected { hash: o.id, bytes: o.bytes });
        let retry = Retry::default();
        if let (Some(offer), Some(expected)) = (offer, expected)
            && offer.more.sums_chunk == CHUNK
        {
            let ranges = ChunkSource::open(connect(offer.fetch_port), link, retry, expected)?;
            return Ok(Self::ChunkSource(Box::new(ranges)));
        }
        let port = offer.map_or(plan.server.rootfs_port, |o| o.rootfs_port);
        let whole = LegacySource::open(connect(port), link, retry, super::IDLE_TIMEOUT).or_fail(
            Stage::Disk,
            Cause::Network,
            "asking the server for the archive",
        )?;
        Ok(Self::LegacySource(whole, expected))
    }

    fn install(self, link: &Link, root: BorrowedFd<'_>, progress: &Progress) -> Result<Summary, Failure> {
        match self {
            Self::LegacySource(whole, expected) => {
                unpack::install_whole(whole, link, expected, root, progress)
            }
            Self::ChunkSource(mut ranges) => {
                let summary = unpack::install_ranges(&mut ranges, link, root, progress);
                let tally = ranges.tally;
                log::info!(
                    "{} bytes fetched, {} chunks repaired, {} broken connections",
                    tally.fetched_bytes,
                    tally.repaired,
                    tally.broken
                );
                summary
            }
        }
    }
}
