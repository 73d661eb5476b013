//! The way down to where the next entry is created: the open directories from the root on.
//!
//! Archives list a directory's entries one after the other, so the way to the next entry is
//! mostly the way to the last one. When a directory is left it gets its metadata; when it is
//! entered again, its time is kept and given back, so nothing needs to be remembered for the
//! end, however many directories there are.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, fgetxattr, fstat, mkdirat, openat, openat2, statat,
};
use rustix::io::Errno;

use super::Error;
use super::error::While;
use super::metadata::{Inherited, Metadata, disinherit, restore};
use piman_core::archive::{DEPTH_MAX, Time};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The way from the root to a directory.
pub(super) struct Way {
    root: Level,
    below: Vec<Level>,
    masked: u32,
}

struct Level {
    name: Vec<u8>,
    dir: OwnedFd,
    inherited: Inherited,
    leave: Leave,
}

/// What a directory gets when it is left.
enum Leave {
    Nothing,
    /// It was there before: the time it had.
    Time(Time),
    /// The archive had an entry for it.
    Metadata(Box<Metadata>),
}

/// A directory that entries are created in.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) dir: BorrowedFd<'a>,
    pub(super) inherited: Inherited,
}

impl Way {
    pub(super) fn new(root: BorrowedFd<'_>) -> Result<Self, Error> {
        let masked = umask();
        // A handle of our own, for reading: the caller's may be a mere path.
        let dir = openat(root, ".", DIRECTORY, Mode::empty()).doing("opening", b"/")?;
        let root = Level::there_already(b"", dir, masked, b"/")?;
        Ok(Self { root, below: Vec::new(), masked })
    }

    /// The root itself.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.dir.as_fd()
    }

    /// Where the way has led.
    pub(super) fn here(&self) -> Place<'_> {
        let level = self.below.last().unwrap_or(&self.root);
        Place { dir: level.dir.as_fd(), inherited: level.inherited }
    }

    /// Whether the way has led to this directory.
    pub(super) fn is_at<'a>(&self, mut components: impl Iterator<Item = &'a [u8]>) -> bool {
        self.below.iter().all(|level| components.next() == Some(&*level.name)) && components.next().is_none()
    }

    /// Whether the way has led to the root, by whatever names.
    pub(super) fn is_at_root(&self) -> Result<bool, Errno> {
        Ok(kind_of(self.here().dir, b".")? == kind_of(self.root(), b".")?)
    }

    /// Goes to the directory `components`; what is missing of it is created. `entry` is the
    /// name for errors.
    pub(super) fn go<'a>(
        &mut self,
        components: impl Iterator<Item = &'a [u8]> + Clone,
        entry: &[u8],
    ) -> Result<(), Error> {
        let mut names = components.clone();
        let mut common = 0;
        while let (Some(level), Some(name)) = (self.below.get(common), names.clone().next()) {
            if level.name != name {
                break;
            }
            common += 1;
            names.next();
        }
        self.leave_below(common)?;
        for name in names {
            let so_far = components.clone().take(self.below.len() + 1);
            let level = self.open(name, so_far, entry)?;
            self.enter(level, entry)?;
        }
        Ok(())
    }

    /// Creates the directory `name` here, or takes it as it is, and goes into it. It gets
    /// `metadata` when it is left.
    pub(super) fn make(&mut self, name: &[u8], metadata: Metadata) -> Result<(), Error> {
        let here = self.here();
        let mut level = match mkdirat(here.dir, name, Mode::RWXU) {
            Ok(()) => Level::created(name, here, self.masked, &metadata.path)?,
            Err(Errno::EXIST) => match openat(here.dir, name, DIRECTORY, Mode::empty()) {
                Ok(dir) => Level::there_already(name, dir, self.masked, &metadata.path)?,
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    super::remove(here.dir, name, &metadata.path)?;
                    mkdirat(here.dir, name, Mode::RWXU).doing("creating", &metadata.path)?;
                    Level::created(name, here, self.masked, &metadata.path)?
                }
                Err(errno) => return Err(errno).doing("opening", &metadata.path),
            },
            Err(errno) => return Err(errno).doing("creating", &metadata.path),
        };
        let path = metadata.path.clone();
        level.leave = Leave::Metadata(Box::new(metadata));
        self.enter(level, &path)
    }

    /// Gives the root itself an entry's metadata.
    pub(super) fn root_gets(&mut self, metadata: Metadata) {
        self.root.leave = Leave::Metadata(Box::new(metadata));
    }

    /// Goes back up and leaves the root.
    pub(super) fn end(mut self) -> Result<(), Error> {
        self.leave_below(0)?;
        self.root.left()
    }

    fn enter(&mut self, level: Level, entry: &[u8]) -> Result<(), Error> {
        if self.below.len() == DEPTH_MAX {
            return Err(Error::entry(entry, format!("more than {DEPTH_MAX} directories deep")));
        }
        self.below.push(level);
        Ok(())
    }

    fn leave_below(&mut self, depth: usize) -> Result<(), Error> {
        while self.below.len() > depth {
            if let Some(level) = self.below.pop() {
                level.left()?;
            }
        }
        Ok(())
    }

    /// Opens the directory `name` here. A symbolic link is followed as long as it does not
    /// lead out of the root (`lib` is one in most systems of today).
    fn open<'a>(
        &self,
        name: &[u8],
        components: impl Iterator<Item = &'a [u8]>,
        entry: &[u8],
    ) -> Result<Level, Error> {
        let here = self.here();
        match openat(here.dir, name, DIRECTORY, Mode::empty()) {
            Ok(dir) => Level::there_already(name, dir, self.masked, entry),
            Err(Errno::NOENT) => {
                let mode = Mode::from_raw_mode(0o755);
                mkdirat(here.dir, name, mode).doing("creating the directory of", entry)?;
                Level::created(name, here, self.masked, entry)
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let dir = beneath(self.root(), components, entry)?;
                Level::there_already(name, dir, self.masked, entry)
            }
            Err(errno) => Err(errno).doing("opening the directory of", entry),
        }
    }
}

