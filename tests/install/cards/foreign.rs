//! Cards of other people: told apart, described, and kept until somebody says otherwise.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use pi_agent::card::inspect::Card;
use pi_agent::install::{Consent, Outcome, Plan};
use piman_core::install::layout::SECTOR;
use piman_tests::card::{Card as WornCard, Lie};
use piman_tests::disk::LoopDevice;
use piman_tests::lab::{self, attempt};
use piman_tests::server::Server;
use piman_tests::wait::until;

use super::{CARD, admin, digest, put, survey, with_table};

const P1: u64 = 1 << 20;
const P2: u64 = 33 << 20;
const TABLE: &str = "label: dos\nstart=2048, size=65536, type=c\nstart=67584, type=83\n";
const GPT: &str = "label: gpt\nstart=2048, size=65536, name=EFI\nstart=67584, size=700000, name=system\n";

/// Each with its own program, and a word that the description has.
const KINDS: &[(&str, &str)] = &[
    ("mke2fs -q -F -t ext4 -L mine FILE", "ext4 \"mine\""),
    ("mke2fs -q -F -t ext2 -L mine FILE", "ext2 \"mine\""),
    ("mkfs.vfat -n MINE FILE", "vfat \"MINE\""),
    ("mkfs.btrfs -q -L mine FILE", "btrfs \"mine\""),
    ("mkfs.xfs -q -L mine FILE", "xfs \"mine\""),
    ("mkfs.f2fs -q -l mine FILE", "f2fs \"mine\""),
    ("mkfs.exfat FILE", "exfat"),
    ("mkfs.ntfs -q -F -f FILE", "ntfs"),
    ("mkswap -L mine FILE", "swap \"mine\""),
];

#[test]
#[cfg_attr(lacks = "sfdisk", ignore = "needs sfdisk (fdisk)")]
#[cfg_attr(
    lacks = "filesystems",
    ignore = "needs mkfs of btrfs, exfat, f2fs, ntfs, vfat and xfs, and cryptsetup"
)]
fn every_kind_is_told_and_described() {
    let folder = tempfile::tempdir().unwrap();
    let mut prints = Vec::new();
    for (words, text) in KINDS {
        let card = with_table(folder.path(), "card.img", TABLE);
        put(&card, P2, CARD - P2, words);
        let found = survey(&card);
        assert!(matches!(found.card, Card::Foreign(_)), "{words}: {found}");
        assert!(
            found.contents.contains(text) && found.contents.starts_with("MBR table; p1 32.0 MiB"),
            "{found}"
        );
        assert_eq!(survey(&card).print, found.print, "{words}");
        prints.push(found.print);
        // On the whole disk, without a table.
        File::create(&card).unwrap();
        put(&card, 0, CARD, words);
        let found = survey(&card);
        assert!(found.contents.contains(text) && found.contents.contains("whole disk"), "{words}: {found}");
        prints.push(found.print);
        std::fs::remove_file(&card).unwrap();
    }
    prints.sort_unstable();
    prints.dedup();
    assert_eq!(prints.len(), 2 * KINDS.len(), "two are the same");
}

