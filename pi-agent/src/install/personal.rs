//! What makes a card one Pi's own: fetched and judged before anything is erased, and carried out before the proof.

use std::path::Path;

use anyhow::{Context, anyhow};
use piman_core::install::fetch::{Kind, Request};
use piman_core::install::personal::{BYTES_MAX, Bundle};
use piman_core::install::receipt::Proof;
use piman_core::install::trust::seal::{OVERHEAD, is_sealed};
use piman_core::install::{BootPersonal, Offer, Personal, Stage};

use super::reporter::Reporter;
use super::{Outcome, Plan, dial};
use crate::card::content::filesystem::is_ext;
use crate::card::content::source::Region;
use crate::card::content::table::Table;
use crate::card::disk::{Begun, Disk, Planned, RootArea};
use crate::card::inspect::{self, Card};
use crate::card::mount::Mounted;
use crate::card::replace_proof::replace_proof;
use crate::card::scratch_dir::ScratchDir;
use crate::failure::{Cause, Failure, OrFail};
use crate::fetch::{Link, Retry, Source};
use crate::image::{self, Medium, Pending};
use crate::personalise::{self, Identifiers};
use crate::telemetry::progress::Progress;
use crate::trust::Device;

/// How often a lost connection is made again while the bundle is fetched: the server is asked again soon.
const TRIES: u32 = 6;
/// A bundle of nothing.
const NOTHING: &[u8] = b"piman-personal 1\n";

const WHAT: &str = "making the card this Pi's own";

/// What is done to a card beside the image.
pub(super) struct Personality {
    bundle: Vec<u8>,
    /// Whether it is to boot by itself.
    boots: bool,
}

impl Personality {
    /// That of an offer.
    ///
    /// # Errors
    /// [`Cause::Refused`] if this agent may not do it, [`Cause::Network`] if it cannot be fetched, [`Cause::Image`] if it
    /// is damaged.
    pub(super) fn offered(plan: &Plan, offer: Option<&Offer>, as_root: bool) -> Result<Self, Failure> {
        let (more, port) = offer.map(|o| (o.more, o.fetch_port)).unwrap_or_default();
        let whole_disk = offer.and_then(|o| o.image).is_some_and(|image| image.whole_disk);
        let bundle = more.personal.map(|of| fetch(plan, of, port)).transpose()?;
        let boots = more.boot_bytes > 0 && !whole_disk;
        let it = Self { bundle: bundle.unwrap_or_else(|| NOTHING.to_vec()), boots };
        if !as_root && (boots || !personalise::is_nothing(&it.bundle()?)) {
            return Err(refusal("to make the card this Pi's own needs root (it mounts a filesystem)"));
        }
        Ok(it)
    }

    /// Refuses what cannot be done to the image of a whole disk without a root filesystem that is known: asked before
    /// anything is erased.
    ///
    /// # Errors
    /// [`Cause::Refused`].
    pub(super) fn check_whole_disk(&self, root: u8) -> Result<(), Failure> {
        match personalise::needs_root(&self.bundle()?).filter(|_| root == 0) {
            Some(what) => Err(refusal(&format!(
                "{what} is for the root filesystem, and the image has none that is known: take it out of the profile of \
                 this Pi, or use another image"
            ))),
            None => Ok(()),
        }
    }

