//! `piman image add` and what follows: archives with names, who gets which, signatures.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use piman_core::hash::Hash;
use piman_core::install::manifest::{self, ALL_SIZES, Draft, Manifest};

use super::disk_report::report;
use super::image_about::{AboutArgs, described};
use crate::cli::state_arg::{DevicesArgs, StateFolder};
use crate::images::boot_from::{self, boot_of};
use crate::images::disk_image::{self, DiskImage};
use crate::images::ext4::{Error, Images, Progress};
use crate::images::fitness::Finding;
use crate::images::import::{Form, Imported, Input, Wish, import, sweep};
use crate::images::sign::{self, Password};
use crate::images::source::Archive;
use crate::state::archive_facts::Content;
use crate::state::resolve::resolve;
use crate::state::{About, Catalogue, Edit, Sqlite, State as _};
use crate::sys::clock::now_ms;
use crate::text::human::{bytes, columns};

/// What whoever makes a default has to know.
const BESIDE_ROOTFS: &str = ", also instead of a server's --rootfs, which must be left out at its next start";

/// Said of container images without a process 1, as most are.
const NO_INIT_IN_CONTAINER: &str = "; a container image gets one by a further layer, for example by `RUN apt-get \
                                    install -y systemd-sysv` for Debian or `RUN apk add openrc` for Alpine";

/// Gives an archive a name.
#[derive(Debug, clap::Args)]
pub struct AddArgs {
    #[command(flatten)]
    state: StateFolder,
    /// An image of a disk, raw or in gzip, zstd, xz, bzip2 or zip; an archive: tar, plain or in gzip, zstd, xz or bzip2;
    /// a folder with a root filesystem; a container image (OCI layout or `docker save`, as archive or folder); or `-`,
    /// standard input. Archives in gzip and zstd stay where they are, other
    /// archives are packed once more, and what is used of a disk image is copied; both are kept in the state folder
    #[arg(value_name = "FILE|FOLDER|-", required_unless_present = "from_card")]
    file: Option<PathBuf>,
    /// A card in a reader, or another disk, such as /dev/sdX: what is used of it is copied, nothing is written to it
    #[arg(long, value_name = "DEVICE", conflicts_with = "file", requires = "name")]
    from_card: Option<PathBuf>,
    /// What of the disk image has content, with checksums [default: NAME.bmap beside it, if it is there]
    #[arg(long, value_name = "FILE")]
    bmap: Option<PathBuf>,
    /// How it is called [default: the file's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Which of several container images in one archive or folder, as `debian:13`
    #[arg(long, value_name = "NAME")]
    tag: Option<String>,
    /// It is for every Pi that has no other, as the first one always is
    #[arg(long)]
    default: bool,
    /// Take it although it cannot boot a Pi as far as can be seen
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    about: AboutArgs,
    #[command(flatten)]
    whom: Whom,
}

/// Who gets an image.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Whom {
    /// For this Pi; repeat
    #[arg(long = "for", value_name = "DEVICE")]
    devices: Vec<String>,
    /// For the Pis of this group (`piman group`); repeat
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
}

/// Signs an image.
#[derive(Debug, clap::Args)]
pub struct SignArgs {
    #[command(flatten)]
    state: StateFolder,
    /// Its name, or an archive's file
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The secret key (`piman key generate`)
    #[arg(long, value_name = "FILE", required_unless_present_any = ["signature", "manifest_to"])]
    key: Option<PathBuf>,
    #[command(flatten)]
    password: Password,
    /// A Pi takes no image with a smaller one than it has [default: the time in seconds]
    #[arg(long, value_name = "N")]
    counter: Option<u64>,
    /// Only for this Pi; repeat
    #[arg(long = "for", value_name = "DEVICE")]
    devices: Vec<String>,
    /// Only write the manifest into this file, to be signed elsewhere: minisign -S -m FILE
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key", "signature"])]
    manifest_to: Option<PathBuf>,
    /// A manifest that was signed elsewhere
    #[arg(long, value_name = "FILE", requires = "signature", conflicts_with = "key")]
    manifest: Option<PathBuf>,
    /// Its signature
    #[arg(long, value_name = "FILE", requires = "manifest", conflicts_with = "key")]
    signature: Option<PathBuf>,
}

