//! Path B from the archive to the card: images made, sent, written; judged by e2fsck, the
//! kernel and GNU tar.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use pi_agent::backoff::Backoff;
use pi_agent::disk::RootArea;
use pi_agent::failure::{Cause, Failure};
use pi_agent::image::{self as agent, Area, Medium, Pending, Retry};
use pi_agent::progress::Progress;
use pi_agent::proof::{Proof, Way};
use piman::image::{self, Error, Image, Images};
use piman_core::hash::Hash;
use piman_core::install::fetch::Kind;
use piman_core::install::table::{HEADER, Table};
use piman_core::install::{ImageOffer, More, Stage};
use piman_tests::disk::{Mounted, e2fsck, is_root, run};
use piman_tests::fetch::{Fault, FetchServer};
use piman_tests::tar::Tar;
use piman_tests::tree::{assert_same, installed, without_times};
use rustix::fs::XattrFlags;

/// Where the filesystem begins on the disks of these tests.
const OFFSET: u64 = 48 << 20;
const MIB: u64 = 1 << 20;
const RETRIES: u32 = 20;

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

/// Packs a folder and what is named of this machine.
fn pack(folder: &Path, archive: &Path, options: &[&str], more: &[&str]) {
    let mut tar = Command::new("tar");
    tar.args(["-S", "--numeric-owner"]).args(options);
    tar.arg("-cf").arg(archive).arg("-C").arg(folder).arg(".");
    if !more.is_empty() {
        tar.args(["-C", "/"]).args(more);
    }
    run(&mut tar);
}

struct Made {
    state: tempfile::TempDir,
    image: Arc<Image>,
    archive: File,
}

fn hash_of(archive: &File) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(archive).unwrap();
    Hash(*hasher.finalize().as_bytes())
}

/// Makes the image; the state folder is left clean if that fails.
fn made(archive: &Path, filesystem_bytes: u64) -> Result<Made, Error> {
    let state = tempfile::tempdir().unwrap();
    let images = Images::open(state.path()).unwrap();
    let archive = File::open(archive).unwrap();
    let (progress, stop) = (image::Progress::new(), AtomicBool::new(false));
    let made = images.build(&archive, hash_of(&archive), filesystem_bytes, &progress, &stop);
    let files = fs::read_dir(state.path().join("images")).unwrap().count();
    assert_eq!(files, if made.is_ok() { 2 } else { 0 }, "files in the state folder");
    assert!(made.is_err() || progress.percent() == 100);
    Ok(Made { image: made?, state, archive })
}

/// A disk in a file, full of garbage where a filesystem will be.
fn garbage(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let garbage = vec![0xa5; 1 << 20];
    for at in (0..OFFSET + bytes).step_by(garbage.len()) {
        file.as_file().write_all_at(&garbage, at).unwrap();
    }
    file.as_file().sync_data().unwrap();
    file
}

fn order<'a>(offer: &'a ImageOffer, archive: Hash, progress: &'a Progress) -> agent::Order<'a> {
    let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(5));
    agent::Order { offer, archive, retry: Retry { times: RETRIES, backoff }, progress }
}

/// Installs all but what makes it valid.
fn install_on(server: &FetchServer, image: &Image, medium: &impl Medium) -> Result<Pending, Failure> {
    let progress = Progress::new();
    let (offer, header) = (image.offer(), image.header());
    let pending =
        agent::install(|| server.connect(), &order(&offer, header.archive, &progress), medium, || Ok(()))?;
    assert_eq!(progress.snapshot().stage, Stage::Sync);
    Ok(pending)
}

fn area<'d>(file: &'d File, direct: &'d File, length: u64) -> Area<'d> {
    Area::new(file, direct, RootArea { offset: OFFSET, length })
}

fn direct(path: &Path) -> File {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    File::options().read(true).write(true).custom_flags(flags).open(path).unwrap()
}

fn proof(image: &Image) -> Vec<u8> {
    Proof::now(image.header().archive, Way::Image, More::default()).encode()
}

