//! Path A against GNU tar, which is the judge of what an archive means; and its faults.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use pi_agent::failure::{Cause, Failure};
use pi_agent::progress::Progress;
use pi_agent::stream::{Expected, Summary, install, install_from};
use piman_core::hash::Hash;
use piman_tests::tar::{Header, Tar};
use piman_tests::tree::{Tree, differences, tree};
use rustix::fs::{AtFlags, CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};
use tempfile::TempDir;

/// Says so and returns, where the test cannot be made.
macro_rules! needs_root {
    () => {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
    };
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn expect(bytes: &[u8]) -> Expected {
    Expected { hash: Hash(*blake3::hash(bytes).as_bytes()), bytes: bytes.len() as u64 }
}

/// Extracts what was packed, as it comes out of a file.
fn extract(packed: &[u8], root: &Path) -> Result<Summary, Failure> {
    let root = File::open(root).unwrap();
    install_from(packed, || {}, Some(expect(packed)), root.as_fd(), &Progress::new())
}

/// Extracts a tar archive into a new directory.
fn extract_new(tar: &[u8]) -> (TempDir, Result<Summary, Failure>) {
    let dir = TempDir::new().unwrap();
    let result = extract(&gzip(tar), dir.path());
    (dir, result)
}

/// The text of a failure that must be the archive's fault.
#[track_caller]
fn refused(tar: &[u8]) -> (TempDir, String) {
    let (dir, result) = extract_new(tar);
    let failure = result.unwrap_err();
    assert_eq!(failure.cause, Cause::Image, "{failure}");
    (dir, failure.to_string())
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What GNU tar makes of the same archive.
fn gnu(tar: &[u8]) -> TempDir {
    let dir = TempDir::new().unwrap();
    let archive = tempfile::NamedTempFile::new().unwrap();
    fs::write(archive.path(), tar).unwrap();
    run(Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"])
        .arg(archive.path())
        .arg("-C")
        .arg(dir.path()));
    dir
}

/// Extracts with ours and with GNU tar, and compares everything.
#[track_caller]
fn same_as_gnu(tar: &[u8], but: impl Fn(&mut Tree)) -> TempDir {
    let (ours, result) = extract_new(tar);
    result.unwrap();
    let theirs = gnu(tar);
    // Where holes are is known for certain only once everything is on the disk.
    rustix::fs::syncfs(File::open(ours.path()).unwrap()).unwrap();
    let (mut a, mut b) = (tree(ours.path(), true).unwrap(), tree(theirs.path(), true).unwrap());
    but(&mut a);
    but(&mut b);
    assert!(a.len() > 1);
    let difference = differences(&a, &b);
    assert!(difference.is_empty(), "{difference}");
    ours
}

fn time(path: &Path, seconds: i64, nanos: i64) {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn xattr(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn node(path: &Path, kind: FileType, device: u64) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device).unwrap();
}

fn bytes(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A file tree with everything that Linux has, and names as nasty as can be.
fn nasty() -> TempDir {
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

fn pack(dir: &Path, options: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .args(options)
        .args(["--numeric-owner", "-c", "-f", "-", "-C"])
        .arg(dir)
        .arg(".")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success());
    output.stdout
}

/// GNU tar gives a directory the time of the extraction if entries of other directories lie
/// between its own; then only the source can tell what is right.
fn without_times_of_directories(tree: &mut Tree) {
    tree.values_mut().filter(|f| f.mode & 0o170_000 == 0o040_000).for_each(|f| f.mtime = (0, 0));
}

#[test]
fn the_same_as_gnu_tar_from_pax() {
    needs_root!();
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
fn the_same_as_gnu_tar_from_gnu_formats() {
    needs_root!();
    let source = nasty();
    for format in ["gnu", "oldgnu"] {
        let option = format!("--format={format}");
        same_as_gnu(&pack(source.path(), &[&option, "--sparse"]), |_| {});
    }
}

#[test]
fn the_same_as_gnu_tar_from_other_formats() {
    needs_root!();
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
fn the_same_as_gnu_tar_from_other_archivers() {
    needs_root!();
    let source = nasty();
    let bsdtar = Command::new("bsdtar")
        .args(["-c", "--format", "pax", "--xattrs", "-f", "-", "-C"])
        .arg(source.path())
        .arg(".")
        .output();
    match bsdtar {
        Ok(output) if output.status.success() => {
            // Its sparse files begin with a part that GNU tar writes as data.
            let comparable = |tree: &mut Tree| {
                tree.values_mut().for_each(|f| f.data.clear());
                without_times_of_directories(tree);
            };
            let ours = same_as_gnu(&output.stdout, comparable);
            let (mut ours, mut theirs) =
                (tree(ours.path(), false).unwrap(), tree(source.path(), false).unwrap());
            // It writes fractions of seconds before 1970 wrong.
            ours.remove(&b"one"[..]);
            theirs.remove(&b"one"[..]);
            let difference = differences(&ours, &theirs);
            assert!(difference.is_empty(), "{difference}");
        }
        other => eprintln!("skipped: needs bsdtar ({other:?})"),
    }
    let script = "import sys, tarfile\n\
        t = tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=int(sys.argv[2]))\n\
        t.add(sys.argv[1], arcname='.')\n\
        t.close()\n";
    fs::remove_file(source.path().join("all hole")).unwrap();
    fs::remove_file(source.path().join("nine gigabytes")).unwrap();
    for format in ["1", "2"] {
        let mut python = Command::new("python3");
        match python.args(["-c", script]).arg(source.path()).arg(format).output() {
            Ok(output) if output.status.success() => drop(same_as_gnu(&output.stdout, |_| {})),
            other => eprintln!("skipped: needs python3 ({other:?})"),
        }
    }
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    needs_root!();
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
fn the_proof_of_an_archived_card_is_left_out() {
    needs_root!();
    let mut tar = Tar::new();
    tar.file(b".piman-proof", b"another's").entry(b"here", b'2', b".").file(b"here/.piman-proof", b"too");
    tar.file(b"./.piman-proof", b"and so").file(b"etc/.piman-proof", b"not ours").file(b"last", b"file");
    let dir = TempDir::new().unwrap();
    // As it is while an installation goes on.
    fs::write(dir.path().join(".piman-proof"), "").unwrap();
    extract(&gzip(&tar.end()), dir.path()).unwrap();
    let read = |name| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read(".piman-proof"), "");
    assert_eq!(read("etc/.piman-proof"), "not ours");
    assert_eq!(read("last"), "file");
}

#[test]
fn directories_without_entries_of_their_own_are_made() {
    needs_root!();
    let mut tar = Tar::new();
    tar.file(b"a/b/c/file", b"1").file(b"/absolute/file", b"2").file(b"./././dots//file", b"3");
    let dir = same_as_gnu(&tar.end(), without_times_of_directories);
    assert_eq!(fs::read(dir.path().join("absolute/file")).unwrap(), b"2");
}

#[test]
fn a_link_to_a_directory_is_followed_as_long_as_it_stays_below() {
    needs_root!();
    let mut tar = Tar::new();
    tar.entry(b"usr/", b'5', b"").entry(b"usr/lib/", b'5', b"").entry(b"lib", b'2', b"usr/lib");
    tar.file(b"lib/modules/x", b"1").entry(b"lib/y", b'1', b"lib/modules/x");
    let dir = same_as_gnu(&tar.end(), without_times_of_directories);
    assert_eq!(fs::read(dir.path().join("usr/lib/y")).unwrap(), b"1");
    assert_eq!(dir.path().join("usr/lib").metadata().unwrap().mtime(), 1_700_000_000);
}

#[test]
fn nothing_is_written_out_of_the_root() {
    needs_root!();
    let outside = TempDir::new().unwrap();
    let away = outside.path().as_os_str().as_bytes();
    let up = [b"../".repeat(40), away[1..].to_vec()].concat();
    let (up_link, absolute) = (&up[..], away);
    for target in [absolute, up_link] {
        for kind in [b'0', b'5', b'6', b'2'] {
            let mut tar = Tar::new();
            tar.pax(b'x', &[("linkpath", target)]).entry(b"way", b'2', b"x");
            tar.entry(b"way/out", kind, b"target");
            let (_dir, text) = refused(&tar.end());
            assert!(text.contains("`way/out`") && text.contains("out of the root"), "{text}");
        }
        // As the source of a hard link.
        fs::write(outside.path().join("secret"), "s").unwrap();
        let mut tar = Tar::new();
        tar.pax(b'x', &[("linkpath", target)]).entry(b"way", b'2', b"x");
        tar.entry(b"mine", b'1', b"way/secret");
        let (dir, text) = refused(&tar.end());
        assert!(text.contains("`mine`") && text.contains("way/secret"), "{text}");
        assert!(!dir.path().join("mine").exists());
        fs::remove_file(outside.path().join("secret")).unwrap();
    }
    for name in [&b"../out"[..], b"a/../../out", b"/..", b"a/.."] {
        let mut tar = Tar::new();
        tar.entry(b"a/", b'5', b"").file(name, b"");
        let (_dir, text) = refused(&tar.end());
        assert!(text.contains(&format!("`{}`", name.escape_ascii())) && text.contains(".."), "{text}");
        let mut tar = Tar::new();
        tar.entry(b"link", b'1', name);
        assert!(refused(&tar.end()).1.contains("`link`"));
    }
    // A link itself may lead anywhere; a file in its place does not follow it.
    let mut tar = Tar::new();
    let target = [away, b"/victim"].concat();
    tar.pax(b'x', &[("linkpath", &target)]).entry(b"f", b'2', b"x").file(b"f", b"mine");
    let (dir, result) = extract_new(&tar.end());
    result.unwrap();
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_created_is_named() {
    needs_root!();
    let mut missing = Tar::new();
    missing.file(b"a", b"").entry(b"l", b'1', b"no/such/file");
    let (_dir, text) = refused(&missing.end());
    assert!(text.contains("`l`") && text.contains("`no/such/file`"), "{text}");
    let mut missing = Tar::new();
    missing.entry(b"l", b'1', b"nothing");
    let (_dir, text) = refused(&missing.end());
    assert!(text.contains("`l`") && text.contains("`nothing`"), "{text}");
    let mut directory = Tar::new();
    directory.entry(b"d/", b'5', b"").entry(b"l", b'1', b"d");
    assert!(refused(&directory.end()).1.contains("which is a directory"));
    let mut full = Tar::new();
    full.file(b"d/f", b"").file(b"d", b"");
    assert!(refused(&full.end()).1.contains("not empty"));
    let mut through = Tar::new();
    through.file(b"f", b"").file(b"f/g", b"");
    let text = refused(&through.end()).1;
    assert!(text.contains("`f/g`") && text.contains("not a directory"), "{text}");
    let mut circle = Tar::new();
    circle.entry(b"a", b'2', b"b").entry(b"b", b'2', b"a").file(b"a/f", b"");
    assert!(refused(&circle.end()).1.contains("circle"));
    let mut root = Tar::new();
    root.file(b"./.", b"");
    assert!(refused(&root.end()).1.contains("root itself"));
    let mut deep = Tar::new();
    deep.pax(b'x', &[("path", &b"d/".repeat(1000))]).file(b"x", b"");
    assert!(refused(&deep.end()).1.contains("directories deep"));
    let mut long = Tar::new();
    long.pax(b'x', &[("path", &[b'n'; 256])]).file(b"x", b"");
    assert!(refused(&long.end()).1.contains("255 bytes"));
    let mut nobody = Tar::new();
    nobody.pax(b'x', &[("uid", b"4294967295")]).file(b"x", b"");
    assert!(refused(&nobody.end()).1.contains("owner"));
    let mut device = Tar::new();
    device.header(&Header { name: b"dev", kind: b'4', device: (4096, 0), ..Header::default() });
    assert!(refused(&device.end()).1.contains("device number"));
}

#[test]
fn a_directory_passes_nothing_on() {
    needs_root!();
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
fn truncated_and_damaged_archives() {
    needs_root!();
    let mut tar = Tar::new();
    tar.file(b"a", &bytes(1, 3000)).entry(b"d/", b'5', b"").file(b"d/b", &bytes(2, 70_000));
    let packed = gzip(&tar.end());
    let good = expect(&packed);
    let dir = TempDir::new().unwrap();
    let root = File::open(dir.path()).unwrap();
    let attempt = |bytes: &[u8], expected: Option<Expected>| {
        install_from(bytes, || {}, expected, root.as_fd(), &Progress::new()).unwrap_err()
    };
    for cut in (0..packed.len()).step_by(101).chain(packed.len() - 9..packed.len()) {
        // With a size known it is the connection; without, most likely too, and the text says so.
        let failure = attempt(&packed[..cut], Some(good));
        assert_eq!(failure.cause, Cause::Network, "{cut}: {failure}");
        assert!(failure.to_string().contains(&format!("after {cut} of {} bytes", packed.len())), "{failure}");
        let failure = attempt(&packed[..cut], None);
        assert_eq!(failure.cause, Cause::Network, "{cut}: {failure}");
        assert!(failure.to_string().contains("not complete"), "{failure}");
        // The archive itself is cut, and its hash says that this is it.
        let failure = attempt(&packed[..cut], Some(expect(&packed[..cut])));
        assert_eq!(failure.cause, Cause::Image, "{cut}: {failure}");
    }
    for at in (0..packed.len()).step_by(997).chain(packed.len() - 8..packed.len()) {
        let mut damaged = packed.clone();
        damaged[at] ^= 0x10;
        // On its way: worth another try. At its source: not. The header's time and system say nothing.
        let failure = attempt(&damaged, Some(good));
        assert_eq!(failure.cause, Cause::Network, "{at}: {failure}");
        assert!(failure.to_string().contains("not the one that was offered"), "{failure}");
        if at >= 10 {
            assert_eq!(attempt(&damaged, Some(expect(&damaged))).cause, Cause::Image, "{at}");
        }
    }
    let longer = [&packed[..], &[0; 10]].concat();
    assert_eq!(attempt(&longer, Some(good)).cause, Cause::Network);
    // A tar archive that ends within: the packing is whole, so it is the archive.
    let cut = gzip(&tar.end()[..5000]);
    let failure = attempt(&cut, None);
    assert_eq!(failure.cause, Cause::Image, "{failure}");
    assert!(failure.to_string().contains("truncated"), "{failure}");
    let failure = attempt(&tar.end(), None);
    assert!(failure.to_string().contains("not compressed"), "{failure}");
    assert_eq!(failure.cause, Cause::Image);
    let failure = attempt(b"<html>404 not found", None);
    assert!(failure.to_string().contains("neither gzip nor zstd"), "{failure}");
}

#[test]
fn a_connection_that_breaks_is_told_from_a_bad_archive() {
    needs_root!();
    let mut tar = Tar::new();
    tar.file(b"a", &bytes(1, 3_000_000));
    let packed = gzip(&tar.end());
    /// Fails after this many bytes.
    struct Breaks<'a>(&'a [u8], usize);
    impl Read for Breaks<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = buf.len().min(1000).min(self.1);
            if n == 0 {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            self.1 -= n;
            self.0.read(&mut buf[..n])
        }
    }
    let dir = TempDir::new().unwrap();
    let root = File::open(dir.path()).unwrap();
    for at in [0, 1, 5, 700, 100_000, packed.len() - 1] {
        for expected in [None, Some(expect(&packed))] {
            let source = Breaks(&packed, at);
            let failure = install_from(source, || {}, expected, root.as_fd(), &Progress::new()).unwrap_err();
            assert_eq!(failure.cause, Cause::Network, "{failure}");
            assert!(failure.to_string().contains(&format!("after {at}")), "{failure}");
        }
    }
}

/// Serves these bytes to one client, and then nothing, without closing.
fn serve(packed: Vec<u8>) -> (TcpStream, thread::JoinHandle<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        peer.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
        // The client may have had enough before everything is sent.
        let _ = peer.write_all(&packed);
        // Ends when the client closes, and not before.
        !matches!(peer.read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    });
    (client, server)
}

#[test]
fn a_failure_closes_the_connection_at_once() {
    needs_root!();
    let mut tar = Tar::new();
    tar.file(b"../out", b"").file(b"large", &bytes(1, 1 << 20));
    let (client, server) = serve(gzip(&tar.0));
    let dir = TempDir::new().unwrap();
    let root = File::open(dir.path()).unwrap();
    // The server would keep the connection for ever.
    let failure = install(client, None, root.as_fd(), &Progress::new()).unwrap_err();
    assert_eq!(failure.cause, Cause::Image, "{failure}");
    assert!(failure.to_string().contains("../out"), "{failure}");
    assert!(server.join().unwrap(), "closed");
}

#[test]
fn a_server_that_falls_silent_is_left() {
    needs_root!();
    let mut tar = Tar::new();
    tar.file(b"a", &bytes(1, 1 << 20));
    let packed = gzip(&tar.end());
    let (client, server) = serve(packed[..packed.len() / 2].to_vec());
    client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let dir = TempDir::new().unwrap();
    let root = File::open(dir.path()).unwrap();
    let failure = install(client, Some(expect(&packed)), root.as_fd(), &Progress::new()).unwrap_err();
    assert_eq!(failure.cause, Cause::Network);
    assert!(failure.to_string().contains("fell silent"), "{failure}");
    assert!(server.join().unwrap());
}

#[test]
fn progress_counts_what_is_received_and_all_is_read() {
    needs_root!();
    let mut tar = Tar::new();
    tar.file(b"a", &bytes(1, 100_000));
    // Padding as tapes have it, beyond the end of the archive, and a second member.
    let packed = [gzip(&[tar.end(), vec![0; 100_000]].concat()), gzip(&[0; 5000])].concat();
    let dir = TempDir::new().unwrap();
    let root = File::open(dir.path()).unwrap();
    let progress = Progress::new();
    let closed = AtomicBool::new(false);
    let close = || closed.store(true, Relaxed);
    let summary = install_from(&packed[..], close, Some(expect(&packed)), root.as_fd(), &progress).unwrap();
    assert_eq!(progress.snapshot().done, packed.len() as u64);
    assert_eq!(progress.snapshot().total, packed.len() as u64);
    assert_eq!(summary.bytes, packed.len() as u64);
    assert_eq!(summary.hash, expect(&packed).hash);
    assert_eq!(summary.unpacked_bytes, tar.end().len() as u64 + 105_000);
    assert_eq!((summary.extracted.entries, summary.extracted.file_bytes), (1, 100_000));
    assert!(!closed.load(Relaxed));
}

/// A filesystem on a loop device, which goes with it.
struct Loop {
    dir: TempDir,
    at: PathBuf,
}

impl Loop {
    fn new(bytes: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-b", "4096"]).arg(&image));
        let at = dir.path().join("at");
        fs::create_dir(&at).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        Self { dir, at }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.at).status();
        if !thread::panicking() {
            assert!(unmounted.unwrap().success());
            run(Command::new("e2fsck").args(["-f", "-n"]).arg(self.dir.path().join("image")));
        }
    }
}

#[test]
fn a_full_disk_is_told_from_a_bad_archive() {
    needs_root!();
    let small = Loop::new(16 << 20);
    let mut large = Tar::new();
    large.file(b"fits", b"1").file(b"does not fit", &bytes(1, 40 << 20));
    let mut many = Tar::new();
    for i in 0..10_000 {
        many.file(format!("file {i}").as_bytes(), b"");
    }
    for (tar, name) in [(large, "`does not fit`"), (many, "`file ")] {
        // The server would keep the connection for ever: it is closed by us.
        let (client, server) = serve(gzip(&tar.0));
        let root = File::open(&small.at).unwrap();
        let failure = install(client, None, root.as_fd(), &Progress::new()).unwrap_err();
        assert_eq!(failure.cause, Cause::Disk, "{failure}");
        let text = failure.to_string();
        assert!(text.contains("the disk is full") && text.contains(name), "{text}");
        assert!(server.join().unwrap());
    }
}

#[test]
fn a_disk_that_cannot_be_written_is_told() {
    needs_root!();
    let disk = Loop::new(16 << 20);
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(&disk.at));
    let mut tar = Tar::new();
    tar.file(b"a", b"1");
    let failure = extract(&gzip(&tar.end()), &disk.at).unwrap_err();
    assert_eq!(failure.cause, Cause::Disk);
    assert!(failure.to_string().contains("read-only"), "{failure}");
}

#[test]
fn two_hundred_thousand_tiny_files() {
    needs_root!();
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
fn zstd_and_a_whole_filesystem() {
    needs_root!();
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
