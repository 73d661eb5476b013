//! Path B from the archive to the card: images made, sent, written; judged by e2fsck, the
//! kernel and GNU tar.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use pi_agent::card::disk::RootArea;
use pi_agent::failure::{Cause, Failure};
use pi_agent::image::{self as agent, Area, Medium, Pending, Retry};
use pi_agent::telemetry::progress::Progress;
use piman::images::ext4::{self, Error, Image, Images};
use piman_core::hash::Hash;
use piman_core::hosted::backoff::Backoff;
use piman_core::install::fetch::Kind;
use piman_core::install::receipt::{Proof, Way};
use piman_core::install::table::{HEADER, Table};
use piman_core::install::{ImageOffer, More, Stage};
use piman_tests::disk::{LoopDevice, Mounted, e2fsck, run};
use piman_tests::fetch::{Fault, FetchServer};
use piman_tests::tar::Tar;
use piman_tests::tree::{assert_same, installed, without_times};
use rustix::fs::XattrFlags;

mod archives;
mod as_gnu_tar;
mod early; // while the server still makes it
mod faults;
mod growth;
mod sizes;

/// Where the filesystem begins on the disks of these tests.
const OFFSET: u64 = 48 << 20;
const MIB: u64 = 1 << 20;
const RETRIES: u32 = 20;

/// Packs a folder and what is named of this machine.
fn pack(folder: &Path, archive: &Path, options: &[&str], more: &[&str]) {
    let mut tar = Command::new("tar");
    tar.args(["-S", "--numeric-owner"]).args(options);
    tar.arg("-cf").arg(archive).arg("-C").arg(folder).arg(".");
    if !more.is_empty() {
        tar.args(["-C", "/"]).args(more);
    }
    run(&mut tar);
}

struct Made {
    state: tempfile::TempDir,
    image: Arc<Image>,
    archive: File,
    /// The size of the partition that it is installed in.
    room: u64,
}

fn hash_of(archive: &File) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(archive).unwrap();
    Hash(*hasher.finalize().as_bytes())
}

/// Makes the image, for a partition of so many bytes; the state folder is left clean if that fails.
fn made(archive: &Path, room: u64) -> Result<Made, Error> {
    let state = tempfile::tempdir().unwrap();
    let images = Images::open(state.path()).unwrap();
    let archive = File::open(archive).unwrap();
    let (progress, stop) = (ext4::Progress::new(), AtomicBool::new(false));
    let made = images.build(&archive, hash_of(&archive), &progress, &stop);
    let files = fs::read_dir(state.path().join("images")).unwrap().count();
    assert_eq!(files, if made.is_ok() { 2 } else { 0 }, "files in the state folder");
    assert!(made.is_err() || progress.percent() == 100);
    Ok(Made { image: made?, state, archive, room })
}

/// A disk in a file, full of garbage where a filesystem will be.
fn garbage(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let garbage = vec![0xa5; 1 << 20];
    for at in (0..OFFSET + bytes).step_by(garbage.len()) {
        file.as_file().write_all_at(&garbage, at).unwrap();
    }
    file.as_file().sync_data().unwrap();
    file
}

fn order<'a>(offer: &'a ImageOffer, archive: Hash, progress: &'a Progress) -> agent::Order<'a> {
    let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(5));
    agent::Order { offer, archive, retry: Retry { times: RETRIES, backoff }, progress }
}

/// Installs all but what makes it valid.
fn install_on(server: &FetchServer, image: &Image, medium: &impl Medium) -> Result<Pending, Failure> {
    let progress = Progress::new();
    let (offer, header) = (server.offer(image), image.header());
    let pending =
        agent::install(|| server.connect(), &order(&offer, header.archive, &progress), medium, |_| Ok(()))?;
    assert_eq!(progress.snapshot().stage, Stage::Sync);
    Ok(pending)
}

fn area<'d>(file: &'d File, direct: &'d File, length: u64) -> Area<'d> {
    Area::new(file, direct, RootArea { offset: OFFSET, length })
}

fn direct(path: &Path) -> File {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    File::options().read(true).write(true).custom_flags(flags).open(path).unwrap()
}

fn proof(image: &Image) -> Vec<u8> {
    Proof::now(image.header().archive, Way::Image, More::default()).encode()
}

/// Installs to the end.
fn install(server: &FetchServer, image: &Image, disk: &tempfile::NamedTempFile) -> agent::Summary {
    let file = direct(disk.path());
    let room = disk.as_file().metadata().unwrap().len() - OFFSET;
    let area = area(disk.as_file(), &file, room);
    let mut pending = install_on(server, image, &area).unwrap();
    agent::grow(&area, &mut pending).unwrap();
    assert!(room - pending.summary.total_bytes <= room % (128 * MIB), "all of the partition is used");
    assert!(mkext4_open(disk.path()).is_err(), "a filesystem before the proof");
    agent::commit(&area, &pending, &proof(image)).unwrap();
    pending.summary
}

fn mkext4_open(path: &Path) -> mkext4::Result<()> {
    let mut bytes = vec![0; 1 << 20];
    File::open(path)?.read_exact_at(&mut bytes, OFFSET)?;
    mkext4::reader::Fs::open(&bytes[..]).map(drop)
}

fn faultless(image: &Arc<Image>) -> FetchServer {
    FetchServer::new(Arc::clone(image), |_, _| Fault::None)
}

/// Compares by our own reader.
fn compared(disk: &Path, archive: &File) -> ext4::Comparison {
    let (progress, stop) = (ext4::Progress::new(), AtomicBool::new(false));
    ext4::compare(&File::open(disk).unwrap(), OFFSET, archive, &progress, &stop).unwrap()
}

fn assert_equal(disk: &Path, made: &Made) {
    let found = compared(disk, &made.archive);
    assert_eq!((found.differences, found.told), (0, vec![]));
    assert_eq!(found.archive, made.image.header().archive);
}

/// An archive of files of noise and of text, so that chunks are stored in both ways.
fn noisy(megabytes: usize) -> tempfile::NamedTempFile {
    let mut tar = Tar::new();
    let mut noise = blake3::Hasher::new().update(b"noisy").finalize_xof();
    for i in 0..megabytes {
        let mut content = vec![b'a' + (i % 26) as u8; 1 << 20];
        if i / 6 % 2 == 1 {
            noise.fill(&mut content);
        }
        tar.push(format!("file-{i}").as_bytes(), b'0', b"", &content);
    }
    tar.packed()
}
