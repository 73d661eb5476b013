//! The tables against those of another program.

use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

/// The default layout as sfdisk writes it: with cylinders, and with the first partition active.
const DUMP: &str = "label: dos\nlabel-id: 0x5f5d7a31\nunit: sectors\n\n\
                    start= 8192, size= 88472, type=c, bootable\nstart= 98304, type=83\n";

fn partition(disk: &Disk, layout: &Layout) {
    let begun = disk.begin(layout, None).unwrap();
    disk.partition(layout, &begun).unwrap();
    disk.show_root(&begun).unwrap();
}

fn sfdisk(disk: &Disk, dump: &str) {
    let mut command = Command::new("sfdisk");
    // Where it is, an ordinary user does not look.
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    // It waits while another process has the disk locked.
    command
        .args(["--quiet", "--no-reread", "--no-tell-kernel", "--lock=no", "--wipe=never"])
        .arg(disk.path());
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(dump.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn boot<T>(disk: &Disk, layout: &Layout, look: impl FnOnce(&FileSystem<Window<'_>>) -> T) -> T {
    let window = Window::new(disk.file(), layout.boot_start * SECTOR, layout.boot_sectors * SECTOR);
    look(&FileSystem::new(window, FsOptions::new()).unwrap())
}

#[test]
#[cfg_attr(lacks = "sfdisk", ignore = "needs sfdisk (fdisk)")]
fn a_boot_partition_of_another_program_keeps_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::create(&folder.path().join("card"), 128 << 20).unwrap();
    let layout = Layout::default();
    partition(&disk, &layout);
    let ours = read_mbr(disk.file()).unwrap();
    boot(&disk, &layout, |fs| {
        fs.root_dir().create_file("config.txt").unwrap().write_all(b"arm_64bit=1").unwrap();
    });
    let kept = |layout: &Layout| {
        boot(&disk, layout, |fs| {
            let mut text = String::new();
            fs.root_dir().open_file("config.txt").ok()?.read_to_string(&mut text).ok()?;
            Some(text)
        })
    };
    sfdisk(&disk, DUMP);
    let theirs = read_mbr(disk.file()).unwrap();
    assert_ne!(theirs, ours);
    partition(&disk, &layout);
    assert_eq!(kept(&layout).as_deref(), Some("arm_64bit=1"));
    assert_eq!(read_mbr(disk.file()).unwrap(), theirs, "it says what is wanted");
    // Another name, another root partition, and one too many: the table is ours then, and the files stay.
    sfdisk(&disk, "label: dos\nstart= 8192, size= 88472, type=c\nstart= 98304, size= 4096\nstart= 106496\n");
    partition(&disk, &layout);
    assert_eq!(kept(&layout).as_deref(), Some("arm_64bit=1"));
    assert_eq!(read_mbr(disk.file()).unwrap(), ours);
    // A boot partition of another size is another one.
    let shorter = Layout { boot_sectors: 80_000, ..layout };
    partition(&disk, &shorter);
    assert_eq!(kept(&shorter), None);
}

#[test]
fn the_table_is_what_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::create(&folder.path().join("card"), 128 << 20).unwrap();
    // What was there before is gone, up to where a GPT would end.
    Window::new(disk.file(), 0, SECTOR * 40).write_all(&[0xaa; 512 * 40]).unwrap();
    for (layout, entries) in [
        (Layout::default(), "317a5d5f0000 000000000c0000000020000098590100 00000000830000000080010000800200"),
        (
            Layout {
                disk_id: 0x0102_0304,
                boot_start: 2048,
                boot_sectors: 8192,
                root_start: 16384,
                root_sectors: Some(4096),
                ..Layout::default()
            },
            "040302010000 000000000c0000000008000000200000 00000000830000000040000000100000",
        ),
    ] {
        partition(&disk, &layout);
        let mut start = vec![0; 512 * 40];
        Window::new(disk.file(), 0, SECTOR * 40).read_exact(&mut start).unwrap();
        let hex: String = start[440..510].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, format!("{}{}", entries.replace(' ', ""), "00".repeat(32)));
        assert_eq!(start[510..512], [0x55, 0xaa]);
        let zeros = |bytes: &[u8]| bytes.iter().all(|b| *b == 0);
        assert!(zeros(&start[..440]) && zeros(&start[512..34 * 512]));
        assert!(start[34 * 512..].iter().all(|b| *b == 0xaa), "what lies behind is another's");
    }
}

#[test]
fn every_boot_partition_that_fits_can_be_made() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::create(&folder.path().join("card"), 128 << 20).unwrap();
    let layout = |boot_sectors| Layout { boot_sectors, ..Layout::default() };
    // Around each change of the FAT's type.
    for sectors in (42..50).chain(8190..8250).chain(8395..8405).chain(66_590..66_620) {
        let layout = layout(sectors);
        layout.root_on(disk.bytes()).unwrap();
        disk.boot_partition(&layout, false).unwrap_or_else(|e| panic!("{sectors} sectors: {e:#}"));
        boot(&disk, &layout, |fs| assert!(fs.stats().unwrap().free_clusters() > 0, "{sectors} sectors"));
    }
    let before = read_mbr(disk.file()).is_err();
    let failure = disk.begin(&layout(41), None).unwrap_err().to_string();
    assert!(failure.contains("the boot partition is too small"), "{failure}");
    assert_eq!(read_mbr(disk.file()).is_err(), before, "nothing was written");
}
