//! Files and folders of a system that is not this one: links are followed as that system would, nothing leads out of
//! it, and a file is written whole or not at all.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use piman_core::install::receipt::is_own;
use rustix::fs::OFlags;

use super::root_path::resolve;

/// What a file is called until it is whole.
const NEW: &str = ".piman-new";
/// The mode of folders that are made on the way.
const FOLDER: u32 = 0o755;

/// Whose a file is, and who may do what with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    /// The permissions.
    pub(crate) mode: u32,
    /// The numbers of its user and its group.
    pub(crate) owner: (u32, u32),
}

impl Access {
    /// A file of whoever this program is, which is root where it installs.
    pub(crate) fn own(mode: u32) -> Self {
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        Self { mode, owner: (user.as_raw(), group.as_raw()) }
    }

    /// That of a file that is there.
    pub(crate) fn of(meta: &Metadata) -> Self {
        Self { mode: meta.mode() & 0o7777, owner: (meta.uid(), meta.gid()) }
    }
}

/// A small file that was read.
#[derive(Debug)]
pub(crate) struct Found {
    /// Where it is, outside of the root, with links followed.
    pub(crate) file: PathBuf,
    /// Its access.
    pub(crate) access: Access,
    /// What is in it.
    pub(crate) bytes: Vec<u8>,
}

/// The folder outside of `root`, with links followed as the system itself would; made where it is missing.
///
/// # Errors
/// The kernel's.
pub(crate) fn folder(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut inside = PathBuf::from("/");
    for name in path.components().skip(1) {
        let parent = resolve(root, &inside)?;
        inside.push(name);
        match resolve(root, &inside) {
            Err(e) if e.kind() == ErrorKind::NotFound => make_folder(&parent.join(name), FOLDER)?,
            found => drop(found?),
        }
    }
    resolve(root, &inside)
}

/// Makes one folder; whatever this program's mask for new files says it has this mode.
fn make_folder(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(mode).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Where a name is to be, outside of `root`: the folders before it are made, and a link that is there is not followed.
///
/// # Errors
/// The kernel's; `PermissionDenied` for what belongs to the proof of the installation.
pub(crate) fn place(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    not_own(root, folder(root, parent)?.join(name))
}

/// Like [`place`], but nothing is made; `None` if there is nothing.
///
/// # Errors
/// Like [`place`].
pub(crate) fn existing(root: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    let found = resolve(root, parent).and_then(|parent| {
        let place = parent.join(name);
        fs::symlink_metadata(&place).map(|_| place)
    });
    match found {
        Ok(place) => not_own(root, place).map(Some),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The proof says that everything else is there: nothing else may write it.
fn not_own(root: &Path, place: PathBuf) -> io::Result<PathBuf> {
    let name = place.file_name().map(std::os::unix::ffi::OsStrExt::as_bytes);
    if place.parent() == Some(root) && name.is_some_and(is_own) {
        return Err(io::Error::new(ErrorKind::PermissionDenied, "the proof of the installation is there"));
    }
    Ok(place)
}

/// Reads a file with links followed; `None` if it does not exist.
///
/// # Errors
/// The kernel's; `InvalidData` for what is no file, `FileTooLarge` for more than `max` bytes.
pub(crate) fn read(root: &Path, path: &Path, max: u64) -> io::Result<Option<Found>> {
    let found = resolve(root, path).and_then(|file| Ok((open_to_read(&file)?, not_own(root, file)?)));
    let (opened, file) = match found {
        Ok(found) => found,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(e),
    };
    let meta = opened.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidData, "it is no file"));
    }
    let mut bytes = Vec::new();
    opened.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        let text = format!("it has more than {max} bytes");
        return Err(io::Error::new(ErrorKind::FileTooLarge, text));
    }
    Ok(Some(Found { file, access: Access::of(&meta), bytes }))
}

/// What is no file may block, or do something, when it is opened.
fn open_to_read(file: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(file)
}

/// Writes the file at this place, which is outside of the root, unless it is there and the same.
///
/// # Errors
/// The kernel's.
pub(crate) fn write(file: &Path, access: Access, bytes: &[u8]) -> io::Result<()> {
    let meta = fs::symlink_metadata(file).ok().filter(Metadata::is_file);
    let is_same = meta.is_some_and(|meta| Access::of(&meta) == access && meta.len() == bytes.len() as u64);
    if is_same && fs::read(file).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let folder = file.parent().ok_or(ErrorKind::InvalidInput)?;
    let new = folder.join(NEW);
    unless_absent(fs::remove_file(&new))?;
    let written = write_new(&new, access, bytes).and_then(|()| fs::rename(&new, file));
    if written.is_err() {
        // What is half there would stay.
        let _ = fs::remove_file(&new);
    }
    written?;
    // The name, too: after a power cut the old file would be there.
    File::open(folder)?.sync_all()
}

fn write_new(new: &Path, access: Access, bytes: &[u8]) -> io::Result<()> {
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    out.write_all(bytes)?;
    set_access(&out, access)?;
    out.sync_all()
}

/// Gives an open file or folder its owner and its mode.
///
/// # Errors
/// The kernel's.
pub(crate) fn set_access(file: &File, access: Access) -> io::Result<()> {
    let (uid, gid) = access.owner;
    let meta = file.metadata()?;
    if (meta.uid(), meta.gid()) != (uid, gid) {
        fchown(file, Some(uid), Some(gid))?;
    }
    // A change of the owner takes set-user-ID away.
    rustix::fs::fchmod(file, rustix::fs::Mode::from_raw_mode(access.mode))?;
    Ok(())
}

/// No error if what was to be done away with was not there.
///
/// # Errors
/// All others.
pub(crate) fn unless_absent(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_leads_out_and_the_proof_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        symlink("/../../../outside", root.join("etc/out")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("/", root.join("etc/top")).unwrap();
        let at = |path: &str| place(&root, Path::new(path));
        // A link that leads nowhere is in the way of a folder.
        assert_eq!(at("/etc/out/file").unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert!(!dir.path().join("outside").exists());
        assert!(at("/loop/file").is_err());
        assert_eq!(at("/new/deep/file").unwrap(), root.join("new/deep/file"));
        assert_eq!(fs::metadata(root.join("new/deep")).unwrap().mode() & 0o7777, FOLDER);
        for own in ["/.piman-proof", "/etc/top/.piman-proof", "/etc/top/../.piman-unsaid"] {
            assert_eq!(at(own).unwrap_err().kind(), ErrorKind::PermissionDenied, "{own}");
        }
        at("/etc/.piman-proof").unwrap();
        assert_eq!(existing(&root, Path::new("/no/such")).unwrap(), None);
        assert_eq!(existing(&root, Path::new("/etc/out")).unwrap(), Some(root.join("etc/out")));
    }

    #[test]
    fn files_are_whole_and_have_the_access_that_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        for (mode, text) in [(0o640, "one"), (0o4755, "two"), (0o4755, "two"), (0o600, "")] {
            write(&file, Access::own(mode), text.as_bytes()).unwrap();
            let found = read(dir.path(), Path::new("/file"), 3).unwrap().unwrap();
            assert_eq!((found.access.mode, found.bytes.as_slice()), (mode, text.as_bytes()));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::create_dir(dir.path().join("folder")).unwrap();
        assert!(write(&dir.path().join("folder"), Access::own(0o600), b"x").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        fs::write(&file, "four").unwrap();
        assert_eq!(read(dir.path(), Path::new("/file"), 3).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert!(read(dir.path(), Path::new("/file/x"), 3).unwrap().is_none());
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert_eq!(read(dir.path(), Path::new("/fifo"), 3).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
