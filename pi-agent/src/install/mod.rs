//! The plan of an installation: what is done in which order, and what is reported.
//!
//! Everything that erases is in the two paths; both destroy the
//! old proof first and write the new one last.

mod archive_path;
mod capacity;
mod consent;
mod erase;
mod image_path;
mod keep;
mod personal;
mod readback;
mod reporter;
mod retry;
pub(crate) mod room;
mod survey;
mod trusted;
mod whole_disk_path;

use std::io;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use piman_core::hash::Hash;
use piman_core::install::layout::Layout;
use piman_core::install::{Can, Decision, Fingerprint, Hello, Notice, Offer, Paths, REVISION, Stage, Start};

pub use consent::Consent;
pub use keep::Keep;
pub use retry::run;

use crate::card::choose::Which;
use crate::card::disk::{Disk, RootArea};
use crate::card::inspect::{self, Card, Found};
use crate::card::mount::Mounted;
use crate::card::scratch_dir::ScratchDir;
use crate::control::{ControlConnection, Machine, Peer, Server};
use crate::failure::{Cause, Failure, OrFail};
use crate::identity::Identity;
use crate::rpc::unit::Enrol;
use crate::telemetry::progress::Progress;
use crate::trust::{self, Device, Key};
use crate::unsaid::{self, Unsaid};
use personal::Personality;
use piman_core::hosted::causes::in_one_line;
use piman_core::install::receipt::Way;
use reporter::Reporter;
use survey::{judge, open};
use trusted::{keep_device, learnt, trusted, unsigned, with_device};

/// How long the server may send nothing: it may have other Pis to serve first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// How long it is tried by default to tell a server that went away how the installation ended: longer than a network
/// is away that comes back by itself. A Pi that goes on then tells it later: from the installed system, if that runs
/// the service, and when it boots from the network next, since its greeting says what is installed.
pub const TELL_TIME: Duration = Duration::from_secs(240);

/// How often it is said that the server is not ready yet.
const REMIND: Duration = Duration::from_secs(60);

/// Connects to a port of the server that sends.
fn dial(plan: &Plan, port: u16) -> io::Result<TcpStream> {
    let stream = plan.server.connect(port).map_err(io::Error::other)?;
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    stream.set_write_timeout(Some(IDLE_TIMEOUT))?;
    Ok(stream)
}

/// Which way to install.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// By image where the server has one, else by stream.
    Auto,
    /// The archive, extracted here.
    Archive,
    /// The image.
    Image,
}

impl std::str::FromStr for Choice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "archive" => Ok(Self::Archive),
            "image" => Ok(Self::Image),
            _ => Err(anyhow!("{text} is no path: use auto, archive or image")),
        }
    }
}

/// What to install where, and from whom.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Who decides and sends.
    pub server: Server,
    /// The disk: a block device, or a file in place of one.
    pub disk: Which,
    /// Makes a file of this size, in bytes, where there is none.
    pub size: Option<u64>,
    /// Where the partitions lie.
    pub layout: Layout,
    /// Whether the parts that will be written are discarded before.
    pub discard: bool,
    /// The partition that installations leave alone, for which the layout leaves room.
    pub keep: Keep,
    /// Which way to install.
    pub choice: Choice,
    /// Whether a device that holds something may be erased.
    pub yes: bool,
    /// What may be erased without an order that names it.
    pub erase: Consent,
    /// Whether a system without a proof counts as installed.
    pub trust_unmarked: bool,
    /// Whether to install again what is installed.
    pub reinstall: bool,
    /// Who this Pi is.
    pub identity: Identity,
    /// Whose images it installs; `None`: whatever the server sends.
    pub key: Option<Key>,
    /// By which key servers know this Pi again; found on its disk.
    pub device: Option<Device>,
    /// Where to mount the root filesystem and leave it, on a Pi that boots from it.
    pub boot_from: Option<PathBuf>,
    /// The service that the installed system is to run, if wanted.
    pub service: Option<Enrol>,
    /// How long it is tried to tell a server that went away how the installation ended.
    pub tell_time: Duration,
}

/// How it ended.
#[derive(Debug)]
pub enum Outcome {
    /// Piman said to boot what is on the card.
    Boot {
        /// What that is.
        card: Card,
        /// Where it is mounted, if the plan said so.
        root: Option<Mounted>,
    },
    /// It was installed.
    Installed {
        /// What.
        image: Hash,
        /// How.
        way: Way,
        /// Bytes that came over the network.
        received: u64,
        /// Bytes that were written to the root filesystem, as far as they were counted.
        written: u64,
        /// How long it took from the decision to the proof.
        took: Duration,
        /// Where it is mounted, if the plan said so.
        root: Option<Mounted>,
    },
}

