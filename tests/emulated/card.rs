//! Cards as files: what changed on them, and filesystems as a shutdown leaves them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use piman_core::install::layout::{Layout, SECTOR};
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
    let folder = tempfile::tempdir().unwrap();
    let offset = format!("loop,offset={}", Layout::default().root_start * SECTOR);
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
