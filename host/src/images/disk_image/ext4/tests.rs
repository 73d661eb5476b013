use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use super::*;

/// A filesystem that mke2fs makes and fills; `None` without that program.
fn made(size: &str, options: &[&str]) -> Option<(tempfile::TempDir, File)> {
    let folder = tempfile::tempdir().unwrap();
    let (tree, image) = (folder.path().join("tree"), folder.path().join("image"));
    std::fs::create_dir(&tree).unwrap();
    for i in 0..20_u8 {
        std::fs::write(tree.join(format!("{i}")), vec![i; 1 << 16]).unwrap();
    }
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .arg(&tree)
        .args(options)
        .arg(&image)
        .arg(size)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let made = made.ok()?;
    assert!(made.success(), "{options:?}");
    let file = File::options().read(true).write(true).open(&image).unwrap();
    Some((folder, file))
}

fn used_of(file: &File) -> Result<Vec<(u64, u64)>, String> {
    let length = file.metadata().unwrap().len();
    used(&Area::new(file, length)).map(|(runs, _)| runs).map_err(|e| format!("{e:#}"))
}

#[test]
fn the_used_blocks_make_the_same_filesystem() {
    for (size, options) in [
        ("300M", &["-b", "4096"][..]),
        ("40M", &["-b", "1024"]),
        ("100M", &["-b", "2048", "-O", "^metadata_csum,uninit_bg"]),
        ("300M", &["-b", "4096", "-O", "64bit,^resize_inode,meta_bg"]),
        ("40M", &["-b", "1024", "-g", "1024", "-O", "^64bit,^flex_bg"]),
        ("64M", &["-b", "1024", "-g", "1024", "-O", "^resize_inode,meta_bg,64bit"]),
        ("64M", &["-b", "4096", "-O", "^has_journal,sparse_super2"]),
        ("64M", &["-b", "1024", "-O", "^sparse_super,^resize_inode,^metadata_csum,^uninit_bg,^64bit"]),
    ] {
        let Some((folder, file)) = made(size, options) else { return };
        let length = file.metadata().unwrap().len();
        let runs = used_of(&file).unwrap_or_else(|e| panic!("{options:?}: {e}"));
        let bytes: u64 = runs.iter().map(|(start, end)| end - start).sum();
        assert!(bytes < length / 2, "{options:?}: {bytes} of {length}");
        // Free blocks are full of something else.
        let copy = folder.path().join("copy");
        let mut content = vec![0xa5; usize::try_from(length).unwrap()];
        for (start, end) in runs {
            let range = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
            file.read_exact_at(&mut content[range], start).unwrap();
        }
        std::fs::write(&copy, content).unwrap();
        let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(&copy).output().unwrap();
        assert!(checked.status.success(), "{options:?}: {}", String::from_utf8_lossy(&checked.stdout));
        let listed = Command::new("debugfs").args(["-R", "dump /7 /dev/stdout"]).arg(&copy).output().unwrap();
        assert!(listed.stdout == [7; 1 << 16], "{options:?}");
    }
}

#[test]
fn what_contradicts_itself_is_not_believed() {
    type Change = (&'static str, u64, &'static [u8], &'static str);
    let changes: [Change; 7] = [
        ("its journal has to be replayed", 1024 + 0x60, &[0x46], "^metadata_csum,^64bit"),
        ("marked as having errors", 1024 + 0x3a, &[3], "^metadata_csum"),
        ("was not unmounted", 1024 + 0x3a, &[0], "^metadata_csum"),
        ("checksum of its superblock", 1024 + 0x0c, &[1], "metadata_csum"),
        ("larger", 1024 + 7, &[1], "^metadata_csum,^64bit"),
        // The first group's descriptor: 1 KiB blocks, so it begins at 2048.
        ("checksum of group descriptor 0", 2048 + 0x0c, &[1], "metadata_csum"),
        ("free in its block bitmap", 2048 + 0x0c, &[1], "^metadata_csum,^uninit_bg,^64bit"),
    ];
    for (want, at, bytes, features) in changes {
        let Some((_folder, file)) = made("16M", &["-b", "1024", "-O", features]) else { return };
        assert!(used_of(&file).is_ok(), "{features}");
        file.write_all_at(bytes, at).unwrap();
        let e = used_of(&file).unwrap_err();
        assert!(e.contains(want), "{want}: {e}");
    }
    let Some((_folder, file)) = made("64M", &["-b", "4096", "-O", "bigalloc", "-C", "65536"]) else { return };
    assert!(used_of(&file).unwrap_err().contains("bigalloc"));
}

#[test]
fn groups_that_all_lie() {
    for features in ["metadata_csum", "^metadata_csum,^uninit_bg"] {
        let Some((_folder, file)) = made("64M", &["-b", "1024", "-O", features]) else { return };
        let length = file.metadata().unwrap().len();
        let area = Area::new(&file, length);
        let geometry = Geometry::read(&area).unwrap();
        for number in 0..geometry.groups {
            let group = Group::read(&area, &geometry, number).unwrap();
            file.write_all_at(&[0; 1024], group.block_bitmap * geometry.block).unwrap();
        }
        let e = used_of(&file).unwrap_err();
        assert!(e.contains("group 0 contradicts itself"), "{e}");
    }
}

#[test]
fn any_byte_of_the_superblock_and_the_descriptors_may_be_anything() {
    let Some((_folder, file)) = made("16M", &["-b", "1024", "-O", "^metadata_csum,64bit"]) else { return };
    for at in (1024..1024 + 0x180).chain(2048..2048 + 256) {
        let mut before = [0];
        file.read_exact_at(&mut before, at).unwrap();
        for value in [0, 1, 0x7f, 0xff] {
            file.write_all_at(&[value], at).unwrap();
            // It neither panics nor takes long.
            let _ = used_of(&file);
        }
        file.write_all_at(&before, at).unwrap();
    }
}
