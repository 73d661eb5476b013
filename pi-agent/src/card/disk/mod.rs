//! Disks: a block device, or a file in place of one. What may be written, and where.
//!
//! | file | what lives there |
//! |---|---|
//! | `usage` | who uses a disk, so that it must not be touched; what it calls itself |
//! | `table` | the partition table of either kind and the boot partition |
//! | `seen` | whether a disk is still the one that was looked at |
//! | `fitted` | the partition table of a whole disk's image, fitted to the disk |
//! | `discard` | telling a disk what is not needed any more |
//! | `layout_file` | layouts as `sfdisk --dump` writes them |
//! | `withheld` | a root partition that nobody finds before it is complete |
//! | `wipe` | what others would recognise of what was there before |
//! | `node` | the root partition as something that can be mounted |
//! | `window` | a part of a disk as a stream |
//! | `ioctl` | requests to the kernel |

mod discard;
mod fitted;
pub(in crate::card) mod ioctl;
mod layout_file;
mod node;
mod seen;
mod table;
mod usage;
mod window;
mod wipe;
mod withheld;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use piman_core::install::Stage;
use piman_core::install::layout::{Extent, Layout, Places, SECTOR, SizeError};
use rustix::fs::{FlockOperation, flock};

pub(crate) use fitted::Planned;
pub use layout_file::parse_layout;
pub use node::{RootNode, read_only_node};
pub use table::{data_in_table, is_root_withheld, root_in_table};
pub(crate) use usage::user_in;
pub use window::Window;
pub use withheld::Begun;

use crate::failure::{Cause, Failure, OrFail};

const LOCK_TRIES: u32 = 30;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// A disk that is open for installing, and nobody else's meanwhile.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    file: File,
    /// While it is there nobody else can mount a partition or open the device like this;
    /// neither can we, so it goes before our own mount.
    claim: Mutex<Option<File>>,
    bytes: u64,
    sector: u64,
    device: bool,
}

/// Where the root filesystem of a disk lies, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootArea {
    /// From the start of the disk.
    pub offset: u64,
    /// Its length.
    pub length: u64,
}

impl RootArea {
    /// Where a layout puts it on a disk of so many bytes with sectors of 512 bytes.
    ///
    /// # Errors
    /// [`Cause::Disk`] if the layout does not fit; says the size that is needed.
    pub fn of(layout: &Layout, disk_bytes: u64) -> Result<Self, Failure> {
        Ok(Self::from(places(layout, disk_bytes, SECTOR)?.root))
    }
}

impl From<Extent> for RootArea {
    fn from(extent: Extent) -> Self {
        Self { offset: extent.start * SECTOR, length: extent.sectors * SECTOR }
    }
}

fn places(layout: &Layout, disk_bytes: u64, sector: u64) -> Result<Places, Failure> {
    layout.places(disk_bytes, sector).map_err(|e| {
        let cause = if matches!(e, SizeError::TooSmall { .. }) { Cause::TooSmall } else { Cause::Disk };
        Failure { stage: Stage::Disk, cause, error: anyhow!(e).context("placing the partitions") }
    })
}

