//! A small filesystem of its own, to be filled.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

/// A small filesystem of its own, which only root may mount.
#[derive(Debug)]
pub struct Small(tempfile::TempDir);

impl Small {
    /// An ext4 filesystem of so many KiB without a journal.
    ///
    /// # Panics
    /// If it cannot be made or mounted, which needs root.
    #[must_use]
    pub fn new(kib: u32) -> Self {
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
        Self(dir)
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
