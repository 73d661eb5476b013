//! The tables, and what brings those of an older piman up to date.

/// The version of the tables.
pub(super) const FORMAT: i64 = 6;

/// The tables.
pub(super) const TABLES: &str = "
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
CREATE INDEX IF NOT EXISTS devices_at ON devices (address);
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
CREATE TABLE IF NOT EXISTS given (device TEXT PRIMARY KEY, installation TEXT NOT NULL, image TEXT);
CREATE TABLE IF NOT EXISTS keys (
    device TEXT PRIMARY KEY, key TEXT NOT NULL, pinned_ms INTEGER NOT NULL, source TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS pending_keys (
    device TEXT NOT NULL, key TEXT NOT NULL, address TEXT NOT NULL, first_ms INTEGER NOT NULL,
    last_ms INTEGER NOT NULL, PRIMARY KEY (device, key)
);
";

/// What turns tables of format 1 into those of 2.
pub(super) const FROM_1: &str = "
ALTER TABLE orders ADD COLUMN given_to TEXT;
ALTER TABLE orders ADD COLUMN installation TEXT;
";
/// What turns tables of format 2 into those of 3, before what is missing is made; 4 has one more table alone.
pub(super) const FROM_2: &str = "
ALTER TABLE orders RENAME COLUMN given_ms TO claimed_ms;
ALTER TABLE orders RENAME COLUMN given_to TO claimed_by;
ALTER TABLE orders ADD COLUMN print TEXT;
ALTER TABLE devices ADD COLUMN found TEXT;
ALTER TABLE devices ADD COLUMN disk TEXT;
ALTER TABLE devices ADD COLUMN print TEXT;
ALTER TABLE devices ADD COLUMN waits TEXT;
";
/// The same for the tables that format 1 did not have.
pub(super) const IMAGES_FROM_2: &str = "
ALTER TABLE images ADD COLUMN takes_unfit INTEGER NOT NULL DEFAULT 0;
ALTER TABLE archives ADD COLUMN fitness TEXT NOT NULL DEFAULT '';
";

/// What turns the table of images of formats 2 to 4 into that of 5; the other tables of 5 and 6 are new.
pub(super) const IMAGES_FROM_4: &str = "
ALTER TABLE images ADD COLUMN description TEXT;
ALTER TABLE images ADD COLUMN release TEXT;
ALTER TABLE images ADD COLUMN boot TEXT;
ALTER TABLE images ADD COLUMN boot_bytes INTEGER;
";

/// The tables without which there is no state.
pub(super) const NEEDED: &str =
    "SELECT count(*) = 4 FROM sqlite_schema WHERE name IN ('devices', 'orders', 'happenings', 'troubles')";
