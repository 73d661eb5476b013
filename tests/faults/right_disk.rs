//! The right disk and a whole filesystem: cards that lie, fail or are too small are told before
//! they cost anything; a system that is broken does not count as installed; an agent that is
//! killed leaves nothing that does.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use pi_agent::card::inspect::{self, Card as Found, has_journal_to_replay};
use pi_agent::failure::{Cause, Failure};
use pi_agent::install::{Outcome, Plan};
use piman_core::install::layout::SECTOR;
use piman_tests::card::{Card, Lie};
use piman_tests::chance::Random;
use piman_tests::disk::{Mounted, run};
use piman_tests::lab::{self, CARD, ROOT, Root, attempt, behind_a_proxy};
use piman_tests::proxy::Faults;
use piman_tests::server::Server;
use piman_tests::wait::until;

const MIB: u64 = 1 << 20;
const START: u64 = lab::layout().root_start * SECTOR;

/// Tries to install a card that holds something and lies; what it holds afterwards is compared.
fn refused(server: &Server, path: &str, bytes: u64, lie: Lie) -> (Failure, bool) {
    let mut before = vec![0; bytes as usize];
    for at in (0..bytes - MIB).step_by(7 * MIB as usize).chain([START, bytes - 4096]) {
        let end = (at + 4096).min(bytes) as usize;
        before[at as usize..end].fill(at as u8 | 1);
    }
    let card = Card::new(before.clone(), lie);
    let failure = attempt(&lab::plan(server, card.path(), path)).unwrap_err();
    let found = inspect::check(card.path()).unwrap();
    assert!(!found.is_installed(true), "{path}, {lie:?}: {found}");
    (failure, card.bytes() == before)
}

#[test]
#[cfg_attr(lacks = "fuse", ignore = "needs root and /dev/fuse")]
fn a_card_that_lies_about_its_size_is_told_and_keeps_what_it_holds() {
    let root = Root::new("lies", 300_000);
    let server = root.serve(&[]);
    for path in ["archive", "image"] {
        for (bytes, lie) in [
            (300 * MIB, Lie::Wraps(128 * MIB)),
            (300 * MIB, Lie::Forgets(200 * MIB)),
            (CARD, Lie::Forgets(CARD - 4096)),
        ] {
            let (failure, same) = refused(&server, path, bytes, lie);
            assert!(failure.cause == Cause::Disk, "{path}, {lie:?}: {failure}");
            assert!(failure.to_string().contains("less room than it says"), "{path}, {lie:?}: {failure}");
            assert!(same, "{path}, {lie:?}: the card was changed");
        }
    }
}

