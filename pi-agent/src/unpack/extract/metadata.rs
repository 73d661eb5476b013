//! Owner, permissions, extended attributes and times, in the order in which none undoes
//! another: a change of owner clears setuid and capabilities.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use log::warn;
use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmodat, chownat, fchmod, fchown,
    fremovexattr, fsetxattr, futimens, lsetxattr, utimensat,
};
use rustix::io::Errno;

use super::Error;
use super::error::While;
use piman_core::archive::{Entry, Time, Xattr};

/// What a new file gets from the process and from the directory it is made in, and what
/// must be undone therefore.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Inherited {
    /// The directory passes its group on.
    pub(super) group: bool,
    /// The directory passes an access control list on.
    pub(super) acl: bool,
    /// Permissions that the process takes away (its umask).
    pub(super) masked: u32,
}

/// The metadata of an entry; `path` is its name for errors.
#[derive(Debug, Clone)]
pub(super) struct Metadata {
    pub(super) path: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Time,
    xattrs: Vec<Xattr>,
}

impl Metadata {
    /// # Errors
    /// Numbers that the kernel takes for "leave it as it is".
    pub(super) fn of(entry: Entry) -> Result<Self, Error> {
        let Entry { path, mode, uid, gid, mtime, xattrs, .. } = entry;
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Error::entry(&path, "no file can have this owner or group"));
        }
        Ok(Self { path, mode, uid, gid, mtime, xattrs })
    }

    /// Permissions to create the file with.
    pub(super) fn mode(&self) -> Mode {
        Mode::from_raw_mode(self.mode)
    }

    /// Sets everything on a file that was just created with [`mode`](Self::mode) by root.
    pub(super) fn apply_to_new(&self, file: BorrowedFd<'_>, inherited: Inherited) -> Result<(), Error> {
        if inherited.acl {
            disinherit(file).doing("setting the permissions of", &self.path)?;
        }
        let owned = self.uid == 0 && self.gid == 0 && !inherited.group;
        let permitted = owned && !inherited.acl && self.mode & (inherited.masked | 0o7000) == 0;
        self.apply_but(file, owned, permitted)
    }

    /// Sets everything.
    pub(super) fn apply(&self, file: BorrowedFd<'_>) -> Result<(), Error> {
        self.apply_but(file, false, false)
    }

    fn apply_but(&self, file: BorrowedFd<'_>, owned: bool, permitted: bool) -> Result<(), Error> {
        let path = &self.path;
        if !owned {
            fchown(file, Some(self.uid()), Some(self.gid())).doing("setting the owner of", path)?;
        }
        if !permitted {
            fchmod(file, self.mode()).doing("setting the permissions of", path)?;
        }
        for xattr in &self.xattrs {
            self.tolerate(xattr, fsetxattr(file, &*xattr.name, &xattr.value, XattrFlags::empty()))?;
        }
        futimens(file, &times(self.mtime)).doing("setting the time of", path)
    }

    /// Sets everything on what is not opened: a symbolic link, a device, a pipe.
    pub(super) fn apply_at(&self, dir: BorrowedFd<'_>, name: &[u8], link: bool) -> Result<(), Error> {
        let path = &self.path;
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        chownat(dir, name, Some(self.uid()), Some(self.gid()), nofollow)
            .doing("setting the owner of", path)?;
        if !link {
            // Not through a link: the name was created here, a moment ago, as no link.
            chmodat(dir, name, self.mode(), AtFlags::empty()).doing("setting the permissions of", path)?;
        }
        if !self.xattrs.is_empty() {
            // There is no call relative to a directory before Linux 6.13.
            let mut at = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
            at.extend_from_slice(name);
            for xattr in &self.xattrs {
                self.tolerate(xattr, lsetxattr(&*at, &*xattr.name, &xattr.value, XattrFlags::empty()))?;
            }
        }
        utimensat(dir, name, &times(self.mtime), nofollow).doing("setting the time of", path)
    }

    /// Attributes that no filesystem of Linux has are left out: archives from elsewhere
    /// bring `com.apple.*` and the like along.
    fn tolerate(&self, xattr: &Xattr, result: Result<(), Errno>) -> Result<(), Error> {
        match result {
            Err(Errno::OPNOTSUPP) => {
                let (path, name) = (self.path.escape_ascii(), xattr.name.escape_ascii());
                warn!("{path}: the filesystem does not know the attribute {name}, it is left out");
                Ok(())
            }
            other => other.doing("setting an extended attribute of", &self.path),
        }
    }

    fn uid(&self) -> Uid {
        Uid::from_raw(self.uid)
    }

    fn gid(&self) -> Gid {
        Gid::from_raw(self.gid)
    }
}

/// Takes away the access control lists that a new file or directory got from its directory.
pub(super) fn disinherit(file: impl AsFd) -> Result<(), Errno> {
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        match fremovexattr(file.as_fd(), name) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::ACCESS) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The time of change; that of access stays.
fn times(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() },
    }
}

/// Sets the time of change alone.
pub(super) fn restore(dir: BorrowedFd<'_>, mtime: Time) -> Result<(), Errno> {
    futimens(dir, &times(mtime))
}
