//! The state as an SQLite database in a folder.
//!
//! | file | what lives there |
//! |---|---|
//! | `save` | what happened |
//! | `orders` | orders to reinstall, and the claims of Pis on them |
//! | `rules` | what happens by what is on a disk |
//! | `listed` | the device list: who is served with `--only-known` |
//! | `preview` | a look at it that changes nothing |
//! | `personal` | profiles, the numbers and host names of Pis, orders to apply profiles |
//! | `catalogue` | images, who gets which, and what is known of archives |

mod catalogue;
mod listed;
mod orders;
mod personal;
mod preview;
mod rules;
mod save;

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use piman_core::install::{Fingerprint, Installation};
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, ffi};

use super::{
    About, Batch, Catalogue, Device, DeviceEvent, Edit, Identity, Listed, ListedPi, OpenOrder, Order,
    Ordered, PersonalFacts, PersonalOrder, State, StateError, StoredProfile, Written,
};
use crate::state::archive_facts::{Content, Stamp};
use crate::state::decision::{Ask, Cancelled, Claimed, Policy, Rule, Scope};
use crate::sys::clock::now_ms;
use crate::sys::lock::lock;
pub use preview::preview;
use save::save;

/// The name of the database in the state folder.
pub const FILE: &str = "piman.db";

/// The version of the tables below.
const FORMAT: i64 = 5;
/// How many events of a device are kept.
const HAPPENINGS_KEPT: i64 = 500;
/// How many devices are kept.
const DEVICES_KEPT: i64 = 20_000;
/// How many orders that are over are kept.
const ORDERS_KEPT: i64 = 5_000;

