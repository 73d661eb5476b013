//! Folders to mount at.

use std::fs::{self, DirBuilder};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use piman_core::install::Stage;

use crate::failure::{Cause, Failure, OrFail};

/// How many names are tried.
const TRIES: u32 = 16;

/// A folder to mount at. One that was made for this goes with it, after what is mounted there.
pub(crate) struct ScratchDir {
    path: PathBuf,
    /// A folder around it that nobody but its owner may enter: what is mounted has permissions
    /// of its own, which say nothing about who may see it here.
    private: Option<PathBuf>,
}

impl ScratchDir {
    /// Where a Pi boots from it, or else a folder of this installation alone.
    pub(crate) fn of(boot_from: Option<&Path>) -> Result<Self, Failure> {
        match boot_from {
            Some(path) => Ok(Self { path: path.to_owned(), private: None }),
            None => Self::scratch(),
        }
    }

    /// A folder that nobody else can reach.
    pub(crate) fn scratch() -> Result<Self, Failure> {
        let below = std::env::temp_dir();
        let what = format!("making a folder to mount at in {}", below.display());
        Self::scratch_in(&below).or_fail(Stage::Mount, Cause::Refused, what)
    }

    fn scratch_in(below: &Path) -> io::Result<Self> {
        let mut tries = 0;
        loop {
            let private = below.join(format!("pi-agent-{:016x}", RandomState::new().hash_one(tries)));
            tries += 1;
            // It must not be there: whoever made it would own it.
            match DirBuilder::new().mode(0o700).create(&private) {
                Ok(()) => {
                    let path = private.join("root");
                    let place = Self { path, private: Some(private) };
                    fs::create_dir(&place.path)?;
                    return Ok(place);
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && tries < TRIES => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        if let Some(private) = &self.private {
            // If something is still mounted there they stay, which `Mounted` has said.
            let _ = fs::remove_dir(&self.path);
            let _ = fs::remove_dir(private);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn nobody_else_may_enter_and_nothing_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) =
            (ScratchDir::scratch_in(folder.path()).unwrap(), ScratchDir::scratch_in(folder.path()).unwrap());
        assert_ne!(one.path(), two.path());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(one.path().parent().unwrap()), 0o700);
        drop((one, two));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(ScratchDir::scratch_in(Path::new("/no/such/folder")).is_err());
    }
}
