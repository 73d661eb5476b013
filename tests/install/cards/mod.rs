//! What an agent finds on a card, made by the tools of those who made the filesystems, and what becomes of it.

mod foreign;
mod keep;
mod medium;
mod ours;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pi_agent::card::disk::Disk;
use pi_agent::card::inspect::{Found, survey_path};
use piman_core::hash::Hash;
use piman_core::install::More;
use piman_core::install::layout::{Layout, SECTOR};
use piman_core::install::receipt::{NAME, Proof, Way};
use piman_tests::disk::run;

/// The size of a card: xfs makes none below 300 MB.
const CARD: u64 = 400 << 20;
const START: u64 = 8 << 20;

fn layout() -> Layout {
    Layout { boot_start: 2048, boot_sectors: 8192, root_start: START / SECTOR, ..Layout::default() }
}

/// A program of the administrator's, where an ordinary user does not look.
fn admin(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command.env("LC_ALL", "C");
    command
}

fn survey(card: &Path) -> Found {
    survey_path(card).unwrap()
}

/// A sparse file with a table as `sfdisk` reads it.
fn with_table(folder: &Path, name: &str, table: &str) -> PathBuf {
    let card = folder.join(name);
    File::create(&card).unwrap().set_len(CARD).unwrap();
    let mut command = admin("sfdisk");
    command.args(["--quiet", "--no-reread", "--no-tell-kernel", "--lock=no"]).arg(&card);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), table.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    card
}

/// Makes something in a file of its own by these words, and puts it into a card. `FILE` stands for the file.
fn put(card: &Path, offset: u64, bytes: u64, words: &str) {
    let part = card.with_extension("part");
    File::create(&part).unwrap().set_len(bytes).unwrap();
    let mut words = words.split(' ').map(|w| if w == "FILE" { part.to_str().unwrap() } else { w });
    run(admin(words.next().unwrap()).args(words));
    let (of, to) = (format!("of={}", card.display()), format!("seek={offset}"));
    let from = format!("if={}", part.display());
    run(Command::new("dd").args([&*from, &*of, "bs=1M", "conv=sparse,notrunc", "oflag=seek_bytes", &*to]));
    fs::remove_file(part).unwrap();
}

/// The root filesystem of a card with our table, made by mke2fs with these words: with a proof, or without.
fn ext(folder: &Path, name: &str, proof: bool, words: &str) -> PathBuf {
    let card = folder.join(name);
    let disk = Disk::create(&card, CARD).unwrap();
    let begun = disk.begin(&layout()).unwrap();
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

/// A digest of all of a card.
fn digest(card: &Path) -> String {
    let out = run(Command::new("sha256sum").arg(card)).stdout;
    String::from_utf8(out).unwrap().split(' ').next().unwrap().to_owned()
}

/// Changes one byte.
fn flip(card: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(card).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x55], at).unwrap();
}
