//! A small filesystem of its own, to be filled.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use crate::disk::is_root;

/// A small filesystem of its own, if this user may mount one.
#[derive(Debug)]
pub struct Small(tempfile::TempDir);

impl Small {
    /// An ext4 filesystem of so many KiB without a journal; `None`, and said, if this user may not mount.
    ///
    /// # Panics
    /// If it cannot be made or mounted by root.
    #[must_use]
    pub fn new(kib: u32) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let dir = tempfile::tempdir().expect("a small filesystem");
        let image = dir.path().join("image");
        File::create(&image)
            .expect("a small filesystem")
            .set_len(u64::from(kib) * 1024)
            .expect("a small filesystem");
        let sh = |command: &str| {
            let ok = Command::new("sh").args(["-c", command]).status().expect("a small filesystem").success();
            assert!(ok, "{command}");
        };
        let (i, m) = (image.display(), dir.path().join("m"));
        fs::create_dir(&m).expect("a small filesystem");
        sh(&format!("mkfs.ext4 -q -m 0 -O ^has_journal {i} && mount -o loop {i} {}", m.display()));
        Some(Self(dir))
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.0.path().join("m")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
