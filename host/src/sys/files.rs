//! What all that keep files have in common: names that are taken, disks that are full.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
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

/// The folder that a file is in.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a folder for its owner alone, and those that it is in as usual; one that is there stays as it is.
///
/// # Errors
/// The filesystem's.
pub(crate) fn make_private(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(parent(folder))?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(e) => Err(e),
        Ok(()) => as_its_folder(&File::open(folder)?, parent(folder)),
    }
}

/// Gives what root has made in another user's folder to that user: a command of root beside a server that runs as an
/// ordinary user makes files that the server has to read.
///
/// # Errors
/// The filesystem's.
pub(crate) fn as_its_folder(file: &File, folder: &Path) -> io::Result<()> {
    let (owner, made) = (std::fs::metadata(folder)?, file.metadata()?);
    // Not in folders such as /tmp, where everybody may write.
    if made.uid() != 0 || owner.uid() == 0 || owner.mode() & 0o022 != 0 {
        return Ok(());
    }
    std::os::unix::fs::fchown(file, Some(owner.uid()), Some(owner.gid()))
}

/// Brings the names in a folder to the disk: a file that was brought there itself may still be without its name
/// after a power cut, or have its old one.
///
/// # Errors
/// The filesystem's.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Writes a whole file, in place of the one of this name. Whoever reads it meanwhile, and whoever reads it after a
/// power cut, finds the old one or the new one; once this returns, the new one.
///
/// # Errors
/// The filesystem's; the old file stays then.
pub(crate) fn replace(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let folder = parent(path);
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    as_its_folder(file.as_file(), folder)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::CWD;

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for text in ["old", "new"] {
            replace(&path, 0o640, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left there");
        assert!(replace(&folder.path().join("none/file"), 0o640, b"x").is_err());
        assert_eq!([parent(Path::new("a/b")), parent(Path::new("b"))], [Path::new("a"), Path::new(".")]);
    }

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
