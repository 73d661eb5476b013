//! Whole images, made here, and what becomes of them when somebody changes bytes in them.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use piman_core::install::mbr::{FAT32_LBA, LINUX, Mbr, Partition};

use super::*;

const BOOT: u64 = 1 << 20;
const ROOT: u64 = 4 << 20;
const LENGTH: u64 = 20 << 20;

/// An image with a boot partition and a root filesystem; `None` without mke2fs.
fn made(features: &str) -> Option<File> {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    for name in ["etc", "sbin", "lib/modules/6.6.1-v8"] {
        std::fs::create_dir_all(tree.join(name)).unwrap();
    }
    let mut elf = vec![0; 128];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16..20].copy_from_slice(&[2, 0, 183, 0]);
    std::fs::write(tree.join("sbin/init"), elf).unwrap();
    std::fs::write(tree.join("etc/fstab"), "LABEL=nowhere /data ext4 defaults 0 0\n").unwrap();
    std::os::unix::fs::symlink("/etc/x".repeat(30), tree.join("etc/link")).unwrap();
    let filesystem = folder.path().join("root");
    let status = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-L", "rootfs", "-O", features, "-d"])
        .args([&tree, &filesystem])
        .arg("16M")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(status.ok()?.success());
    Command::new("debugfs")
        .args(["-w", "-R", "set_inode_field sbin/init mode 0100755"])
        .arg(&filesystem)
        .stderr(Stdio::null())
        .status()
        .ok()?;
    let boot = tempfile::tempfile().unwrap();
    boot.set_len(ROOT - BOOT).unwrap();
    fatfs::format_volume(&boot, fatfs::FormatVolumeOptions::new().volume_label(*b"bootfs     ")).unwrap();
    let fs = fatfs::FileSystem::new(boot.try_clone().unwrap(), fatfs::FsOptions::new()).unwrap();
    fs.root_dir().create_file("cmdline.txt").unwrap().write_all(b"root=/dev/mmcblk0p2 resize").unwrap();
    fs.unmount().unwrap();
    let image = tempfile::tempfile().unwrap();
    image.set_len(LENGTH).unwrap();
    let mut mbr = Mbr::new(7);
    let part = |kind, start: u64, end: u64| {
        Partition::new(kind, u32::try_from(start / 512).unwrap(), u32::try_from((end - start) / 512).unwrap())
    };
    mbr.partitions[0] = part(FAT32_LBA, BOOT, ROOT);
    mbr.partitions[1] = part(LINUX, ROOT, LENGTH);
    image.write_all_at(&mbr.write(), 0).unwrap();
    let mut content = vec![0; usize::try_from(ROOT - BOOT).unwrap()];
    boot.read_exact_at(&mut content, 0).unwrap();
    image.write_all_at(&content, BOOT).unwrap();
    image.write_all_at(&std::fs::read(&filesystem).unwrap(), ROOT).unwrap();
    Some(image)
}

#[test]
fn what_is_on_an_image() {
    let Some(file) = made("metadata_csum") else { return };
    let image = DiskImage::read(&file, LENGTH, None).unwrap();
    assert_eq!((image.table, image.bytes, image.proof_offset), (TableKind::Mbr, LENGTH, BOOT - 4096));
    assert_eq!((image.root, image.boot), (Some(2), Some(1)));
    assert_eq!(image.growth, Growth::Own("`resize` on its command line".into()));
    let labels: Vec<_> = image.partitions.iter().map(|p| (&*p.label, p.filesystem)).collect();
    assert_eq!(labels, [("bootfs", FilesystemKind::Fat), ("rootfs", FilesystemKind::Ext)]);
    assert_eq!((image.fitness.machine, &*image.fitness.kernels), (Some(183), &["6.6.1-v8".to_owned()][..]));
    let texts: Vec<_> = image.fitness.findings.iter().map(|f| &*f.kind).collect();
    assert_eq!(texts, ["missing-disk"], "{:?}", image.fitness.findings);
    assert_eq!(image.fitness.unfit(), None);
}

#[test]
fn any_bytes_may_be_anything() {
    for features in ["metadata_csum", "^metadata_csum,^uninit_bg,64bit"] {
        let Some(file) = made(features) else { return };
        // All that says where something is, and not what is in files.
        let all: Vec<u64> = Area::new(&file, LENGTH)
            .not_zero(0, LENGTH, 16)
            .unwrap()
            .into_iter()
            .flat_map(|(start, end)| start..end)
            .collect();
        let mut noise = blake3::Hasher::new().update(b"seed").finalize_xof();
        let mut number = || {
            let mut bytes = [0; 8];
            noise.fill(&mut bytes);
            usize::try_from(u64::from_le_bytes(bytes) >> 8).unwrap()
        };
        for _ in 0..400 {
            let changes: Vec<(u64, u8)> = (0..=number() % 3)
                .map(|_| (all[number() % all.len()], [0, 1, 0x80, 0xff][number() % 4]))
                .collect();
            let before: Vec<(u64, [u8; 1])> = changes
                .iter()
                .map(|(at, _)| (*at, Area::new(&file, LENGTH).bytes::<1>(*at).unwrap()))
                .collect();
            changes.iter().for_each(|(at, byte)| file.write_all_at(&[*byte], *at).unwrap());
            // It ends, one way or the other, and says nothing impossible.
            if let Ok(image) = DiskImage::read(&file, LENGTH, None) {
                assert!(image.used.is_sorted_by(|a, b| a.1 < b.0), "{changes:?}");
                assert!(image.used.last().unwrap().1 <= image.bytes && image.bytes <= LENGTH, "{changes:?}");
            }
            before.iter().rev().for_each(|(at, byte)| file.write_all_at(byte, *at).unwrap());
        }
    }
}