/// How long a writer waits for another one, such as `piman reinstall`.
const WRITER_WAIT: Duration = Duration::from_secs(5);
/// How long a decision may wait. Readers do not wait for writers, except while a log is repaired.
const READER_WAIT: Duration = Duration::from_millis(100);

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS devices (
    key TEXT PRIMARY KEY, serial TEXT, mac TEXT, address TEXT NOT NULL, model TEXT, agent TEXT,
    disk_bytes INTEGER NOT NULL DEFAULT 0, root_bytes INTEGER NOT NULL DEFAULT 0, card TEXT,
    stage TEXT, done_bytes INTEGER NOT NULL DEFAULT 0, total_bytes INTEGER NOT NULL DEFAULT 0,
    image TEXT, first_seen_ms INTEGER NOT NULL, last_seen_ms INTEGER NOT NULL,
    last_error TEXT, last_error_ms INTEGER, found TEXT, disk TEXT, print TEXT, waits TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS orders (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, ordered_ms INTEGER NOT NULL,
    source TEXT NOT NULL, claimed_ms INTEGER, completed_ms INTEGER, cancelled_ms INTEGER,
    claimed_by TEXT, installation TEXT, print TEXT
);
CREATE UNIQUE INDEX IF NOT EXISTS open_orders ON orders (name)
    WHERE completed_ms IS NULL AND cancelled_ms IS NULL;
CREATE TABLE IF NOT EXISTS happenings (
    id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL, text TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS happenings_of ON happenings (device, id);
CREATE TABLE IF NOT EXISTS troubles (kind TEXT PRIMARY KEY, at_ms INTEGER NOT NULL, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS images (
    name TEXT PRIMARY KEY, path BLOB NOT NULL, is_default INTEGER NOT NULL DEFAULT 0, added_ms INTEGER NOT NULL,
    takes_unfit INTEGER NOT NULL DEFAULT 0, description TEXT, release TEXT, boot TEXT, boot_bytes INTEGER
);
CREATE TABLE IF NOT EXISTS choices (
    who TEXT NOT NULL, is_group INTEGER NOT NULL, image TEXT NOT NULL, PRIMARY KEY (who, is_group)
);
CREATE TABLE IF NOT EXISTS members (device TEXT PRIMARY KEY, family TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS archives (
    path BLOB PRIMARY KEY, stamp TEXT NOT NULL, id TEXT NOT NULL, unpacked_bytes INTEGER NOT NULL,
    entries INTEGER NOT NULL, sums BLOB NOT NULL, fitness TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS rules (
    who TEXT NOT NULL, is_group INTEGER NOT NULL, found TEXT NOT NULL, action TEXT NOT NULL,
    PRIMARY KEY (who, is_group, found)
);
CREATE TABLE IF NOT EXISTS listed (
    name TEXT PRIMARY KEY, label TEXT, added_ms INTEGER NOT NULL, source TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS profiles (
    who TEXT NOT NULL, is_group INTEGER NOT NULL, text TEXT NOT NULL, profile TEXT NOT NULL,
    changed_ms INTEGER NOT NULL, source TEXT NOT NULL, PRIMARY KEY (who, is_group)
);
CREATE TABLE IF NOT EXISTS own (
    device TEXT PRIMARY KEY, ordinal INTEGER NOT NULL UNIQUE, hostname TEXT COLLATE NOCASE UNIQUE
);
CREATE TABLE IF NOT EXISTS personal_orders (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, ordered_ms INTEGER NOT NULL,
    source TEXT NOT NULL, installation TEXT, completed_ms INTEGER, cancelled_ms INTEGER
);
CREATE UNIQUE INDEX IF NOT EXISTS open_personal_orders ON personal_orders (name)
    WHERE completed_ms IS NULL AND cancelled_ms IS NULL;
";

/// What turns tables of format 1 into those of 2.
const FROM_1: &str = "
ALTER TABLE orders ADD COLUMN given_to TEXT;
ALTER TABLE orders ADD COLUMN installation TEXT;
";
/// What turns tables of format 2 into those of 3, before what is missing is made; 4 has one more table alone.
const FROM_2: &str = "
ALTER TABLE orders RENAME COLUMN given_ms TO claimed_ms;
ALTER TABLE orders RENAME COLUMN given_to TO claimed_by;
ALTER TABLE orders ADD COLUMN print TEXT;
ALTER TABLE devices ADD COLUMN found TEXT;
ALTER TABLE devices ADD COLUMN disk TEXT;
ALTER TABLE devices ADD COLUMN print TEXT;
ALTER TABLE devices ADD COLUMN waits TEXT;
";
/// The same for the tables that format 1 did not have.
const IMAGES_FROM_2: &str = "
ALTER TABLE images ADD COLUMN takes_unfit INTEGER NOT NULL DEFAULT 0;
ALTER TABLE archives ADD COLUMN fitness TEXT NOT NULL DEFAULT '';
";

/// What turns the table of images of formats 2 to 4 into that of 5; the other tables of 5 are new.
const IMAGES_FROM_4: &str = "
ALTER TABLE images ADD COLUMN description TEXT;
ALTER TABLE images ADD COLUMN release TEXT;
ALTER TABLE images ADD COLUMN boot TEXT;
ALTER TABLE images ADD COLUMN boot_bytes INTEGER;
";

/// The tables without which there is no state.
const NEEDED: &str =
    "SELECT count(*) = 4 FROM sqlite_schema WHERE name IN ('devices', 'orders', 'happenings', 'troubles')";

/// A state folder's database. Readers and the writer have a connection each: with a write-ahead
/// log they do not wait for each other, and neither waits for `piman reinstall`.
pub struct Sqlite {
    file: PathBuf,
    reader: Mutex<Connection>,
    writer: Mutex<Writer>,
    /// Whether a reader has found damage, which the writer may not see: it may have all of the file
    /// in memory.
    suspect: AtomicBool,
}

struct Writer {
    connection: Connection,
    /// Which file it is that is open, to notice that it was deleted or replaced.
    inode: u64,
}

impl Sqlite {
    /// Opens the state in `folder` for a server: makes what is missing, and moves a damaged
    /// database aside, which the log says.
    ///
    /// # Errors
    /// [`StateError`] if the folder cannot be written, or was used by a newer version.
    pub fn serve(folder: &Path) -> Result<Self, StateError> {
        fs::create_dir_all(folder).map_err(|e| read_only(folder, &e))?;
        // Says so now and not at the first write; SQLite alone would open it for reading.
        tempfile::tempfile_in(folder).map_err(|e| read_only(folder, &e))?;
        let file = folder.join(FILE);
        let (reader, writer) = open_or_replace(&file)?;
        // They were those of a server that is no more; this one finds its own.
        writer.execute("DELETE FROM troubles", []).map_err(|e| sort(&file, &e))?;
        let inode = inode(&file);
        Ok(Self {
            file,
            reader: Mutex::new(reader),
            writer: Mutex::new(Writer { connection: writer, inode }),
            suspect: AtomicBool::new(false),
        })
    }

    /// Opens the state in `folder` for a command beside a server: it is not begun, and not moved
    /// aside if it is damaged. Tables of an older piman are brought up to date.
    ///
    /// # Errors
    /// [`StateError`] if there is none, it is damaged, or cannot be written.
    pub fn command(folder: &Path) -> Result<Self, StateError> {
        let file = folder.join(FILE);
        match fs::metadata(&file) {
            Ok(found) if found.is_file() => {}
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(read_only(&file, &e)),
            _ => return Err(StateError::Missing { path: folder.display().to_string() }),
        }
        let (reader, writer) = open(&file, Check::Nothing)?;
        let inode = inode(&file);
        Ok(Self {
            file,
            reader: Mutex::new(reader),
            writer: Mutex::new(Writer { connection: writer, inode }),
            suspect: AtomicBool::new(false),
        })
    }

    fn error(&self, db: &Connection, source: &rusqlite::Error) -> StateError {
        // SQLite has no code of its own for tables that somebody dropped.
        let is_general = source.sqlite_error().is_some_and(|e| e.extended_code == ffi::SQLITE_ERROR);
        if is_general && db.query_row(NEEDED, [], |row| row.get(0)) == Ok(false) {
            return StateError::Damaged { path: self.file.display().to_string(), reason: source.to_string() };
        }
        sort(&self.file, source)
    }

    fn read<T>(&self, f: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StateError> {
        let db = lock(&self.reader);
        let read = f(&db).map_err(|e| self.error(&db, &e));
        if let Err(StateError::Damaged { .. }) = read {
            self.suspect.store(true, Ordering::Relaxed);
        }
        read
    }

    fn write<T>(&self, f: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, StateError> {
        let db = &mut lock(&self.writer).connection;
        f(db).map_err(|e| self.error(db, &e))
    }

    /// The same, and it is on the disk when this returns: after a power cut, too, what was acknowledged is there.
    fn write_durably<T>(
        &self,
        f: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StateError> {
        self.write(|db| {
            db.pragma_update(None, "synchronous", "FULL")?;
            let written = f(db);
            let restored = db.pragma_update(None, "synchronous", "NORMAL");
            written.and_then(|written| restored.map(|()| written))
        })
    }

    /// Goes on with a new database: the old one is gone, or damaged and moved aside.
    fn reopen(&self) -> Result<(), StateError> {
        // Whoever asks meanwhile waits: without tables it would be told of no orders.
        let (mut writer, mut reader) = (lock(&self.writer), lock(&self.reader));
        // What the old connections know of the file would disturb the new ones. Should there
        // be no new ones, these have no tables, and the next call ends here again.
        let nothing = || Connection::open_in_memory().map_err(|e| sort(&self.file, &e));
        writer.connection = nothing()?;
        *reader = nothing()?;
        (*reader, writer.connection) = open_or_replace(&self.file)?;
        writer.inode = inode(&self.file);
        Ok(())
    }
}

fn inode(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |m| m.ino())
}

fn read_only(path: &Path, e: &io::Error) -> StateError {
    StateError::ReadOnly { path: path.display().to_string(), reason: e.to_string() }
}

/// Sorts what SQLite says by what to do about it.
fn sort(file: &Path, cause: &rusqlite::Error) -> StateError {
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
enum Check {
    /// Its header and its tables.
    Nothing,
    /// Every page.
    Everything,
}

fn open_or_replace(file: &Path) -> Result<(Connection, Connection), StateError> {
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

fn open(file: &Path, how: Check) -> Result<(Connection, Connection), StateError> {
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

/// Passwords are in it: it is made for its owner alone, and of one that was made before others may read nothing more.
/// SQLite gives its log the same permissions.
fn keep_private(file: &Path) -> Result<(), StateError> {
    let made = OpenOptions::new().append(true).create(true).mode(0o600).open(file);
    let mode = made.and_then(|file| file.metadata()).map_err(|e| read_only(file, &e))?.permissions().mode();
    if mode & 0o007 == 0 {
        return Ok(());
    }
    for path in [file.to_owned(), file.with_extension("db-wal"), file.with_extension("db-shm")] {
        // Another one's file is his own to protect.
        if let Err(e) = fs::set_permissions(&path, Permissions::from_mode(mode & 0o770))
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("everybody may read {}, which has passwords in it: {e}", path.display());
        }
    }
    Ok(())
}

/// SQLite has no unsigned numbers of 64 bits.
fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn unsigned(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, Option<i64>>(at)?.unwrap_or(0)).unwrap_or(0))
}

fn moment(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<u64>> {
    Ok(row.get::<_, Option<i64>>(at)?.and_then(|n| u64::try_from(n).ok()))
}

impl State for Sqlite {
    fn open_orders(&self, pi: &Identity) -> Result<Vec<OpenOrder>, StateError> {
        self.read(|db| orders::open(db, pi))
    }

    fn claim(&self, ask: &Ask<'_>) -> Result<Option<Claimed>, StateError> {
        self.write_durably(|db| orders::claim(db, ask))
    }

    fn order(&self, name: &str, source: &str, print: Option<Fingerprint>) -> Result<Ordered, StateError> {
        self.write_durably(|db| orders::order(db, name, source, print))
    }

    fn cancel(&self, name: &str) -> Result<Cancelled, StateError> {
        self.write_durably(|db| orders::cancel(db, name))
    }

    fn policy_of(&self, pi: &Identity, base: Policy) -> Result<Policy, StateError> {
        self.read(|db| rules::policy_of(db, pi, base))
    }

    fn rules(&self) -> Result<Vec<(Scope, Rule)>, StateError> {
        self.read(rules::all)
    }

    fn set_rules(&self, scope: &Scope, rules: &[Rule]) -> Result<(), StateError> {
        self.write_durably(|db| rules::set(db, scope, rules))
    }

    fn is_listed(&self, pi: &Identity) -> Result<Listed, StateError> {
        self.read(|db| listed::is_listed(db, pi))
    }

    fn listed(&self) -> Result<Vec<ListedPi>, StateError> {
        self.read(listed::all)
    }

    fn add_listed(&self, pis: &[(String, Option<String>)], source: &str) -> Result<usize, StateError> {
        self.write_durably(|db| listed::add(db, pis, source))
    }

    fn remove_listed(&self, names: &[String]) -> Result<Vec<String>, StateError> {
        self.write_durably(|db| listed::remove(db, names))
    }

    fn orders(&self) -> Result<Vec<Order>, StateError> {
        self.read(orders::all)
    }

    fn catalogue(&self) -> Result<Catalogue, StateError> {
        self.read(catalogue::read)
    }

    fn edit(&self, edit: &Edit) -> Result<bool, StateError> {
        self.write_durably(|db| catalogue::edit(db, edit))
    }

    fn image_of(&self, pi: &Identity) -> Result<Option<PathBuf>, StateError> {
        self.read(|db| catalogue::image_of(db, pi))
    }

    fn about(&self, path: &Path) -> Result<About, StateError> {
        self.read(|db| catalogue::about(db, path))
    }

    fn profiles(&self) -> Result<Vec<StoredProfile>, StateError> {
        self.read(personal::profiles)
    }

    fn set_profile(
        &self,
        scope: &Scope,
        written: &Written,
        source: &str,
    ) -> Result<Option<String>, StateError> {
        self.write_durably(|db| personal::set(db, scope, written, source))
    }

    fn remove_profile(&self, scope: &Scope) -> Result<bool, StateError> {
        self.write_durably(|db| personal::remove(db, scope))
    }

    fn personal_of(&self, pi: &Identity) -> Result<PersonalFacts, StateError> {
        let (profile, group, ordinal) = self.read(|db| personal::facts(db, pi))?;
        let ordinal = match ordinal {
            Some(ordinal) => ordinal,
            None => self.write_durably(|db| personal::number(db, pi))?,
        };
        Ok(PersonalFacts { profile, group, ordinal })
    }

    fn give_host_name(&self, pi: &Identity, name: &str) -> Result<Option<String>, StateError> {
        self.write_durably(|db| personal::give_host_name(db, pi, name))
    }

    fn order_personal(&self, name: &str, source: &str) -> Result<Ordered, StateError> {
        self.write_durably(|db| personal::order(db, name, source))
    }

    fn cancel_personal(&self, name: &str) -> Result<bool, StateError> {
        self.write_durably(|db| personal::cancel(db, name))
    }

    fn personal_orders(&self) -> Result<Vec<PersonalOrder>, StateError> {
        self.read(personal::orders)
    }

    fn is_personal_ordered(&self, pi: &Identity) -> Result<bool, StateError> {
        self.read(|db| personal::is_ordered(db, pi))
    }

    fn begin_personal(
        &self,
        pi: &Identity,
        number: Installation,
    ) -> Result<Option<Installation>, StateError> {
        self.write_durably(|db| personal::begin(db, pi, number))
    }

    fn known(&self, path: &Path) -> Result<Option<(Stamp, Content)>, StateError> {
        self.read(|db| catalogue::known(db, path))
    }

    fn keep(&self, path: &Path, stamp: &Stamp, facts: &Content) -> Result<(), StateError> {
        self.write(|db| catalogue::keep(db, path, stamp, facts))
    }

    fn save(&self, batch: &Batch) -> Result<(), StateError> {
        let known = lock(&self.writer).inode;
        if inode(&self.file) != known {
            tracing::error!(
                "{} was removed or replaced: going on with what is there now",
                self.file.display()
            );
            self.reopen()?;
        } else if self.suspect.swap(false, Ordering::Relaxed) {
            self.reopen()?;
        }
        match self.write(|db| save(db, batch)) {
            // Read errors too may be those of a file that was cut or overwritten under a
            // connection: a new one finds out.
            Err(StateError::Damaged { .. } | StateError::Other { .. }) => self.reopen()?,
            saved => return saved,
        }
        self.write(|db| save(db, batch))
    }

    fn devices(&self) -> Result<Vec<Device>, StateError> {
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT key, serial, mac, address, model, agent, disk_bytes, root_bytes, card, stage,
                    done_bytes, total_bytes, image, first_seen_ms, last_seen_ms, last_error, last_error_ms,
                    found, disk, print, waits,
                    EXISTS (SELECT 1 FROM orders WHERE name IN (serial, mac, address)
                        AND completed_ms IS NULL AND cancelled_ms IS NULL),
                    EXISTS (SELECT 1 FROM personal_orders WHERE name IN (serial, mac, address)
                        AND completed_ms IS NULL AND cancelled_ms IS NULL),
                    ordinal, hostname
                 FROM devices LEFT JOIN own ON device = key ORDER BY last_seen_ms DESC, key",
            )?;
            let rows = query.query_map([], |row| {
                Ok(Device {
                    key: row.get(0)?,
                    serial: row.get(1)?,
                    mac: row.get(2)?,
                    address: row.get(3)?,
                    model: row.get(4)?,
                    agent: row.get(5)?,
                    disk_bytes: unsigned(row, 6)?,
                    root_bytes: unsigned(row, 7)?,
                    card: row.get(8)?,
                    stage: row.get(9)?,
                    done_bytes: unsigned(row, 10)?,
                    total_bytes: unsigned(row, 11)?,
                    image: row.get(12)?,
                    first_seen_ms: unsigned(row, 13)?,
                    last_seen_ms: unsigned(row, 14)?,
                    last_error: row.get(15)?,
                    last_error_ms: moment(row, 16)?,
                    found: row.get(17)?,
                    disk: row.get(18)?,
                    print: row.get(19)?,
                    waits: row.get(20)?,
                    reinstall_ordered: row.get(21)?,
                    personalise_ordered: row.get(22)?,
                    ordinal: row.get(23)?,
                    hostname: row.get(24)?,
                })
            })?;
            rows.collect()
        })
    }

    fn events(&self, key: &str) -> Result<Vec<DeviceEvent>, StateError> {
        self.read(|db| {
            let mut query =
                db.prepare_cached("SELECT at_ms, kind, text FROM happenings WHERE device = ?1 ORDER BY id")?;
            query.query_map([key], event)?.collect()
        })
    }

    fn alerts(&self) -> Result<Vec<DeviceEvent>, StateError> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT at_ms, kind, text FROM troubles ORDER BY at_ms")?;
            query.query_map([], event)?.collect()
        })
    }
}

fn event(row: &Row<'_>) -> rusqlite::Result<DeviceEvent> {
    Ok(DeviceEvent { at_ms: unsigned(row, 0)?, kind: row.get(1)?, text: row.get(2)? })
}

#[cfg(test)]
mod tests;
