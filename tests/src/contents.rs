//! What cards hold, made by the tools of those who made it; and whether it is still the same.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::disk::run;

/// A program of the administrator's, where an ordinary user does not look.
#[must_use]
pub fn admin(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command.env("LC_ALL", "C");
    command
}

/// Makes a sparse file of so many bytes with a table as `sfdisk` reads it.
///
/// # Panics
/// If it cannot be made.
pub fn with_table(card: &Path, bytes: u64, table: &str) {
    File::create(card).expect("a file").set_len(bytes).expect("a size");
    let mut command = admin("sfdisk");
    command.args(["--quiet", "--no-reread", "--no-tell-kernel", "--lock=no"]).arg(card);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("sfdisk starts");
    child.stdin.take().expect("it is piped").write_all(table.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it is ours").success(), "sfdisk: {table}");
}

/// Makes something in a file of its own by these words, and puts it into a card. `FILE` stands for the file.
///
/// # Panics
/// If it cannot be made.
pub fn put(card: &Path, offset: u64, bytes: u64, words: &str) {
    let part = card.with_extension("part");
    File::create(&part).expect("a file").set_len(bytes).expect("a size");
    let mut words = words.split(' ').map(|w| if w == "FILE" { part.to_str().expect("text") } else { w });
    run(admin(words.next().expect("a program")).args(words));
    let (of, to) = (format!("of={}", card.display()), format!("seek={offset}"));
    let from = format!("if={}", part.display());
    run(Command::new("dd").args([&*from, &*of, "bs=1M", "conv=sparse,notrunc", "oflag=seek_bytes", &*to]));
    fs::remove_file(part).expect("it was made");
}

/// A copy that has holes where the card has.
///
/// # Panics
/// If it cannot be made.
pub fn copy(card: &Path, to: &Path) {
    run(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(card).arg(to));
}

/// A digest of all of a card, which takes the time of what is on it, however large it is: zeros that are written
/// and zeros that are not are the same.
///
/// # Panics
/// If it cannot be read.
#[must_use]
pub fn digest(card: &Path) -> blake3::Hash {
    const BLOCK: u64 = 4096;
    let file = File::open(card).expect("a card");
    let mut digest = blake3::Hasher::new();
    digest.update(&file.metadata().expect("its size").len().to_le_bytes());
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        at = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data / BLOCK * BLOCK,
            Err(Errno::NXIO) => return digest.finalize(),
            Err(e) => panic!("{}: {e}", card.display()),
        };
        let n = file.read_at(&mut buf, at).expect("it is read");
        for (number, block) in (at / BLOCK..).zip(buf[..n].chunks(BLOCK as usize)) {
            if block.iter().any(|byte| *byte != 0) {
                digest.update(&number.to_le_bytes()).update(block);
            }
        }
        at += n.max(1) as u64;
    }
}
