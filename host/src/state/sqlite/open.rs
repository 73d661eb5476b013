//! Opening the database: private, sound, and up to date, or a new one.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use super::tables::{FORMAT, FROM_1, FROM_2, IMAGES_FROM_2, IMAGES_FROM_4, NEEDED, TABLES};
use crate::state::StateError;
use crate::sys::clock::now_ms;
use crate::sys::files::{as_its_folder, parent};

/// How long a writer waits for another one, such as `piman reinstall`.
const WRITER_WAIT: Duration = Duration::from_secs(5);
/// How long a decision may wait. Readers do not wait for writers, except while a log is repaired.
const READER_WAIT: Duration = Duration::from_millis(100);

pub(super) fn inode(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |m| m.ino())
}

pub(super) fn read_only(path: &Path, e: &io::Error) -> StateError {
    StateError::ReadOnly { path: path.display().to_string(), reason: e.to_string() }
}

/// Sorts what SQLite says by what to do about it.
pub(super) fn sort(file: &Path, cause: &rusqlite::Error) -> StateError {
    let (path, reason) = (file.display().to_string(), cause.to_string());
    match cause.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StateError::Damaged { path, reason },
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            StateError::ReadOnly { path, reason }
        }
        Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StateError::Busy { path, reason }
        }
        _ => StateError::Other { path, reason },
    }
}

/// How much of a database is looked at before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// Its header and its tables.
    Nothing,
    /// Every page.
    Everything,
}

pub(super) fn open_or_replace(file: &Path) -> Result<(Connection, Connection), StateError> {
    let damage = match open(file, Check::Everything) {
        Err(e @ StateError::Damaged { .. }) => e,
        other => return other,
    };
    let aside = file.with_extension(format!("damaged-{}", now_ms()));
    fs::rename(file, &aside).map_err(|e| read_only(file, &e))?;
    for log in ["db-wal", "db-shm"] {
        // The log of the damaged database must not be replayed into the new one.
        let _ = fs::rename(file.with_extension(log), aside.with_extension(format!("{log}-{}", now_ms())));
    }
    tracing::error!(
        "{damage}; it is kept as {}, and a new one is begun: reinstalls that were ordered have to be ordered again, images to be added again",
        aside.display()
    );
    open(file, Check::Nothing)
}

pub(super) fn open(file: &Path, how: Check) -> Result<(Connection, Connection), StateError> {
    keep_private(file)?;
    let connect = |wait: Duration| -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(file, flags)?;
        connection.busy_timeout(wait)?;
        connection.execute_batch(
            // What is deleted may have been a secret.
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -256;
             PRAGMA secure_delete = ON;",
        )?;
        Ok(connection)
    };
    let check = |connection: &Connection| -> rusqlite::Result<i64> {
        let found = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if how == Check::Nothing {
            return Ok(found);
        }
        let sound: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if sound == "ok" {
            return Ok(found);
        }
        let code = ffi::Error::new(ffi::SQLITE_CORRUPT);
        Err(rusqlite::Error::SqliteFailure(code, Some(sound)))
    };
    let writer = connect(WRITER_WAIT).map_err(|e| sort(file, &e))?;
    let found = check(&writer).map_err(|e| sort(file, &e))?;
    if found > FORMAT {
        return Err(StateError::Newer { path: file.display().to_string(), found, known: FORMAT });
    }
    let has_tables: bool = writer.query_row(NEEDED, [], |row| row.get(0)).map_err(|e| sort(file, &e))?;
    if found < FORMAT || !has_tables {
        let change = match found {
            1 if has_tables => format!("{FROM_1} {FROM_2}"),
            2 if has_tables => format!("{FROM_2} {IMAGES_FROM_2} {IMAGES_FROM_4}"),
            3 | 4 if has_tables => IMAGES_FROM_4.to_owned(),
            _ => String::new(),
        };
        let all = format!("BEGIN IMMEDIATE; {change} {TABLES} PRAGMA user_version = {FORMAT}; COMMIT;");
        writer.execute_batch(&all).map_err(|e| sort(file, &e))?;
    }
    let reader = connect(READER_WAIT).map_err(|e| sort(file, &e))?;
    Ok((reader, writer))
}

/// Passwords are in it, and who can open it can lock it: it is made for its owner alone, and of one that was made before
/// others may read nothing more.
/// SQLite gives its log the same permissions.
fn keep_private(file: &Path) -> Result<(), StateError> {
    let made = OpenOptions::new().append(true).create(true).mode(0o600).open(file);
    let mode = made
        .and_then(|made| as_its_folder(&made, parent(file)).and_then(|()| made.metadata()))
        .map_err(|e| read_only(file, &e))?
        .permissions()
        .mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    for path in [file.to_owned(), file.with_extension("db-wal"), file.with_extension("db-shm")] {
        // Another one's file is his own to protect.
        if let Err(e) = fs::set_permissions(&path, Permissions::from_mode(mode & 0o700))
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("others may read {}, which has passwords in it: {e}", path.display());
        }
    }
    Ok(())
}
