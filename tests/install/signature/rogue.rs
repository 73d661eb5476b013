//! A server that lies: nothing that nobody has signed or checked reaches a place from which it
//! could be booted, mounted or run.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use piman_core::install::layout::{Layout, SECTOR};
use piman_tests::rogue::{Rogue, Script};
use piman_tests::running::Running;
use piman_tests::server::wait_until;
use piman_tests::{binaries, tar};

use super::{Lab, SERIAL, said};

const CARD_BYTES: u64 = 160 << 20;

fn agent(rogue: &Rogue, card: &Path) -> Command {
    let (control, rootfs) = rogue.ports();
    let mut agent = Command::new(binaries::pi_agent());
    agent.args(["install", "--server", "127.0.0.1", "--retries", "0", "--transfer-port", "0"]);
    agent.args(["--control-port", &control.to_string(), "--rootfs-port", &rootfs.to_string()]);
    agent.args(["--serial", SERIAL]).arg("--disk").arg(card);
    agent
}

fn install(rogue: &Rogue, card: &Path, key: Option<&str>) -> Output {
    let mut agent = agent(rogue, card);
    if let Some(key) = key {
        agent.args(["--public-key", key]);
    }
    agent.output().unwrap()
}

fn new_card(lab: &Lab, name: &str) -> PathBuf {
    let card = PathBuf::from(lab.path(name));
    fs::File::create(&card).unwrap().set_len(CARD_BYTES).unwrap();
    card
}

/// Refused for this reason: nothing is erased, and the server hears why.
#[track_caller]
fn refused(output: &Output, rogue: &Rogue, card: &Path, why: &str) {
    assert_eq!(output.status.code(), Some(1), "{}", said(output));
    assert!(said(output).contains(why), "{}", said(output));
    assert!(said(output).contains("nothing was changed"), "{}", said(output));
    assert!(fs::read(card).unwrap().iter().all(|b| *b == 0), "the card was touched: {why}");
    let word = why.split(' ').next().unwrap();
    wait_until("the server hears why", || {
        rogue.heard().iter().any(|l| l.starts_with("PIMAN/1 failed") && l.contains(word))
    });
}

