//! The state as an SQLite database in a folder.
//!
//! | file | what lives there |
//! |---|---|
//! | `open`, `tables` | opening it, and its tables |
//! | `save` | what happened |
//! | `kept` | how much is kept, and what goes first |
//! | `keys` | the keys of Pis, and who waits for an operator because of his |
//! | `orders` | orders to reinstall, and the claims of Pis on them |
//! | `rules` | what happens by what is on a disk |
//! | `listed` | the device list: who is served with `--only-known` |
//! | `preview` | a look at it that changes nothing |
//! | `personal` | profiles, the numbers and host names of Pis, orders to apply profiles |
//! | `catalogue` | images, who gets which, and what is known of archives |

mod catalogue;
mod kept;
mod keys;
mod listed;
mod open;
mod orders;
mod personal;
mod preview;
mod rules;
mod save;
mod tables;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use piman_core::hash::Hash;
use piman_core::install::trust::PublicKey;
use piman_core::install::{Fingerprint, Installation};
use rusqlite::{Connection, Row, ffi};

use super::private;
use super::{
    About, Batch, Catalogue, Device, DeviceEvent, Edit, Identity, Listed, ListedPi, OpenOrder, Order,
    Ordered, PersonalFacts, PersonalOrder, State, StateError, StoredProfile, Written,
};
use crate::state::archive_facts::{Content, Stamp};
use crate::state::decision::{Ask, Cancelled, Claimed, Policy, Rule, Scope};
use crate::state::keys::{Keys, PendingKey, PinnedKey};
use crate::sys::lock::lock;
use open::{Check, inode, open, open_or_replace, read_only, sort};
pub use preview::preview;
use save::save;
use tables::NEEDED;

/// The name of the database in the state folder.
pub const FILE: &str = "piman.db";

/// The group of a Pi with the names ?1 (serial number), ?2 (MAC address) and ?3 (IP address): that of its best name.
const GROUP_OF: &str = "(SELECT family FROM members WHERE device IN (?1, ?2, ?3)
     ORDER BY CASE device WHEN ?1 THEN 1 WHEN ?2 THEN 2 ELSE 3 END LIMIT 1)";
/// How good a name of a Pi in the column `who` is, 1 is the best.
const NAME_RANK: &str = "CASE who WHEN ?1 THEN 1 WHEN ?2 THEN 2 ELSE 3 END";

/// How many events of a device are kept.
const HAPPENINGS_KEPT: i64 = 500;
/// How many devices are kept.
const DEVICES_KEPT: i64 = 20_000;
/// How many orders that are over are kept.
const ORDERS_KEPT: i64 = 5_000;

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
        private::prepare(folder).map_err(|e| read_only(folder, &e))?;
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

    fn is_given(&self, pi: &Identity, image: Hash, number: Option<Installation>) -> Result<bool, StateError> {
        self.read(|db| orders::is_given(db, pi, (image, number)))
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

    fn keys_of(&self, pi: &Identity) -> Result<Keys, StateError> {
        self.read(|db| keys::of(db, pi))
    }

    fn pinned_keys(&self) -> Result<Vec<PinnedKey>, StateError> {
        self.read(keys::all)
    }

    fn pin(&self, device: &str, key: PublicKey, source: &str, replaces: bool) -> Result<bool, StateError> {
        self.write_durably(|db| keys::pin(db, device, key, (source, replaces)))
    }

    fn forget_key(&self, device: &str) -> Result<bool, StateError> {
        self.write_durably(|db| keys::forget(db, device))
    }

    fn pending_keys(&self) -> Result<Vec<PendingKey>, StateError> {
        self.read(keys::pending)
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
