//! A partition that was just made on a block device can be mounted, also while the disk is
//! still open, and a disk in use cannot be opened.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pi_agent::card::disk::{Disk, RootArea, data_in_table, is_root_withheld, root_in_table};
use pi_agent::card::inspect;
use pi_agent::card::mount::Mounted;
use piman_core::hosted::ext4;
use piman_core::install::layout::{Layout, TableKind};
use piman_core::install::mbr::{BYTES, Mbr, Partition};
use piman_tests::disk::{LoopDevice, run};
use proptest::prelude::*;

fn layout() -> Layout {
    Layout { boot_start: 2048, boot_sectors: 8192, root_start: 16384, ..Layout::default() }
}

/// Installs nothing but a filesystem with one file, and leaves it mounted.
fn fill(disk: &Disk, place: &Path, text: &str) -> (RootArea, Mounted) {
    let begun = disk.begin(&layout(), None).unwrap();
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

/// Device managers look at disks for moments, and a program that is just being started has the descriptors of the one
/// that starts it: neither makes an installation fail.
#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn who_holds_it_for_a_moment_is_waited_for() {
    const MOMENT: Duration = Duration::from_millis(300);
    let device = LoopDevice::new(256 << 20);
    let place = tempfile::tempdir().unwrap();
    let exclusively = || {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(rustix::fs::OFlags::EXCL.bits().cast_signed());
        options.open(device.path()).unwrap()
    };
    let meanwhile = |held: File, then: &mut dyn FnMut()| {
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(MOMENT);
                drop(held);
            });
            then();
        });
    };
    // Who holds the disk, when it is opened.
    let mut disk = None;
    meanwhile(exclusively(), &mut || disk = Some(Disk::open(device.path()).unwrap()));
    let disk = disk.unwrap();
    let begun = disk.begin(&layout(), None).unwrap();
    let root = disk.partition(&layout(), &begun).unwrap();
    ext4::format(disk.file(), root.offset, root.length, 0, "root", 0).unwrap();
    // Who holds it, when its partition is mounted.
    let node = disk.root_node(&root).unwrap();
    let path = node.path().to_owned();
    meanwhile(exclusively(), &mut || drop(Mounted::new(&node, place.path()).unwrap()));
    drop(node);
    // Who looks at a partition, when another takes its place.
    let smaller = RootArea { length: root.length / 2, ..root };
    let mut node = None;
    meanwhile(File::open(&path).unwrap(), &mut || node = Some(disk.root_node(&smaller).unwrap()));
    let bytes = run(Command::new("blockdev").arg("--getsize64").arg(node.unwrap().path())).stdout;
    assert_eq!(String::from_utf8_lossy(&bytes).trim(), smaller.length.to_string());
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

/// A program of others about disks; where it is, an ordinary user does not look.
fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command.env("LC_ALL", "C");
    command
}

