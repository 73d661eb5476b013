//! A partition that was just made on a block device can be mounted, also while the disk is
//! still open, and a disk in use cannot be opened.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use pi_agent::card::disk::{Disk, RootArea};
use pi_agent::card::mount::Mounted;
use piman_core::hosted::ext4;
use piman_core::install::layout::Layout;
use piman_core::install::mbr::{BYTES, Mbr, Partition};
use piman_tests::disk::LoopDevice;
use proptest::prelude::*;

fn layout() -> Layout {
    Layout { boot_start: 2048, boot_sectors: 8192, root_start: 16384, ..Layout::default() }
}

/// Installs nothing but a filesystem with one file, and leaves it mounted.
fn fill(disk: &Disk, place: &Path, text: &str) -> (RootArea, Mounted) {
    let begun = disk.begin(&layout()).unwrap();
    let root = disk.partition(&layout(), &begun).unwrap();
    ext4::format(disk.file(), root.offset, root.length, 0, "root", 0).unwrap();
    let mounted = Mounted::new(&disk.root_node(&root).unwrap(), place).unwrap();
    fs::write(place.join("file"), text).unwrap();
    mounted.sync().unwrap();
    disk.show_root(&begun).unwrap();
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

fn any_partition() -> impl Strategy<Value = Partition> {
    let numbers = (any::<bool>(), any::<u8>(), any::<u32>(), any::<u32>(), any::<[[u8; 3]; 2]>());
    numbers.prop_map(|(active, kind, first, sectors, cylinders)| Partition {
        active,
        kind,
        first,
        sectors,
        cylinders,
    })
}

proptest! {
    #[test]
    fn a_table_that_is_written_is_read(
        disk_id in any::<u32>(),
        reserved in any::<[u8; 2]>(),
        code in any::<u8>(),
        partitions in prop::array::uniform4(any_partition()),
    ) {
        let table = Mbr { reserved, boot_code: [code; 440], partitions, ..Mbr::new(disk_id) };
        prop_assert_eq!(Mbr::read(&table.write()), Ok(table));
    }

    /// Also with the right mark at its end, and with entries that may be right.
    #[test]
    fn any_sector_is_read_as_it_is_or_refused(
        bytes in prop::collection::vec(any::<u8>(), BYTES),
        marked in any::<bool>(),
        calm in any::<bool>(),
    ) {
        let mut sector: [u8; BYTES] = bytes.try_into().unwrap();
        if marked {
            sector[510..].copy_from_slice(&[0x55, 0xaa]);
        }
        if calm {
            (0..4).for_each(|n| sector[446 + 16 * n] &= 0x80);
        }
        match Mbr::read(&sector) {
            Ok(table) => prop_assert_eq!(table.write(), sector),
            Err(_) => prop_assert!(!(marked && calm)),
        }
    }
}

/// What sfdisk, which others wrote, says of a card that we partitioned.
#[test]
#[cfg_attr(lacks = "sfdisk", ignore = "needs sfdisk (fdisk)")]
fn sfdisk_reads_our_table() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("card");
    let disk = Disk::create(&path, 128 << 20).unwrap();
    let begun = disk.begin(&layout()).unwrap();
    disk.partition(&layout(), &begun).unwrap();
    disk.show_root(&begun).unwrap();
    // Where it is, an ordinary user does not look.
    let programs = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let dump = Command::new("sfdisk").arg("--dump").arg(&path).env("PATH", programs).output().unwrap();
    assert!(dump.status.success());
    let dump = String::from_utf8(dump.stdout).unwrap();
    for line in ["label: dos", "label-id: 0x5f5d7a31", "sector-size: 512"] {
        assert!(dump.lines().any(|l| l == line), "{line}: {dump}");
    }
    let partitions: Vec<String> =
        dump.lines().filter_map(|line| Some(line.split_once(" : ")?.1.replace(' ', ""))).collect();
    let root = (128 << 11) - 16384;
    assert_eq!(
        partitions,
        ["start=2048,size=8192,type=c".to_owned(), format!("start=16384,size={root},type=83")]
    );
}
