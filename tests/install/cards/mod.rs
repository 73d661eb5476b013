//! What an agent finds on a card, made by the tools of those who made the filesystems, and what becomes of it.

mod foreign;
mod keep;
mod medium;
mod ours;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pi_agent::card::disk::Disk;
use pi_agent::card::inspect::{Found, survey_path};
use piman_core::hash::Hash;
use piman_core::install::More;
use piman_core::install::layout::{Layout, SECTOR};
use piman_core::install::receipt::{NAME, Proof, Way};
use piman_tests::contents::{self, admin, digest, put};

/// The size of a card: xfs makes none below 300 MB.
const CARD: u64 = 400 << 20;
const START: u64 = 8 << 20;

fn layout() -> Layout {
    Layout { boot_start: 2048, boot_sectors: 8192, root_start: START / SECTOR, ..Layout::default() }
}

fn survey(card: &Path) -> Found {
    survey_path(card).unwrap()
}

/// A sparse file with a table as `sfdisk` reads it.
fn with_table(folder: &Path, name: &str, table: &str) -> PathBuf {
    let card = folder.join(name);
    contents::with_table(&card, CARD, table);
    card
}

/// The root filesystem of a card with our table, made by mke2fs with these words: with a proof, or without.
fn ext(folder: &Path, name: &str, proof: bool, words: &str) -> PathBuf {
    let card = folder.join(name);
    let disk = Disk::create(&card, CARD).unwrap();
    let begun = disk.begin(&layout(), None).unwrap();
    disk.partition(&layout(), &begun).unwrap();
    disk.show_root(&begun).unwrap();
    drop(disk);
    let tree = folder.join("tree");
    fs::create_dir_all(tree.join("bin")).unwrap();
    fs::create_dir_all(tree.join("home/pi")).unwrap();
    fs::write(tree.join("home/pi/work"), "a year of it").unwrap();
    let of = tree.join(NAME);
    if proof {
        fs::write(of, Proof::now(Hash([7; 32]), Way::Archive, More::default()).encode()).unwrap();
    } else {
        let _ = fs::remove_file(of);
    }
    let words = format!("mke2fs -q -F -d {} {words} FILE", tree.display());
    put(&card, START, CARD - START, &words);
    card
}

/// Changes one byte.
fn flip(card: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(card).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x55], at).unwrap();
}
