//! One server for one state folder: a lock on the folder that the kernel holds for as long as the server lives.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::StateError;
use crate::sys::clock::now_ms;
use crate::sys::files::make_private;
use crate::text::human::when;

/// The file that says who holds the lock, for people. It is not what is locked: whoever removes it frees nothing, and
/// one that a dead server left says nothing.
pub const FILE: &str = "piman.lock";
/// For how long is tried: `piman doctor` holds the lock for a moment, and a server that is ending a little longer.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often.
const AGAIN: Duration = Duration::from_millis(20);

/// The right to serve from a state folder. The kernel takes it back when the process ends, however it does.
#[derive(Debug)]
pub struct ServerLock {
    /// What is locked, as long as it is open.
    _folder: File,
}

/// Who serves from a state folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    pid: u32,
    since_ms: u64,
}

impl Holder {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let holder = Self { pid: words.next()?.parse().ok()?, since_ms: words.next()?.parse().ok()? };
        words.next().is_none().then_some(holder)
    }
}

/// For error messages.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}, started {}", self.pid, when(self.since_ms, now_ms()))
    }
}

impl ServerLock {
    /// Locks the folder if it is there, and changes nothing in it. `None`: there is no such folder, so nobody serves
    /// from it.
    ///
    /// # Errors
    /// [`StateError::Served`] if a server does; otherwise if the folder cannot be opened.
    pub fn on(folder: &Path) -> Result<Option<Self>, StateError> {
        let path = || folder.display().to_string();
        let dir = match File::open(folder) {
            Ok(dir) => dir,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(StateError::ReadOnly { path: path(), reason: e.to_string() }),
        };
        let end = Instant::now() + PATIENCE;
        loop {
            match dir.try_lock() {
                Ok(()) => return Ok(Some(Self { _folder: dir })),
                Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(AGAIN),
                Err(TryLockError::WouldBlock) => {
                    let said = fs::read_to_string(folder.join(FILE)).unwrap_or_default();
                    let by = Holder::parse(&said).map_or("another process".to_owned(), |h| h.to_string());
                    return Err(StateError::Served { path: path(), by });
                }
                Err(TryLockError::Error(e)) => {
                    let reason = format!("it cannot be locked: {e}");
                    return Err(StateError::Other { path: path(), reason });
                }
            }
        }
    }

    /// Locks the folder, makes it if there is none, and writes down who holds it. `before` is what
    /// [`on`](Self::on) has returned.
    ///
    /// # Errors
    /// As [`on`](Self::on), or if the folder cannot be made.
    pub fn take(folder: &Path, before: Option<Self>) -> Result<Self, StateError> {
        let missing = || StateError::Missing { path: folder.display().to_string() };
        let lock = match before {
            Some(lock) => lock,
            None => {
                make_private(folder).map_err(|e| StateError::ReadOnly {
                    path: folder.display().to_string(),
                    reason: e.to_string(),
                })?;
                Self::on(folder)?.ok_or_else(missing)?
            }
        };
        let text = format!("{} {}\n", std::process::id(), now_ms());
        // Without it the lock is as good; a second server only cannot say who this one is.
        let write = || {
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(true).mode(0o600).open(folder.join(FILE));
            file.and_then(|mut file| file.write_all(text.as_bytes()))
        };
        if let Err(e) = write() {
            tracing::warn!("{} is not written: {e}", folder.join(FILE).display());
        }
        Ok(lock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        assert!(ServerLock::on(&folder).unwrap().is_none() && !folder.exists(), "looking makes nothing");
        let held = ServerLock::take(&folder, None).unwrap();
        for remove in [false, true] {
            let error = ServerLock::on(&folder).unwrap_err().to_string();
            let who = if remove { "another process" } else { &format!("process {}", std::process::id()) };
            assert!(error.contains(who) && error.contains("--state"), "{error}");
            // Whoever tidies up must not make room for a second server.
            let _ = fs::remove_file(folder.join(FILE));
        }
        drop(held);
        // What a dead server has left is no obstacle, whatever is in it.
        for left in ["1 5\n", "", "999999999999 x", "\u{0}\u{0}"] {
            fs::write(folder.join(FILE), left).unwrap();
            let before = ServerLock::on(&folder).unwrap();
            assert_eq!(fs::read_to_string(folder.join(FILE)).unwrap(), left, "looking writes nothing");
            drop(ServerLock::take(&folder, before).unwrap());
        }
    }

    #[test]
    fn holders() {
        assert_eq!(Holder::parse("12 34\n"), Some(Holder { pid: 12, since_ms: 34 }));
        for bad in ["", "12", "x 1", "1 2 3", "-1 5"] {
            assert_eq!(Holder::parse(bad), None, "{bad}");
        }
    }
}
