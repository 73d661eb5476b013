//! Installations of ours, sound and not.

use std::process::Command;

use pi_agent::card::inspect::Card;
use piman_tests::disk::{Mounted, run};

use super::{CARD, START, admin, digest, ext, flip, survey};

/// What the kernel mounts and what has a whole proof is installed, whatever our own reader knows of it.
#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn the_kernel_judges_what_our_reader_does_not_know() {
    let folder = tempfile::tempdir().unwrap();
    for words in [
        "-t ext4",
        "-t ext4 -O meta_bg,^resize_inode",
        "-t ext4 -O encrypt",
        "-t ext4 -O large_dir",
        "-t ext4 -O ea_inode",
        "-t ext4 -O mmp",
        "-t ext4 -O ^metadata_csum,^64bit",
        "-t ext4 -b 1024",
        "-t ext4 -b 4096",
        "-t ext3",
        "-t ext2",
    ] {
        let card = ext(folder.path(), "card.img", true, words);
        let before = digest(&card);
        let found = survey(&card);
        assert!(matches!(found.card, Card::Installed(_)), "{words}: {found}");
        assert_eq!(digest(&card), before, "{words}: something was written");
        std::fs::remove_file(&card).unwrap();
    }
    // Without a proof it is a system of somebody.
    for words in ["-t ext4", "-t ext3", "-t ext2", "-t ext4 -O ^metadata_csum"] {
        let card = ext(folder.path(), "card.img", false, words);
        let found = survey(&card);
        assert_eq!(found.card, Card::Unmarked, "{words}: {found}");
        assert!(!found.card.is_installed(false) && found.card.is_installed(true));
        std::fs::remove_file(&card).unwrap();
    }
}

/// Its root directory has several blocks, with an index of names where the filesystem has one.
#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_root_directory_with_many_names() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    for n in 0..1500 {
        std::fs::write(tree.join(format!("a-name-that-needs-its-room-{n:04}")), "").unwrap();
    }
    for words in
        ["-t ext4", "-t ext4 -O ^metadata_csum", "-t ext4 -O ^dir_index,^metadata_csum", "-t ext3", "-t ext2"]
    {
        let card = ext(folder.path(), "card.img", true, words);
        let found = survey(&card);
        assert!(matches!(found.card, Card::Installed(_)), "{words}: {found}");
        std::fs::remove_file(&card).unwrap();
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_feature_that_its_owner_switched_on() {
    let folder = tempfile::tempdir().unwrap();
    let card = ext(folder.path(), "card.img", true, "-t ext4");
    let print = survey(&card).print;
    for feature in ["encrypt", "large_dir"] {
        let name = format!("{}?offset={START}", card.display());
        run(admin("tune2fs").args(["-O", feature, &name]));
        let found = survey(&card);
        assert!(matches!(found.card, Card::Installed(_)), "{feature}: {found}");
        assert_eq!(found.print, print, "{feature}");
    }
}

/// Where a command of debugfs finds something on the card, in bytes.
fn block_of(card: &std::path::Path, what: &str) -> u64 {
    let name = format!("{}?offset={START}", card.display());
    let out = run(admin("debugfs").args(["-R", &format!("blocks {what}"), &name]));
    let text = String::from_utf8(out.stdout).unwrap();
    START + text.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn damage_is_said_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let make = || ext(folder.path(), "card.img", true, "-t ext4 -b 4096");
    // The root directory: the last bytes of its block are its checksum.
    let card = make();
    flip(&card, block_of(&card, "/") + 4095);
    let found = survey(&card);
    let Card::Damaged { why, mounts: false, .. } = &found.card else { panic!("{found}") };
    assert!(why.contains("root directory"), "{why}");
    // The kernel noted an error: it is mounted all the same.
    let card = make();
    let name = format!("{}?offset={START}", card.display());
    run(admin("debugfs").args(["-w", "-R", "ssv state 2", &name]));
    let found = survey(&card);
    assert!(matches!(found.card, Card::Damaged { mounts: true, .. }), "{found}");
    assert!(found.card.is_installed(false) && found.to_string().contains("errors"), "{found}");
    // The kernel refuses a superblock whose checksum is wrong.
    let card = make();
    flip(&card, START + 1024 + 0x3ff);
    let found = survey(&card);
    assert!(!found.card.is_installed(true) && found.to_string().contains("does not mount"), "{found}");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_fingerprint_is_the_same_after_a_mount_and_another_on_another_card() {
    let folder = tempfile::tempdir().unwrap();
    let one = ext(folder.path(), "one.img", false, "-t ext4 -L data");
    let two = ext(folder.path(), "two.img", false, "-t ext4 -L data");
    let before = survey(&one);
    assert!(before.contents.contains("ext4 \"data\""), "{}", before.contents);
    assert_ne!(before.print, survey(&two).print);
    let mounted = Mounted::new(&one, START, CARD - START, "rw");
    std::fs::write(mounted.path().join("later"), "later").unwrap();
    drop(mounted);
    run(Command::new("sync").arg("-f").arg(folder.path()));
    assert_eq!(survey(&one).print, before.print);
}
