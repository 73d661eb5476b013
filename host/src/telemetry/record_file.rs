//! One client's file: whole records appended, rotated by size and age.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FlockOperation, OFlags};
use rustix::io::Errno;

use crate::sys::files::rename_new;

/// When a file is closed and the next one begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Before it would become larger, in bytes; 0: never.
    pub bytes: u64,
    /// When its first record is older; zero: never.
    pub age: Duration,
}

/// A file that records are appended to. One process at a time writes to it.
#[derive(Debug)]
pub(super) struct RecordFile {
    folder: PathBuf,
    name: String,
    rotation: Rotation,
    sync: bool,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    bytes: u64,
    begun: SystemTime,
}

impl RecordFile {
    /// The file `NAME.csv` in `folder`; it is made with the first record. With `sync`, records
    /// are on the disk when they have been appended.
    pub(super) fn new(folder: &Path, name: &str, rotation: Rotation, sync: bool) -> Self {
        Self { folder: folder.to_owned(), name: name.to_owned(), rotation, sync, open: None }
    }

    /// Appends whole records: all of them, or none.
    pub(super) fn append(&mut self, records: &[u8]) -> io::Result<()> {
        let len = records.len() as u64;
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.open_file()?,
        };
        if open.bytes > 0 && self.is_due(&open, len) {
            self.rotate()?;
            open = self.open_file()?;
        }
        let before = open.bytes;
        let mut written = open.file.write_all(records);
        if written.is_ok() && self.sync {
            written = open.file.sync_data();
        }
        match written {
            Ok(()) => open.bytes += len,
            // Half a record is worse than none: the client sends it again.
            Err(_) => open.file.set_len(before)?,
        }
        self.open = Some(open);
        written
    }

    fn is_due(&self, open: &Open, more: u64) -> bool {
        let Rotation { bytes, age } = self.rotation;
        (bytes > 0 && open.bytes.saturating_add(more) > bytes)
            || (!age.is_zero() && open.begun.elapsed().is_ok_and(|e| e >= age))
    }

    fn path(&self) -> PathBuf {
        self.folder.join(format!("{}.csv", self.name))
    }

    fn open_file(&self) -> io::Result<Open> {
        let path = self.path();
        let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o644)
            .custom_flags(flags)
            .open(&path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let text = format!("another process writes to {}", path.display());
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
            Err(e) => return Err(e.into()),
        }
        let metadata = file.metadata()?;
        let mut bytes = metadata.len();
        if bytes > 0 {
            let mut last = [0];
            file.read_exact_at(&mut last, bytes - 1)?;
            if last != *b"\n" {
                // A crash in the middle of a record: the next one is not glued to it.
                file.write_all(b"\n")?;
                bytes += 1;
            }
        }
        let begun = metadata.created().unwrap_or_else(|_| SystemTime::now());
        let begun = if bytes == 0 { SystemTime::now() } else { begun };
        if self.sync {
            File::open(&self.folder)?.sync_all()?;
        }
        Ok(Open { file, bytes, begun })
    }

    /// Gives the file a name with the time; it is never written to again.
    fn rotate(&self) -> io::Result<()> {
        let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        for n in 0u32.. {
            let suffix = if n == 0 { String::new() } else { format!("-{n}") };
            let to = self.folder.join(format!("{}-{time}{suffix}.csv", self.name));
            match rename_new(CWD, &self.path(), CWD, &to) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other,
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const NEVER: Rotation = Rotation { bytes: 0, age: Duration::ZERO };

    #[test]
    fn records_are_appended_and_a_torn_one_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("pi.csv"), "1\nto").unwrap();
        let mut file = RecordFile::new(dir.path(), "pi", NEVER, true);
        file.append(b"2\n3\n").unwrap();
        let mut other = RecordFile::new(dir.path(), "pi", NEVER, false);
        assert_eq!(other.append(b"4\n").unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(file);
        other.append(b"4\n").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("pi.csv")).unwrap(), "1\nto\n2\n3\n4\n");
    }

    #[test]
    fn rotation_by_size_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = RecordFile::new(dir.path(), "pi", Rotation { bytes: 10, age: Duration::ZERO }, false);
        for n in 0..100 {
            file.append(format!("{n:03}\n").as_bytes()).unwrap();
        }
        let mut all: Vec<String> = Vec::new();
        for entry in fs::read_dir(dir.path()).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            assert!(text.len() <= 10 && text.ends_with('\n'));
            all.extend(text.lines().map(str::to_owned));
        }
        all.sort();
        assert_eq!(all, (0..100).map(|n| format!("{n:03}")).collect::<Vec<_>>());
    }

    #[test]
    fn rotation_by_age() {
        let dir = tempfile::tempdir().unwrap();
        let mut file =
            RecordFile::new(dir.path(), "pi", Rotation { bytes: 0, age: Duration::from_nanos(1) }, false);
        file.append(b"1\n").unwrap();
        file.append(b"2\n").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("pi.csv")).unwrap(), "2\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