/// Installs to the end.
fn install(server: &FetchServer, image: &Image, disk: &tempfile::NamedTempFile) -> agent::Summary {
    let file = direct(disk.path());
    let area = area(disk.as_file(), &file, image.header().filesystem_bytes);
    let pending = install_on(server, image, &area).unwrap();
    assert!(mkext4_open(disk.path()).is_err(), "a filesystem before the proof");
    agent::commit(&area, &pending, &proof(image)).unwrap();
    pending.summary
}

fn mkext4_open(path: &Path) -> mkext4::Result<()> {
    let mut bytes = vec![0; 1 << 20];
    File::open(path)?.read_exact_at(&mut bytes, OFFSET)?;
    mkext4::reader::Fs::open(&bytes[..]).map(drop)
}

fn faultless(image: &Arc<Image>) -> FetchServer {
    FetchServer::new(Arc::clone(image), |_, _| Fault::None)
}

/// Compares by our own reader.
fn compared(disk: &Path, archive: &File) -> image::Comparison {
    let (progress, stop) = (image::Progress::new(), AtomicBool::new(false));
    image::compare(&File::open(disk).unwrap(), OFFSET, archive, &progress, &stop).unwrap()
}

fn assert_equal(disk: &Path, made: &Made) {
    let found = compared(disk, &made.archive);
    assert_eq!((found.differences, found.told), (0, vec![]));
    assert_eq!(found.archive, made.image.header().archive);
}

#[test]
fn what_is_installed_is_what_gnu_tar_extracts() {
    if !is_root() {
        return;
    }
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
        let disk = garbage(header.filesystem_bytes);
        let summary = install(&faultless(&made.image), &made.image, &disk);
        assert_eq!((summary.reused, summary.repaired, summary.broken), (0, 0, 0));
        assert_eq!(summary.written_bytes, header.used_bytes);
        assert!(summary.written_bytes / u64::from(summary.writes) > 512 << 10, "{summary:?}");
        e2fsck(disk.path(), OFFSET, header.filesystem_bytes);
        assert_equal(disk.path(), &made);

        let extracted = tempfile::tempdir().unwrap();
        let mut tar = Command::new("tar");
        tar.args(["-xpf"]).arg(&archive).arg("-C").arg(extracted.path());
        run(tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*"]));
        // The archive does not describe `usr`.
        let want = without_times(installed(extracted.path()), &["usr", "usr/share"]);
        assert!(want.len() > 3500);
        let mounted = Mounted::new(disk.path(), OFFSET, header.filesystem_bytes, "init_itable=0");
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
        e2fsck(disk.path(), OFFSET, header.filesystem_bytes);
    }
}

#[test]
fn entries_that_replace_others_end_as_with_gnu_tar() {
    if !is_root() {
        return;
    }
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

/// An archive of files of noise and of text, so that chunks are stored in both ways.
fn noisy(megabytes: usize) -> tempfile::NamedTempFile {
    let mut tar = Tar::new();
    let mut noise = blake3::Hasher::new().update(b"noisy").finalize_xof();
    for i in 0..megabytes {
        let mut content = vec![b'a' + (i % 26) as u8; 1 << 20];
        if i / 6 % 2 == 1 {
            noise.fill(&mut content);
        }
        tar.push(format!("file-{i}").as_bytes(), b'0', b"", &content);
    }
    tar.packed()
}

#[test]
fn a_chunk_that_comes_damaged_is_fetched_again() {
    let archive = noisy(24);
    let made = made(archive.path(), 64 * MIB).unwrap();
    let bad = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&bad);
    // Every third answer, the table's too.
    let server = FetchServer::new(Arc::clone(&made.image), move |_, n| match n % 3 {
        0 => Fault::Flip(count.fetch_add(1, SeqCst) * 7919),
        1 => Fault::Wait,
        _ => Fault::None,
    });
    let disk = garbage(64 * MIB);
    let summary = install(&server, &made.image, &disk);
    assert!(summary.repaired > 1 && summary.broken == 0, "{summary:?}");
    let again = bad.load(SeqCst);
    assert_eq!(server.requests().len() - again, summary.chunks as usize + 1, "nothing is fetched twice");
    e2fsck(disk.path(), OFFSET, 64 * MIB);
    assert_equal(disk.path(), &made);
}

