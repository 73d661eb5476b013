//! Empty filesystems on disks full of garbage: judged by e2fsck and the kernel.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use piman_core::hosted::ext4;
use piman_tests::disk::{self, Mounted};

/// Makes a filesystem of `room` bytes, `offset` bytes into a file of garbage.
fn formatted(offset: u64, room: u64) -> (tempfile::NamedTempFile, u64) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(offset + room).unwrap();
    // The garbage lies where the filesystem's structures come to lie.
    let garbage = vec![0xa5; 1 << 20];
    let mut at = 0;
    while at < offset + room {
        let near = (at % (2 << 30)) < (48 << 20) || (at % (128 << 20)) < (1 << 20) || room <= 256 << 20;
        if near {
            let n = garbage.len().min((offset + room - at) as usize);
            file.as_file().write_all_at(&garbage[..n], at).unwrap();
        }
        at += 1 << 20;
    }
    let bytes = ext4::format(file.as_file(), offset, room, 0, "root", 1_700_000_000).unwrap();
    assert!(bytes <= room);
    (file, bytes)
}

#[test]
fn any_size_is_clean_over_garbage() {
    const MB: u64 = 1 << 20;
    let group = 128 * MB;
    let sizes = [
        16 * MB,
        64 * MB,
        128 * MB,
        129 * MB,
        group + 4096,
        2 * group + 4096 * 40,
        16 * group + 4096 * 700,
        17 * group - 4096,
        17 * group,
        26 * group + 4096 * 100,
        4096 * MB,
        31_864_651_776,
        64 * 1024 * MB,
    ];
    for size in sizes {
        let (file, bytes) = formatted(0, size);
        assert!(bytes + 3 * MB + 512 * 4096 >= size, "{size}: only {bytes} are used");
        disk::e2fsck(file.path(), 0, bytes);
    }
}

#[test]
fn a_partition_in_a_disk_leaves_the_rest_alone() {
    let (offset, room) = (48 << 20, 100 << 20);
    let (file, bytes) = formatted(offset, room);
    let mut around = vec![0; 4096];
    file.as_file().read_exact_at(&mut around, offset - 4096).unwrap();
    assert!(around.iter().all(|b| *b == 0xa5));
    disk::e2fsck(file.path(), offset, bytes);
}

#[test]
fn too_small_is_said() {
    let file = tempfile::tempfile().unwrap();
    let error = ext4::format(&file, 0, 1 << 20, 0, "", 0).unwrap_err();
    assert!(error.to_string().contains("16777216 bytes are needed"), "{error}");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn the_kernel_fills_it_and_zeroes_the_tables() {
    // Without the zeroing, inodes come to lie in tables that hold garbage.
    for (size, options) in [
        (128 << 20, "init_itable=0"),
        (3 << 30, "init_itable=0"),
        (128 << 20, "noinit_itable"),
        (3 << 30, "noinit_itable"),
    ] {
        let (file, bytes) = formatted(0, size);
        let mounted = Mounted::new(file.path(), 0, bytes, options);
        let data = vec![0x5a; 3 << 20];
        for i in 0..25 {
            fs::create_dir(mounted.path().join(format!("d{i}"))).unwrap();
            fs::write(mounted.path().join(format!("d{i}/f")), &data).unwrap();
        }
        for i in 0..6000 {
            fs::write(mounted.path().join(format!("d{}/{i}", i % 25)), b"x").unwrap();
        }
        mounted.wait_for_lazy_init();
        for i in 0..25 {
            assert_eq!(fs::read(mounted.path().join(format!("d{i}/f"))).unwrap(), data);
        }
        drop(mounted);
        disk::e2fsck(file.path(), 0, bytes);
        // And once more, on what the first mount left.
        let mounted = Mounted::new(file.path(), 0, bytes, options);
        for i in 0..3000 {
            fs::write(mounted.path().join(format!("d{}/more-{i}", i % 25)), b"").unwrap();
        }
        mounted.wait_for_lazy_init();
        drop(mounted);
        disk::e2fsck(file.path(), 0, bytes);
        if options == "noinit_itable" {
            continue;
        }
        let fs = mkext4::reader::Fs::open(File::open(file.path()).unwrap()).unwrap();
        let zeroed = |g| fs.group_desc(g).unwrap().flags & mkext4::spec::bg_flags::INODE_ZEROED != 0;
        assert!((0..fs.superblock().group_count()).all(zeroed), "tables that were not zeroed");
    }
}