/// What a path did.
struct Done {
    image: Hash,
    way: Way,
    received: u64,
    written: u64,
    /// Where the root filesystem is on the disk, if that is known.
    area: Option<RootArea>,
    root: Option<Mounted>,
}

/// Asks piman once, and does what it says.
///
/// # Errors
/// [`Failure`] with what was being done; it has been reported to piman as far as possible.
pub fn attempt(plan: &Plan, machine: &mut Machine, progress: &Arc<Progress>) -> Result<Outcome, Failure> {
    progress.begin(Stage::Disk, 0);
    let as_root = rustix::process::geteuid().is_root();
    let opened = plan.disk.open_path().and_then(|path| open(plan, &path));
    let (disk, root) = opened.inspect_err(|failure| _ = report_early(plan, failure))?;
    let (disk, found) = judge(plan, disk, as_root).inspect_err(|failure| _ = report_early(plan, failure))?;
    // What is written here is not taken for what others write.
    let plan = &with_device(plan, &disk, &found.card);
    let seen = disk.seen();
    let said = format!("{disk}: {found}");
    if machine.said != said {
        log::info!("{said}");
        machine.said = said;
    }
    // What is reported: a system that has to go counts as none, but what may boot is what is really there.
    let card_id = disk.id();
    machine.takes(format!(
        "{} {}",
        disk.bytes(),
        card_id.as_deref().map_or(disk.path(), Path::new).display()
    ));
    let again = plan.reinstall || machine.wiped;
    let card = if again { Card::Incomplete } else { found.card.clone() };
    let hello = Hello {
        disk_bytes: disk.bytes(),
        root_bytes: root.length,
        card: card.image(),
        card_id: card_id.as_deref(),
        installation: card.installation(),
        personal: card.personal(),
        found: Some(card.kind(plan.trust_unmarked)),
        print: Fingerprint::new(found.print),
        paths: Paths {
            stream: as_root && plan.choice != Choice::Image,
            image: plan.choice != Choice::Archive,
        },
        ..who(plan)
    };
    let told = found.to_string();
    let start =
        Start { hello: Some(hello), disk: Some(&told), installed: card.is_installed(plan.trust_unmarked) };
    let (talk, decision) = decide(plan, start, machine, progress)?;
    let (plan, is_news) = learnt(plan, &talk);
    let plan = &plan;
    if is_news && !matches!(decision, Decision::Format(_)) {
        keep_device(plan, &disk, found.card.is_whole_disk().then_some(disk.bytes()));
    }
    let (talk, offer) = match (talk, decision) {
        (talk, Decision::Format(offer)) => (talk, offer),
        // The server knows it.
        (_, Decision::Never) => return Err(never(&disk, machine)),
        (talk, Decision::Unclear) => {
            let error = anyhow!(
                "the server says what to install in a way that this agent ({}) does not understand: use an agent \
                 and a server of the same version; nothing was changed",
                env!("CARGO_PKG_VERSION")
            );
            return Err(refuse(Reporter::new(talk, plan, hello, progress), error));
        }
        (talk, Decision::Personalise(of)) => {
            let reporter = Reporter::new(talk, plan, hello, progress);
            return personal::boot(plan, &disk, found.card.clone(), of, (reporter, as_root), progress);
        }
        (talk, _) => {
            return boot(plan, &disk, found.card.clone(), Reporter::new(talk, plan, hello, progress));
        }
    };
    let began = Instant::now();
    let reporter = Reporter::new(talk, plan, hello, progress);
    let ordered = offer.and_then(|o| o.more.erase);
    let whole_disk = offer.and_then(|o| o.image).is_some_and(|image| image.whole_disk);
    // The image of a whole disk has a layout of its own.
    let boot_bytes = offer.filter(|_| !whole_disk).map_or(0, |o| o.more.boot_bytes);
    let plan = &Plan { layout: plan.layout.with_boot(boot_bytes), ..plan.clone() };
    let done = plan.erase.check(&disk, &found, ordered, plan).and_then(|()| {
        let kept = keep::check(plan, &disk, &found, ordered, whole_disk)?;
        // It may have waited for hours.
        disk.is_still(&seen)?;
        may_erase(plan, &disk, &found)?;
        may_enrol(plan)?;
        let offer = trusted(plan, &disk, offer)?;
        if whole_disk && offer.is_none_or(|o| o.image.is_none()) {
            return Err(unsigned());
        }
        let personal = Personality::offered(plan, offer.as_ref(), as_root)?;
        Ok((format(plan, &disk, (offer, kept, &personal), as_root, progress)?, offer))
    });
    let (done, offer) = match done {
        Ok(done) => done,
        Err(failure) => {
            reporter.failed(&failure);
            return Err(failure);
        }
    };
    let took = began.elapsed();
    let more = offer.map(|o| o.more).unwrap_or_default();
    let of_whole_disk = whole_disk.then_some(disk.bytes());
    if let Err(e) = trust::remember(disk.file(), more.counter, &plan.layout, of_whole_disk) {
        log::warn!("{disk} does not keep the counter against older images: {e}");
    }
    keep_device(plan, &disk, of_whole_disk);
    let told = reporter.installed(done.image, more.installation);
    enrol(plan, &disk, &done, told)?;
    let Done { image, way, received, written, root, .. } = done;
    if plan.boot_from.is_some() && root.is_none() {
        return Err(whole_disk_path::boots_by_itself(&disk));
    }
    Ok(Outcome::Installed { image, way, received, written, took, root })
}

