//! A tree of files with everything that Linux has.

use super::*;

fn time(path: &Path, seconds: i64, nanos: i64) {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub(super) fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub(super) fn xattr(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn node(path: &Path, kind: FileType, device: u64) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device).unwrap();
}

/// A file tree with everything that Linux has, and names as nasty as can be.
pub(super) fn nasty() -> TempDir {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (name, length) in [("empty", 0), ("one", 1), ("block", 512), ("more", 513), ("large", 20 << 20)] {
        fs::write(at(name), bytes(1, length)).unwrap();
    }
    time(&at("one"), -1_000_000, 5);
    time(&at("block"), 4_000_000_000, 999_999_999);
    for (name, bits) in [("suid", 0o4755), ("sgid", 0o2755), ("all", 0o7777), ("none", 0), ("wide", 0o666)] {
        fs::write(at(name), name).unwrap();
        std::os::unix::fs::chown(at(name), Some(1000), Some(65_534)).unwrap();
        mode(&at(name), bits);
    }
    fs::write(at("rich"), "x").unwrap();
    std::os::unix::fs::chown(at("rich"), Some(4_000_000_000), Some(3_000_000_000)).unwrap();

    // Directories: their times must survive what is created in them, in any order.
    for name in ["d", "d/deep", "d/deep/deeper", "d/empty", "d/sgid", "d/sticky", "d/closed"] {
        fs::create_dir(at(name)).unwrap();
    }
    fs::write(at("d/sgid/file"), "its group is its own").unwrap();
    fs::create_dir(at("d/sgid/below")).unwrap();
    std::os::unix::fs::chown(at("d/sgid"), Some(7), Some(8)).unwrap();
    mode(&at("d/sgid"), 0o2775);
    mode(&at("d/sticky"), 0o1777);
    fs::write(at("d/closed/file"), "in a directory that cannot be entered").unwrap();
    mode(&at("d/closed"), 0);
    fs::write(at("d/deep/deeper/file"), "deep").unwrap();

    // Names.
    let odd: [&[u8]; 7] =
        [b"a b", b"new\nline", b"\xff\xfe\x80", b"-rf", b"back\\slash", "ümlaut".as_bytes(), b"*?[%=]"];
    for name in odd {
        fs::write(dir.path().join(OsStr::from_bytes(name)), name).unwrap();
    }
    let long = "n".repeat(255);
    fs::write(at(&long), "long").unwrap();
    let mut path = dir.path().to_owned();
    for i in 0..12 {
        path.push(format!("{i}{}", "p".repeat(150)));
    }
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("deep"), "1,800 bytes deep").unwrap();
    symlink(path.strip_prefix(dir.path()).unwrap(), at("long link")).unwrap();

    // Links.
    for (name, target) in
        [("rel", "one"), ("abs", "/etc/passwd"), ("up", "../.."), ("d/dangling", "no\nwhere")]
    {
        symlink(target, at(name)).unwrap();
        time(&at(name), 1_234_567_890, 987_654_321);
        std::os::unix::fs::lchown(at(name), Some(12), Some(13)).unwrap();
    }
    fs::hard_link(at("large"), at("d/deep/large too")).unwrap();
    fs::hard_link(at("large"), at("zz large")).unwrap();
    fs::hard_link(at("rel"), at("rel too")).unwrap();

    // Devices.
    node(&at("null"), FileType::CharacterDevice, makedev(1, 3));
    node(&at("mmcblk0p2"), FileType::BlockDevice, makedev(179, 2));
    node(&at("high"), FileType::BlockDevice, makedev(0xfff, 0xf_ffff));
    node(&at("pipe"), FileType::Fifo, 0);
    time(&at("null"), 1_600_000_000, 111_111_111);
    std::os::unix::fs::chown(at("mmcblk0p2"), Some(0), Some(6)).unwrap();
    mode(&at("mmcblk0p2"), 0o660);

    // Extended attributes.
    fs::write(at("ping"), "needs a capability").unwrap();
    std::os::unix::fs::chown(at("ping"), Some(5), Some(5)).unwrap();
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    xattr(&at("ping"), "security.capability", capability);
    xattr(&at("ping"), "user.lines", b"one\ntwo = 2\n\0\xff");
    xattr(&at("ping"), "user.empty", b"");
    xattr(&at("ping"), "user.a=b%c", b"odd name");
    xattr(&at("ping"), "trusted.md5", &bytes(3, 300));
    xattr(&at("d"), "user.dir", b"on a directory");
    xattr(&at("rel"), "trusted.link", b"on a link");
    xattr(&at("null"), "trusted.device", b"on a device");

    // Sparse files.
    let hole = |name: &str, size: u64, parts: &[u64]| {
        let file = File::create(at(name)).unwrap();
        file.set_len(size).unwrap();
        for part in parts {
            file.write_all_at(&bytes(7, 4096), *part).unwrap();
        }
        file.sync_all().unwrap();
    };
    hole("all hole", 1 << 30, &[]);
    hole("hole at both ends", 1 << 20, &[512 << 10]);
    hole("hole between", (1 << 20) + 100, &[0, 1 << 19, (1 << 20) - 4096]);
    let many: Vec<u64> = (0..300).map(|i| i * 65_536).collect();
    hole("many holes", 300 * 65_536 + 5, &many);
    hole("nine gigabytes", 9 << 30, &[8 << 30]);
    for (i, name) in ["d/deep/deeper", "d/deep", "d/empty", "d/closed", "d/sgid", "d"].into_iter().enumerate()
    {
        time(&at(name), 1_500_000_000 + i as i64, 123_456_789);
    }
    dir
}