    /// It was read whole when it came.
    fn bundle(&self) -> Result<Bundle<'_>, Failure> {
        Bundle::parse(&self.bundle).or_fail(
            Stage::Personalise,
            Cause::Image,
            "reading what the server wants of the card",
        )
    }

    /// Whether there is nothing to do.
    fn is_nothing(&self) -> Result<bool, Failure> {
        Ok(!self.boots && personalise::is_nothing(&self.bundle()?))
    }

    /// Does it in a root filesystem that was made here, while it is mounted.
    pub(super) fn archive(
        &self,
        (plan, disk): (&Plan, &Disk),
        begun: &mut Begun,
        mounted: &Mounted,
        progress: &Progress,
    ) -> Result<(), Failure> {
        if self.is_nothing()? {
            return Ok(());
        }
        progress.begin(Stage::Personalise, 0);
        let (bundle, root) = (self.bundle()?, mounted.place());
        let done = personalise::own_layout(disk, (&plan.layout, begun), (root, None), self.boots, &bundle);
        let identifiers = done.or_fail(Stage::Personalise, Cause::Image, WHAT)?;
        write(disk, &identifiers)
    }

    /// Does it in a root filesystem that came as an image, whose first block is not on the disk yet.
    pub(super) fn image(
        &self,
        (plan, disk): (&Plan, &Disk),
        begun: &mut Begun,
        (area, root): (&impl Medium, RootArea),
        pending: &mut Pending,
        progress: &Progress,
    ) -> Result<(), Failure> {
        if self.is_nothing()? {
            return Ok(());
        }
        progress.begin(Stage::Personalise, 0);
        image::write_first(area, pending)?;
        let bundle = self.bundle()?;
        let place = ScratchDir::scratch()?;
        let mounted = Mounted::new(&disk.root_node(&root)?, place.path())?;
        let shared = (mounted.place(), Some(root));
        let done = personalise::own_layout(disk, (&plan.layout, begun), shared, self.boots, &bundle);
        let identifiers = done.or_fail(Stage::Personalise, Cause::Image, WHAT)?;
        unmount(disk, mounted)?;
        write(disk, &identifiers)?;
        image::read_first(area, pending)
    }

    /// Does it to the image of a whole disk, whose first block and proof are not on the disk yet.
    pub(super) fn whole_disk(
        &self,
        disk: &Disk,
        planned: &mut Planned<'_>,
        (table, root): (&Table, Option<RootArea>),
        progress: &Progress,
    ) -> Result<(), Failure> {
        if self.is_nothing()? {
            return Ok(());
        }
        progress.begin(Stage::Personalise, 0);
        let bundle = self.bundle()?;
        let place = ScratchDir::scratch()?;
        let root_at = root.map(|area| area.offset);
        // Another system on the disk, or what one of them mounts, may name the same partitions.
        let others_mount = !personalise::renews_disk(&bundle)
            || ext4_areas(planned, table)
                .filter(|area| Some(area.offset) != root_at)
                .all(|area| mount(disk, &area, place.path()).is_some());
        let mounted = root.and_then(|area| mount(disk, &area, place.path()).map(|mounted| (mounted, area)));
        let root = mounted.as_ref().map(|(mounted, area)| (mounted.place(), *area));
        let done = personalise::whole_disk(disk, (planned, table), (root, others_mount), &bundle);
        let identifiers = done.or_fail(Stage::Personalise, Cause::Image, WHAT)?;
        match mounted {
            Some((mounted, _)) => unmount(disk, mounted)?,
            None => disk.sync(Stage::Personalise)?,
        }
        let others = ext4_areas(planned, table).filter(|area| Some(area.offset) != root_at);
        for area in others.filter(|_| !identifiers.is_empty()) {
            let mounted = Mounted::new(&disk.root_node(&area)?, place.path())?;
            let done = identifiers.rewrite_in(disk, mounted.place());
            done.or_fail(Stage::Personalise, Cause::Image, WHAT)?;
            unmount(disk, mounted)?;
        }
        write(disk, &identifiers)?;
        planned.write_rest().or_fail(Stage::Personalise, Cause::Disk, WHAT)
    }
}

