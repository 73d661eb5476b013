//! The state as an SQLite database in a folder.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, params};

use super::{
    Batch, Change, Device, Happening, Identity, OpenOrder, Order, Ordered, State, StateError, now_ms,
};

/// The name of the database in the state folder.
pub const FILE: &str = "piman.db";

/// The version of the tables below.
const FORMAT: i64 = 1;
/// How many happenings of a device are kept.
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
    last_error TEXT, last_error_ms INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS orders (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, ordered_ms INTEGER NOT NULL,
    source TEXT NOT NULL, given_ms INTEGER, completed_ms INTEGER, cancelled_ms INTEGER
);
CREATE UNIQUE INDEX IF NOT EXISTS open_orders ON orders (name)
    WHERE completed_ms IS NULL AND cancelled_ms IS NULL;
CREATE TABLE IF NOT EXISTS happenings (
    id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL, text TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS happenings_of ON happenings (device, id);
CREATE TABLE IF NOT EXISTS troubles (kind TEXT PRIMARY KEY, at_ms INTEGER NOT NULL, text TEXT NOT NULL);
";

/// A state folder's database. Readers and the writer have a connection each: with a write-ahead
/// log they do not wait for each other, and neither waits for `piman reinstall`.
pub struct Sqlite {
    file: PathBuf,
    reader: Mutex<Connection>,
    writer: Mutex<Writer>,
}

struct Writer {
    connection: Connection,
    /// Which file it is that is open, to notice that it was deleted or replaced.
    inode: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        let inode = inode(&file);
        Ok(Self {
            file,
            reader: Mutex::new(reader),
            writer: Mutex::new(Writer { connection: writer, inode }),
        })
    }

    /// Opens the state in `folder` for a command beside a server: nothing is made or repaired.
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
        let (reader, writer) = open(&file)?;
        let inode = inode(&file);
        Ok(Self {
            file,
            reader: Mutex::new(reader),
            writer: Mutex::new(Writer { connection: writer, inode }),
        })
    }

    fn error(&self, source: rusqlite::Error) -> StateError {
        sort(&self.file, source)
    }

    fn read<T>(&self, f: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StateError> {
        f(&lock(&self.reader)).map_err(|e| self.error(e))
    }

    fn write<T>(&self, f: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, StateError> {
        f(&mut lock(&self.writer).connection).map_err(|e| self.error(e))
    }

    /// Goes on with a new database: the old one is gone, or damaged and moved aside.
    fn reopen(&self) -> Result<(), StateError> {
        let mut writer = lock(&self.writer);
        // What the old connections know of the file would disturb the new ones. Should there
        // be no new ones, these have no tables, and the next call ends here again.
        let nothing = || Connection::open_in_memory().map_err(|e| self.error(e));
        writer.connection = nothing()?;
        *lock(&self.reader) = nothing()?;
        let (new_reader, new_writer) = open_or_replace(&self.file)?;
        writer.connection = new_writer;
        *lock(&self.reader) = new_reader;
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

/// Whether an error has nothing to do with the file's content.
fn passes(cause: &rusqlite::Error) -> bool {
    let code = cause.sqlite_error_code();
    code == Some(ErrorCode::DiskFull)
}

/// Sorts what SQLite says by what to do about it.
fn sort(file: &Path, cause: rusqlite::Error) -> StateError {
    let path = file.display().to_string();
    let tables_are_gone = cause.to_string().contains("no such table");
    match cause.sqlite_error_code() {
        _ if tables_are_gone => StateError::Damaged { path, cause },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StateError::Damaged { path, cause },
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            StateError::ReadOnly { path, reason: cause.to_string() }
        }
        _ => StateError::Other { path, cause },
    }
}

fn open_or_replace(file: &Path) -> Result<(Connection, Connection), StateError> {
    let damage = match open(file) {
        Err(e @ StateError::Damaged { .. }) => e,
        other => return other,
    };
    let aside = file.with_extension(format!("damaged-{}", now_ms()));
    fs::rename(file, &aside).map_err(|e| read_only(file, &e))?;
    for log in ["db-wal", "db-shm"] {
        // The log of the damaged database must not be replayed into the new one.
        let _ = fs::rename(file.with_extension(log), aside.with_extension(format!("{log}-{}", now_ms())));
    }
    log::error!(
        "{damage}; it is kept as {}, and a new one is begun: reinstalls that were ordered have to be ordered again",
        aside.display()
    );
    open(file)
}

fn open(file: &Path) -> Result<(Connection, Connection), StateError> {
    let connect = |wait: Duration| -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(file, flags)?;
        connection.busy_timeout(wait)?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -256;",
        )?;
        Ok(connection)
    };
    let check = |connection: &Connection| -> rusqlite::Result<i64> {
        let found = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let sound: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if sound == "ok" {
            return Ok(found);
        }
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        Err(rusqlite::Error::SqliteFailure(code, Some(sound)))
    };
    let writer = connect(WRITER_WAIT).map_err(|e| sort(file, e))?;
    let found = check(&writer).map_err(|e| sort(file, e))?;
    if found > FORMAT {
        return Err(StateError::Newer { path: file.display().to_string(), found, known: FORMAT });
    }
    let tables =
        "SELECT count(*) FROM sqlite_schema WHERE name IN ('devices', 'orders', 'happenings', 'troubles')";
    let tables: i64 = writer.query_row(tables, [], |row| row.get(0)).map_err(|e| sort(file, e))?;
    if found < FORMAT || tables < 4 {
        let make = || {
            writer.execute_batch(TABLES)?;
            writer.pragma_update(None, "user_version", FORMAT)
        };
        make().map_err(|e| sort(file, e))?;
    }
    let reader = connect(READER_WAIT).map_err(|e| sort(file, e))?;
    Ok((reader, writer))
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
        let address = pi.address.to_string();
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT id, ordered_ms, given_ms IS NOT NULL FROM orders
                 WHERE name IN (?1, ?2, ?3) AND completed_ms IS NULL AND cancelled_ms IS NULL",
            )?;
            let rows = query.query_map(params![pi.serial, pi.mac, address], |row| {
                Ok(OpenOrder { id: row.get(0)?, ordered_ms: unsigned(row, 1)?, given: row.get(2)? })
            })?;
            rows.collect()
        })
    }

    fn save(&self, batch: &Batch) -> Result<(), StateError> {
        let known = lock(&self.writer).inode;
        if inode(&self.file) != known {
            log::error!("{} was removed or replaced: going on with what is there now", self.file.display());
            self.reopen()?;
        }
        match self.write(|db| save(db, batch)) {
            // Read errors too may be those of a file that was cut or overwritten under a
            // connection: a new one finds out.
            Err(StateError::Damaged { .. }) => self.reopen()?,
            Err(StateError::Other { cause, .. }) if !passes(&cause) => self.reopen()?,
            saved => return saved,
        }
        self.write(|db| save(db, batch))
    }

    fn order(&self, name: &str, source: &str) -> Result<Ordered, StateError> {
        self.write(|db| {
            let work = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let open = work
                .query_row(
                    "SELECT ordered_ms, given_ms IS NOT NULL FROM orders
                     WHERE name = ?1 AND completed_ms IS NULL AND cancelled_ms IS NULL",
                    [name],
                    |row| Ok(Ordered::Already { ordered_ms: unsigned(row, 0)?, given: row.get(1)? }),
                )
                .optional()?;
            if let Some(already) = open {
                return Ok(already);
            }
            work.execute(
                "INSERT INTO orders (name, ordered_ms, source) VALUES (?1, ?2, ?3)",
                params![name, signed(now_ms()), source],
            )?;
            work.commit()?;
            Ok(Ordered::New)
        })
    }

    fn cancel(&self, name: &str) -> Result<bool, StateError> {
        self.write(|db| {
            let changed = db.execute(
                "UPDATE orders SET cancelled_ms = ?2
                 WHERE name = ?1 AND completed_ms IS NULL AND cancelled_ms IS NULL",
                params![name, signed(now_ms())],
            )?;
            Ok(changed > 0)
        })
    }

    fn orders(&self) -> Result<Vec<Order>, StateError> {
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT id, name, ordered_ms, source, given_ms, completed_ms, cancelled_ms
                 FROM orders ORDER BY id DESC",
            )?;
            let rows = query.query_map([], |row| {
                Ok(Order {
                    id: row.get(0)?,
                    name: row.get(1)?,
                    ordered_ms: unsigned(row, 2)?,
                    source: row.get(3)?,
                    given_ms: moment(row, 4)?,
                    completed_ms: moment(row, 5)?,
                    cancelled_ms: moment(row, 6)?,
                })
            })?;
            rows.collect()
        })
    }

    fn devices(&self) -> Result<Vec<Device>, StateError> {
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT key, serial, mac, address, model, agent, disk_bytes, root_bytes, card, stage,
                    done_bytes, total_bytes, image, first_seen_ms, last_seen_ms, last_error, last_error_ms,
                    EXISTS (SELECT 1 FROM orders WHERE name IN (serial, mac, address)
                        AND completed_ms IS NULL AND cancelled_ms IS NULL)
                 FROM devices ORDER BY last_seen_ms DESC, key",
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
                    reinstall_ordered: row.get(17)?,
                })
            })?;
            rows.collect()
        })
    }

    fn happenings(&self, key: &str) -> Result<Vec<Happening>, StateError> {
        self.read(|db| {
            let mut query =
                db.prepare_cached("SELECT at_ms, kind, text FROM happenings WHERE device = ?1 ORDER BY id")?;
            query.query_map([key], happening)?.collect()
        })
    }

    fn troubles(&self) -> Result<Vec<Happening>, StateError> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT at_ms, kind, text FROM troubles ORDER BY at_ms")?;
            query.query_map([], happening)?.collect()
        })
    }
}