/// A whole system of the attacker's.
fn evil() -> Vec<u8> {
    let mut content = vec![0; 3 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    let mut tar = tar::Tar::new();
    tar.entry(b"bin/", b'5', b"")
        .entry(b"sbin/", b'5', b"")
        .file(b"sbin/init", b"#!/bin/sh\n")
        .file(b"big", &content);
    zstd::encode_all(&tar.end()[..], 1).unwrap()
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_signed_manifest_without_chunk_hashes_installs_nothing() {
    let lab = Lab::new();
    lab.sign("one", &["--counter", "5"]);
    let (archive, signed) = (fs::read(lab.archive.path()).unwrap(), fs::read(lab.signed_file()).unwrap());
    let offer = format!(
        "PIMAN/1 offer id={} bytes={} rootfs={{rootfs}} fetch={{fetch}} rev=1 manifest-bytes={}",
        blake3::hash(&archive),
        archive.len(),
        signed.len()
    );
    // A server that may order, and has no right image.
    let key = Some(lab.another_server());
    let script = Script { rootfs: evil(), fetch: signed, key, ..Script::default() };
    for sums in ["", " sums=0", " sums=4096"] {
        let rogue = Rogue::start(Script { order: format!("format\n{offer}{sums}\nEOM\n"), ..script.clone() });
        let card = new_card(&lab, "card");
        let output = install(&rogue, &card, Some(&lab.path("one.pub")));
        refused(&output, &rogue, &card, "the server has no chunk hashes of the archive");
        rogue.write_line("boot\nEOM\n");
        let output = install(&rogue, &card, Some(&lab.path("one.pub")));
        refused(&output, &rogue, &card, "the server says boot, but");
    }
    // With hashes that are somebody else's.
    let order = format!("format\n{offer} sums=1048576\nEOM\n");
    let rogue = Rogue::start(Script { order, ..script });
    let card = new_card(&lab, "card");
    let output = install(&rogue, &card, Some(&lab.path("one.pub")));
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_no_root(&card);
    let content = fs::read(&card).unwrap();
    let init = b"#!/bin/sh\n";
    assert!(!content.windows(init.len()).any(|at| at == init), "what nobody signed was unpacked");
}

/// No kernel and no boot loader finds a root partition.
#[track_caller]
fn assert_no_root(card: &Path) {
    let disk = fs::File::open(card).unwrap();
    assert_eq!(pi_agent::card::disk::root_in_table(&disk, CARD_BYTES), None);
    let dump = piman_tests::disk::run(Command::new("sfdisk").arg("--dump").arg(card));
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    let empty = |line: &&str| line.split(',').any(|field| field.replace(' ', "") == "size=0");
    let (empty, parts): (Vec<&str>, Vec<&str>) =
        dump.lines().filter(|l| l.contains("start=")).partition(empty);
    assert!(empty.len() <= 1 && parts.len() <= 1, "only the boot partition: {dump}");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn what_a_failed_installation_leaves_is_neither_booted_nor_found() {
    let lab = Lab::new();
    let evil = evil();
    // The hash is another archive's, which shows at the end, when all is extracted.
    let order = format!(
        "format\nPIMAN/1 offer id={} bytes={} rootfs={{rootfs}} fetch={{fetch}} rev=1\nEOM\n",
        blake3::hash(b"another"),
        evil.len()
    );
    let key = Some(lab.another_server());
    let rogue = Rogue::start(Script { order, rootfs: evil, key, ..Script::default() });
    let card = new_card(&lab, "card");
    let output = install(&rogue, &card, None);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("not the one that was offered"), "{}", said(&output));
    assert_no_root(&card);
    let check = Command::new(binaries::pi_agent()).args(["check", "--disk"]).arg(&card).output().unwrap();
    let text = String::from_utf8_lossy(&check.stdout).into_owned() + &said(&check);
    assert!(!check.status.success() && text.contains("the installation was not finished"), "{text}");

    rogue.write_line("boot\nEOM\n");
    for more in [&[][..], &["--trust-unmarked"], &["--public-key", &lab.path("one.pub")]] {
        let output = agent(&rogue, &card).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("the server says boot, but"), "{}", said(&output));
    }
    let failed = |line: &String| line.starts_with("PIMAN/1 failed") && line.contains("says boot, but");
    wait_until("the server hears why", || rogue.heard().iter().filter(|line| failed(line)).count() == 3);

    // The same card, installed by an honest server.
    let server = lab.server();
    let mut honest = server.agent(&card, SERIAL);
    let output =
        honest.args(["--path", "archive", "--retries", "0", "--transfer-port", "0"]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    lab.installed("card");
    rogue.write_line("boot\nEOM\n");
    assert!(install(&rogue, &card, None).status.success(), "what is installed may boot");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn while_it_is_extracted_nobody_else_can_reach_it_and_nothing_in_it_runs() {
    let lab = Lab::new();
    let mut half = evil();
    half.truncate(half.len() - 1000);
    let script = Script { order: "format\nEOM\n".into(), rootfs: half, stalls: true, ..Script::default() };
    let rogue = Rogue::start(script);
    let card = new_card(&lab, "card");
    let mut agent = agent(&rogue, &card);
    agent.env("TMPDIR", lab.folder.path());
    let agent = agent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut agent = Running(agent);
    let mounts = || fs::read_to_string(format!("/proc/{}/mountinfo", agent.id())).unwrap_or_default();
    let below = lab.path("pi-agent-");
    let line = || mounts().lines().find(|l| l.contains(&below)).map(str::to_owned);
    let init = || line().map(|l| PathBuf::from(l.split(' ').nth(4).unwrap()).join("big"));
    wait_until("the attacker's file is there", || init().is_some_and(|file| file.exists()));
    let line = line().unwrap();
    let (place, flags) = (line.split(' ').nth(4).unwrap(), line.split(' ').nth(5).unwrap());
    for flag in ["nosuid", "nodev", "noexec"] {
        assert!(flags.split(',').any(|f| f == flag), "{line}");
    }
    let around = Path::new(place).parent().unwrap();
    assert_eq!(fs::metadata(around).unwrap().permissions().mode() & 0o777, 0o700, "{}", around.display());
    // The power may fail now.
    assert_no_root(&card);
    agent.kill().unwrap();
    agent.wait().unwrap();
    piman_tests::disk::run(Command::new("umount").arg(place));
    fs::remove_dir_all(around).unwrap();
}

#[test]
fn an_offer_that_cannot_be_read_erases_nothing() {
    let lab = Lab::new();
    let script = Script { rootfs: evil(), ..Script::default() };
    for bad in ["offer id=12 bytes=5 rootfs={rootfs} fetch={fetch}", "offer", "offer id= bytes=-1 rootfs=x"] {
        let rogue = Rogue::start(Script { order: format!("format\nPIMAN/1 {bad}\nEOM\n"), ..script.clone() });
        let card = new_card(&lab, "card");
        let why = "the server says what to install in a way that this agent";
        refused(&install(&rogue, &card, None), &rogue, &card, why);
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn an_archive_without_entries_erases_nothing() {
    let lab = Lab::new();
    let empty = zstd::encode_all(&[0; 10_240][..], 1).unwrap();
    let rogue = Rogue::start(Script { order: "format\nEOM\n".into(), rootfs: empty, ..Script::default() });
    let card = new_card(&lab, "card");
    let output = install(&rogue, &card, None);
    assert!(said(&output).contains("without entries"), "{}", said(&output));
    assert!(fs::read(&card).unwrap().iter().all(|b| *b == 0), "the card was touched");
    // A card that was installed before keeps what it has.
    let server = lab.server();
    let output = lab.install(&server, "good", None);
    assert!(output.status.success(), "{}", said(&output));
    let proof = lab.installed("good");
    let output = agent(&rogue, Path::new(&lab.path("good"))).arg("--reinstall").output().unwrap();
    assert!(said(&output).contains("without entries"), "{}", said(&output));
    assert_eq!(lab.installed("good"), proof);
    // A system that nobody marked is booted if it is trusted, and only then.
    let card = fs::File::options().write(true).open(lab.path("good")).unwrap();
    card.write_all_at(&[0; 4096], Layout::default().root_start * SECTOR).unwrap();
    rogue.write_line("boot\nEOM\n");
    let output = install(&rogue, Path::new(&lab.path("good")), None);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
}
