//! Cards as files: what changed on them, and filesystems as a shutdown leaves them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use piman_core::install::layout::{Layout, SECTOR};
use piman_tests::contents::{admin, put, with_table};
use piman_tests::disk::run;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// The unit in which cards are compared.
pub(crate) const BLOCK: u64 = 4096;

/// The numbers of the blocks in which two cards of the same size differ.
pub(crate) fn changed_blocks(before: &Path, after: &Path) -> Vec<u64> {
    let files = [before, after].map(|p| File::open(p).unwrap());
    let mut changed = Vec::new();
    let mut at = 0;
    // Where both have holes both are zero.
    while let Some(start) = files.iter().filter_map(|f| next_data(f, at)).min() {
        at = start / BLOCK * BLOCK;
        let mut pieces = [vec![0; 1 << 20], vec![0; 1 << 20]];
        let mut length = 0;
        for (file, piece) in files.iter().zip(&mut pieces) {
            length = file.read_at(piece, at).unwrap().max(length);
        }
        let [a, b] = &pieces;
        for (n, (a, b)) in (0..).zip(a.chunks(BLOCK as usize).zip(b.chunks(BLOCK as usize))) {
            if a != b {
                changed.push(at / BLOCK + n);
            }
        }
        at += (length as u64).max(1);
    }
    changed
}

fn next_data(file: &File, at: u64) -> Option<u64> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(at) => Some(at),
        Err(Errno::NXIO) => None,
        Err(e) => panic!("{e}"),
    }
}

/// Mounts the root filesystem and unmounts it again: then its journal is empty.
pub(crate) fn settle(card: &Path) {
    settle_at(card, Layout::default().root_start * SECTOR);
}

/// The same with one that begins there, in bytes.
pub(crate) fn settle_at(card: &Path, offset: u64) {
    let folder = tempfile::tempdir().unwrap();
    let offset = format!("loop,offset={offset}");
    for (program, arguments) in [("mount", &["-o", &offset][..]), ("umount", &[])] {
        let mut command = Command::new(program);
        command.args(arguments);
        if program == "mount" {
            command.arg(card);
        }
        let status = command.arg(folder.path()).status().unwrap();
        assert!(status.success(), "{program}: {status}");
    }
}

/// Makes a card of 512 MB as somebody has it: FAT to boot from, and a Debian as far as can be seen from outside.
pub(crate) fn of_somebody(card: &Path) {
    const P1: u64 = 1 << 20;
    const P2: u64 = 65 << 20;
    const BYTES: u64 = 512 << 20;
    with_table(card, BYTES, "label: dos\nstart=2048, size=131072, type=c\nstart=133120, type=83\n");
    let tree = tempfile::tempdir().unwrap();
    for folder in ["bin", "etc", "home/pi"] {
        fs::create_dir_all(tree.path().join(folder)).unwrap();
    }
    fs::write(tree.path().join("etc/os-release"), "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n")
        .unwrap();
    fs::write(tree.path().join("home/pi/work"), "a year of it").unwrap();
    put(card, P1, P2 - P1, "mkfs.vfat -n BOOTFS FILE");
    put(card, P2, BYTES - P2, &format!("mke2fs -q -F -t ext4 -L rootfs -d {} FILE", tree.path().display()));
}

/// As a kernel leaves a filesystem in which it has found errors.
pub(crate) fn note_errors(card: &Path) {
    let name = format!("{}?offset={}", card.display(), Layout::default().root_start * SECTOR);
    run(admin("debugfs").args(["-w", "-R", "ssv state 2", &name]));
}