#[test]
fn a_stored_chunk_that_rots_is_named() {
    let archive = noisy(24);
    let made = made(archive.path(), 64 * MIB).unwrap();
    let table = Table::parse(made.image.table()).unwrap();
    let (index, victim) = (0..).zip(table.iter()).find(|(_, e)| e.stored == e.length).unwrap();
    let files = fs::read_dir(made.state.path().join("images")).unwrap().map(|e| e.unwrap().path());
    let chunks = files.into_iter().find(|p| p.extension().is_some_and(|e| e == "chunks")).unwrap();
    File::options().write(true).open(chunks).unwrap().write_all_at(b"rot", victim.position + 99).unwrap();
    assert_eq!(made.image.damaged().unwrap(), [index]);
    let disk = garbage(64 * MIB);
    let server = faultless(&made.image);
    let failure =
        install_on(&server, &made.image, &area(disk.as_file(), disk.as_file(), 64 * MIB)).unwrap_err();
    assert_eq!(failure.cause, Cause::Image);
    let text = failure.to_string();
    assert!(text.contains(&format!("chunk {index} (byte {} of", victim.offset)), "{text}");
    assert_eq!(
        server.requests().iter().filter(|r| r.offset == victim.position && r.kind == Kind::Chunks).count(),
        6
    );
    assert!(mkext4_open(disk.path()).is_err());
}

#[test]
fn a_connection_may_break_anywhere() {
    let archive = noisy(24);
    let made = made(archive.path(), 64 * MIB).unwrap();
    for seed in [1, 77, 4242] {
        // Two of three answers break, at places of all kinds.
        let server = FetchServer::new(Arc::clone(&made.image), move |_, n| match (n + seed) % 3 {
            0 => Fault::None,
            _ => Fault::Cut(
                n.wrapping_mul(seed).wrapping_mul(2_654_435_761) % 5_000_000
                    * usize::from(!n.is_multiple_of(4)),
            ),
        });
        let disk = garbage(64 * MIB);
        let summary = install(&server, &made.image, &disk);
        assert!(summary.broken > 2, "{summary:?}");
        assert_eq!(summary.fetched_bytes, made.image.header().stored_bytes, "nothing is fetched twice");
        assert_equal(disk.path(), &made);
    }
    // For ever broken: bounded.
    let server = FetchServer::new(Arc::clone(&made.image), |_, _| Fault::Cut(3));
    let disk = garbage(64 * MIB);
    let failure =
        install_on(&server, &made.image, &area(disk.as_file(), disk.as_file(), 64 * MIB)).unwrap_err();
    assert!(failure.cause.is_passing());
    assert_eq!(server.requests().len(), pi_agent::fetch::UNHEARD_TIMES as usize + 1, "{failure}");
    let server =
        FetchServer::new(Arc::clone(&made.image), |_, n| if n < 4 { Fault::None } else { Fault::No });
    let failure =
        install_on(&server, &made.image, &area(disk.as_file(), disk.as_file(), 64 * MIB)).unwrap_err();
    assert!(failure.cause.is_passing() && failure.to_string().contains("image any more"), "{failure}");
}

#[test]
fn what_is_on_the_card_already_is_neither_fetched_nor_written() {
    let archive = noisy(40);
    let made = made(archive.path(), 96 * MIB).unwrap();
    let disk = garbage(96 * MIB);
    let first = install(&faultless(&made.image), &made.image, &disk);
    assert_eq!(first.reused, 0);
    let server = faultless(&made.image);
    let second = install(&server, &made.image, &disk);
    assert_eq!((second.reused, second.chunks), (first.chunks - 1, first.chunks), "all but the first");
    assert!(second.written_bytes <= 4 << 20);
    assert_equal(disk.path(), &made);
    // Some blocks have changed since.
    for at in [20, 33, 61] {
        disk.as_file().write_all_at(b"changed", OFFSET + at * MIB + 5).unwrap();
    }
    let third = install(&faultless(&made.image), &made.image, &disk);
    assert!((first.chunks - 4..first.chunks - 1).contains(&third.reused), "{third:?}");
    assert_equal(disk.path(), &made);
    e2fsck(disk.path(), OFFSET, 96 * MIB);
}

