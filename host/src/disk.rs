//! What all that keep files have in common: names that are taken, disks that are full.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, RenameFlags, linkat, renameat, renameat_with, statat, unlinkat};
use rustix::io::Errno;

/// Whether this says that there is no room: the disk, a quota, or the largest file there may be.
pub(crate) fn is_full(e: &io::Error) -> bool {
    use ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Gives the file `from` in one folder the name `to` in another, unless that is taken.
///
/// # Errors
/// `AlreadyExists` if it is, or the filesystem's.
pub(crate) fn rename_new(
    from_folder: impl AsFd,
    from: &Path,
    to_folder: impl AsFd,
    to: &Path,
) -> io::Result<()> {
    let (there, here) = (from_folder.as_fd(), to_folder.as_fd());
    match renameat_with(there, from, here, to, RenameFlags::NOREPLACE) {
        // A filesystem that cannot do it in one step.
        Err(Errno::INVAL | Errno::NOSYS) => {}
        other => return Ok(other?),
    }
    match linkat(there, from, here, to, AtFlags::empty()) {
        // A link never replaces either.
        Ok(()) => return Ok(unlinkat(there, from, AtFlags::empty())?),
        // It has no links either: a look before has to do.
        Err(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        Err(e) => return Err(e.into()),
    }
    match statat(here, to, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(renameat(there, from, here, to)?),
        Ok(_) => Err(Errno::EXIST.into()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::CWD;

    use super::*;

    #[test]
    fn a_name_that_is_taken_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("new"), "new").unwrap();
        rename_new(CWD, &path("new"), CWD, &path("file")).unwrap();
        assert!(!path("new").exists());
        fs::write(path("new"), "newer").unwrap();
        std::os::unix::fs::symlink("nowhere", path("link")).unwrap();
        for taken in ["file", "link"] {
            let e = rename_new(CWD, &path("new"), CWD, &path(taken)).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::AlreadyExists, "{taken}");
        }
        assert_eq!(fs::read_to_string(path("file")).unwrap(), "new");
        assert_eq!(fs::read_to_string(path("new")).unwrap(), "newer");
        assert_eq!(rename_new(CWD, &path("none"), CWD, &path("x")).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
