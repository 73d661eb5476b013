//! What the kernel finds is what GNU tar extracts.

use super::*;

/// A small root filesystem with everything that can be in one, as `tar` options: a folder and
/// what is added from this machine.
fn make_root(folder: &Path) {
    let at = |name: &str| folder.join(name);
    let sh = |script: &str| run(Command::new("sh").args(["-euc", script]).current_dir(folder));
    sh("mkdir -p etc dev var/tmp deep/a/b/c/d empty; chmod 1777 var/tmp
        echo hello >etc/motd; : >etc/empty; chmod 4755 etc/motd; chown 1000:70000 etc/empty
        ln etc/motd etc/motd.link; ln etc/motd deep/a/b/c/d/far.link
        mknod dev/null c 1 3; mknod dev/loop b 7 300; mknod dev/big c 511 65537; mkfifo dev/pipe
        mknod dev/whiteout c 0 0; chmod 0600 dev/pipe
        ln -s motd etc/short; ln -s /nowhere etc/dangling; ln dev/pipe dev/pipe.link
        touch -d '1969-12-31 23:59:58.25' etc/empty
        touch -d '2100-05-06 07:08:09.123456789' etc/motd
        touch -h -d '2001-02-03 04:05:06.789012345' etc/short");
    symlink("x/".repeat(400), at("etc/long")).unwrap();
    symlink("y".repeat(59), at("etc/59")).unwrap();
    symlink("z".repeat(60), at("etc/60")).unwrap();
    fs::write(at(&"n".repeat(255)), b"a long name").unwrap();
    fs::create_dir(at("crowd")).unwrap();
    for i in 0..3000 {
        fs::write(at("crowd").join(format!("file number {i} with a name of some length")), [b'c'; 7])
            .unwrap();
    }
    for size in [1, 4095, 4096, 4097, 5 << 20] {
        fs::write(at(&format!("size-{size}")), vec![0xd7; size]).unwrap();
    }
    // Holes at places that are no whole blocks.
    let sparse = File::create(at("sparse")).unwrap();
    for (offset, length) in [(0, 10), (1 << 20, 5000), (33_333_333, 4096), (500 << 20, 1)] {
        sparse.write_all_at(&vec![0x11; length], offset).unwrap();
    }
    sparse.set_len((500 << 20) + 7777).unwrap();
    File::create(at("hole")).unwrap().set_len(1 << 30).unwrap();
    for (name, attribute, value) in [
        ("etc/motd", "user.note", &b"a\nb\0c"[..]),
        ("etc/motd", "security.capability", &b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..]),
        ("etc", "user.empty", b""),
        ("size-1", "user.large", &[0xee; 3000]),
        ("etc/short", "trusted.of-a-link", b"x"),
        ("dev/null", "trusted.of-a-device", b"y"),
    ] {
        rustix::fs::lsetxattr(at(name), attribute, value, XattrFlags::empty()).unwrap();
    }
    sh("touch -d '2020-01-01 00:00:00.5' deep/a deep etc; touch -d '2020-01-01 00:00:00' crowd .");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn what_is_installed_is_what_gnu_tar_extracts() {
    let folder = tempfile::tempdir().unwrap();
    make_root(folder.path());
    let more = ["usr/share/zoneinfo", "usr/sbin", "etc/alternatives"];
    for options in [
        &["--format=pax", "-z", "--xattrs", "--xattrs-include=*"][..],
        &["--format=gnu", "-I", "zstd -1"],
        &["--format=posix", "--sparse-version=0.1", "-z", "--xattrs", "--xattrs-include=*"],
    ] {
        let archive = folder.path().with_extension("tgz");
        pack(folder.path(), &archive, options, &more);
        let made = made(&archive, 640 * MIB).unwrap();
        let header = made.image.header();
        let disk = garbage(made.room);
        let summary = install(&faultless(&made.image), &made.image, &disk);
        assert_eq!((summary.reused, summary.repaired, summary.broken), (0, 0, 0));
        // What growth writes comes on top: what is reserved, and one copy.
        let grown = summary.written_bytes - header.used_bytes;
        assert!((508 << 10..1 << 20).contains(&grown), "{grown}");
        assert!(summary.written_bytes / u64::from(summary.writes) > 512 << 10, "{summary:?}");
        e2fsck(disk.path(), OFFSET, made.room);
        assert_equal(disk.path(), &made);

        let extracted = tempfile::tempdir().unwrap();
        let mut tar = Command::new("tar");
        tar.args(["-xpf"]).arg(&archive).arg("-C").arg(extracted.path());
        run(tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*"]));
        // The archive does not describe `usr`.
        let want = without_times(installed(extracted.path()), &["usr", "usr/share"]);
        assert!(want.len() > 3500);
        let mounted = Mounted::new(disk.path(), OFFSET, made.room, "init_itable=0");
        assert_same(&without_times(installed(mounted.path()), &["usr", "usr/share"]), &want);
        assert_eq!(fs::read(mounted.path().join(".piman-proof")).unwrap(), proof_text(&mounted));

        // Filled to the last byte, and all of what was there is still there.
        let mut filler = File::create(mounted.path().join("filler")).unwrap();
        let piece = vec![0x77; 1 << 20];
        while filler.write_all(&piece).is_ok() {}
        assert!(filler.metadata().unwrap().len() > 50 * MIB);
        drop(filler);
        for i in 0..2000 {
            fs::create_dir(mounted.path().join(format!("crowd/new {i}"))).unwrap_or_default();
        }
        mounted.wait_for_lazy_init();
        run(Command::new("sync").arg("-f").arg(mounted.path()));
        run(Command::new("sh")
            .arg("-c")
            .arg("rm -r filler crowd/new*; touch -d '2020-01-01 00:00:00' . crowd")
            .current_dir(mounted.path()));
        assert_same(&without_times(installed(mounted.path()), &["usr", "usr/share"]), &want);
        drop(mounted);
        e2fsck(disk.path(), OFFSET, made.room);
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn entries_that_replace_others_end_as_with_gnu_tar() {
    let mut tar = Tar::new();
    let (file, hard, link, dir) = (b'0', b'1', b'2', b'5');
    tar.push(b"./", dir, b"", b"")
        .push(b"a", file, b"", b"first")
        .push(b"a-link", hard, b"a", b"")
        .push(b"a", file, b"", b"second")
        .push(b"a", hard, b"a", b"")
        .push(b"/absolute/name", file, b"", b"x")
        .push(b"usr/lib/", dir, b"", b"")
        .push(b"lib", link, b"usr/lib", b"")
        .push(b"lib/through", file, b"", b"through a link")
        .push(b"lib-link", hard, b"lib/through", b"")
        .push(b"lib/", dir, b"", b"")
        .push(b"lib/not-through", file, b"", b"not")
        .push(b"was-a-file", file, b"", b"file")
        .push(b"was-a-file/", dir, b"", b"")
        .push(b"was-a-directory/", dir, b"", b"")
        .push(b"was-a-directory", file, b"", b"file")
        .push(b"was-a-link", link, b"a", b"")
        .push(b"was-a-link", file, b"", b"not into a")
        .push(b"link-link", link, b"a", b"")
        .push(b"link-link-2", hard, b"link-link", b"")
        .push(b"./deep//./er/", dir, b"", b"")
        .push(b"deep/er/est", b'6', b"", b"")
        .push(b"old-directory/", file, b"", b"")
        .push(b"deep/er/est", file, b"", b"no pipe any more");
    let archive = tar.packed();
    let made = made(archive.path(), 64 * MIB).unwrap();
    let disk = garbage(64 * MIB);
    install(&faultless(&made.image), &made.image, &disk);
    e2fsck(disk.path(), OFFSET, 64 * MIB);
    assert_equal(disk.path(), &made);
    let extracted = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar");
    tar.args(["-I", "zstd", "--numeric-owner", "-xpf"]).arg(archive.path()).arg("-C").arg(extracted.path());
    run(&mut tar);
    let mounted = Mounted::new(disk.path(), OFFSET, 64 * MIB, "ro");
    // Not described, or given its time by tar before the archive came back to it.
    let without_time = ["absolute", "usr", "deep", "deep/er", "usr/lib"];
    let [ours, theirs] =
        [mounted.path(), extracted.path()].map(|root| without_times(installed(root), &without_time));
    assert_same(&ours, &theirs);
}

/// The proof as it was mounted must be one.
fn proof_text(mounted: &Mounted) -> Vec<u8> {
    let bytes = fs::read(mounted.path().join(".piman-proof")).unwrap();
    assert!(bytes.starts_with(b"piman-proof 1\nimage "));
    assert_eq!(bytes.len(), 4096);
    bytes
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_sparse_file_of_nine_gigabytes() {
    let folder = tempfile::tempdir().unwrap();
    let file = File::create(folder.path().join("big")).unwrap();
    for at in [0, (3 << 30) + 12_345, (9 << 30) - 3] {
        file.write_all_at(b"abc", at).unwrap();
    }
    let archive = folder.path().with_extension("big.tgz");
    pack(folder.path(), &archive, &["--format=pax", "-z"], &[]);
    let made = made(&archive, 16 * 1024 * MIB).unwrap();
    assert!(made.image.header().used_bytes < 64 * MIB);
    let disk = garbage(0);
    disk.as_file().set_len(OFFSET + 16 * 1024 * MIB).unwrap();
    install(&faultless(&made.image), &made.image, &disk);
    e2fsck(disk.path(), OFFSET, 16 * 1024 * MIB);
    assert_equal(disk.path(), &made);
    let mounted = Mounted::new(disk.path(), OFFSET, 16 * 1024 * MIB, "ro");
    assert_same(&installed(mounted.path()), &installed(folder.path()));
    fs::remove_file(archive).unwrap();
}