/// `piman image add`.
///
/// # Errors
/// If the archive is not usable or the state cannot be written.
pub fn add(args: &AddArgs) -> anyhow::Result<String> {
    let state = args.state.open_or_make()?;
    let folder = args.state.path()?;
    let (input, source) = match (&args.from_card, &args.file) {
        (Some(card), _) => (Input::Card(card.clone()), card),
        (None, Some(file)) => (Input::of(file)?, file),
        (None, None) => bail!("say FILE, FOLDER, - or --from-card DEVICE"),
    };
    let name = args.name.as_deref().or_else(|| input.stem()).unwrap_or_default().to_owned();
    ensure!(manifest::is_name(&name), "`{name}` is no name for an image: say --name NAME");
    sweep(&folder, &state)?;
    let began = Instant::now();
    let bar = bar("packing", input.bytes());
    let wish = Wish { tag: args.tag.as_deref(), force: args.force, bmap: args.bmap.as_deref() };
    let imported = import(input, &folder, &name, &wish, &|at| bar.set_position(at));
    bar.finish_and_clear();
    let Imported { path, form, what, kept, notes } = imported?;
    let shown = source.display();
    let content = facts(&path, source, &state)?;
    // Packed once more it would look whole.
    ensure!(
        form.is_served() || !content.fitness.findings.iter().any(Finding::is_no_end),
        "{shown} has no end marker, so it may be cut: pack it again with tar; nothing was added"
    );
    let packed = fs::metadata(&path)?.len();
    let unfit = content.fitness.unfit();
    if let Some(unfit) = unfit.as_ref().filter(|_| !args.force) {
        let no_init = content.fitness.findings.iter().any(Finding::is_no_init);
        let hint = if form.is_container() && no_init { NO_INIT_IN_CONTAINER } else { "" };
        bail!("{shown} is not fit for a Pi: {unfit}{hint}. Nothing was added; --force takes it as it is");
    }
    let about = About::from(&args.about);
    if let Some(reason) = boot_from::refusal(&content, &about, 0) {
        bail!("{shown}: {reason}. Nothing was added");
    }
    let first = state.catalogue()?.images.is_empty() && args.whom.is_empty();
    let seconds = began.elapsed().as_secs_f64();
    let mut out = match form {
        Form::DiskImage => {
            let file = fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            format!("image {name}: {} in {seconds:.1} s; {}", content.id, report(&DiskImage::of_copy(&file)?))
        }
        _ => format!(
            "image {name}: {} with {} entries, {} unpacked; {} in {seconds:.1} s\n",
            bytes(packed),
            content.entries,
            bytes(content.unpacked_bytes),
            content.id,
        ),
    };
    out.push_str(&described(&content, &about));
    state.edit(&Edit::Add {
        name: name.clone(),
        path: path.clone(),
        takes_unfit: args.force,
        about: about.clone(),
    })?;
    if let Some(kept) = kept {
        kept.keep()?;
        // Writing to a string does not fail.
        let what = what.map_or(String::new(), |what| format!(", {what}"));
        let _ = match form {
            Form::DiskImage => writeln!(out, "what is used of it is in {}", path.display()),
            form => writeln!(out, "it was {}{what}; what Pis get is {}", form.name(), path.display()),
        };
    }
    // One of this name may have been a copy, too.
    sweep(&folder, &state)?;
    let from = boot_of(&content, &about).0;
    let findings = content.fitness.findings_for(from, content.is_disk()).map(ToString::to_string);
    for finding in notes.into_iter().chain(findings) {
        // Writing to a string does not fail.
        let _ = writeln!(out, "warning: {finding}");
    }
    if args.default || first {
        state.edit(&Edit::Default { name: Some(name.clone()) })?;
        out.push_str("it is the default");
        out.push_str(BESIDE_ROOTFS);
        out.push('\n');
    }
    assign(&state, Some(&name), &args.whom, &mut out)?;
    Ok(out)
}

/// What is known of an archive, or found out, which is shown on a terminal: it is read to its end.
fn facts(path: &Path, shown: &Path, state: &Sqlite) -> anyhow::Result<Arc<Content>> {
    // Whether it is there is said by who opens it.
    let bar = bar("reading", fs::metadata(path).map(|m| m.len()).ok());
    let facts = Archive::facts_of(path, shown, state, &|at| bar.set_position(at));
    bar.finish_and_clear();
    facts
}

/// How far it is, on a terminal; without a total how much was read.
fn bar(doing: &str, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{wide_bar} {bytes} of {total_bytes}, {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes}, {elapsed}"),
    };
    if let Ok(style) = ProgressStyle::with_template(&format!("{doing} {template}")) {
        bar.set_style(style);
    }
    bar
}

impl Whom {
    fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.groups.is_empty()
    }
}

