//! Extracts an archive below a directory, as `tar --xattrs --xattrs-include='*'
//! --numeric-owner -xp` of GNU does it: path A.
//!
//! | file | what lives there |
//! |---|---|
//! | `mod` | one entry after the other: files, links, devices |
//! | `walk` | the open directories on the way to an entry |
//! | `metadata` | owner, permissions, extended attributes, times |
//! | `error` | whose fault it is |
//!
//! Everything is created relative to open directories. No name leads out of the root: `..` is
//! refused, and symbolic links are followed only as far as they stay below it. An entry
//! replaces an earlier one of the same name, except that a directory stays what it is, and is
//! an error where another kind of entry would replace it while it is not empty.
//!
//! An archive of an installed card has a proof: that one is left out, so that nothing counts as
//! installed before all of it is there.

mod error;
mod metadata;
mod walk;

use std::io::BufRead;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use rustix::fs::{
    Advice, AtFlags, FileType, OFlags, fadvise, ftruncate, linkat, makedev, mknodat, openat, symlinkat,
    syncfs, unlinkat,
};
use rustix::io::{Errno, pwrite, write};
use rustix::process::geteuid;

use embedded_io_adapters::std::FromStd;
pub use error::Error;
use error::While;
use metadata::Metadata;
use piman_core::archive::{Entry, File, Kind, Reader, components};
use piman_core::install::receipt::is_own;
use walk::Way;

/// Of a large file this much is gathered before the disk is told to begin writing, in bytes.
/// Without it the kernel begins late, and the last of the wait is spent in a final sync.
const WINDOW: u64 = 8 << 20;

/// Of all files together this much is created before the disk is synced for the first time, and
/// then each time again, in bytes.
const EARLY: u64 = 64 << 20;

/// What was extracted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Entries of all kinds.
    pub entries: u64,
    /// Bytes of files that were written (holes are not).
    pub file_bytes: u64,
}

/// Extracts all of `reader`'s entries below `root`, a directory on the filesystem that is
/// filled. Everything is created, not yet on the medium: sync afterwards.
///
/// # Errors
/// [`Error`], which says whose fault it is and names the entry. What was extracted before
/// stays. As another user than root nothing is done at all.
pub fn extract<R: BufRead>(reader: &mut Reader<FromStd<R>>, root: BorrowedFd<'_>) -> Result<Summary, Error> {
    if !geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let mut way = Way::new(root)?;
    let mut summary = Summary::default();
    thread::scope(|scope| {
        let early = Early::start(scope, root)?;
        let mut waiting = 0;
        while let Some(entry) = reader.next_entry()? {
            let written = create(entry, reader, &mut way)?;
            summary.file_bytes += written;
            summary.entries += 1;
            waiting += written;
            if waiting >= EARLY {
                early.go();
                waiting = 0;
            }
        }
        way.end()?;
        early.end()?;
        Ok(summary)
    })
}

/// Brings what was extracted so far to the disk, while more is extracted. Errors that the disk
/// makes then are told to whoever syncs first, so they must be kept.
struct Early<'scope> {
    orders: SyncSender<()>,
    thread: thread::ScopedJoinHandle<'scope, Result<(), Errno>>,
}

impl<'scope> Early<'scope> {
    fn start(scope: &'scope thread::Scope<'scope, '_>, root: BorrowedFd<'scope>) -> Result<Self, Error> {
        let (orders, ordered) = sync_channel(1);
        let sync = move || ordered.iter().try_for_each(|()| syncfs(root));
        let thread = thread::Builder::new().name("sync".to_owned()).spawn_scoped(scope, sync);
        let thread = thread.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::AGAIN));
        Ok(Self { orders, thread: thread.doing("starting to sync", b"/")? })
    }

    /// If it is at it already it is late, and once more is enough.
    fn go(&self) {
        let _ = self.orders.try_send(());
    }

    fn end(self) -> Result<(), Error> {
        drop(self.orders);
        self.thread.join().unwrap_or_else(|panic| resume_unwind(panic)).doing("writing to the disk", b"/")
    }
}