/// A large disk, or one for which it was asked, gets a GPT that others find sound at each step, and in which they find
/// no root partition before it is shown.
#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "sfdisk", ignore = "needs sfdisk (fdisk)")]
fn a_gpt_is_sound_at_each_step() {
    let asked = Layout { table: TableKind::Gpt, data_sectors: 40_000, ..layout() };
    for (bytes, sector, layout) in
        [(3_000_592_982_016, 512, layout()), (256 << 20, 512, asked), (256 << 20, 4096, asked)]
    {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        let device = LoopDevice::with_sectors(file.path(), sector);
        let disk = Disk::open(device.path()).unwrap();
        let verify = || {
            let output = run(program("sfdisk").args(["--verify", "--lock=no"]).arg(device.path()));
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("No errors detected"), "{text}");
        };
        let partitions = || {
            let dump = run(program("sfdisk").args(["--dump", "--lock=no"]).arg(device.path())).stdout;
            let dump = String::from_utf8(dump).unwrap();
            assert!(dump.contains("label: gpt"), "{dump}");
            let fields = dump.lines().filter_map(|line| Some(line.split_once(" : ")?.1.to_owned()));
            fields.collect::<Vec<_>>()
        };
        let begun = disk.begin(&layout, None).unwrap();
        assert!(is_root_withheld(disk.file()));
        verify();
        assert_eq!(partitions(), [""; 0]);
        disk.partition(&layout, &begun).unwrap();
        disk.make_data(&layout, &begun, "kept", 0).unwrap();
        assert!(is_root_withheld(disk.file()) && root_in_table(disk.file(), bytes).is_none());
        verify();
        let rest = usize::from(layout.data_sectors > 0);
        assert_eq!(partitions().len(), 1 + rest);
        disk.show_root(&begun).unwrap();
        verify();
        let shown = partitions();
        assert_eq!(shown.len(), 2 + rest);
        assert!(
            shown[1].contains("0FC63DAF-8483-4772-8E79-3D69D8477DE4") && shown[1].contains("name=\"root\"")
        );
        let area = disk.root_area(&layout).unwrap();
        assert_eq!(root_in_table(disk.file(), bytes), Some(area));
        assert_eq!(data_in_table(disk.file(), bytes), disk.data_area(&layout).unwrap());
        let found = inspect::survey_path(device.path()).unwrap().to_string();
        assert!(found.contains("GPT table") && found.contains("\"BOOT\""), "{found}");
        // Whoever knows a partition by its identifier finds it after the next installation.
        let again = disk.begin(&layout, None).unwrap();
        disk.partition(&layout, &again).unwrap();
        disk.show_root(&again).unwrap();
        let ids =
            |all: &[String]| all.iter().map(|p| p.split("uuid=").nth(1).unwrap()[..36].to_owned()).collect();
        let (before, after): (Vec<String>, Vec<String>) = (ids(&shown), ids(&partitions()));
        assert_eq!(before, after);
        assert!(before.iter().all(|id| &id[14..15] == "4" && "89AB".contains(&id[19..20])), "{before:?}");
        // One copy is enough, whichever.
        for damaged in [u64::from(sector), bytes - u64::from(sector)] {
            let mut header = [0; 512];
            disk.file().read_exact_at(&mut header, damaged).unwrap();
            disk.file().write_all_at(&[0xff; 512], damaged).unwrap();
            assert_eq!(root_in_table(disk.file(), bytes), Some(area));
            disk.file().write_all_at(&header, damaged).unwrap();
        }
        verify();
        if let Ok(output) = program("sgdisk").arg("-v").arg(device.path()).output() {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("No problems found"), "{text}");
        }
        drop(disk);
    }
}

/// A disk keeps what it was until all of an installation's mark is on it, whichever tables it has and gets; and gets
/// back what was there.
#[test]
fn a_table_of_the_other_kind_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = 128 << 20;
    let disk = Disk::create(&folder.path().join("card"), bytes).unwrap();
    let gpt = Layout { table: TableKind::Gpt, ..layout() };
    let install = |layout: &Layout| {
        let begun = disk.begin(layout, None).unwrap();
        disk.partition(layout, &begun).unwrap();
        disk.show_root(&begun).unwrap();
        root_in_table(disk.file(), bytes).unwrap()
    };
    let mbr_root = install(&layout());
    // What a filesystem has at the end of the disk, where a GPT has its copy.
    disk.file().write_all_at(&[0xaa; 40 << 10], bytes - (40 << 10)).unwrap();
    let before = fs::read(disk.path()).unwrap();
    let begun = disk.begin(&gpt, None).unwrap();
    assert!(is_root_withheld(disk.file()));
    assert_eq!(
        &Mbr::read(fs::read(disk.path()).unwrap().first_chunk().unwrap()).unwrap().partitions[0].kind,
        &0xee
    );
    disk.give_back(&begun).unwrap();
    assert!(fs::read(disk.path()).unwrap() == before, "something was changed");
    let gpt_root = install(&gpt);
    assert!(gpt_root.length < mbr_root.length && gpt_root.offset == mbr_root.offset);
    let before = fs::read(disk.path()).unwrap();
    let begun = disk.begin(&layout(), None).unwrap();
    assert!(is_root_withheld(disk.file()));
    disk.give_back(&begun).unwrap();
    assert!(fs::read(disk.path()).unwrap() == before, "something was changed");
    assert_eq!(install(&layout()), mbr_root);
    let found = inspect::survey_path(disk.path()).unwrap().to_string();
    assert!(found.contains("MBR table") && !found.contains("GPT"), "{found}");
    let all = fs::read(disk.path()).unwrap();
    assert!(!all.windows(8).step_by(512).any(|bytes| bytes == b"EFI PART"), "a header is left");
}

/// What sfdisk, which others wrote, says of a card that we partitioned.
#[test]
#[cfg_attr(lacks = "sfdisk", ignore = "needs sfdisk (fdisk)")]
fn sfdisk_reads_our_table() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("card");
    let disk = Disk::create(&path, 128 << 20).unwrap();
    let begun = disk.begin(&layout(), None).unwrap();
    disk.partition(&layout(), &begun).unwrap();
    disk.show_root(&begun).unwrap();
    let dump = program("sfdisk").arg("--dump").arg(&path).output().unwrap();
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