/// Who this Pi is; what it can do is not known yet.
fn who(plan: &Plan) -> Hello<'_> {
    Hello {
        revision: REVISION,
        can: Can {
            signed: plan.key.is_some(),
            answer: true,
            disk: plan.choice != Choice::Archive,
            grow: true,
            // What is not whole is not signed.
            early: plan.key.is_none(),
            // It mounts.
            personal: rustix::process::geteuid().is_root(),
        },
        serial: plan.identity.serial.as_deref(),
        mac: plan.identity.mac.as_deref(),
        model: plan.identity.model.as_deref(),
        agent: Some(env!("CARGO_PKG_VERSION")),
        ..Hello::default()
    }
}

/// Tells the server of a failure without asking anything: that a Pi has no usable disk, or what happened after the
/// talk was over. Returns whether it was delivered.
pub(crate) fn report_early(plan: &Plan, failure: &Failure) -> bool {
    let text = in_one_line(failure.error.as_ref());
    let told = ControlConnection::resume(&plan.server, who(plan), Peer::Unknown, &plan.trust())
        .and_then(|mut talk| talk.notify(Notice::Failed { stage: failure.stage, text: &text }).map(|()| talk))
        .and_then(|talk| {
            anyhow::ensure!(talk.is_delivered(unsaid::DELIVERY), "it does not acknowledge what it is told");
            Ok(())
        });
    if let Err(e) = &told {
        log::warn!("the server cannot be told: {e:#}");
    }
    told.is_ok()
}

/// Talks until piman has decided, waiting where it says so.
fn decide(
    plan: &Plan,
    start: Start<'_>,
    machine: &mut Machine,
    progress: &Progress,
) -> Result<(ControlConnection, Decision), Failure> {
    let mut said = None::<(u8, Instant)>;
    let trust = plan.trust();
    loop {
        machine.has_reason = false;
        match ControlConnection::open(&plan.server, start, machine, &trust)? {
            (_, Decision::Wait { seconds, percent }) => {
                progress.wait(percent, machine.waits_for());
                // What changes is displayed. What does not is said as well: process 1 waits for a sign of life.
                match said {
                    Some((before, at)) if before == percent && at.elapsed() < REMIND => {}
                    last => {
                        if last.is_some_and(|(before, _)| before == percent) {
                            log::warn!("{}", machine.reminder(percent));
                        }
                        said = Some((percent, Instant::now()));
                    }
                }
                thread::sleep(Duration::from_secs(seconds.clamp(1, 60).into()));
            }
            decided => return Ok(decided),
        }
    }
}

/// The server has nothing that will ever have room here.
fn never(disk: &Disk, machine: &Machine) -> Failure {
    let why = if machine.reason.is_empty() { "the server does not say why" } else { &machine.reason };
    let error = anyhow!(
        "nothing that the server has for this Pi will ever have room on {disk} ({why}); use a larger card, or assign a \
         smaller image to this Pi; nothing was changed"
    );
    Failure { stage: Stage::Disk, cause: Cause::TooSmall, error }
}

/// An order that is not carried out; the server hears why.
fn refuse(reporter: Reporter<'_>, error: anyhow::Error) -> Failure {
    let failure = Failure { stage: Stage::Disk, cause: Cause::Refused, error };
    reporter.failed(&failure);
    failure
}