impl Disk {
    /// Opens a disk to write to it: a whole block device that nobody uses, or a regular file.
    ///
    /// # Errors
    /// [`Cause::Refused`] if it is neither, mounted, in use or a partition;
    /// [`Cause::Disk`] if it cannot be opened, is read-only or empty.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let refuse = |e: anyhow::Error| Failure {
            stage: Stage::Disk,
            cause: Cause::Refused,
            error: e.context(format!("opening the disk {}", path.display())),
        };
        let device = is_device(path).map_err(refuse)?;
        if let Some(user) = lasting_user(path, device).map_err(refuse)? {
            return Err(refuse(anyhow!("{user}; nothing was changed")));
        }
        let open = |flags| {
            let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
            file.or_fail(Stage::Disk, Cause::Disk, format!("opening {}", path.display()))
        };
        let claim = if device {
            let claim = claim(path);
            Some(claim.or_fail(Stage::Disk, Cause::Disk, format!("opening {}", path.display()))?)
        } else {
            None
        };
        let file = open(0)?;
        lock(&file).map_err(refuse)?;
        let bytes = size(&file, device).or_fail(Stage::Disk, Cause::Disk, "finding its size")?;
        let read_only = device && ioctl::read_only(&file).unwrap_or(false);
        let sector = sector_bytes(&file);
        let disk = Self { path: path.to_owned(), file, claim: Mutex::new(claim), bytes, sector, device };
        if read_only {
            return Err(disk.broken(anyhow!("it is read-only: look at the card's lock switch")));
        }
        if bytes == 0 {
            return Err(disk.broken(anyhow!("it has a size of 0: is there a card in it?")));
        }
        Ok(disk)
    }

    /// Makes a sparse file of `bytes` in place of a disk; one that is there is opened if it
    /// has that size.
    ///
    /// # Errors
    /// Like [`Disk::open`]; [`Cause::Refused`] if the file has another size.
    pub fn create(path: &Path, bytes: u64) -> Result<Self, Failure> {
        match OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(file) => {
                let what = format!("making the file {} of {bytes} bytes", path.display());
                file.set_len(bytes).or_fail(Stage::Disk, Cause::Disk, what)?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => {
                return Err(e).or_fail(
                    Stage::Disk,
                    Cause::Disk,
                    format!("making the file {}", path.display()),
                );
            }
        }
        let disk = Self::open(path)?;
        if disk.bytes != bytes {
            let error = anyhow!(
                "{disk} is there already and has {} bytes, not {bytes}; remove it, or leave --size out",
                disk.bytes
            );
            return Err(Failure { stage: Stage::Disk, cause: Cause::Refused, error });
        }
        Ok(disk)
    }

    /// What it calls itself; a file in place of a disk has no such name.
    #[must_use]
    pub fn id(&self) -> Option<String> {
        let node = self.file.metadata().ok().filter(|_| self.device)?;
        usage::id(node.rdev())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The size of its sectors, in bytes.
    #[must_use]
    pub fn sector(&self) -> u64 {
        self.sector
    }

    /// Where a layout puts the root filesystem on it: whole sectors.
    ///
    /// # Errors
    /// [`Cause::Disk`] if the layout does not fit; says the size that is needed.
    pub fn root_area(&self, layout: &Layout) -> Result<RootArea, Failure> {
        let area = RootArea::from(places(layout, self.bytes, self.sector)?.root);
        Ok(RootArea { length: area.length / self.sector * self.sector, ..area })
    }

    /// Where a layout puts the partition that installations keep, if it has one.
    ///
    /// # Errors
    /// [`Cause::Disk`] if the layout does not fit; says the size that is needed.
    pub fn data_area(&self, layout: &Layout) -> Result<Option<RootArea>, Failure> {
        Ok(places(layout, self.bytes, self.sector)?.data.map(RootArea::from))
    }

    /// Whether it is a block device, and not a file.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.device
    }

    /// The open disk, for reads and writes at a position.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A second descriptor that passes the kernel's cache by, or an ordinary one where the
    /// file system of a file does not allow that.
    ///
    /// # Errors
    /// [`Cause::Disk`] if it cannot be opened.
    pub fn direct(&self) -> Result<File, Failure> {
        // Through the open descriptor, so that it is surely the same disk.
        use std::os::fd::AsRawFd;
        let again = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(&again);
        open(libc_flags::O_DIRECT).or_else(|_| open(0)).or_fail(
            Stage::Disk,
            Cause::Disk,
            format!("opening {self} a second time"),
        )
    }

    /// Brings all that was written to the medium.
    ///
    /// # Errors
    /// [`Cause::Disk`] if the disk reports that it could not write.
    pub fn sync(&self, stage: Stage) -> Result<(), Failure> {
        self.file.sync_all().or_fail(stage, Cause::Disk, format!("bringing everything to {self}"))
    }

    /// Forgets what the kernel has cached of the disk as a whole, after something was written by way of a partition.
    pub(crate) fn forget_cache(&self) {
        if self.device
            && let Err(e) = ioctl::forget_cache(&self.file)
        {
            log::warn!("what is cached of {self} cannot be forgotten: {e}");
        }
    }

    /// The exclusive use, if it was not taken yet. When it is dropped the kernel can mount a
    /// partition of the disk, which stays locked for programs that ask.
    fn take_claim(&self) -> Option<File> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether it is ours alone. A file always is, as far as other programs ask.
    #[must_use]
    pub fn is_claimed(&self) -> bool {
        !self.device || self.claim.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn broken(&self, error: anyhow::Error) -> Failure {
        Failure { stage: Stage::Disk, cause: Cause::Disk, error: error.context(format!("opening {self}")) }
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// Opens a disk for reading only, whoever uses it: for the check. Gives its size in bytes, and whether somebody does.
///
/// # Errors
/// If it is no disk or cannot be opened.
pub fn open_to_read(path: &Path) -> anyhow::Result<(File, u64, bool)> {
    let device = is_device(path)?;
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let bytes = size(&file, device)?;
    let used = lasting_user(path, device)?.is_some();
    Ok((file, bytes, used))
}

/// Who uses a disk. A loop device on a file goes a moment after its filesystem was unmounted,
/// as ours do.
fn lasting_user(path: &Path, device: bool) -> anyhow::Result<Option<String>> {
    let mut tries = 0;
    loop {
        let user = usage::user_of(path, device)?;
        if device || user.is_none() || tries == LOCK_TRIES {
            return Ok(user);
        }
        tries += 1;
        thread::sleep(LOCK_PAUSE);
    }
}

/// Opens a block device exclusively, which fails while a partition of it is mounted or held. Others may hold it for
/// moments: a program that is just being started has all descriptors of the one that starts it until it runs.
fn claim(path: &Path) -> std::io::Result<File> {
    let mut tries = 0;
    loop {
        match OpenOptions::new().read(true).write(true).custom_flags(libc_flags::O_EXCL).open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy && tries < LOCK_TRIES => {
                tries += 1;
                thread::sleep(LOCK_PAUSE);
            }
            result => return result,
        }
    }
}

/// Locks a disk against other programs that ask. Device managers lock one for moments, to
/// look at it.
fn lock(file: &File) -> anyhow::Result<()> {
    for _ in 0..LOCK_TRIES {
        if flock(file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(());
        }
        thread::sleep(LOCK_PAUSE);
    }
    Err(anyhow!("another program has locked it; wait until it has finished"))
}

/// Whether it is a whole block device (true) or a regular file (false).
fn is_device(path: &Path) -> anyhow::Result<bool> {
    let meta = std::fs::metadata(path).context("there is no such disk")?;
    if meta.file_type().is_file() {
        return Ok(false);
    }
    if !meta.file_type().is_block_device() {
        bail!("it is neither a block device nor a file");
    }
    if usage::sysfs(meta.rdev()).join("partition").exists() {
        bail!("it is a partition: name the whole disk");
    }
    Ok(true)
}

/// The size of an open disk or of a file in place of one, in bytes.
fn size_of(disk: &File) -> std::io::Result<u64> {
    ioctl::size(disk).or_else(|_| Ok(disk.metadata()?.size()))
}

fn size(file: &File, device: bool) -> std::io::Result<u64> {
    if device { ioctl::size(file) } else { Ok(file.metadata()?.size()) }
}

/// The size of a disk's sectors, in bytes; a file in place of one has those that every disk once had.
#[must_use]
pub fn sector_bytes(disk: &File) -> u64 {
    ioctl::sector(disk).ok().filter(|bytes| bytes.is_power_of_two() && *bytes >= SECTOR).unwrap_or(SECTOR)
}

/// Flags of `open` as std wants them.
mod libc_flags {
    use rustix::fs::OFlags;
    pub(super) const O_EXCL: i32 = OFlags::EXCL.bits().cast_signed();
    pub(super) const O_DIRECT: i32 = OFlags::DIRECT.bits().cast_signed();
}
