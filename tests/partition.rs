//! A partition that was just made on a block device can be mounted, also while the disk is
//! still open, and a disk in use cannot be opened.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use pi_agent::disk::{Disk, RootArea};
use pi_agent::ext4;
use pi_agent::mount::Mounted;
use piman_core::install::layout::Layout;

/// A loop device on a sparse file; both go with it.
struct Loop {
    device: PathBuf,
    _file: tempfile::NamedTempFile,
}

impl Loop {
    fn new(bytes: u64) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        let output = Command::new("losetup").args(["-f", "--show"]).arg(file.path()).output().unwrap();
        assert!(output.status.success(), "losetup: {output:?}");
        let device = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        Self { device, _file: file }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("partx").arg("-d").arg(&self.device).output();
        let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
    }
}

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
fn a_partition_is_mounted_while_its_disk_is_open() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let device = Loop::new(256 << 20);
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::open(&device.device).unwrap();
    let (_, mounted) = fill(&disk, place.path(), "first");
    let error = Disk::open(&device.device).unwrap_err().to_string();
    assert!(error.contains("is mounted at"), "{error}");
    drop((mounted, disk));

    // Again, over what is there: the kernel must not show the old filesystem.
    let disk = Disk::open(&device.device).unwrap();
    let (root, mounted) = fill(&disk, place.path(), "second");
    assert_eq!(fs::read_to_string(place.path().join("file")).unwrap(), "second");
    drop(mounted);
    let again = Mounted::new(&disk.root_node(&root).unwrap(), place.path()).unwrap();
    assert_eq!(fs::read_to_string(place.path().join("file")).unwrap(), "second");
    drop((again, disk));
}

#[test]
fn two_programs_do_not_share_a_disk() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let device = Loop::new(256 << 20);
    let disk = Disk::open(&device.device).unwrap();
    Disk::open(&device.device).unwrap_err();
    drop(disk);
    let held = File::open(&device.device).unwrap();
    Disk::open(&device.device).unwrap();
    drop(held);
}