/// Does to the card what the server says, and boots it. A card that worked is not lost: where that fails, the server is
/// told, and what is there is booted.
///
/// # Errors
/// [`Failure`] if it cannot be booted.
pub(super) fn boot(
    plan: &Plan,
    disk: &Disk,
    card: Card,
    of: BootPersonal,
    (reporter, as_root): (Reporter<'_>, bool),
    progress: &Progress,
) -> Result<Outcome, Failure> {
    progress.begin(Stage::Personalise, 0);
    let card = match again(plan, disk, &card, of, as_root) {
        Ok(proof) => {
            let told = reporter.personalised(proof.image, proof.installation);
            log::info!(
                "{disk} is this Pi's own now{}",
                if told { "" } else { ", which the server sees when it asks again" }
            );
            Card::Installed(proof)
        }
        Err(failure) => {
            log::warn!("{failure}; the card boots as it is");
            reporter.tell_failed(&failure);
            card
        }
    };
    super::boot(plan, disk, card, reporter)
}

/// Does to a card that is installed what the server says, and writes it into its proof: what that says then.
///
/// # Errors
/// [`Failure`]; what was installed is still installed then.
fn again(plan: &Plan, disk: &Disk, card: &Card, of: BootPersonal, as_root: bool) -> Result<Proof, Failure> {
    let (Card::Installed(proof) | Card::Damaged { proof, mounts: true, .. }) = card else {
        return Err(refusal("the card holds no installation of piman's to make this Pi's own"));
    };
    if !as_root {
        return Err(refusal("to make the card this Pi's own needs root (it mounts a filesystem)"));
    }
    let bytes = fetch(plan, of.personal, of.fetch_port)?;
    let bundle = Bundle::parse(&bytes).or_fail(Stage::Personalise, Cause::Image, WHAT)?;
    let installation = of.installation.or(proof.installation);
    let proof = Proof { personal: Some(of.personal.hash), installation, ..proof.clone() };
    let what = || format!("writing what was done into the proof on {disk}");
    let place = ScratchDir::scratch()?;
    let root = inspect::root(disk.file(), disk.bytes());
    let in_gap = proof.disk.is_some();
    let mounted = match root {
        Some(area) if in_gap => mount(disk, &area, place.path()),
        Some(area) => Some(Mounted::new(&disk.root_node(&area)?, place.path())?),
        None => None,
    };
    personalise::again(disk, mounted.as_ref().map(Mounted::place), &bundle).or_fail(
        Stage::Personalise,
        Cause::Image,
        WHAT,
    )?;
    disk.sync(Stage::Personalise)?;
    if let Some(mounted) = mounted {
        mounted.sync().or_fail(Stage::Sync, Cause::Disk, format!("bringing everything to {disk}"))?;
        if !in_gap {
            mounted.write_proof(&proof).or_fail(Stage::Commit, Cause::Disk, what())?;
        }
        unmount(disk, mounted)?;
    }
    if in_gap {
        replace_proof(disk.file(), disk.bytes(), &proof).or_fail(Stage::Commit, Cause::Disk, what())?;
    }
    disk.sync(Stage::Commit)?;
    Ok(proof)
}

/// Where a disk as it will be has ext4 filesystems.
fn ext4_areas(planned: &Planned<'_>, table: &Table) -> impl Iterator<Item = RootArea> {
    let areas = table.parts.iter().map(|part| RootArea { offset: part.offset, length: part.length });
    areas.filter(|area| is_ext(&Region::whole(planned).part(area.offset, area.length)).unwrap_or(false))
}

/// Mounts what an image brought; one that cannot be mounted may still boot.
fn mount(disk: &Disk, area: &RootArea, place: &Path) -> Option<Mounted> {
    let mounted = disk.root_node(area).and_then(|node| Mounted::new(&node, place));
    mounted.inspect_err(|failure| log::warn!("{failure}")).ok()
}

/// Everything is on the medium then, and what is read of the disk is what is there.
fn unmount(disk: &Disk, mounted: Mounted) -> Result<(), Failure> {
    mounted.sync().or_fail(Stage::Sync, Cause::Disk, format!("bringing everything to {disk}"))?;
    drop(mounted);
    disk.sync(Stage::Sync)?;
    disk.forget_cache();
    Ok(())
}

fn write(disk: &Disk, identifiers: &Identifiers) -> Result<(), Failure> {
    let what = format!("giving {disk} identifiers of its own");
    identifiers.write(disk.file()).or_fail(Stage::Personalise, Cause::Disk, what)?;
    disk.sync(Stage::Personalise)
}

/// The bundle's bytes, which are a whole bundle that may be carried out.
fn fetch(plan: &Plan, of: Personal, port: u16) -> Result<Vec<u8>, Failure> {
    const NAME: &str = "what makes the card this Pi's own";
    if of.bytes as usize > BYTES_MAX + OVERHEAD {
        return Err(refusal(&format!(
            "the server wants more of the card than this agent reads: {} bytes",
            of.bytes
        )));
    }
    let request = Request { kind: Kind::Personal, id: of.hash, offset: 0, length: of.bytes.into() };
    let (link, retry) = (Link::default(), Retry::default().times(TRIES));
    let right = |bytes: &[u8]| blake3::hash(bytes).as_bytes() == &of.hash.0;
    let mut source = Source::new(|| dial(plan, port), &link, retry, NAME);
    let mut bytes =
        source.whole(NAME, &request, &right, "look at the server and at what is between it and this Pi")?;
    if is_sealed(&bytes) {
        bytes = open(plan, &mut bytes)?;
    }
    Bundle::parse(&bytes).context(format!("reading {NAME}")).map_err(|error| Failure {
        stage: Stage::Disk,
        cause: Cause::Image,
        error: error.context("nothing was changed: use an agent and a server of the same version"),
    })?;
    Ok(bytes)
}

/// What was sealed for this Pi.
fn open(plan: &Plan, sealed: &mut [u8]) -> Result<Vec<u8>, Failure> {
    let key = plan.device.as_ref().and_then(Device::key);
    let key =
        key.ok_or_else(|| refusal("the server has sealed this Pi's profile for a key that it has not"))?;
    let opened = key.open(sealed).map(|content| content.to_vec());
    opened.map_err(|e| refusal(&format!("this Pi's profile, as the server sends it: {e}")))
}

fn refusal(why: &str) -> Failure {
    Failure { stage: Stage::Disk, cause: Cause::Refused, error: anyhow!("{why}; nothing was changed") }
}
