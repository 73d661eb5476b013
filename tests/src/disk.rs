//! Filesystems in files: judged by e2fsck, mounted by the kernel.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Whether this runs as root. A test that cannot run without root is ignored (`lacks` in `build.rs`); this is for
/// those that expect something else of root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a command to its end.
///
/// # Panics
/// If it cannot be started or fails.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Judges the filesystem of `bytes` bytes that begins `offset` bytes into `disk`.
///
/// # Panics
/// If e2fsck finds anything to complain about.
pub fn e2fsck(disk: &Path, offset: u64, bytes: u64) {
    let name = format!("{}?offset={offset}", disk.display());
    // Where it is, an ordinary user does not look.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = run(Command::new("e2fsck").args(["-fn", &name]).env("LC_ALL", "C").env("PATH", path));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("IGNORED") && !text.contains("no\n"), "{bytes} bytes: {text}");
}

/// A block device that is a file; detached when dropped.
#[derive(Debug)]
pub struct LoopDevice(PathBuf);

impl LoopDevice {
    /// Of this file.
    ///
    /// # Panics
    /// If it cannot be made, which needs root.
    #[must_use]
    pub fn of(file: &Path) -> Self {
        let output = run(Command::new("losetup").args(["-f", "--show"]).arg(file));
        Self(String::from_utf8_lossy(&output.stdout).trim().into())
    }

    /// Of this file, with sectors of so many bytes.
    ///
    /// # Panics
    /// If it cannot be made, which needs root.
    #[must_use]
    pub fn with_sectors(file: &Path, bytes: u32) -> Self {
        let size = bytes.to_string();
        let output = run(Command::new("losetup").args(["-b", &size, "-f", "--show"]).arg(file));
        Self(String::from_utf8_lossy(&output.stdout).trim().into())
    }

    /// Of this file from this byte on.
    ///
    /// # Panics
    /// If it cannot be made, which needs root.
    #[must_use]
    pub fn of_part(file: &Path, offset: u64) -> Self {
        let offset = offset.to_string();
        let output = run(Command::new("losetup").args(["-o", &offset, "-f", "--show"]).arg(file));
        Self(String::from_utf8_lossy(&output.stdout).trim().into())
    }

    /// Of a new sparse file of `bytes` bytes, which goes with it.
    ///
    /// # Panics
    /// If it cannot be made, which needs root.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(bytes).expect("a size");
        Self::of(file.path())
    }

    /// Its node in `/dev`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // Partitions that the kernel was told of go first.
        let _ = Command::new("partx").arg("-d").arg(&self.0).output();
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// A filesystem mounted by the kernel; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    folder: tempfile::TempDir,
}

impl Mounted {
    /// Mounts the filesystem of `bytes` bytes that begins `offset` bytes into `disk`.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn new(disk: &Path, offset: u64, bytes: u64, options: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder to mount at");
        let all = format!("loop,offset={offset},sizelimit={bytes},{options}");
        run(Command::new("mount").args(["-t", "ext4", "-o", &all]).arg(disk).arg(folder.path()));
        Self { folder }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Waits until the kernel has zeroed the inode tables (mount with `init_itable=0`).
    ///
    /// # Panics
    /// If it has not after a minute.
    pub fn wait_for_lazy_init(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while threads_of_lazy_init() > 0 {
            assert!(Instant::now() < deadline, "the kernel still zeroes inode tables");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The kernel has one such thread as long as any filesystem is being initialized.
fn threads_of_lazy_init() -> usize {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let names = processes.filter_map(|p| std::fs::read_to_string(p.path().join("comm")).ok());
    names.filter(|n| n.trim() == "ext4lazyinit").count()
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let path: PathBuf = self.folder.path().into();
        // A program that another test starts at this moment has our descriptors for an instant.
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if Command::new("umount").arg(&path).output().is_ok_and(|o| o.status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        run(Command::new("umount").arg(path));
    }
}