/// Creates one entry and tells how many bytes of content were written.
fn create<R: BufRead>(
    mut entry: Entry,
    reader: &mut Reader<FromStd<R>>,
    way: &mut Way,
) -> Result<u64, Error> {
    let path = entry.path.clone();
    let mut parent = components(&path).map_err(|e| Error::entry(&path, e.why()))?;
    let Some(name) = parent.next_back() else {
        return match entry.kind {
            Kind::Directory => Metadata::of(entry).map(|metadata| way.root_gets(metadata)).map(|()| 0),
            _ => Err(Error::entry(&path, "the root itself can only be a directory")),
        };
    };
    if is_own(parent.clone().next().unwrap_or(name)) {
        return Ok(0);
    }
    way.go(parent, &path)?;
    if is_own(name) && way.is_at_root().doing("looking at the directory of", &path)? {
        return Ok(0);
    }
    let kind = std::mem::replace(&mut entry.kind, Kind::Directory);
    if let Kind::Hardlink(target) = &kind {
        return link(way, name, target, &path).map(|()| 0);
    }
    let metadata = Metadata::of(entry)?;
    let here = way.here();
    let node = |kind, major: u32, minor: u32| {
        if major > 0xfff || minor > 0xf_ffff {
            return Err(Error::entry(&path, "Linux has no such device number"));
        }
        let (mode, device) = (metadata.mode(), makedev(major, minor));
        replacing(here.dir, name, &path, || mknodat(here.dir, name, kind, mode, device))?;
        metadata.apply_at(here.dir, name, false)
    };
    match kind {
        Kind::Directory => way.make(name, metadata)?,
        Kind::Symlink(target) => {
            replacing(here.dir, name, &path, || symlinkat(&*target, here.dir, name))?;
            metadata.apply_at(here.dir, name, true)?;
        }
        Kind::CharDevice { major, minor } => node(FileType::CharacterDevice, major, minor)?,
        Kind::BlockDevice { major, minor } => node(FileType::BlockDevice, major, minor)?,
        Kind::Fifo => node(FileType::Fifo, 0, 0)?,
        Kind::Hardlink(_) => {}
        Kind::File(file) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let out = replacing(here.dir, name, &path, || openat(here.dir, name, flags, metadata.mode()))?;
            let written = fill(&out, &file, reader, &path)?;
            metadata.apply_to_new(out.as_fd(), here.inherited)?;
            return Ok(written);
        }
    }
    Ok(0)
}

/// Writes the content of a file, holes left out; begins early with large ones.
fn fill<R: BufRead>(
    out: &OwnedFd,
    file: &File,
    reader: &mut Reader<FromStd<R>>,
    path: &[u8],
) -> Result<u64, Error> {
    if file.sparse.is_some() {
        ftruncate(out, file.size).doing("setting the size of", path)?;
    }
    let (mut written, mut begun) = (0, 0);
    for segment in file.segments() {
        let mut left = segment.length;
        let mut at = segment.offset;
        while left > 0 {
            let piece = reader.content()?;
            let piece = piece.get(..usize::try_from(left).unwrap_or(usize::MAX)).unwrap_or(piece);
            let n = match file.sparse {
                None => write(out, piece),
                Some(_) => pwrite(out, piece, at),
            };
            let n = match n {
                Ok(0) => Err(Errno::IO).doing("writing", path)?,
                Err(Errno::INTR) => continue,
                other => other.doing("writing", path)?,
            };
            reader.consume(n);
            let n = n as u64;
            (left, at, written) = (left - n, at + n, written + n);
            if at.saturating_sub(begun) >= WINDOW {
                begin_writing(out, begun, at);
                begun = at;
            }
        }
    }
    Ok(written)
}

/// Has the disk begin to write what lies between the two offsets, and lets go of what is
/// written already. A wish: without it everything takes longer and is as right.
fn begin_writing(out: &OwnedFd, from: u64, to: u64) {
    let _ = fadvise(out, from, NonZeroU64::new(to.saturating_sub(from)), Advice::DontNeed);
}

/// Another name for what was extracted before. It has its metadata already.
fn link(way: &Way, name: &[u8], target: &[u8], path: &[u8]) -> Result<(), Error> {
    let refuse = |why: &str| Error::entry(path, format!("a hard link to `{}`, {why}", target.escape_ascii()));
    let mut parent = components(target).map_err(|e| refuse(&format!("which {}", e.why())))?;
    let Some(old) = parent.next_back() else { return Err(refuse("which is the root itself")) };
    let opened;
    let from = if way.is_at(parent.clone()) {
        way.here().dir
    } else {
        opened = walk::beneath(way.root(), parent, path).map_err(|error| match error {
            Error::Entry { why, .. } => refuse(&why),
            other => other,
        })?;
        opened.as_fd()
    };
    let to = way.here().dir;
    let make = || linkat(from, old, to, name, AtFlags::empty());
    let result = match make() {
        Err(Errno::EXIST) => {
            let found = walk::kind_of(from, old);
            match found {
                // It is there already, as the same file.
                Ok(found) if walk::kind_of(to, name) == Ok(found) => return Ok(()),
                Ok(_) => remove(to, name, path).map(|()| make())?,
                Err(errno) => Err(errno),
            }
        }
        other => other,
    };
    match result {
        Err(Errno::NOENT) => Err(refuse("which the archive does not have before it")),
        Err(Errno::PERM) if matches!(walk::kind_of(from, old), Ok((FileType::Directory, ..))) => {
            Err(refuse("which is a directory"))
        }
        other => other.doing("creating the hard link", path),
    }
}

/// Creates something; if there is something of this name already, in its place.
fn replacing<T>(
    dir: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    make: impl Fn() -> Result<T, Errno>,
) -> Result<T, Error> {
    match make() {
        Err(Errno::EXIST) => {
            remove(dir, name, path)?;
            make()
        }
        other => other,
    }
    .doing("creating", path)
}

/// Removes what stands in the way of an entry: anything but a directory that is not empty.
fn remove(dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(), Error> {
    let removed = match unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => unlinkat(dir, name, AtFlags::REMOVEDIR),
        other => other,
    };
    match removed {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {
            Err(Error::entry(path, "there is a directory of this name already, and it is not empty"))
        }
        other => other.doing("replacing", path),
    }
}
