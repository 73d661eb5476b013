//! The folder `archives` of the state: archives that were packed once more, or came out of a pipe.
//!
//! A file belongs to it from the moment that the catalogue names it. While it is made it is locked, so that no other
//! command takes it for a leftover; what a crash left is neither, and is removed by the next command.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use tempfile::{Builder, NamedTempFile};

use crate::state::State;
use crate::sys::files::{as_its_folder, make_private, sync_folder};

const FOLDER: &str = "archives";

/// An archive in the state folder, removed when this is dropped.
pub struct Kept(NamedTempFile);

impl Kept {
    /// An empty file, whose name begins with `name`.
    pub(super) fn new(state: &Path, name: &str, suffix: &str) -> anyhow::Result<Self> {
        let folder = state.join(FOLDER);
        let make = || -> io::Result<NamedTempFile> {
            make_private(&folder)?;
            let folder = folder.canonicalize()?;
            loop {
                let file = Builder::new().prefix(&format!("{name}-")).suffix(suffix).tempfile_in(&folder)?;
                as_its_folder(file.as_file(), &folder)?;
                flock(&file, FlockOperation::LockExclusive)?;
                // Unless another command was faster and has tidied it up.
                if file.as_file().metadata()?.nlink() > 0 {
                    return Ok(file);
                }
            }
        };
        make().map(Self).with_context(|| format!("making a file in {}", folder.display()))
    }

    pub(super) fn file(&self) -> &File {
        self.0.as_file()
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Brings it and its name to the disk.
    pub(super) fn sync(&self) -> anyhow::Result<()> {
        let path = self.path();
        let sync = || -> io::Result<()> {
            self.file().sync_all()?;
            path.parent().map_or(Ok(()), sync_folder)
        };
        sync().with_context(|| format!("bringing {} to the disk", path.display()))
    }

    /// Leaves it there, since the catalogue names it now.
    ///
    /// # Errors
    /// If it is not there any more.
    pub fn keep(self) -> anyhow::Result<()> {
        self.0.keep().map(drop).context("keeping the archive")
    }
}

/// Removes what no image's file is, and nobody is making. Returns the files that were removed.
///
/// # Errors
/// If the folder or the catalogue cannot be read, or a file cannot be removed.
pub fn sweep(folder: &Path, state: &dyn State) -> anyhow::Result<Vec<PathBuf>> {
    let folder = folder.join(FOLDER);
    let context = || format!("tidying up {}", folder.display());
    let entries = match fs::read_dir(&folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(context)?,
    };
    let folder = folder.canonicalize().with_context(context)?;
    // Locked before the catalogue is read: who makes one lets go of it only when it is in there.
    let mut unlocked: Vec<(PathBuf, File)> = Vec::new();
    for entry in entries {
        let path = folder.join(entry.with_context(context)?.file_name());
        match File::open(&path) {
            Ok(file) if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() => {
                unlocked.push((path, file));
            }
            _ => {}
        }
    }
    let images = state.catalogue()?.images;
    unlocked.retain(|(path, _)| images.iter().all(|image| image.path != *path));
    for (path, _) in &unlocked {
        fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(unlocked.into_iter().map(|(path, _)| path).collect())
}