#[test]
fn tables_that_are_not_the_one_offered() {
    let archive = noisy(4);
    let made = made(archive.path(), 64 * MIB).unwrap();
    let disk = garbage(64 * MIB);
    let untouched = blake3::hash(&fs::read(disk.path()).unwrap());
    let (offer, id) = (made.image.offer(), made.image.header().archive);
    let attempt = |offer: ImageOffer, id: Hash, room: u64, server: &FetchServer| {
        let area = area(disk.as_file(), disk.as_file(), room);
        let progress = Progress::new();
        let failure =
            agent::install(|| server.connect(), &order(&offer, id, &progress), &area, || panic!("erased"));
        let failure = failure.unwrap_err();
        (failure.cause, failure.to_string())
    };
    let good = faultless(&made.image);
    let (cause, text) = attempt(offer, Hash([1; 32]), 64 * MIB, &good);
    assert!(cause == Cause::Image && text.contains("another archive"), "{text}");
    let (cause, text) = attempt(offer, id, 63 * MIB, &good);
    assert!(cause == Cause::Disk && text.contains("67108864 bytes"), "{text}");
    let (cause, text) = attempt(ImageOffer { table_bytes: u32::MAX, ..offer }, id, 64 * MIB, &good);
    assert!(cause == Cause::Image && text.contains("too large"), "{text}");
    let (cause, text) = attempt(ImageOffer { table: Hash([2; 32]), ..offer }, id, 64 * MIB, &good);
    assert!(cause == Cause::Network && text.contains("such image"), "{text}");
    let tampered = FetchServer::new(Arc::clone(&made.image), |_, _| Fault::Flip(HEADER + 17));
    let (cause, text) = attempt(offer, id, 64 * MIB, &tampered);
    assert!(cause == Cause::Image && text.contains("hash"), "{text}");
    assert_eq!(blake3::hash(&fs::read(disk.path()).unwrap()), untouched, "the disk was touched");
}

/// A medium that fails on cue.
struct Failing<'a> {
    area: Area<'a>,
    writes_left: AtomicUsize,
    error: rustix::io::Errno,
}

impl Medium for Failing<'_> {
    fn length(&self) -> u64 {
        self.area.length()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.area.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let left = self.writes_left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1));
        left.map_err(|_| self.error)?;
        self.area.write_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.area.sync()
    }
}

#[test]
fn a_disk_that_fails_is_said_and_never_valid() {
    let archive = noisy(24);
    let made = made(archive.path(), 64 * MIB).unwrap();
    let server = faultless(&made.image);
    for writes in [0, 1, 5] {
        for error in [rustix::io::Errno::NOSPC, rustix::io::Errno::IO] {
            let disk = garbage(64 * MIB);
            let area = area(disk.as_file(), disk.as_file(), 64 * MIB);
            let failing = Failing { area, writes_left: writes.into(), error };
            let failure = install_on(&server, &made.image, &failing).unwrap_err();
            assert_eq!(failure.cause, Cause::Disk);
            let what = io::Error::from(error).to_string();
            assert!(failure.to_string().contains(&what), "{failure}");
            assert!(mkext4_open(disk.path()).is_err());
        }
    }
    // While the proof is written: the same.
    let disk = garbage(64 * MIB);
    let area = area(disk.as_file(), disk.as_file(), 64 * MIB);
    let pending = install_on(&server, &made.image, &area).unwrap();
    let failing = Failing { area, writes_left: 1.into(), error: rustix::io::Errno::IO };
    assert_eq!(agent::commit(&failing, &pending, &proof(&made.image)).unwrap_err().stage, Stage::Commit);
    assert!(mkext4_open(disk.path()).is_err());
    failing.writes_left.store(2, SeqCst);
    agent::commit(&failing, &pending, &proof(&made.image)).unwrap();
    assert_equal(disk.path(), &made);
}