#[test]
#[cfg_attr(lacks = "fuse", ignore = "needs root and /dev/fuse")]
fn a_card_that_fails_or_gives_back_other_bytes_is_never_installed() {
    let root = Root::new("rots", 3_000_000);
    let server = root.serve(&[]);
    for path in ["archive", "image"] {
        for lie in
            [Lie::Rots(START + 8192, CARD - 128 * 1024), Lie::Fails(START + MIB), Lie::Fails(CARD - 4096)]
        {
            let (failure, _) = refused(&server, path, CARD, lie);
            assert_eq!(failure.cause, Cause::Disk, "{path}, {lie:?}: {failure}");
        }
    }
    // Only what was written as content: found by reading it back.
    let (failure, _) = refused(&server, "image", CARD, Lie::Rots(START + MIB, CARD - 128 * 1024));
    assert!(failure.to_string().contains("gives back other bytes"), "{failure}");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_card_that_is_too_small_is_told_before_it_is_erased() {
    let folder = tempfile::tempdir().unwrap();
    let script =
        "mkdir -p r/bin && head -c 68000000 /dev/zero >r/bin/zeros && tar -C r -cf - . | gzip -1 >r.tgz";
    run(Command::new("bash").args(["-ec", script]).current_dir(folder.path()));
    let server = Server::start(&folder.path().join("r.tgz"), &folder.path().join("state"), &[]);
    server.wait_log("is good");
    let small = Root::new("small", 1000);
    let other = small.serve(&[]);
    let card = folder.path().join("card.img");
    File::create(&card).unwrap().set_len(CARD).unwrap();
    attempt(&lab::plan(&other, &card, "archive")).unwrap();
    let before = fs::read(&card).unwrap();
    let mut plan = lab::plan(&server, &card, "archive");
    plan.reinstall = true;
    let failure = attempt(&plan).unwrap_err();
    assert_eq!(failure.cause, Cause::TooSmall);
    assert!(failure.to_string().contains("too small"), "{failure}");
    assert!(fs::read(&card).unwrap() == before, "the card was changed");
}

/// Changes the superblock of the root filesystem, and makes its checksum right again.
fn change_superblock(card: &Path, change: impl FnOnce(&mut [u8])) {
    let file = File::options().read(true).write(true).open(card).unwrap();
    let mut sb = [0; 1024];
    file.read_exact_at(&mut sb, START + 1024).unwrap();
    change(&mut sb);
    let sum = mkext4::csum::superblock(&sb).to_le_bytes();
    sb[0x3fc..].copy_from_slice(&sum);
    file.write_all_at(&sb, START + 1024).unwrap();
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_broken_filesystem_does_not_count_as_installed() {
    let (root, server, folder) = lab::with_server("broken", 300_000);
    let card = folder.path().join("card.img");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&card).unwrap();
    file.set_len(CARD).unwrap();
    for path in ["archive", "image"] {
        let plan = lab::plan(&server, &card, path);
        let install = || {
            let outcome = attempt(&plan).unwrap();
            assert!(matches!(outcome, Outcome::Installed { .. }), "{path}: {outcome:?}");
        };
        install();
        // The kernel has noted an error.
        change_superblock(&card, |sb| sb[0x3a] |= 2);
        let found = inspect::check(&card).unwrap();
        let Found::Damaged { why, mounts: true, .. } = found else { panic!("{path}: {found}") };
        assert!(why.contains("errors"), "{why}");
        // It boots as it is, and is installed anew if that is wanted.
        let outcome = attempt(&plan).unwrap();
        assert!(matches!(outcome, Outcome::Boot { card: Found::Damaged { .. }, .. }), "{path}: {outcome:?}");
        attempt(&Plan { reinstall: true, ..plan.clone() }).unwrap();
        // A group's descriptor is not as its checksum says.
        let mut byte = [0];
        file.read_exact_at(&mut byte, START + 4096 + 12).unwrap();
        file.write_all_at(&[byte[0] ^ 4], START + 4096 + 12).unwrap();
        let found = inspect::check(&card).unwrap();
        let Found::Damaged { why, mounts: false, .. } = found else { panic!("{path}: {found}") };
        assert!(why.contains("group 0"), "{why}");
        // The kernel does not mount it: somebody has to order that what is left of it is erased.
        server.piman(&["reinstall", "00000000cafe0004"]);
        install();
        root.assert_on(&card);

        // A superblock with a number that nobody can count with.
        let foreign = folder.path().join("foreign.img");
        for (at, what) in [(0x18, "blocks of 2^"), (0x14, "its first block")] {
            fs::copy(&card, &foreign).unwrap();
            change_superblock(&foreign, |sb| sb[at] ^= 0x42);
            let found = inspect::look(&File::open(&foreign).unwrap(), CARD);
            let Found::Foreign(why) = found else { panic!("{path}: {found}") };
            assert!(why.contains("cannot be read") && why.contains(what), "{why}");
        }

        // Switched off while it was in use: the journal is replayed, and it is what it was.
        let copy = folder.path().join("copy.img");
        let mounted = Mounted::new(&card, START, ROOT, "noatime");
        fs::write(mounted.path().join("etc/later"), "later").unwrap();
        fs::remove_file(mounted.path().join("bin/again")).unwrap();
        run(Command::new("sync").arg("-f").arg(mounted.path()));
        fs::copy(&card, &copy).unwrap();
        drop(mounted);
        let switched_off = File::open(&copy).unwrap();
        assert!(has_journal_to_replay(&switched_off, CARD));
        assert!(inspect::check(&copy).unwrap().is_installed(false));
        let outcome = attempt(&lab::plan(&server, &copy, path)).unwrap();
        assert!(matches!(outcome, Outcome::Boot { card: Found::Installed(_), .. }), "{path}: {outcome:?}");
        assert!(!has_journal_to_replay(&switched_off, CARD), "it was replayed");
        let mounted = Mounted::new(&copy, START, ROOT, "ro");
        assert_eq!(fs::read_to_string(mounted.path().join("etc/later")).unwrap(), "later");
        drop(mounted);

        // A journal that cannot be replayed.
        let journal = journal_of(&copy);
        change_superblock(&copy, |sb| sb[0x60] |= 4);
        let file = File::options().write(true).open(&copy).unwrap();
        file.write_all_at(&[0xff; 1024], journal).unwrap();
        drop(file);
        server.piman(&["reinstall", "00000000cafe0004"]);
        let outcome = attempt(&lab::plan(&server, &copy, path)).unwrap();
        assert!(matches!(outcome, Outcome::Installed { .. }), "{path}: {outcome:?}");
        root.assert_on(&copy);
        fs::remove_file(&copy).unwrap();
        // For the next path.
        file_is_empty(&card);
    }
}

fn file_is_empty(card: &Path) {
    let file = File::options().write(true).open(card).unwrap();
    file.set_len(0).unwrap();
    file.set_len(CARD).unwrap();
}

/// Where on the card the journal begins, in bytes.
fn journal_of(card: &Path) -> u64 {
    let name = format!("{}?offset={START}", card.display());
    let out = run(Command::new("debugfs").args(["-R", "blocks <8>", &name]));
    let text = String::from_utf8(out.stdout).unwrap();
    let block: u64 = text.split_whitespace().next().unwrap().parse().unwrap();
    START + block * 4096
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn an_agent_that_is_killed_at_any_moment_leaves_nothing_that_counts_as_installed() {
    let (root, server, folder) = lab::with_server("killed", 1_000_000);
    let layout = folder.path().join("layout");
    fs::write(&layout, "label-id: 0x12345678\n1 : start=2048, size=4096\n2 : start=8192\n").unwrap();
    let (mut random, mut host) = (Random::new(8), 40);
    for path in ["archive", "image"] {
        let card = folder.path().join(format!("{path}.img"));
        File::create(&card).unwrap().set_len(CARD).unwrap();
        let start = |host: &str| {
            let agent = server.agent(&card, "00000000cafe0004");
            // What it has mounted goes with it.
            let mut unshare = Command::new("unshare");
            unshare.arg("-m").arg(agent.get_program()).args(agent.get_args());
            unshare
                .args(["--server", host, "--reinstall", "--transfer-port", "0", "--path", path, "--layout"])
                .arg(&layout);
            unshare.env("TMPDIR", folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
            unshare.spawn().unwrap()
        };
        // The image is made, and it is known how long it takes.
        assert!(start("127.0.0.1").wait().unwrap().success());
        file_is_empty(&card);
        let began = Instant::now();
        assert!(start("127.0.0.1").wait().unwrap().success());
        let whole = began.elapsed();
        // Certainly in the middle: it waits for a byte that never comes.
        for at in [20, 300_000, 900_000] {
            host += 1;
            let host = format!("127.0.0.{host}");
            let proxy = behind_a_proxy(&server, &host, Faults { holds: vec![at], ..Faults::default() });
            file_is_empty(&card);
            let mut agent = start(&host);
            until("it waits", || proxy.held() > 0);
            assert!(agent.try_wait().unwrap().is_none(), "{path}: it ended before byte {at}");
            agent.kill().unwrap();
            agent.wait().unwrap();
            let outcome = attempt(&lab::plan(&server, &card, path)).unwrap();
            assert!(matches!(outcome, Outcome::Installed { .. }), "{path}, byte {at}: {outcome:?}");
            root.assert_on(&card);
        }
        // And by chance, up to the end and behind it.
        let (mut again, mut kills) = (0, 0);
        for round in 0..16 {
            // Every other time over what is installed.
            if round % 2 == 0 {
                file_is_empty(&card);
            }
            let mut agent = start("127.0.0.1");
            std::thread::sleep(whole.mul_f64(random.below(1000) as f64 / 950.0));
            kills += u32::from(agent.try_wait().unwrap().is_none());
            agent.kill().unwrap();
            agent.wait().unwrap();
            match attempt(&lab::plan(&server, &card, path)).unwrap() {
                Outcome::Installed { .. } => again += 1,
                Outcome::Boot { card: Found::Installed(_), .. } => {}
                other => panic!("{path}: {other:?}"),
            }
            root.assert_on(&card);
        }
        println!("{path}: killed {kills} times while it ran; {again} times it was not installed then");
    }
}
