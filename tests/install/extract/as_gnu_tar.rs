//! The same as GNU tar, from every format.

use super::*;

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn the_same_as_gnu_tar_from_pax() {
    let source = nasty();
    let pax = ["--format=pax", "--xattrs", "--xattrs-include=*", "--sparse"];
    for version in ["0.0", "0.1", "1.0"] {
        let option = format!("--sparse-version={version}");
        let archive = pack(source.path(), &[&pax[..], &[&option]].concat());
        let ours = same_as_gnu(&archive, |_| {});
        if version == "1.0" {
            // pax keeps everything: not only as GNU tar has it, but as it was.
            let difference =
                differences(&tree(ours.path(), true).unwrap(), &tree(source.path(), true).unwrap());
            assert!(difference.is_empty(), "{difference}");
        }
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn the_same_as_gnu_tar_from_gnu_formats() {
    let source = nasty();
    for format in ["gnu", "oldgnu"] {
        let option = format!("--format={format}");
        same_as_gnu(&pack(source.path(), &[&option, "--sparse"]), |_| {});
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn the_same_as_gnu_tar_from_other_formats() {
    let source = nasty();
    // What these formats cannot hold.
    for name in ["all hole", "nine gigabytes", "rich", "one", "long link", "high"] {
        fs::remove_file(source.path().join(name)).unwrap();
    }
    fs::remove_dir_all(source.path().join(format!("0{}", "p".repeat(150)))).unwrap();
    fs::remove_file(source.path().join("n".repeat(255))).unwrap();
    same_as_gnu(&pack(source.path(), &["--format=ustar"]), |_| {});
    for name in ["null", "mmcblk0p2", "pipe"] {
        fs::remove_file(source.path().join(name)).unwrap();
    }
    same_as_gnu(&pack(source.path(), &["--format=v7"]), |_| {});
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "bsdtar", ignore = "needs bsdtar (libarchive-tools)")]
fn the_same_as_gnu_tar_from_bsdtar() {
    let source = nasty();
    let mut bsdtar = Command::new("bsdtar");
    bsdtar.args(["-c", "--format", "pax", "--xattrs", "-f", "-", "-C"]).arg(source.path()).arg(".");
    // Its sparse files begin with a part that GNU tar writes as data.
    let comparable = |tree: &mut Tree| {
        tree.values_mut().for_each(|f| f.data.clear());
        without_times_of_directories(tree);
    };
    let ours = same_as_gnu(&run(&mut bsdtar).stdout, comparable);
    let (mut ours, mut theirs) = (tree(ours.path(), false).unwrap(), tree(source.path(), false).unwrap());
    // It writes fractions of seconds before 1970 wrong.
    ours.remove(&b"one"[..]);
    theirs.remove(&b"one"[..]);
    let difference = differences(&ours, &theirs);
    assert!(difference.is_empty(), "{difference}");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn the_same_as_gnu_tar_from_python() {
    let source = nasty();
    let script = "import sys, tarfile\n\
        t = tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=int(sys.argv[2]))\n\
        t.add(sys.argv[1], arcname='.')\n\
        t.close()\n";
    fs::remove_file(source.path().join("all hole")).unwrap();
    fs::remove_file(source.path().join("nine gigabytes")).unwrap();
    for format in ["1", "2"] {
        let mut python = Command::new("python3");
        python.args(["-c", script]).arg(source.path()).arg(format);
        drop(same_as_gnu(&run(&mut python).stdout, |_| {}));
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_later_entry_replaces_an_earlier_one() {
    let mut tar = Tar::new();
    tar.entry(b"d/", b'5', b"").file(b"d/f", b"old").file(b"x", b"old").entry(b"y", b'2', b"x");
    tar.entry(b"e/", b'5', b"").file(b"hard", b"twice").entry(b"hard too", b'1', b"hard");
    // A file for a file, a link for a file, a file for a link, a file for an empty directory.
    tar.file(b"d/f", b"new").entry(b"x", b'2', b"d/f").file(b"y", b"now a file").file(b"e", b"now a file");
    // A directory stays what it is, and gets new permissions and a new time.
    let again = Header { name: b"d/", kind: b'5', mode: 0o700, mtime: 5, ..Header::default() };
    tar.header(&again);
    // The other name keeps the old content; a link to itself changes nothing.
    tar.file(b"hard", b"once").entry(b"hard too", b'1', b"hard too");
    // A hard link in place of something, and a directory in place of a file.
    tar.file(b"z", b"").entry(b"z", b'1', b"hard too").file(b"was", b"").entry(b"was/", b'5', b"");
    tar.file(b"was/in", b"it").file(b"d/late", b"does not change the time of its directory");
    let dir = same_as_gnu(&tar.end(), without_times_of_directories);
    assert_eq!(fs::read(dir.path().join("d/f")).unwrap(), b"new");
    assert_eq!(fs::read(dir.path().join("hard too")).unwrap(), b"twice");
    assert_eq!(dir.path().join("d").metadata().unwrap().mtime(), 5);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn directories_without_entries_of_their_own_are_made() {
    let mut tar = Tar::new();
    tar.file(b"a/b/c/file", b"1").file(b"/absolute/file", b"2").file(b"./././dots//file", b"3");
    let dir = same_as_gnu(&tar.end(), without_times_of_directories);
    assert_eq!(fs::read(dir.path().join("absolute/file")).unwrap(), b"2");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_directory_passes_nothing_on() {
    // A directory that was there before, with a group and a list of its own to pass on.
    let acl = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x04\0\x07\0\xff\xff\xff\xff\x08\0\x07\0\x34\x12\0\0\x10\0\x07\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
    let dir = TempDir::new().unwrap();
    let before = dir.path().join("d");
    fs::create_dir(&before).unwrap();
    std::os::unix::fs::chown(&before, Some(0), Some(77)).unwrap();
    mode(&before, 0o2777);
    xattr(&before, "system.posix_acl_default", acl);
    let mut tar = Tar::new();
    tar.file(b"d/f", b"1").entry(b"d/s/", b'5', b"").entry(b"d/l", b'2', b"f").entry(b"d/p", b'6', b"");
    tar.file(b"d/s/g", b"2");
    extract(&gzip(&tar.end()), dir.path()).unwrap();
    let tree = tree(dir.path(), false).unwrap();
    for name in [&b"d/f"[..], b"d/s", b"d/s/g"] {
        let facts = &tree[name];
        assert_eq!(facts.owner, (1000, 1001), "{}", name.escape_ascii());
        assert!(facts.xattrs.is_empty(), "{facts:?}");
        assert_eq!(facts.mode & 0o7777, if name == b"d/s" { 0o755 } else { 0o644 });
    }
    assert_eq!(tree[&b"d/p"[..]].mode & 0o7777, 0o644);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn two_hundred_thousand_tiny_files() {
    let mut tar = Tar::new();
    for i in 0..200_000_u32 {
        tar.file(format!("d{}/f{i}", i % 100).as_bytes(), &i.to_le_bytes());
    }
    let (dir, result) = extract_new(&tar.end());
    let summary = result.unwrap();
    assert_eq!((summary.extracted.entries, summary.extracted.file_bytes), (200_000, 800_000));
    for i in [0, 123_456, 199_999_u32] {
        let path = dir.path().join(format!("d{}/f{i}", i % 100));
        assert_eq!(fs::read(path).unwrap(), i.to_le_bytes());
    }
    let count: usize =
        (0..100).map(|i| fs::read_dir(dir.path().join(format!("d{i}"))).unwrap().count()).sum();
    assert_eq!(count, 200_000);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn zstd_and_a_whole_filesystem() {
    let source = nasty();
    let pax = ["--format=pax", "--xattrs", "--xattrs-include=*", "--sparse"];
    let archive = tempfile::NamedTempFile::new().unwrap();
    fs::write(archive.path(), pack(source.path(), &pax)).unwrap();
    let output = Command::new("zstd").args(["-q", "-3", "-c"]).arg(archive.path()).output().unwrap();
    assert!(output.status.success());
    let disk = Loop::new(256 << 20);
    extract(&output.stdout, &disk.at).unwrap();
    let (mut ours, theirs) = (tree(&disk.at, false).unwrap(), tree(source.path(), false).unwrap());
    ours.retain(|name, _| !name.starts_with(b"lost+found"));
    let difference = differences(&ours, &theirs);
    assert!(difference.is_empty(), "{difference}");
}
