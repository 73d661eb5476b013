//! The state as an older piman left it.

use std::path::Path;

/// Its tables, in the first format.
const TABLES: &str = "
    CREATE TABLE devices (key TEXT PRIMARY KEY, serial TEXT, mac TEXT, address TEXT NOT NULL, model TEXT,
        agent TEXT, disk_bytes INTEGER NOT NULL DEFAULT 0, root_bytes INTEGER NOT NULL DEFAULT 0, card TEXT,
        stage TEXT, done_bytes INTEGER NOT NULL DEFAULT 0, total_bytes INTEGER NOT NULL DEFAULT 0, image TEXT,
        first_seen_ms INTEGER NOT NULL, last_seen_ms INTEGER NOT NULL, last_error TEXT, last_error_ms INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE orders (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL,
        ordered_ms INTEGER NOT NULL, source TEXT NOT NULL, given_ms INTEGER, completed_ms INTEGER,
        cancelled_ms INTEGER);
    CREATE TABLE happenings (id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL,
        at_ms INTEGER NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
    CREATE TABLE troubles (kind TEXT PRIMARY KEY, at_ms INTEGER NOT NULL, text TEXT NOT NULL);
    PRAGMA user_version = 1;";

/// Makes it in `folder`, with what this SQL puts there; returns the open database.
///
/// # Panics
/// If it cannot be made.
#[must_use]
pub fn begun(folder: &Path, rows: &str) -> rusqlite::Connection {
    let database = rusqlite::Connection::open(folder.join("piman.db")).expect("a database");
    database.execute_batch(TABLES).expect("its tables");
    database.execute_batch(rows).expect("its rows");
    database
}