impl Level {
    fn created(name: &[u8], place: Place<'_>, masked: u32, entry: &[u8]) -> Result<Self, Error> {
        let dir = openat(place.dir, name, DIRECTORY, Mode::empty()).doing("opening", entry)?;
        if place.inherited.acl {
            disinherit(&dir).doing("setting the permissions of", entry)?;
        }
        // What is created in it inherits only what it has itself, and it has that when it is left.
        let inherited = Inherited { group: place.inherited.group, acl: false, masked };
        Ok(Self { name: name.to_vec(), dir, inherited, leave: Leave::Nothing })
    }

    fn there_already(name: &[u8], dir: OwnedFd, masked: u32, entry: &[u8]) -> Result<Self, Error> {
        let stat = fstat(&dir).doing("looking at the directory of", entry)?;
        let acl = match fgetxattr(&dir, "system.posix_acl_default", &mut [0_u8; 0][..]) {
            Ok(_) => true,
            Err(Errno::NODATA | Errno::OPNOTSUPP) => false,
            Err(errno) => return Err(errno).doing("looking at the directory of", entry),
        };
        let group = Mode::from_raw_mode(stat.st_mode).contains(Mode::SGID);
        let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
        Ok(Self {
            name: name.to_vec(),
            dir,
            inherited: Inherited { group, acl, masked },
            leave: Leave::Time(Time { seconds: stat.st_mtime, nanos }),
        })
    }

    fn left(self) -> Result<(), Error> {
        match self.leave {
            Leave::Nothing => Ok(()),
            Leave::Time(time) => restore(self.dir.as_fd(), time).doing("setting the time of", &self.name),
            Leave::Metadata(metadata) => metadata.apply(self.dir.as_fd()),
        }
    }
}

/// Opens a directory below the root, following symbolic links that stay below it.
pub(super) fn beneath<'a>(
    root: BorrowedFd<'_>,
    components: impl Iterator<Item = &'a [u8]>,
    entry: &[u8],
) -> Result<OwnedFd, Error> {
    let mut path = vec![b'.'];
    for component in components {
        path.push(b'/');
        path.extend_from_slice(component);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let stay = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let why = match openat2(root, &*path, flags, Mode::empty(), stay) {
        Ok(dir) => return Ok(dir),
        Err(Errno::XDEV) => "leads out of the root by a symbolic link",
        Err(Errno::LOOP) => "leads round in a circle of symbolic links",
        Err(Errno::NOENT) => "leads nowhere, by a symbolic link or to a missing directory",
        Err(Errno::NOTDIR) => "is not a directory",
        Err(errno) => return Err(errno).doing("opening the directory of", entry),
    };
    let path = path.get(2..).unwrap_or_default().escape_ascii();
    Err(Error::entry(entry, format!("its directory `{path}` {why}")))
}

/// Whether there is something of this kind here.
pub(super) fn kind_of(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(FileType, u64, u64), Errno> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((FileType::from_raw_mode(stat.st_mode), stat.st_dev, stat.st_ino))
}

/// Permissions that the process takes away from new files. To be asked without changing it,
/// which would change it for other threads; where it cannot be, all are.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|m| u32::from_str_radix(m.trim(), 8).ok()).unwrap_or(0o7777)
}
