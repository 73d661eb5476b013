//! Path A against GNU tar, which is the judge of what an archive means; and its faults.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use pi_agent::failure::{Cause, Failure};
use pi_agent::telemetry::progress::Progress;
use pi_agent::unpack::{Expected, Summary, install, install_from};
use piman_core::hash::Hash;
use piman_tests::disk::run;
use piman_tests::tar::{Header, Tar};
use piman_tests::tree::{Tree, differences, tree};
use rustix::fs::{AtFlags, CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};
use tempfile::TempDir;

use self::nasty::{mode, nasty, xattr};

mod as_gnu_tar;
mod faults;
mod nasty;
mod refusals;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn expect(bytes: &[u8]) -> Expected {
    Expected { hash: Hash(*blake3::hash(bytes).as_bytes()), bytes: bytes.len() as u64 }
}

/// Extracts what was packed, as it comes out of a file.
fn extract(packed: &[u8], root: &Path) -> Result<Summary, Failure> {
    let root = File::open(root).unwrap();
    install_from(packed, || {}, Some(expect(packed)), root.as_fd(), &Progress::new())
}

/// Extracts a tar archive into a new directory.
fn extract_new(tar: &[u8]) -> (TempDir, Result<Summary, Failure>) {
    let dir = TempDir::new().unwrap();
    let result = extract(&gzip(tar), dir.path());
    (dir, result)
}

/// The text of a failure that must be the archive's fault.
#[track_caller]
fn refused(tar: &[u8]) -> (TempDir, String) {
    let (dir, result) = extract_new(tar);
    let failure = result.unwrap_err();
    assert_eq!(failure.cause, Cause::Image, "{failure}");
    (dir, failure.to_string())
}

/// What GNU tar makes of the same archive.
fn gnu(tar: &[u8]) -> TempDir {
    let dir = TempDir::new().unwrap();
    let archive = tempfile::NamedTempFile::new().unwrap();
    fs::write(archive.path(), tar).unwrap();
    run(Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"])
        .arg(archive.path())
        .arg("-C")
        .arg(dir.path()));
    dir
}

/// Extracts with ours and with GNU tar, and compares everything.
#[track_caller]
fn same_as_gnu(tar: &[u8], but: impl Fn(&mut Tree)) -> TempDir {
    let (ours, result) = extract_new(tar);
    result.unwrap();
    let theirs = gnu(tar);
    // Where holes are is known for certain only once everything is on the disk.
    rustix::fs::syncfs(File::open(ours.path()).unwrap()).unwrap();
    let (mut a, mut b) = (tree(ours.path(), true).unwrap(), tree(theirs.path(), true).unwrap());
    but(&mut a);
    but(&mut b);
    assert!(a.len() > 1);
    let difference = differences(&a, &b);
    assert!(difference.is_empty(), "{difference}");
    ours
}

/// GNU tar gives a directory the time of the extraction if entries of other directories lie
/// between its own; then only the source can tell what is right.
fn without_times_of_directories(tree: &mut Tree) {
    tree.values_mut().filter(|f| f.mode & 0o170_000 == 0o040_000).for_each(|f| f.mtime = (0, 0));
}

fn bytes(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn pack(dir: &Path, options: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .args(options)
        .args(["--numeric-owner", "-c", "-f", "-", "-C"])
        .arg(dir)
        .arg(".")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success());
    output.stdout
}

/// A filesystem on a loop device, which goes with it.
struct Loop {
    dir: TempDir,
    at: PathBuf,
}

impl Loop {
    fn new(bytes: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-b", "4096"]).arg(&image));
        let at = dir.path().join("at");
        fs::create_dir(&at).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        Self { dir, at }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.at).status();
        if !thread::panicking() {
            assert!(unmounted.unwrap().success());
            run(Command::new("e2fsck").args(["-f", "-n"]).arg(self.dir.path().join("image")));
        }
    }
}