#[test]
#[cfg_attr(lacks = "sfdisk", ignore = "needs sfdisk (fdisk)")]
fn a_gpt_and_its_copy_are_described() {
    let folder = tempfile::tempdir().unwrap();
    let card = with_table(folder.path(), "card.img", GPT);
    let found = survey(&card);
    assert!(found.contents.starts_with("GPT table; p1 32.0 MiB not recognised \"EFI\"; p2"), "{found}");
    // With a damaged first header the copy at the end says the same.
    let file = File::options().write(true).open(&card).unwrap();
    file.write_all_at(&[0; 512], SECTOR).unwrap();
    let again = survey(&card);
    assert_eq!((again.contents, again.print), (found.contents, found.print));
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "sfdisk", ignore = "needs sfdisk (fdisk)")]
fn a_foreign_card_waits_until_it_is_ordered_to_be_erased() {
    let root = lab::Root::new("foreign", 300_000);
    let state = tempfile::tempdir().unwrap();
    let server =
        Server::start_by(&mut Server::strict(&root.archive, state.path(), &["--allow-unfit"]), state.path());
    server.wait_log("is good");
    let serial = "00000000cafe0004";
    for path in ["archive", "image"] {
        let card = with_table(state.path(), &format!("{path}.img"), TABLE);
        put(&card, P1, 32 << 20, "mkfs.vfat -n BOOTFS FILE");
        put(&card, P2, lab::CARD - P2, "mke2fs -q -F -t ext4 -L rootfs FILE");
        File::options().write(true).open(&card).unwrap().set_len(lab::CARD).unwrap();
        let before = digest(&card);
        let plan = Plan { erase: Consent::default(), ..lab::plan(&server, &card, path) };
        let pi = std::thread::spawn(move || attempt(&plan));
        until("it waits, and it is shown what decides", || {
            let devices = server.piman(&["devices"]);
            ["foreign", "BOOTFS", "rootfs", "piman install"].iter().all(|word| devices.contains(word))
        });
        // An order that does not name what it erases is not enough.
        server.piman(&["reinstall", serial]);
        assert_eq!(digest(&card), before, "{path}: something was written");
        assert!(!pi.is_finished());
        let said = server.piman(&["install", serial, "--yes"]);
        assert!(said.contains("rootfs"), "{said}");
        let outcome = pi.join().unwrap().unwrap();
        assert!(matches!(outcome, Outcome::Installed { .. }), "{outcome:?}");
        root.assert_on(&card);
        let events = server.piman(&["device", serial]);
        assert!(
            events.contains("may be formatted as installation") && events.contains("foreign"),
            "{events}"
        );
        until("the order is completed", || server.piman(&["reinstall", "--list"]).contains("completed"));
    }
}

/// The order names what was seen, and what is there now is something else.
#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "sfdisk", ignore = "needs sfdisk (fdisk)")]
fn what_is_put_in_its_place_while_it_waits_is_not_erased() {
    let root = lab::Root::new("swapped", 300_000);
    let state = tempfile::tempdir().unwrap();
    let options = ["--allow-unfit", "--policy", "blank=wait"];
    let server = Server::start_by(&mut Server::strict(&root.archive, state.path(), &options), state.path());
    server.wait_log("is good");
    let serial = "00000000cafe0004";
    for (path, swapped) in [("archive", false), ("image", true)] {
        let card = state.path().join(format!("{path}.img"));
        File::create(&card).unwrap().set_len(lab::CARD).unwrap();
        let plan = Plan { erase: Consent::default(), ..lab::plan(&server, &card, path) };
        let pi = std::thread::spawn(move || attempt(&plan));
        until("it waits", || server.piman(&["devices"]).contains("waits: blank"));
        // Another card in the same reader, or another file of this name.
        let other = with_table(state.path(), "other.img", TABLE);
        File::options().write(true).open(&other).unwrap().set_len(lab::CARD).unwrap();
        if swapped {
            std::fs::rename(&other, &card).unwrap();
        } else {
            let mut table = [0; 512];
            File::open(&other).unwrap().read_exact_at(&mut table, 0).unwrap();
            File::options().write(true).open(&card).unwrap().write_all_at(&table, 0).unwrap();
        }
        let before = digest(&card);
        server.piman(&["install", serial, "--yes"]);
        let failure = pi.join().unwrap().unwrap_err();
        assert!(failure.to_string().contains("is another disk, or holds something else"), "{failure}");
        assert_eq!(digest(&card), before, "{path}: something was written");
        server.piman(&["reinstall", serial, "--cancel"]);
    }
}

/// A disk that fails where a table has its copy is not blank.
#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn what_cannot_be_read_is_not_blank() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("card.img");
    File::create(&file).unwrap().set_len(64 << 20).unwrap();
    let device = LoopDevice::of(&file);
    assert_eq!(survey(device.path()).card, Card::Blank);
    // Behind the end of its file a loop device fails.
    File::options().write(true).open(&file).unwrap().set_len(32 << 20).unwrap();
    std::process::Command::new("blockdev").arg("--flushbufs").arg(device.path()).status().unwrap();
    let found = survey(device.path());
    let Card::Unreadable(why) = &found.card else { panic!("{found}") };
    assert!(why.contains("byte ") && why.contains("cannot be read"), "{why}");
}

