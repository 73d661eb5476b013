//! The hand-over: the installed system becomes `/`, what was there before is deleted, and
//! its init becomes process 1.

use std::ffi::{CStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;

use super::console::Console;
use super::mounts::{MOUNTS, is_mount_point};

/// The types of filesystems that live in memory alone, as statfs names them.
const RAMFS: u64 = 0x8584_58f6;
const TMPFS: u64 = 0x0102_1994;

/// Folders within folders that are deleted; an initramfs has a handful.
const DEPTH_MAX: usize = 100;

/// Makes the system at `new_root` the root of everything: moves /proc, /sys and /dev into
/// it, and it to `/`; then deletes what was in the old root, if that was an initramfs.
/// After this the process works in the new root.
///
/// # Errors
/// The kernel's, as words; then everything is again where it was.
pub fn switch_root(new_root: &Path, console: &mut Console) -> Result<(), String> {
    if !is_mount_point(new_root) {
        return Err(format!("nothing is mounted at {}", new_root.display()));
    }
    let old_root = rustix::fs::open("/", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| format!("opening the old root: {e}"))?;
    let mut moved = Vec::new();
    if let Err(e) = move_all(new_root, &mut moved, console) {
        for (from, to) in moved.iter().rev() {
            // What cannot be moved back is mounted anew by the next attempt.
            let _ = rustix::mount::mount_move(to, from);
        }
        let _ = rustix::process::chdir("/");
        return Err(e);
    }
    match is_disposable(&old_root) {
        Ok(()) => {
            let deleted = delete_content(&old_root);
            console.write_line(format_args!("the initramfs is deleted ({deleted} files)"));
        }
        Err(why) => console.write_line(format_args!("the old root is left as it is: {why}")),
    }
    Ok(())
}

fn move_all(
    new_root: &Path,
    moved: &mut Vec<(PathBuf, PathBuf)>,
    console: &mut Console,
) -> Result<(), String> {
    for (_, from, _) in MOUNTS {
        let from = Path::new(from);
        if !is_mount_point(from) {
            continue;
        }
        let to = new_root.join(from.strip_prefix("/").unwrap_or(from));
        // An archive made of a running system may lack these folders.
        let made = if to.is_dir() { Ok(()) } else { fs::create_dir(&to) };
        match made.and_then(|()| Ok(rustix::mount::mount_move(from, &to)?)) {
            Ok(()) => moved.push((from.to_owned(), to)),
            // The installed system mounts them itself.
            Err(e) => console.write_line(format_args!("cannot move {} along: {e}", from.display())),
        }
    }
    let step = |what: &'static str| move |e: Errno| format!("{what}: {e}");
    rustix::process::chdir(new_root).map_err(step("entering the new root"))?;
    rustix::mount::mount_move(".", "/").map_err(step("moving the new root to /"))?;
    rustix::process::chroot(".").map_err(step("changing the root"))?;
    rustix::process::chdir("/").map_err(step("entering /"))
}

/// Whether the folder is the root of a filesystem that lives in memory alone, is not the
/// root of this process any more, and holds an `/init`: an initramfs that was left.
fn is_disposable(folder: &OwnedFd) -> Result<(), String> {
    let words = |e: Errno| e.to_string();
    let kind = rustix::fs::fstatfs(folder).map_err(words)?.f_type;
    let kind = kind as u64 & 0xffff_ffff;
    if kind != RAMFS && kind != TMPFS {
        return Err(format!("it is no initramfs but a filesystem of type {kind:#x}"));
    }
    if rustix::fs::fstatvfs(folder).map_err(words)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err("it is read-only".into());
    }
    let here = rustix::fs::fstat(folder).map_err(words)?;
    let root = fs::metadata("/").map_err(|e| e.to_string())?;
    if here.st_dev == root.dev() {
        return Err("it is still in use".into());
    }
    match rustix::fs::statat(folder, "init", AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(()),
        Err(e) => Err(format!("it holds no /init: {e}")),
    }
}

/// Deletes what is in `folder`, without following links and without going where something
/// else is mounted. Returns how many files went.
fn delete_content(folder: &OwnedFd) -> usize {
    let Ok(stat) = rustix::fs::fstat(folder) else { return 0 };
    let Ok(folder) = rustix::fs::openat(folder, ".", FOLDER, Mode::empty()) else { return 0 };
    delete_below(folder, stat.st_dev, DEPTH_MAX)
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What cannot be deleted stays: it costs memory and nothing else.
fn delete_below(folder: OwnedFd, device: u64, depth: usize) -> usize {
    let Ok(entries) = Dir::read_from(&folder) else { return 0 };
    let mut deleted = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        deleted += delete_one(&folder, name, device, depth);
    }
    deleted
}

fn delete_one(folder: &OwnedFd, name: &CStr, device: u64, depth: usize) -> usize {
    let Ok(stat) = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else { return 0 };
    if stat.st_dev != device {
        return 0; // something else is mounted there
    }
    let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let mut deleted = 0;
    if is_folder && depth > 0 {
        let inside = rustix::fs::openat(folder.as_fd(), name, FOLDER, Mode::empty());
        // Looked at again through its handle: it may have been replaced meanwhile.
        if let Ok(inside) = inside
            && rustix::fs::fstat(&inside).is_ok_and(|s| s.st_dev == device)
        {
            deleted = delete_below(inside, device, depth - 1);
        }
    }
    let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    deleted + usize::from(rustix::fs::unlinkat(folder, name, flags).is_ok())
}

/// Becomes `init`; returns only if that fails.
pub fn become_init(init: &Path, arguments: &[OsString]) -> io::Error {
    Command::new(init).args(arguments).exec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, FOLDER, Mode::empty()).unwrap()
    }

    #[test]
    fn a_disk_is_never_disposable() {
        let why = is_disposable(&open(Path::new("/"))).unwrap_err();
        assert!(why.contains("no initramfs") || why.contains("in use"), "{why}");
        let why = is_disposable(&open(Path::new("/proc"))).unwrap_err();
        assert!(why.contains("no initramfs"), "{why}");
    }

    #[test]
    fn nothing_mounted_is_no_new_root() {
        let kept = super::super::console::tests::Kept::default();
        let error = switch_root(Path::new("/no/such"), &mut Console::to(Box::new(kept))).unwrap_err();
        assert_eq!(error, "nothing is mounted at /no/such");
    }

    #[test]
    fn deleting_follows_no_links() {
        let folder = std::env::temp_dir().join(format!("piman-delete-{}", std::process::id()));
        let (inside, outside) = (folder.join("in"), folder.join("out"));
        fs::create_dir_all(inside.join("a/b/c")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("keep"), "x").unwrap();
        fs::write(inside.join("a/b/file"), "x").unwrap();
        symlink(&outside, inside.join("a/link")).unwrap();
        symlink("/", inside.join("root")).unwrap();
        assert_eq!(delete_content(&open(&inside)), 6);
        assert_eq!(fs::read_dir(&inside).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(outside.join("keep")).unwrap(), "x");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error() {
        assert_eq!(become_init(Path::new("/no/such/init"), &[]).kind(), io::ErrorKind::NotFound);
    }
}