#[test]
fn too_small_says_how_much_is_needed_and_that_is_enough() {
    let archive = noisy(60);
    let Err(Error::TooSmall { needed, have }) = made(archive.path(), 64 * MIB).map(drop) else {
        panic!("60 MB of files in a filesystem of 64 MiB with its journal")
    };
    assert!(have == 64 * MIB && needed < 90 * MIB, "{needed}");
    let made = made(archive.path(), needed).unwrap();
    let disk = garbage(needed);
    install(&faultless(&made.image), &made.image, &disk);
    e2fsck(disk.path(), OFFSET, needed);
}

/// A tree by chance: directories in directories, files of all sizes, holes, links.
fn by_chance(seed: u64) -> Tar {
    let mut random = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut next = |below: usize| {
        let mut bytes = [0; 4];
        random.fill(&mut bytes);
        u32::from_le_bytes(bytes) as usize % below
    };
    let mut tar = Tar::new();
    let mut directories = vec![String::new()];
    let mut files: Vec<String> = Vec::new();
    let (count, largest) = ([30, 300, 3000][next(3)], [10, 5000, 200_000][next(3)]);
    for i in 0..count {
        let parent = &directories[next(directories.len())];
        let name = format!("{parent}{}{i}", "n".repeat(next(40)));
        if name.len() > 99 {
            continue;
        }
        match next(10) {
            0 => {
                tar.push(name.as_bytes(), b'5', b"", b"");
                directories.push(format!("{name}/"));
            }
            1 if !files.is_empty() => {
                tar.push(name.as_bytes(), b'1', files[next(files.len())].as_bytes(), b"");
            }
            2 => {
                tar.push(name.as_bytes(), b'2', &b"target/".repeat(1 + next(13)), b"");
            }
            _ => {
                tar.push(name.as_bytes(), b'0', b"", &vec![b'0' + (i % 64) as u8; next(largest)]);
                files.push(name);
            }
        }
    }
    tar
}

#[test]
fn any_tree_fits_the_size_that_is_said_to_be_needed() {
    for seed in 0..24 {
        let archive = by_chance(seed).packed();
        // Sizes whose last group is short, too.
        let size = 17 * MIB + seed * 7 * 4096 * 977;
        let (made, size) = match made(archive.path(), size) {
            Err(Error::TooSmall { needed, .. }) => (made(archive.path(), needed), needed),
            other => (other, size),
        };
        let made = made.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let disk = garbage(size);
        install(&faultless(&made.image), &made.image, &disk);
        e2fsck(disk.path(), OFFSET, size);
        assert_equal(disk.path(), &made);
    }
}

#[test]
fn two_hundred_thousand_tiny_files() {
    let mut tar = Tar::new();
    for i in 0..200_000 {
        let content = if i % 3 == 0 { &b""[..] } else { b"tiny" };
        tar.push(format!("d{}/file-{i}", i % 7).as_bytes(), b'0', b"", content);
    }
    let archive = tar.packed();
    let made = made(archive.path(), 1280 * MIB).unwrap();
    assert_eq!(made.image.header().entries, 200_000);
    let disk = garbage(0);
    disk.as_file().set_len(OFFSET + 1280 * MIB).unwrap();
    install(&faultless(&made.image), &made.image, &disk);
    e2fsck(disk.path(), OFFSET, 1280 * MIB);
    let found = compared(disk.path(), &made.archive);
    assert_eq!((found.differences, found.names, found.files), (0, 200_007, 200_000));
}

