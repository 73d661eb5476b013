//! A state folder is its owner's alone: passwords are in it, and who can open its files can lock them.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

use crate::sys::files::make_private;

/// How deep the folders in a state folder are nested at most, and how many files in all are looked at.
const DEPTH_MAX: usize = 4;
const FILES_MAX: usize = 100_000;

/// Makes the folder if there is none; of one that is there, others are told loudly if they may enter it, and what an
/// earlier version has made in it for others is narrowed.
///
/// # Errors
/// If it cannot be made.
pub(super) fn prepare(folder: &Path) -> io::Result<()> {
    make_private(folder)?;
    let found = fs::metadata(folder)?;
    if found.mode() & 0o077 != 0 {
        tracing::warn!(
            "other users of this machine may enter the state folder {}, and whoever does can stop this server: `chmod \
             0700 {0}` keeps them out",
            folder.display()
        );
    }
    let mut left = FILES_MAX;
    narrow(folder, rustix::process::geteuid().as_raw(), DEPTH_MAX, &mut left);
    Ok(())
}

fn narrow(folder: &Path, user: u32, depth: usize, left: &mut usize) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        *left = left.saturating_sub(1);
        if *left == 0 {
            return;
        }
        let path = entry.path();
        match narrow_one(&path, user) {
            Ok(true) if depth > 0 => narrow(&path, user, depth - 1, left),
            Ok(_) => {}
            // It may have gone meanwhile: temporary files come and go.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                tracing::warn!("others may read {}, which is only for this server: {e}", path.display())
            }
        }
    }
}

/// Takes the rights of others away; whether it is a folder.
fn narrow_one(path: &Path, user: u32) -> io::Result<bool> {
    // Not opened for reading: closing a database's file gives up the locks that this process has on it.
    let flags = (OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    let is_folder = found.is_dir();
    if (found.is_file() || is_folder) && found.mode() & 0o077 != 0 && found.uid() == user {
        chmod(&file, found.mode() & 0o700)?;
    }
    Ok(is_folder)
}

/// By the open file and not by its name, which could lead to another one by now.
fn chmod(file: &File, mode: u32) -> io::Result<()> {
    fs::set_permissions(format!("/proc/self/fd/{}", file.as_raw_fd()), Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_may_read_is_narrowed_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (state, other) = (dir.path().join("a/state"), dir.path().join("other"));
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o777;
        prepare(&state).unwrap();
        assert_eq!(mode(&state), 0o700);
        fs::create_dir(state.join("images")).unwrap();
        for path in [&state.join("images/x"), &state.join("piman.db"), &other] {
            fs::write(path, "x").unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o664)).unwrap();
        }
        std::os::unix::fs::symlink(&other, state.join("link")).unwrap();
        prepare(&state).unwrap();
        assert_eq!([mode(&state.join("images")), mode(&state.join("images/x"))], [0o700, 0o600]);
        assert_eq!([mode(&state.join("piman.db")), mode(&other)], [0o600, 0o664]);
    }
}