fn assign(state: &Sqlite, image: Option<&str>, whom: &Whom, out: &mut String) -> anyhow::Result<()> {
    let devices = state.devices()?;
    let named: Vec<_> = whom.devices.iter().map(|d| resolve(d, &devices)).collect::<anyhow::Result<_>>()?;
    let who = named.into_iter().map(|n| (n.name, false)).chain(whom.groups.iter().map(|g| (g.clone(), true)));
    for (who, is_group) in who {
        let what = if is_group { "group " } else { "" };
        let changed =
            state.edit(&Edit::Choose { who: who.clone(), is_group, image: image.map(str::to_owned) })?;
        // Writing to a string does not fail.
        let _ = match (image, changed) {
            (Some(image), true) => writeln!(out, "{what}{who} gets {image}"),
            (Some(image), false) => bail!("there is no image {image}; `piman image list` shows them"),
            (None, true) => writeln!(out, "{what}{who} gets what all get"),
            (None, false) => writeln!(out, "{what}{who} had no image of its own"),
        };
    }
    Ok(())
}

/// `piman image assign`; without an image, who has one of its own gets what all get.
///
/// # Errors
/// If there is no such image or Pi, or the state cannot be written.
pub fn choose(state: &StateFolder, image: Option<&str>, whom: &Whom) -> anyhow::Result<String> {
    ensure!(!whom.is_empty(), "for whom? say --for DEVICE or --group GROUP");
    let mut out = String::new();
    assign(&state.open()?, image, whom, &mut out)?;
    Ok(out)
}

/// `piman image default`.
///
/// # Errors
/// If there is no such image or the state cannot be written.
pub fn default(state: &StateFolder, name: Option<&str>) -> anyhow::Result<String> {
    let known = state.open()?.edit(&Edit::Default { name: name.map(str::to_owned) })?;
    let Some(name) = name else {
        let text = if known { "no image is the default any more" } else { "no image was the default" };
        return Ok(format!("{text}\n"));
    };
    ensure!(known, "there is no image {name}; `piman image list` shows them");
    Ok(format!("{name} is the default{BESIDE_ROOTFS}\n"))
}

/// `piman image remove`.
///
/// # Errors
/// If there is no such image or the state cannot be written.
pub fn remove(state: &StateFolder, name: &str) -> anyhow::Result<String> {
    let (folder, state) = (state.path()?, state.open()?);
    let image = state.catalogue()?.images.into_iter().find(|image| image.name == name);
    let known = state.edit(&Edit::Remove { name: name.to_owned() })?;
    ensure!(known, "there is no image {name}; `piman image list` shows them");
    let swept = sweep(&folder, &state)?;
    let file = match image.filter(|image| swept.contains(&image.path)) {
        Some(image) => format!("{} is removed", image.path.display()),
        None => "its file stays".into(),
    };
    Ok(format!("{name} is forgotten; {file}\n"))
}

/// `piman image list`: those with names.
///
/// # Errors
/// If the state cannot be read.
pub fn list(folder: &Path, state: &Sqlite) -> anyhow::Result<String> {
    let Catalogue { images, choices, .. } = state.catalogue()?;
    if images.is_empty() {
        return Ok(String::new());
    }
    let mut rows = Vec::new();
    for image in images {
        let whom = choices.iter().filter(|c| c.image == image.name);
        let whom = whom.map(|c| if c.is_group { format!("group {}", c.who) } else { c.who.clone() });
        let whom: Vec<String> =
            image.is_default.then(|| "all others".to_owned()).into_iter().chain(whom).collect();
        let known = state.known(&image.path)?.map(|(_, content)| content);
        let id = known.as_ref().map(|c| c.id);
        let signed = match id.and_then(|id| sign::signed(folder, id)) {
            Some(signed) => manifest::split(&signed)
                .and_then(|(_, text)| Manifest::parse(text))
                .map_or("no".into(), |m| format!("counter {}", m.counter)),
            None => "no".into(),
        };
        rows.push([
            image.name,
            id.map_or("-".into(), |id| format!("{id:.12}")),
            known.as_ref().map_or("-".into(), |c| bytes(c.unpacked_bytes)),
            known.as_ref().map_or("-".into(), |c| c.fitness.system.kind.to_string()),
            known.map_or("-".into(), |c| boot_of(&c, &image.about).0.to_string()),
            signed,
            if whom.is_empty() { "nobody".into() } else { whom.join(", ") },
            image.about.release.unwrap_or_else(|| "-".into()),
            image.about.description.unwrap_or_else(|| "-".into()),
            image.path.display().to_string(),
        ]);
    }
    let heading =
        ["IMAGE", "ID", "UNPACKED", "KIND", "BOOT", "SIGNED", "FOR", "RELEASE", "DESCRIPTION", "FILE"];
    Ok(columns(heading, rows.into_iter()))
}

