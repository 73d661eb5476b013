//! A partition that was just made on a block device can be mounted, also while the disk is
//! still open, and a disk in use cannot be opened.

use std::fs::{self, File};
use std::path::Path;

use pi_agent::disk::{Disk, RootArea};
use pi_agent::ext4;
use pi_agent::mount::Mounted;
use piman_core::install::layout::Layout;
use piman_tests::disk::LoopDevice;

fn layout() -> Layout {
    Layout { boot_start: 2048, boot_sectors: 8192, root_start: 16384, ..Layout::default() }
}

/// Installs nothing but a filesystem with one file, and leaves it mounted.
fn fill(disk: &Disk, place: &Path, text: &str) -> (RootArea, Mounted) {
    let root = disk.partition(&layout()).unwrap();
    ext4::format(disk.file(), root.offset, root.length, 0, "root", 0).unwrap();
    let mounted = Mounted::new(&disk.root_node(&root).unwrap(), place).unwrap();
    fs::write(place.join("file"), text).unwrap();
    mounted.sync().unwrap();
    disk.sync(piman_core::install::Stage::Sync).unwrap();
    (root, mounted)
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_partition_is_mounted_while_its_disk_is_open() {
    let device = LoopDevice::new(256 << 20);
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::open(device.path()).unwrap();
    let (_, mounted) = fill(&disk, place.path(), "first");
    let error = Disk::open(device.path()).unwrap_err().to_string();
    assert!(error.contains("is mounted at"), "{error}");
    drop((mounted, disk));

    // Again, over what is there: the kernel must not show the old filesystem.
    let disk = Disk::open(device.path()).unwrap();
    let (root, mounted) = fill(&disk, place.path(), "second");
    assert_eq!(fs::read_to_string(place.path().join("file")).unwrap(), "second");
    drop(mounted);
    let again = Mounted::new(&disk.root_node(&root).unwrap(), place.path()).unwrap();
    assert_eq!(fs::read_to_string(place.path().join("file")).unwrap(), "second");
    drop((again, disk));
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn two_programs_do_not_share_a_disk() {
    let device = LoopDevice::new(256 << 20);
    let disk = Disk::open(device.path()).unwrap();
    Disk::open(device.path()).unwrap_err();
    drop(disk);
    let held = File::open(device.path()).unwrap();
    Disk::open(device.path()).unwrap();
    drop(held);
}