/// A card that cannot be read where it matters waits; it can still be written, and is installed if that is ordered.
#[test]
#[cfg_attr(lacks = "fuse", ignore = "needs root and /dev/fuse")]
#[cfg_attr(lacks = "sfdisk", ignore = "needs sfdisk (fdisk)")]
fn what_cannot_be_read_is_installed_if_that_is_ordered() {
    let root = lab::Root::new("worn", 300_000);
    let state = tempfile::tempdir().unwrap();
    let mut command = Server::strict(&root.archive, state.path(), &["--allow-unfit"]);
    let server = Server::start_by(&mut command, state.path());
    server.wait_log("is good");
    let serial = "00000000cafe0004";
    for path in ["archive", "image"] {
        let file = with_table(state.path(), "card.img", TABLE);
        put(&file, P2, lab::CARD - P2, "mke2fs -q -F -t ext4 -L worn FILE");
        let mut before = std::fs::read(&file).unwrap();
        before.truncate(lab::CARD as usize);
        let card = WornCard::new(before.clone(), Lie::Unreadable(P2, P2 + (64 << 10)));
        let plan = Plan { erase: Consent::default(), ..lab::plan(&server, card.path(), path) };
        let pi = std::thread::spawn(move || attempt(&plan));
        until("it waits, and says why", || {
            let devices = server.piman(&["devices"]);
            ["waits: unreadable", "cannot be read", "piman install"].iter().all(|word| devices.contains(word))
        });
        assert!(card.bytes() == before, "{path}: something was written");
        let said = server.piman(&["install", serial, "--yes"]);
        assert!(said.contains("unreadable"), "{said}");
        let outcome = pi.join().unwrap().unwrap();
        assert!(matches!(outcome, Outcome::Installed { .. }), "{path}: {outcome:?}");
        std::fs::write(&file, card.bytes()).unwrap();
        root.assert_on(&file);
        until("the order is completed", || server.piman(&["reinstall", "--list"]).contains("completed"));
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "sfdisk", ignore = "needs sfdisk (fdisk)")]
#[cfg_attr(
    lacks = "filesystems",
    ignore = "needs mkfs of btrfs, exfat, f2fs, ntfs, vfat and xfs, and cryptsetup"
)]
fn nothing_is_left_that_others_recognise() {
    let (_root, server, folder) = lab::with_server("signatures", 300_000);
    for path in ["archive", "image"] {
        for (table, words) in [
            (TABLE, "mkfs.btrfs -q -f FILE"),
            (GPT, "mkfs.xfs -q -f FILE"),
            (TABLE, "mkswap FILE"),
            ("", "mkfs.btrfs -q -f FILE"),
        ] {
            let card = with_table(folder.path(), "card.img", if table.is_empty() { TABLE } else { table });
            let bytes = std::fs::metadata(&card).unwrap().len();
            let at = if table.is_empty() { 0 } else { lab::layout().root_start * SECTOR };
            put(&card, at, bytes - at, words);
            let outcome = attempt(&lab::plan(&server, &card, path)).unwrap();
            assert!(matches!(outcome, Outcome::Installed { .. }), "{path}, {words}: {outcome:?}");
            assert_eq!(signatures(&card), ["dos"], "{path}, {words}");
            let layout = lab::layout();
            for (start, length, want) in [
                (layout.boot_start * SECTOR, layout.boot_sectors * SECTOR, "vfat"),
                (layout.root_start * SECTOR, bytes - layout.root_start * SECTOR, "ext4"),
            ] {
                let part = folder.path().join("part");
                let skip = [format!("skip={start}"), format!("count={length}")];
                let of = [format!("if={}", card.display()), format!("of={}", part.display())];
                let flags = ["bs=1M", "iflag=skip_bytes,count_bytes", "conv=sparse"].map(String::from);
                piman_tests::disk::run(
                    std::process::Command::new("dd").args(of.iter().chain(&skip).chain(&flags)),
                );
                File::options().write(true).open(&part).unwrap().set_len(length).unwrap();
                assert!(signatures(&part).iter().all(|kind| kind == want), "{path}, {words}: {want}");
                std::fs::remove_file(&part).unwrap();
            }
            std::fs::remove_file(&card).unwrap();
        }
    }
}

/// What wipefs would wipe.
fn signatures(file: &Path) -> Vec<String> {
    let out =
        piman_tests::disk::run(admin("wipefs").args(["--noheadings", "-n", "--output", "TYPE"]).arg(file));
    let text = String::from_utf8(out.stdout).unwrap();
    let mut kinds: Vec<String> =
        text.lines().map(|line| line.trim().to_owned()).filter(|l| !l.is_empty()).collect();
    kinds.dedup();
    kinds
}