fn happening(row: &Row<'_>) -> rusqlite::Result<Happening> {
    Ok(Happening { at_ms: unsigned(row, 0)?, kind: row.get(1)?, text: row.get(2)? })
}

fn save(db: &mut Connection, batch: &Batch) -> rusqlite::Result<()> {
    let work = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for change in &batch.changes {
        save_change(&work, change)?;
    }
    for (order, at) in &batch.given {
        work.prepare_cached(
            "UPDATE orders SET given_ms = coalesce(given_ms, ?3) WHERE id = ?1 AND ordered_ms = ?2",
        )?
        .execute(params![order.id, signed(order.ordered_ms), signed(*at)])?;
    }
    for (order, at) in &batch.completed {
        work.prepare_cached(
            "UPDATE orders SET completed_ms = coalesce(completed_ms, ?3) WHERE id = ?1 AND ordered_ms = ?2",
        )?
        .execute(params![order.id, signed(order.ordered_ms), signed(*at)])?;
    }
    if !batch.completed.is_empty() {
        work.execute(
            "DELETE FROM orders WHERE id <= (SELECT max(id) FROM orders) - ?1
             AND (completed_ms IS NOT NULL OR cancelled_ms IS NOT NULL)",
            [ORDERS_KEPT],
        )?;
    }
    for (kind, text) in &batch.troubles {
        match text {
            Some(text) => work.execute(
                "INSERT OR REPLACE INTO troubles (kind, at_ms, text) VALUES (?1, ?2, ?3)",
                params![kind, signed(now_ms()), text],
            )?,
            None => work.execute("DELETE FROM troubles WHERE kind = ?1", [kind])?,
        };
    }
    work.commit()
}

