//! All files of records: who writes to which.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use super::record_file::{RecordFile, Rotation};
use crate::net::quota::{Allowance, Quota};
use crate::net::reserve::Reserve;
use crate::sys::lock::lock;

/// The folder that the files are in. Connections of the same client share its file.
#[derive(Debug)]
pub struct RecordStore {
    folder: PathBuf,
    rotation: Rotation,
    sync: bool,
    /// The disk, and what stays free on it.
    disk: File,
    reserve: Reserve,
    quota: Quota,
    books: Mutex<HashMap<String, Weak<Mutex<RecordFile>>>>,
}

impl RecordStore {
    /// Files in `folder`, which must exist. With `sync`, a record is on the disk before it is acknowledged.
    ///
    /// # Errors
    /// If it is no folder.
    pub fn open(folder: &Path, rotation: Rotation, sync: bool) -> io::Result<Self> {
        if !std::fs::metadata(folder)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let (disk, folder) = (File::open(folder)?, folder.to_owned());
        let Allowance { reserve, quotas } = Allowance::NONE;
        let quota = Quota::new(quotas);
        Ok(Self { folder, rotation, sync, disk, reserve, quota, books: Mutex::default() })
    }

    /// The same with these limits.
    ///
    /// # Errors
    /// If the system does not say what is free.
    pub fn limited(self, allowance: Allowance) -> io::Result<Self> {
        let Allowance { reserve, quotas } = allowance;
        reserve.free(&self.disk)?;
        Ok(Self { reserve, quota: Quota::new(quotas), ..self })
    }

    /// This address wants to bring so many bytes.
    pub(super) fn take(&self, peer: IpAddr, bytes: u64) -> io::Result<()> {
        let free = self.reserve.free(&self.disk)?;
        // Without a reserve the disk itself says when it is full, to the last byte.
        if free.reserve > 0 && free.bytes < bytes {
            return Err(free.too_little(bytes));
        }
        self.quota.take(peer, bytes, free.bytes).map_err(|over| {
            let text = format!("{over} (--telemetry-peer-quota-mib, --telemetry-quota-mib)");
            io::Error::new(io::ErrorKind::QuotaExceeded, text)
        })
    }

    /// It has not brought so many of them.
    pub(super) fn give_back(&self, peer: IpAddr, bytes: u64) {
        self.quota.give_back(peer, bytes);
    }

    /// Whether records are brought to the disk before they are acknowledged.
    pub(super) fn syncs(&self) -> bool {
        self.sync
    }

    /// The file of a client. It is closed when nobody holds it.
    pub(super) fn file(&self, client: &str) -> Arc<Mutex<RecordFile>> {
        let name = file_name(client);
        let mut books = lock(&self.books);
        if let Some(file) = books.get(&name).and_then(Weak::upgrade) {
            return file;
        }
        books.retain(|_, file| file.strong_count() > 0);
        let file = Arc::new(Mutex::new(RecordFile::new(&self.folder, &name, self.rotation, self.sync)));
        books.insert(name, Arc::downgrade(&file));
        file
    }
}

/// Letters, digits, dots in between and dashes only, so that no client can choose another file.
fn file_name(client: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let name: String = client.chars().take(100).map(keep).collect();
    let name = name.trim_start_matches('.');
    if name.is_empty() { "unknown".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (client, name) in [
            ("192.168.1.7", "192.168.1.7"),
            ("fe80::1%eth0", "fe80--1-eth0"),
            ("10000000abcdef01", "10000000abcdef01"),
            ("../../etc/passwd", "-..-etc-passwd"),
            ("", "unknown"),
            ("..", "unknown"),
        ] {
            assert_eq!(file_name(client), name);
        }
    }
}