#[test]
fn a_sparse_file_of_nine_gigabytes() {
    if !is_root() {
        return;
    }
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

#[test]
fn archives_that_no_image_can_be_made_of() {
    let error = |tar: &Tar| made(tar.packed().path(), 64 * MIB).map(drop).unwrap_err();
    let named = error(Tar::new().push(b"ok", b'0', b"", b"").push(b"dir/caf\xe9", b'0', b"", b"x"));
    assert!(named.leaves_stream() && named.to_string().contains(r"dir/caf\xe9"), "{named}");
    let target = error(Tar::new().push(b"link", b'2', b"caf\xe9", b""));
    assert!(target.leaves_stream() && target.to_string().contains(r"caf\xe9"), "{target}");
    let out = error(Tar::new().push(b"../../etc/passwd", b'0', b"", b"x"));
    assert!(!out.leaves_stream() && out.to_string().contains(".."), "{out}");
    let missing = error(Tar::new().push(b"name", b'1', b"other", b""));
    assert!(
        !missing.leaves_stream() && missing.to_string().contains("`other`, which is missing"),
        "{missing}"
    );
}

#[test]
fn damaged_archives_leave_nothing_behind() {
    let whole = fs::read(noisy(6).path()).unwrap();
    for (what, bytes) in [
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("no archive", b"<html>404</html>".repeat(100)),
        ("empty", Vec::new()),
        ("flipped", {
            let mut bytes = whole.clone();
            bytes[whole.len() / 3] ^= 0x40;
            bytes
        }),
    ] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        // Noise that flips in a stored block is only found by zstd's checksum, if there is one;
        // then the image is of what the archive says.
        match made(file.path(), 64 * MIB) {
            Err(Error::Archive(_)) => {}
            Err(e) => panic!("{what}: {e}"),
            Ok(_) => assert_eq!(what, "flipped"),
        }
    }
    // A gzip archive has a checksum always.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), vec![b'g'; 3 << 20]).unwrap();
    let path = folder.path().with_extension("bad.tgz");
    pack(folder.path(), &path, &["-z"], &[]);
    let mut bytes = fs::read(&path).unwrap();
    let crc = bytes.len() - 6;
    bytes[crc] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = made(&path, 64 * MIB).map(drop).unwrap_err();
    assert!(matches!(error, Error::Archive(_)), "{error:?}");
    fs::remove_file(path).unwrap();
}

#[test]
fn another_archive_than_was_said_and_being_stopped() {
    let archive = noisy(6);
    let state = tempfile::tempdir().unwrap();
    let images = Images::open(state.path()).unwrap();
    let file = File::open(archive.path()).unwrap();
    let (progress, stop) = (image::Progress::new(), AtomicBool::new(false));
    let wrong = images.build(&file, Hash([7; 32]), 64 * MIB, &progress, &stop);
    assert!(matches!(wrong, Err(Error::Changed)));
    let stopped = images.build(&file, hash_of(&file), 64 * MIB, &progress, &AtomicBool::new(true));
    assert!(matches!(stopped, Err(Error::Stopped)));
    assert_eq!(fs::read_dir(state.path().join("images")).unwrap().count(), 0);
}

#[test]
fn differences_are_found_and_named() {
    let archive = noisy(6);
    let made = made(archive.path(), 64 * MIB).unwrap();
    let disk = garbage(64 * MIB);
    install(&faultless(&made.image), &made.image, &disk);
    // What `file-1` is full of.
    let bytes = fs::read(disk.path()).unwrap();
    let at = bytes.windows(4096).position(|w| w.iter().all(|b| *b == b'b')).unwrap();
    disk.as_file().write_all_at(b"!", at as u64 + 77).unwrap();
    let found = compared(disk.path(), &made.archive);
    assert_eq!((found.differences, found.told), (1, vec!["file-1: other content".to_owned()]));
    let mut other = Tar::new();
    other.push(b"file-0", b'2', b"somewhere", b"").push(b"file-99", b'0', b"", b"");
    let found = compared(disk.path(), &File::open(other.packed().path()).unwrap());
    assert_eq!(found.differences, 7, "{:?}", found.told);
}