fn boot(plan: &Plan, disk: &Disk, card: Card, reporter: Reporter<'_>) -> Result<Outcome, Failure> {
    if !card.is_installed(plan.trust_unmarked) {
        // What lies there may be anything, also what a broken installation left of an image that nobody checked.
        let error = anyhow!(
            "the server says boot, but {disk} holds nothing that may be booted ({card}): order `piman reinstall` \
             for this Pi; nothing was changed"
        );
        return Err(refuse(reporter, error));
    }
    let mounted = plan.boot_from.as_ref().map(|place| {
        let root =
            inspect::root(disk.file(), disk.bytes()).ok_or_else(|| whole_disk_path::boots_by_itself(disk))?;
        reporter.mounting(|| Mounted::new(&disk.root_node(&root)?, place))
    });
    match mounted.transpose() {
        Ok(root) => {
            if let (Some(service), Some(mounted)) = (&plan.service, &root)
                && let Err(e) = service.put(mounted.place())
            {
                log::warn!("putting the service into the system on {disk}: {e:#}");
            }
            Ok(Outcome::Boot { card, root })
        }
        Err(failure) => {
            reporter.failed(&failure);
            Err(failure)
        }
    }
}

fn may_erase(plan: &Plan, disk: &Disk, found: &Found) -> Result<(), Failure> {
    let refuse = |error| Err(Failure { stage: Stage::Disk, cause: Cause::Refused, error });
    if disk.is_device() && !plan.yes && found.card != Card::Blank {
        return refuse(anyhow!(
            "{disk} holds {}: say --yes to erase it; nothing was changed",
            found.contents
        ));
    }
    Ok(())
}

/// Whether the service that the installed system is to run can be had. A Pi that boots is worth more than its service.
fn may_enrol(plan: &Plan) -> Result<(), Failure> {
    let Some(service) = plan.service.as_ref().filter(|_| plan.boot_from.is_none()) else { return Ok(()) };
    let what = "putting the service into the installed system; nothing was changed";
    service.check().or_fail(Stage::Disk, Cause::Refused, what)
}

/// Puts the service into what was installed. The proof is there by then: a Pi without the service is installed, and
/// gets it when it boots next.
fn enrol(plan: &Plan, disk: &Disk, done: &Done, told: bool) -> Result<(), Failure> {
    let Some(service) = &plan.service else { return Ok(()) };
    let put = |mounted: &Mounted| {
        if !told
            && let Err(e) =
                unsaid::keep(mounted.place(), Some((&plan.server, plan.device.as_ref())), &Unsaid::Installed)
        {
            log::warn!("keeping on {disk} that the server is to be told: {e}");
        }
        service.put(mounted.place()).and_then(|()| mounted.sync())
    };
    let what = format!("putting the service into the system on {disk}");
    match (&done.root, &done.area) {
        // A Pi that boots is worth more than its service.
        (Some(mounted), _) => {
            if let Err(e) = put(mounted) {
                log::warn!("{what}: {e:#}");
            }
        }
        (None, None) => log::warn!("{what}: its root filesystem is not one that can be mounted"),
        (None, Some(area)) => {
            let place = ScratchDir::scratch()?;
            let mounted = Mounted::new(&disk.root_node(area)?, place.path())?;
            put(&mounted).or_fail(Stage::Mount, Cause::Refused, what)?;
        }
    }
    Ok(())
}

fn format(
    plan: &Plan,
    disk: &Disk,
    (offer, kept, personal): (Option<Offer>, Option<RootArea>, &Personality),
    as_root: bool,
    progress: &Arc<Progress>,
) -> Result<Done, Failure> {
    let image = offer.and_then(|o| Some((o, o.image?)));
    let refuse = |why: &str| {
        Err(Failure {
            stage: Stage::Disk,
            cause: Cause::Refused,
            error: anyhow!("{why}; nothing was changed"),
        })
    };
    match (plan.choice, image) {
        (Choice::Archive, Some((_, image))) if image.whole_disk => {
            refuse("the server has the image of a whole disk for this Pi, which no archive replaces")
        }
        (Choice::Auto | Choice::Image, Some((offer, image))) if image.whole_disk => {
            whole_disk_path::install(plan, disk, as_root, (&offer, &image, personal), progress)
        }
        (Choice::Auto | Choice::Image, Some((offer, image))) => {
            image_path::install(plan, disk, kept, (&offer, &image, personal), progress)
        }
        (Choice::Image, None) => refuse(if plan.key.is_some() {
            "the server offers no image for this disk that is signed: `piman image sign` makes one"
        } else {
            "the server offers no image for this disk (its log says why)"
        }),
        (Choice::Auto | Choice::Archive, _) if as_root => {
            archive_path::install(plan, disk, kept, (offer, personal), progress)
        }
        (Choice::Auto, None) => {
            refuse("the server offers no image for this disk, and to extract the archive here needs root")
        }
        (Choice::Archive, _) => refuse("to extract the archive here needs root (it mounts a filesystem)"),
    }
}
