//! The root filesystem where it is mounted.

use std::ffi::CStr;
use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use piman_core::install::Stage;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use crate::card::disk::{RootNode, ioctl};
use crate::failure::{Cause, Failure, OrFail};
use piman_core::install::receipt::Proof;

/// How long others may hold what is to be mounted or unmounted: device managers look at it for moments, and a program
/// that is just being started has all our descriptors until it runs.
const BUSY: Duration = Duration::from_secs(2);

/// While a filesystem is ours alone nothing in it may run, become a device or change who somebody is.
const RESTRICTED: MountFlags =
    MountFlags::NOATIME.union(MountFlags::NOSUID).union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// A mounted root filesystem. Nothing in it can be run until it is [kept](Self::keep); unmounted
/// when dropped otherwise.
#[derive(Debug)]
pub struct Mounted {
    place: PathBuf,
    directory: Option<OwnedFd>,
}

impl Mounted {
    /// Mounts at `place`, which is made if it is not there. The kernel replays its journal.
    /// Give it a place that nobody else can reach, or one on a machine without other users.
    ///
    /// # Errors
    /// [`Cause::Disk`] if the kernel cannot mount it.
    pub fn new(node: &RootNode, place: &Path) -> Result<Self, Failure> {
        let what = format!("mounting {} at {}", node.path().display(), place.display());
        Self::try_new(node, place).or_fail(Stage::Mount, Cause::Disk, what)
    }

    /// Mounts to look at it: nothing is written, not even the journal replayed. The place is as for [`Self::new`].
    ///
    /// # Errors
    /// What the kernel says if it refuses.
    pub fn to_look_at(node: &RootNode, place: &Path) -> anyhow::Result<Self> {
        Self::mount(node, place, RESTRICTED.union(MountFlags::RDONLY), Some(c"noload,errors=remount-ro"))
    }

    fn try_new(node: &RootNode, place: &Path) -> anyhow::Result<Self> {
        Self::mount(node, place, RESTRICTED, None)
    }

    fn mount(node: &RootNode, place: &Path, flags: MountFlags, how: Option<&CStr>) -> anyhow::Result<Self> {
        fs::create_dir_all(place)?;
        unless_busy(|| mount(node.path(), place, "ext4", flags, how))?;
        // From here on a failure unmounts.
        let mut mounted = Self { place: place.to_owned(), directory: None };
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::DIRECTORY.bits().cast_signed())
            .open(place)?;
        mounted.directory = Some(directory.into());
        Ok(mounted)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Its root directory.
    ///
    /// # Errors
    /// Never while it is mounted.
    pub fn directory(&self) -> anyhow::Result<BorrowedFd<'_>> {
        self.directory.as_ref().map(AsFd::as_fd).context("the root filesystem is not mounted")
    }

    /// Grows it while it is mounted, to the end of its partition of so many bytes.
    ///
    /// # Errors
    /// What the kernel says: it may not let this program do it, or not know how to grow a filesystem of this kind.
    pub(crate) fn grow(&self, bytes: u64) -> anyhow::Result<()> {
        let block = rustix::fs::fstatvfs(self.directory()?)?.f_bsize;
        let blocks = bytes.checked_div(block).context("the filesystem has no block size")?;
        ioctl::resize(self.directory()?, blocks)?;
        Ok(())
    }

    /// Brings everything in it to the medium.
    ///
    /// # Errors
    /// If the kernel could not write it.
    pub fn sync(&self) -> anyhow::Result<()> {
        rustix::fs::syncfs(self.directory()?)?;
        Ok(())
    }

    /// Writes down that an installation has begun: until its proof is there, the card counts as not
    /// installed even where systems without a proof are trusted.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn begin(&self) -> anyhow::Result<()> {
        fs::File::create(self.place.join(piman_core::install::receipt::NAME))?.sync_all()?;
        rustix::fs::fsync(self.directory()?)?;
        Ok(())
    }

    /// Writes the proof into the file that [`Self::begin`] has made. Everything else must be on
    /// the medium already.
    ///
    /// It is one block of which one sector changes, and no name does: the file is empty or whole, whenever this is
    /// broken off, and the root directory keeps the time that the archive gave it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_proof(&self, proof: &Proof) -> anyhow::Result<()> {
        use std::io::Write;
        let mut file =
            OpenOptions::new().write(true).open(self.place.join(piman_core::install::receipt::NAME))?;
        file.set_permissions(fs::Permissions::from_mode(0o444))?;
        file.write_all(&proof.encode())?;
        file.sync_all()?;
        self.sync()
    }

    /// Leaves it mounted for good, as a root filesystem whose programs run.
    ///
    /// # Errors
    /// [`Cause::Disk`] if the kernel refuses; it is unmounted then.
    pub fn keep(mut self) -> Result<PathBuf, Failure> {
        self.directory = None;
        let flags = MountFlags::BIND | MountFlags::NOATIME;
        let what = format!("making {} a root filesystem", self.place.display());
        mount_remount(&self.place, flags, "").or_fail(Stage::Mount, Cause::Disk, what)?;
        let place = std::mem::take(&mut self.place);
        std::mem::forget(self);
        Ok(place)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.directory = None;
        if let Err(e) = unless_busy(|| unmount(&self.place, UnmountFlags::empty())) {
            log::warn!("{} stays mounted: {e}", self.place.display());
        }
    }
}

/// Tries until it is not refused for being busy, or for too long.
fn unless_busy(mut attempt: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    let deadline = Instant::now() + BUSY;
    loop {
        match attempt() {
            Err(Errno::BUSY) if Instant::now() < deadline => thread::sleep(BUSY / 50),
            result => return result,
        }
    }
}