fn save_change(work: &Connection, change: &Change) -> rusqlite::Result<()> {
    let key = change.identity.key();
    adopt(work, &change.identity, &key)?;
    let (seen, address) = (signed(change.seen_ms), change.identity.address.to_string());
    let new = work
        .prepare_cached(
            "INSERT INTO devices (key, address, first_seen_ms, last_seen_ms) VALUES (?1, ?2, ?3, ?3)
             ON CONFLICT (key) DO NOTHING",
        )?
        .execute(params![key, address, seen])?;
    let (done, total) = change.progress.unwrap_or_default();
    let (error, error_given) = (change.error.clone().flatten(), change.error.is_some());
    work.prepare_cached(
        "UPDATE devices SET serial = coalesce(?2, serial), mac = coalesce(?3, mac), address = ?4,
            last_seen_ms = max(last_seen_ms, ?5), stage = coalesce(?6, stage),
            done_bytes = iif(?7, ?8, done_bytes), total_bytes = iif(?7, ?9, total_bytes),
            image = coalesce(?10, image), last_error = iif(?11, ?12, last_error),
            last_error_ms = iif(?11, iif(?12 IS NULL, NULL, ?5), last_error_ms)
         WHERE key = ?1",
    )?
    .execute(params![
        key,
        change.identity.serial,
        change.identity.mac,
        address,
        seen,
        change.stage,
        change.progress.is_some(),
        signed(done),
        signed(total),
        change.image.map(|id| id.to_string()),
        error_given,
        error,
    ])?;
    if let Some(facts) = &change.facts {
        work.prepare_cached(
            "UPDATE devices SET model = coalesce(?2, model), agent = coalesce(?3, agent), card = ?4,
                disk_bytes = iif(?5 > 0, ?5, disk_bytes), root_bytes = iif(?6 > 0, ?6, root_bytes)
             WHERE key = ?1",
        )?
        .execute(params![
            key,
            facts.model,
            facts.agent,
            facts.card.map(|id| id.to_string()),
            signed(facts.disk_bytes),
            signed(facts.root_bytes),
        ])?;
    }
    for h in &change.happenings {
        work.prepare_cached("INSERT INTO happenings (device, at_ms, kind, text) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![key, signed(h.at_ms), h.kind, h.text])?;
    }
    if !change.happenings.is_empty() {
        work.prepare_cached(
            "DELETE FROM happenings WHERE device = ?1 AND id <=
                (SELECT id FROM happenings WHERE device = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        )?
        .execute(params![key, HAPPENINGS_KEPT])?;
    }
    if new > 0 { forget_the_oldest(work) } else { Ok(()) }
}

/// A Pi that was known by its address or hardware address only has said its name.
fn adopt(work: &Connection, pi: &Identity, key: &str) -> rusqlite::Result<()> {
    if pi.serial.is_none() && pi.mac.is_none() {
        return Ok(());
    }
    let by_address = Some(pi.address.to_string());
    let by_mac = pi.serial.as_ref().and(pi.mac.as_ref()).map(|mac| mac.to_string());
    for old in [by_address, by_mac].into_iter().flatten() {
        let gone = work.prepare_cached("DELETE FROM devices WHERE key = ?1")?.execute([&old])?;
        if gone > 0 {
            work.execute("UPDATE happenings SET device = ?1 WHERE device = ?2", [key, &old])?;
        }
    }
    Ok(())
}

fn forget_the_oldest(work: &Connection) -> rusqlite::Result<()> {
    let count: i64 = work.prepare_cached("SELECT count(*) FROM devices")?.query_row([], |row| row.get(0))?;
    if count <= DEVICES_KEPT {
        return Ok(());
    }
    // A tenth at once, so that it is not done for every new device.
    work.execute(
        "DELETE FROM devices WHERE key IN (SELECT key FROM devices ORDER BY last_seen_ms LIMIT ?1)",
        [DEVICES_KEPT / 10],
    )?;
    work.execute("DELETE FROM happenings WHERE device NOT IN (SELECT key FROM devices)", [])?;
    Ok(())
}
