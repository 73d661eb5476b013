//! What process 1 needs before anything else: /proc, /sys, /dev, and a console on its
//! standard streams.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

/// What is mounted, where, and how; moved into the installed system later, in this order.
pub(super) const MOUNTS: [(&str, &str, MountFlags); 3] = [
    ("proc", "/proc", MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC)),
    ("sysfs", "/sys", MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC)),
    ("devtmpfs", "/dev", MountFlags::NOSUID),
];

/// Whether something is mounted at `path`. (A bind mount of the same filesystem is not noticed.)
#[must_use]
pub fn is_mount_point(path: &Path) -> bool {
    match (fs::metadata(path), fs::metadata(path.join(".."))) {
        (Ok(here), Ok(above)) => here.dev() != above.dev() || here.ino() == above.ino(),
        _ => false,
    }
}

/// Mounts one filesystem of the kernel's if nothing is mounted at `target` yet, and makes
/// the folder if needed.
///
/// # Errors
/// The kernel's.
pub fn mount(fstype: &str, target: &Path, flags: MountFlags) -> io::Result<()> {
    if is_mount_point(target) {
        return Ok(());
    }
    if !target.is_dir() {
        fs::create_dir_all(target)?;
    }
    match rustix::mount::mount(fstype, target, fstype, flags, None) {
        // The kernel mounts devtmpfs itself where it is built to.
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Mounts /proc, /sys and /dev where they are not; returns what did not work.
#[must_use]
pub fn mount_all() -> Vec<String> {
    let failed = |(fstype, target, flags): (&str, &str, _)| {
        let error = mount(fstype, Path::new(target), flags).err()?;
        Some(format!("cannot mount {fstype} at {target}: {error}"))
    };
    MOUNTS.into_iter().filter_map(failed).collect()
}

/// Makes /dev/console standard input, output and error. For process 1, to which the kernel
/// gives none if the initramfs has no /dev/console of its own.
///
/// # Errors
/// The kernel's: there is no console.
pub fn take_console() -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let console = rustix::fs::open("/dev/console", flags, Mode::empty())?;
    rustix::stdio::dup2_stdin(&console)?;
    rustix::stdio::dup2_stdout(&console)?;
    rustix::stdio::dup2_stderr(&console)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points() {
        assert!(is_mount_point(Path::new("/")));
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(Path::new("/proc/self")));
        assert!(!is_mount_point(Path::new("/no/such/folder")));
    }

    #[test]
    fn what_is_mounted_is_left_alone() {
        // Mounting needs root and would fail here for an ordinary user: nothing is tried.
        mount("proc", Path::new("/proc"), MountFlags::empty()).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        mount("proc", Path::new("/proc/no-such-folder"), MountFlags::empty()).unwrap_err();
    }
}
