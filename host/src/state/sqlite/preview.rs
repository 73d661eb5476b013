//! A look at the state before it is opened: what a server that may still fail to start has to know, without changing
//! a byte.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use rustix::fs::{Access, access};

use super::tables::FORMAT;
use super::{FILE, read_only, sort};
use crate::state::{Preview, StateError};

/// How often, and after how long, is looked again at what seems damaged: a command may be writing.
const LOOKS: u32 = 3;
const AGAIN: Duration = Duration::from_millis(50);

/// What there is in the state of this folder. Nothing is there, nothing is known, or it is damaged and the server will
/// move it aside: then there are no images.
///
/// # Errors
/// [`StateError`] if the folder or its files could not be written, or are of a newer piman.
pub fn preview(folder: &Path) -> Result<Preview, StateError> {
    let file = folder.join(FILE);
    let there = folder.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    may_write(there, Access::WRITE_OK | Access::EXEC_OK).map_err(|e| read_only(there, &e))?;
    if !there.is_dir() {
        return Err(read_only(there, &io::Error::from(ErrorKind::NotADirectory)));
    }
    match may_write(&file, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Preview::default()),
        Err(e) => return Err(read_only(&file, &e)),
    }
    let mut looks = 1;
    loop {
        match look(&file) {
            Err(StateError::Damaged { .. }) if looks < LOOKS => {
                looks += 1;
                thread::sleep(AGAIN);
            }
            Err(StateError::Damaged { .. }) => return Ok(Preview::default()),
            looked => return looked,
        }
    }
}

fn may_write(path: &Path, how: Access) -> io::Result<()> {
    Ok(access(path, how)?)
}

fn look(file: &Path) -> Result<Preview, StateError> {
    let log = file.with_extension("db-wal");
    if fs::metadata(&log).map_or(0, |m| m.len()) == 0 {
        // Nothing is locked, and no file is made beside it.
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        return read(file, Connection::open_with_flags(uri(file), flags));
    }
    // A server that was killed has left its log. To read it is to make files beside it, so that is done elsewhere.
    let copy = || -> io::Result<_> {
        let dir = tempfile::tempdir()?;
        fs::copy(file, dir.path().join(FILE))?;
        fs::copy(&log, dir.path().join(FILE).with_extension("db-wal"))?;
        Ok(dir)
    };
    let dir = copy().map_err(|e| StateError::Busy {
        path: file.display().to_string(),
        reason: format!("copying it to {} to look at it: {e}", std::env::temp_dir().display()),
    })?;
    read(file, Connection::open(dir.path().join(FILE)))
}

/// The name of a file that nobody changes meanwhile, for SQLite.
fn uri(file: &Path) -> String {
    let mut uri = String::from("file:");
    for byte in file.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte))
            }
            // Writing to a string does not fail.
            other => drop(write!(uri, "%{other:02x}")),
        }
    }
    uri + "?immutable=1"
}

fn read(file: &Path, opened: rusqlite::Result<Connection>) -> Result<Preview, StateError> {
    let look = || -> rusqlite::Result<_> {
        let db = opened?;
        let found: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let has_images: bool =
            db.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'images'", [], |row| row.get(0))?;
        if found > FORMAT || !has_images {
            return Ok((found, Preview::default()));
        }
        let mut query = db.prepare("SELECT name, path, is_default FROM images")?;
        let mut rows = query.query([])?;
        let mut preview = Preview::default();
        while let Some(row) = rows.next()? {
            preview.images += 1;
            if row.get(2)? {
                preview.default = Some((row.get(0)?, super::catalogue::path(row, 1)?));
            }
        }
        Ok((found, preview))
    };
    match look().map_err(|e| sort(file, &e))? {
        (found, _) if found > FORMAT => {
            Err(StateError::Newer { path: file.display().to_string(), found, known: FORMAT })
        }
        (_, preview) => Ok(preview),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{About, Edit, Sqlite, State as _};

    fn names(folder: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
        let mut all: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.file_name(), fs::read(e.path()).unwrap()))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn what_is_there_is_seen_and_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a folder?with #odd %20 names");
        assert_eq!(preview(&folder).unwrap(), Preview::default());
        assert!(!folder.exists());
        let add = |state: &Sqlite, name: &str| {
            let path = format!("/{name}").into();
            state
                .edit(&Edit::Add { name: name.into(), path, takes_unfit: false, about: About::default() })
                .unwrap();
        };
        let state = Sqlite::serve(&folder).unwrap();
        add(&state, "one");
        // The log of a server that was killed, and the same closed in peace.
        let killed = dir.path().join("killed");
        fs::create_dir(&killed).unwrap();
        for (name, bytes) in names(&folder) {
            if name != "piman.db-shm" {
                fs::write(killed.join(name), bytes).unwrap();
            }
        }
        state.edit(&Edit::Default { name: Some("one".into()) }).unwrap();
        drop(state);
        assert_eq!(names(&folder).len(), 1, "it was closed in peace");
        for (folder, default) in [(&folder, Some(("one".to_owned(), "/one".into()))), (&killed, None)] {
            let before = names(folder);
            assert_eq!(preview(folder).unwrap(), Preview { images: 1, default });
            assert_eq!(names(folder), before);
        }
        let db = Connection::open(folder.join(FILE)).unwrap();
        db.pragma_update(None, "user_version", FORMAT + 1).unwrap();
        drop(db);
        assert!(matches!(preview(&folder), Err(StateError::Newer { .. })));
        fs::write(folder.join(FILE), [7; 9000]).unwrap();
        assert_eq!(preview(&folder).unwrap(), Preview::default(), "the server begins a new one");
        let below = folder.join(FILE).join("below");
        assert!(matches!(preview(&below), Err(StateError::ReadOnly { .. })));
    }
}
