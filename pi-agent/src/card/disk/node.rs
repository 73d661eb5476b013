//! The root partition as something that the kernel can mount: a partition's device node,
//! or a loop device on a part of a file.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use piman_core::install::Stage;
use piman_core::install::layout::SECTOR;

use super::{Disk, RootArea, ioctl, usage};
use crate::failure::{Cause, Failure, OrFail};

/// How long a partition's node may take to appear.
const NODE_DEADLINE: Duration = Duration::from_secs(20);
const NODE_PAUSE: Duration = Duration::from_millis(20);

/// The number by which the kernel is told of a root partition that it does not find by itself.
const ROOT: i32 = 2;

/// Something to mount. A loop device goes when this and its mounts are gone.
#[derive(Debug)]
pub struct RootNode {
    path: PathBuf,
    /// Keeps a loop device alive until it is mounted.
    _device: File,
}

impl RootNode {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Disk {
    /// Has the kernel take note of the partitions, and gives the root partition.
    /// What the kernel had cached of it is forgotten. From here on others may mount, too.
    ///
    /// # Errors
    /// [`Cause::Disk`] if its node does not appear within a deadline; a file needs root.
    pub fn root_node(&self, root: &RootArea) -> Result<RootNode, Failure> {
        let node = if self.device { self.partition_node(root) } else { self.loop_node(root) };
        node.or_fail(Stage::Partition, Cause::Disk, format!("finding the root partition of {self}"))
    }

    /// Has the kernel take note of the partitions of a device; from here on others may mount. Where it cannot, as on a
    /// loop device, it is told of each that is needed.
    pub(crate) fn show_partitions(&self) {
        if self.device {
            let claim = self.take_claim();
            if let Err(e) = ioctl::reread_partitions(claim.as_ref().unwrap_or(&self.file)) {
                log::debug!("the kernel does not read the partition table of {self} again: {e}");
            }
        }
    }

    fn partition_node(&self, root: &RootArea) -> anyhow::Result<RootNode> {
        let disk = usage::sysfs(self.file.metadata()?.rdev());
        let deadline = Instant::now() + NODE_DEADLINE;
        // The kernel forgets the old partitions with their caches, and reads the table; it
        // wants to hear that from whoever holds the device.
        let claim = self.take_claim();
        let reread = ioctl::reread_partitions(claim.as_ref().unwrap_or(&self.file));
        drop(claim);
        if reread.is_err() || find(&disk, root).is_none() {
            self.tell_of_partition(root, deadline).context("telling the kernel of the partition")?;
        }
        loop {
            if let Some((path, number)) = find(&disk, root)
                && fs::metadata(&path).is_ok_and(|m| m.rdev() == number)
            {
                let device = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
                ioctl::forget_cache(&device)?;
                return Ok(RootNode { path, _device: device });
            }
            if Instant::now() > deadline {
                bail!("its device node did not appear within {} s", NODE_DEADLINE.as_secs());
            }
            thread::sleep(NODE_PAUSE);
        }
    }

    /// For a loop device without partition scanning, and a disk of which another program has a partition open: device
    /// managers do for moments, to look at it, and meanwhile the kernel goes on with the partition as it was.
    fn tell_of_partition(&self, root: &RootArea, deadline: Instant) -> std::io::Result<()> {
        loop {
            let _ = ioctl::drop_partition(&self.file, ROOT);
            match ioctl::add_partition(&self.file, ROOT, root.offset, root.length) {
                Err(e) if e.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    thread::sleep(NODE_PAUSE);
                }
                result => return result,
            }
        }
    }

    fn loop_node(&self, root: &RootArea) -> anyhow::Result<RootNode> {
        // Where the superblock of ext4 says how large its blocks are: the kernel mounts none that are smaller than sectors.
        let mut log = [0; 4];
        let read = self.file.read_exact_at(&mut log, root.offset + 1024 + 24);
        let small = read.is_ok() && u32::from_le_bytes(log) < 2;
        loop_device(&self.file, root, if small { ioctl::Loop::Small } else { ioctl::Loop::Writable })
    }
}

/// The root partition of an open disk as something that can be mounted and not be written to. Who uses the disk does
/// not matter, and the kernel's own view of its partitions stays as it is.
///
/// # Errors
/// Without root, and where the kernel has no loop devices.
pub fn read_only_node(disk: &File, root: &RootArea) -> anyhow::Result<RootNode> {
    loop_device(disk, root, ioctl::Loop::ReadOnly)
}

fn loop_device(file: &File, root: &RootArea, how: ioctl::Loop) -> anyhow::Result<RootNode> {
    let open = |path: &Path, write| {
        let file = OpenOptions::new().read(true).write(write).open(path);
        file.with_context(|| {
            format!("opening {}: mounting a file needs root and loop devices", path.display())
        })
    };
    let control = open(Path::new("/dev/loop-control"), true)?;
    let mut tries = 0;
    loop {
        let path = PathBuf::from(format!("/dev/loop{}", ioctl::free_loop(&control)?));
        let device = open(&path, how != ioctl::Loop::ReadOnly)?;
        match ioctl::bind_loop(&device, file, root.offset, root.length, how) {
            Ok(()) => return Ok(RootNode { path, _device: device }),
            // Somebody else was faster with that number.
            Err(e) if e.kind() == ErrorKind::ResourceBusy && tries < 64 => tries += 1,
            Err(e) => return Err(e).context("making a loop device"),
        }
    }
}

/// The path that the partition in this place should have, and its device number.
fn find(disk: &Path, area: &RootArea) -> Option<(PathBuf, u64)> {
    for entry in fs::read_dir(disk).ok()?.flatten() {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).ok();
        let sectors = |name: &str| read(name)?.trim().parse::<u64>().ok()?.checked_mul(SECTOR);
        let is_it = read("partition").is_some()
            && sectors("start") == Some(area.offset)
            && sectors("size") == Some(area.length / SECTOR * SECTOR);
        if is_it {
            let numbers = read("dev")?;
            let (major, minor) = numbers.trim().split_once(':')?;
            let device = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
            return Some((Path::new("/dev").join(entry.file_name()), device));
        }
    }
    None
}
