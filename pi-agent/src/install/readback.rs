//! Samples of what was extracted, as they are on the medium: compared with what the kernel
//! was given to write, which its cache still holds.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use piman_core::install::Stage;
use rustix::fs::OFlags;
use rustix::io::{ReadWriteFlags, preadv2};

use crate::failure::{Cause, Failure};
use crate::image::Aligned;

/// How many blocks are looked at.
const SAMPLES: u64 = 48;

/// How many entries of a directory are considered.
const ENTRIES: usize = 512;

const BLOCK: usize = 4096;

/// Reads blocks of files by chance, past the cache. Everything must have been synced.
///
/// # Errors
/// [`Cause::Disk`] if one is not what was written, or cannot be read.
pub(super) fn check(root: &Path) -> Result<(), Failure> {
    let random = RandomState::new();
    let mut compared = 0;
    for n in 0..SAMPLES {
        let Some(path) = descend(root, |depth, of| random.hash_one((n, depth)) as usize % of) else {
            continue;
        };
        match is_as_written(&path, random.hash_one(n)) {
            Ok(Some(true)) => compared += 1,
            Ok(None) => {}
            Ok(Some(false)) => {
                let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
                return Err(failed(anyhow!(
                    "the disk gives back other bytes of {name} than were written: it is failing, or has less \
                     room than it says; take another one"
                )));
            }
            Err(e) => return Err(failed(anyhow!(e).context(format!("reading {} back", path.display())))),
        }
    }
    log::debug!("{compared} samples are on the disk as they were written");
    Ok(())
}

/// A file by chance: `choose` takes one of so many entries at each depth.
fn descend(root: &Path, choose: impl Fn(usize, usize) -> usize) -> Option<PathBuf> {
    let mut path = root.to_owned();
    for depth in 0.. {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&path).ok()?.flatten().take(ENTRIES) {
            let kind = entry.file_type().ok()?;
            if kind.is_file() || kind.is_dir() {
                entries.push((entry.path(), kind.is_file()));
            }
        }
        let chosen = choose(depth, entries.len().max(1));
        let (chosen, is_file) = entries.into_iter().nth(chosen)?;
        if is_file {
            return Some(chosen);
        }
        path = chosen;
    }
    None
}

/// Compares a block of a file; `None` if the cache has it no longer, or it is empty.
fn is_as_written(path: &Path, chance: u64) -> io::Result<Option<bool>> {
    let open = |flags: OFlags| {
        let flags = (flags | OFlags::NOFOLLOW).bits().cast_signed();
        OpenOptions::new().read(true).custom_flags(flags).open(path)
    };
    let file = open(OFlags::empty())?;
    let blocks = file.metadata()?.len().div_ceil(BLOCK as u64);
    if blocks == 0 {
        return Ok(None);
    }
    let at = chance % blocks * BLOCK as u64;
    let mut cached = [0; BLOCK];
    // Only what need not be read for it.
    let mut place = [IoSliceMut::new(&mut cached)];
    let Ok(length) = preadv2(&file, &mut place, at, ReadWriteFlags::NOWAIT) else { return Ok(None) };
    let Ok(direct) = open(OFlags::DIRECT) else { return Ok(None) };
    let mut block = Aligned::new(BLOCK);
    let came = read(&direct, block.first_mut(BLOCK), at)?;
    // A hole ends a read from the cache early.
    Ok((length > 0)
        .then(|| came >= length && block.first(length) == cached.get(..length).unwrap_or_default()))
}

fn read(file: &File, block: &mut [u8], at: u64) -> io::Result<usize> {
    match file.read_at(block, at) {
        Err(e) if e.kind() == io::ErrorKind::Interrupted => file.read_at(block, at),
        done => done,
    }
}

fn failed(error: anyhow::Error) -> Failure {
    Failure { stage: Stage::Sync, cause: Cause::Disk, error }
}
