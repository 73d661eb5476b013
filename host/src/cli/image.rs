//! `piman image`: making images by hand, and looking at them.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use piman_core::hash::Hash;
use piman_core::install::table::Scope;

use super::catalog;
use crate::cli::state_arg::StateFolder;
use crate::images::disk_image;
use crate::images::ext4::{Images, Progress};
use crate::state::{FILE, Sqlite};
use crate::text::human;

/// Images: the archive as it is written to cards.
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make the image of an archive, or find that it is made already; it fits cards of all sizes
    Build(BuildArgs),
    /// Give an archive or a disk image a name: reads it once, and keeps what a server has to know
    Add(catalog::AddArgs),
    /// List archives with names, and the images for cards that were made of them
    List {
        #[command(flatten)]
        state: StateFolder,
    },
    /// Make an archive the one for every Pi that has no other
    Default {
        #[command(flatten)]
        state: StateFolder,
        /// Which
        #[arg(value_name = "NAME", required_unless_present = "none")]
        name: Option<String>,
        /// None: a Pi without an image of its own gets what the server's --rootfs names
        #[arg(long, conflicts_with = "name")]
        none: bool,
    },
    /// Say which Pis or groups get an archive
    Assign {
        #[command(flatten)]
        state: StateFolder,
        /// Which; without it they get what all get
        #[arg(value_name = "NAME")]
        name: Option<String>,
        #[command(flatten)]
        whom: catalog::Whom,
    },
    /// Forget an archive; its file stays, but for a copy in the state folder
    Remove {
        #[command(flatten)]
        state: StateFolder,
        /// Which
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Sign an archive and the images that were made of it, for Pis with a public key
    Sign(catalog::SignArgs),
    /// Read all images and compare every hash
    Check {
        #[command(flatten)]
        state: StateFolder,
    },
}

#[derive(Debug, clap::Args)]
struct BuildArgs {
    /// The archive: gzip or zstd of tar
    #[arg(long, value_name = "FILE")]
    rootfs: PathBuf,
    #[command(flatten)]
    state: StateFolder,
}

/// Runs `piman image`.
///
/// # Errors
/// What went wrong, with what was being done.
pub fn run(args: &ImageArgs) -> anyhow::Result<()> {
    match &args.command {
        Command::Build(args) => build(args),
        Command::List { state } => list(&state.path()?),
        Command::Check { state } => check(&state.path()?),
        Command::Add(args) => human::print(&catalog::add(args)?),
        Command::Default { state, name, .. } => human::print(&catalog::default(state, name.as_deref())?),
        Command::Assign { state, name, whom } => {
            human::print(&catalog::choose(state, name.as_deref(), whom)?)
        }
        Command::Remove { state, name } => human::print(&catalog::remove(state, name)?),
        Command::Sign(args) => human::print(&catalog::sign(args)?),
    }
}

fn build(args: &BuildArgs) -> anyhow::Result<()> {
    let name = args.rootfs.display();
    let archive = File::open(&args.rootfs).with_context(|| format!("opening {name}"))?;
    let mut head = [0; 2048];
    let length = archive.read_at(&mut head, 0).with_context(|| format!("reading {name}"))?;
    if disk_image::begins(head.get(..length).unwrap_or_default()) {
        bail!(
            "{name} is a disk image, which is sent to cards as it is: add it with `piman image add {name}`"
        );
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&archive).with_context(|| format!("reading {name}"))?;
    let id = Hash(*hasher.finalize().as_bytes());
    let images = open(&args.state.path()?)?;
    let (progress, stop) = (Progress::new(), AtomicBool::new(false));
    let image = thread::scope(|scope| {
        let (done, is_done) = channel::<()>();
        let progress = &progress;
        if io::stderr().is_terminal() {
            // Only a display, which a system without threads to give does not get.
            let _ = thread::Builder::new().spawn_scoped(scope, move || show(progress, &is_done));
        }
        let image = images.build(&archive, id, progress, &stop);
        drop(done);
        image
    });
    let image = image.with_context(|| format!("making an image of {name}"))?;
    let header = image.header();
    human::print(&format!(
        "image {} of archive {:.16}\n{} entries, {} of {} MiB used; it grows to the card\n\
         {} chunks of {} MiB to be sent\n",
        image.hash(),
        header.archive,
        header.entries,
        header.used_bytes >> 20,
        header.total_bytes >> 20,
        header.chunks,
        header.stored_bytes >> 20
    ))
}

/// Shows how far it is until that is done.
fn show(progress: &Progress, is_done: &Receiver<()>) {
    let mut out = io::stderr();
    while is_done.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
        let _ = write!(out, "\r{:3} %", progress.percent()).and_then(|()| out.flush());
    }
    let _ = write!(out, "\r     \r");
}

fn list(state: &Path) -> anyhow::Result<()> {
    if state.join(FILE).exists() {
        human::print(&catalog::list(state, &Sqlite::command(state)?)?)?;
    }
    for image in open(state)?.all() {
        let header = image.header();
        let (of, scope) = match header.scope {
            Scope::Root { .. } => ("archive", "grows to the card"),
            Scope::Disk(_) => ("disk   ", "whole disk       "),
        };
        human::print(&format!(
            "{:.16}  {of} {:.16}  {:6} MiB {scope}  {:6} MiB stored\n",
            image.hash(),
            header.archive,
            header.total_bytes >> 20,
            header.stored_bytes >> 20
        ))?;
    }
    Ok(())
}

fn check(state: &Path) -> anyhow::Result<()> {
    let mut bad = 0;
    for image in open(state)?.all() {
        let damaged = image.damaged().context("reading the chunks")?;
        match damaged.first() {
            None => human::print(&format!("{:.16}  good\n", image.hash()))?,
            Some(first) => {
                bad += 1;
                let count = damaged.len();
                human::print(&format!(
                    "{:.16}  {count} chunks damaged, the first is {first}\n",
                    image.hash()
                ))?;
            }
        }
    }
    if bad > 0 {
        bail!("{bad} images are damaged: remove their files in {}/images", state.display());
    }
    Ok(())
}

fn open(state: &Path) -> anyhow::Result<Images> {
    Images::open(state).with_context(|| format!("opening the images in {}", state.display()))
}