/// `piman image sign`.
///
/// # Errors
/// What cannot be read, made, signed or written.
pub fn sign(args: &SignArgs) -> anyhow::Result<String> {
    let folder = args.state.path()?;
    let state = args.state.open_or_make()?;
    let known = state.catalogue()?.images.into_iter().find(|i| i.name == args.image);
    let (name, path) = match known {
        Some(image) => (image.name, image.path),
        None => {
            let path = Path::new(&args.image).canonicalize();
            let path = path.with_context(|| format!("there is no image and no file {}", args.image))?;
            let stem = path.file_name().and_then(|n| n.to_str()?.split('.').next());
            (stem.filter(|n| manifest::is_name(n)).unwrap_or("rootfs").to_owned(), path)
        }
    };
    let content = facts(&path, &path, &state)?;
    if let (Some(manifest), Some(signature)) = (&args.manifest, &args.signature) {
        let file = sign::import(&folder, content.id, manifest, signature)?;
        return Ok(format!("{name} is signed: {}\n", file.display()));
    }
    let text = draft(args, &folder, &state, &name, &path, &content)?;
    if let Some(file) = &args.manifest_to {
        fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
        return Ok(format!("{}: sign it, and take it in with --manifest and --signature\n", file.display()));
    }
    let key = args.key.as_deref().context("--key is missing")?;
    let signature = sign::sign(&text, &sign::secret_key(key, &args.password)?)?;
    let file = sign::keep(&folder, &signature, &text)?;
    Ok(format!("{name} is signed: {}\n{text}", file.display()))
}

fn draft(
    args: &SignArgs,
    folder: &Path,
    state: &Sqlite,
    name: &str,
    path: &Path,
    content: &Arc<Content>,
) -> anyhow::Result<String> {
    let images =
        Images::open(folder).with_context(|| format!("opening the images in {}", folder.display()))?;
    let archive = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let (progress, stop) = (Progress::new(), AtomicBool::new(false));
    let made = if content.is_disk() {
        let made = images.build_by(disk_image::build, &archive, content.id, &progress, &stop);
        Some(made.with_context(|| format!("making the chunks of {name}"))?)
    } else {
        match images.build(&archive, content.id, &progress, &stop) {
            // Pis extract it.
            Err(e @ (Error::NotUtf8 { .. } | Error::Unsupported(_))) => {
                tracing::warn!("only the archive is signed: {:#}", anyhow::Error::from(e));
                None
            }
            made => Some(made.with_context(|| format!("making the image of {name}"))?),
        }
    };
    let tables: Vec<(u64, Hash)> = made.iter().map(|image| (ALL_SIZES, image.hash())).collect();
    let known = state.devices()?;
    let devices = args.devices.iter().map(|d| Ok(resolve(d, &known)?.name));
    let devices: Vec<String> = devices.collect::<anyhow::Result<_>>()?;
    let draft = Draft {
        image: content.id,
        bytes: archive.metadata()?.len(),
        unpacked_bytes: content.unpacked_bytes,
        entries: content.entries,
        name,
        counter: args.counter.unwrap_or_else(|| now_ms() / 1000),
        devices: &devices,
        tables: &tables,
    };
    let text = draft.to_string();
    ensure!(Manifest::parse(&text).is_some(), "the manifest would be none: `{name}` or a device is no name");
    Ok(text)
}

/// `piman group`.
#[derive(Debug, clap::Subcommand)]
pub enum GroupCommand {
    /// Put Pis into a group, out of the one they were in
    Join {
        /// The group
        #[arg(value_name = "GROUP")]
        group: String,
        /// Which Pis, and where groups are kept
        #[command(flatten)]
        pis: DevicesArgs,
    },
    /// Take Pis out of their group
    Leave(DevicesArgs),
    /// List groups
    List {
        /// Where groups are kept
        #[command(flatten)]
        state: StateFolder,
    },
}

/// Runs `piman group`; returns what to show.
///
/// # Errors
/// If a Pi cannot be meant, or the state cannot be read or written.
pub fn group(command: &GroupCommand) -> anyhow::Result<String> {
    let (state, group, devices) = match command {
        GroupCommand::Join { group, pis } => (&pis.state, Some(group.clone()), pis.devices.as_slice()),
        GroupCommand::Leave(pis) => (&pis.state, None, pis.devices.as_slice()),
        GroupCommand::List { state } => (state, None, &[][..]),
    };
    let state = state.open()?;
    if let Some(group) = &group {
        ensure!(manifest::is_name(group), "`{group}` is no name for a group");
    }
    let known = state.devices()?;
    let named = devices.iter().map(|d| Ok(resolve(d, &known)?.name));
    for device in named.collect::<anyhow::Result<Vec<_>>>()? {
        let changed = state.edit(&Edit::Join { device: device.clone(), group: group.clone() })?;
        ensure!(changed, "{device} is in no group");
    }
    let rows = state.catalogue()?.members.into_iter().map(|(device, group)| [group, device]);
    Ok(columns(["GROUP", "DEVICE"], rows))
}
