//! Profiles, the numbers and host names of Pis, and orders to apply a profile.

use piman_core::install::Installation;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::{GROUP_OF, NAME_RANK, ORDERS_KEPT, moment, signed, unsigned};
use crate::images::personalise::profile::{Profile, Secret};
use crate::state::decision::Scope;
use crate::state::{Identity, Ordered, PersonalOrder, StoredProfile, Written};
use crate::sys::clock::now_ms;

/// How everybody is called in the table.
const EVERYBODY: &str = "*";
/// What is open for a Pi by one of its names.
const OPEN: &str = "name IN (?1, ?2, ?3) AND completed_ms IS NULL AND cancelled_ms IS NULL";

fn columns(scope: &Scope) -> (&str, bool) {
    match scope {
        Scope::Server => (EVERYBODY, false),
        Scope::Group(name) => (name, true),
        Scope::Device(name) => (name, false),
    }
}

/// What cannot be read is of a newer piman, or damaged: an error, and no other profile.
fn read(json: &str) -> rusqlite::Result<Profile> {
    serde_json::from_str(json).map_err(|e| {
        // Its text would repeat a part of the profile.
        let reason = format!("a profile cannot be read ({:?}): set it again", e.classify());
        rusqlite::Error::FromSqlConversionFailure(0, Type::Text, reason.into())
    })
}

pub(super) fn profiles(db: &Connection) -> rusqlite::Result<Vec<StoredProfile>> {
    let mut query = db.prepare_cached(
        "SELECT who, is_group, text, profile, changed_ms, source FROM profiles
         ORDER BY who != ?1 OR is_group, is_group, who",
    )?;
    let rows = query.query_map([EVERYBODY], |row| {
        let (who, is_group): (String, bool) = (row.get(0)?, row.get(1)?);
        let scope = match (who, is_group) {
            (who, true) => Scope::Group(who),
            (who, false) if who == EVERYBODY => Scope::Server,
            (who, false) => Scope::Device(who),
        };
        let (text, json): (String, String) = (row.get(2)?, row.get(3)?);
        let written = Written { text: Secret::new(text), profile: read(&json)? };
        Ok(StoredProfile { scope, written, changed_ms: unsigned(row, 4)?, source: row.get(5)? })
    })?;
    rows.collect()
}

/// Returns the Pi whose number is wanted and in use.
pub(super) fn set(
    db: &mut Connection,
    scope: &Scope,
    written: &Written,
    source: &str,
) -> rusqlite::Result<Option<String>> {
    let work = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let (who, is_group) = columns(scope);
    let json = serde_json::to_string(&written.profile)
        .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    work.execute(
        "INSERT OR REPLACE INTO profiles (who, is_group, text, profile, changed_ms, source)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![who, is_group, written.text.reveal(), json, signed(now_ms()), source],
    )?;
    let wanted = written.profile.device.as_ref().and_then(|device| device.ordinal);
    if let (Scope::Device(_), Some(ordinal)) = (scope, wanted)
        && let Some(other) = give_number(&work, who, ordinal)?
    {
        return Ok(Some(other));
    }
    work.commit()?;
    Ok(None)
}

/// Gives a Pi this number. One that has it by chance and no host name by it gets another one; one that has a host name
/// keeps it and is returned.
fn give_number(work: &Transaction<'_>, name: &str, ordinal: u32) -> rusqlite::Result<Option<String>> {
    let device = key_of(work, name)?;
    let other: Option<(String, Option<String>)> = work
        .query_row(
            "SELECT device, hostname FROM own WHERE ordinal = ?1 AND device != ?2",
            params![ordinal, device],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    match other {
        Some((other, Some(_))) => return Ok(Some(other)),
        Some((other, None)) => work.execute("DELETE FROM own WHERE device = ?1", [other])?,
        None => 0,
    };
    work.execute(
        "INSERT INTO own (device, ordinal) VALUES (?1, ?2) ON CONFLICT (device) DO UPDATE SET ordinal = ?2",
        params![device, ordinal],
    )?;
    Ok(None)
}

/// The key of the device with this name; the name itself of one that was not seen yet.
fn key_of(work: &Transaction<'_>, name: &str) -> rusqlite::Result<String> {
    let key = work
        .query_row(
            "SELECT key FROM devices WHERE key = ?1 OR serial = ?1 OR mac = ?1 OR address = ?1
             ORDER BY key != ?1, last_seen_ms DESC LIMIT 1",
            [name],
            |row| row.get(0),
        )
        .optional()?;
    Ok(key.unwrap_or_else(|| name.to_owned()))
}

pub(super) fn remove(db: &mut Connection, scope: &Scope) -> rusqlite::Result<bool> {
    let work = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let (who, is_group) = columns(scope);
    let mut gone =
        work.execute("DELETE FROM profiles WHERE who = ?1 AND is_group = ?2", params![who, is_group])?;
    if let Scope::Device(name) = scope {
        gone += work.execute("DELETE FROM own WHERE device = ?1", [key_of(&work, name)?])?;
    }
    work.commit()?;
    Ok(gone > 0)
}

/// The profile of a Pi, its group, and its number if it has one.
pub(super) fn facts(
    db: &Connection,
    pi: &Identity,
) -> rusqlite::Result<(Option<Profile>, Option<String>, Option<u32>)> {
    let names = params![pi.serial, pi.mac, pi.address.to_string(), EVERYBODY];
    let mut query = db.prepare_cached(&format!(
        "SELECT profile, 1 AS rank, 0 AS name FROM profiles WHERE NOT is_group AND who = ?4
         UNION ALL SELECT profile, 2, 0 FROM profiles WHERE is_group AND who = {GROUP_OF}
         UNION ALL SELECT profile, 3, {NAME_RANK} FROM profiles WHERE NOT is_group AND who IN (?1, ?2, ?3)
         ORDER BY rank, name DESC"
    ))?;
    let mut profile: Option<Profile> = None;
    let mut rows = query.query(names)?;
    while let Some(row) = rows.next()? {
        let more = read(&row.get::<_, String>(0)?)?;
        profile = Some(profile.unwrap_or_default().under(more));
    }
    let group = db
        .prepare_cached(&format!("SELECT {GROUP_OF}"))?
        .query_row(params![pi.serial, pi.mac, pi.address.to_string()], |row| row.get(0))?;
    let ordinal = db
        .prepare_cached("SELECT ordinal FROM own WHERE device = ?1")?
        .query_row([pi.key()], |row| row.get(0))
        .optional()?;
    Ok((profile, group, ordinal))
}

/// Gives numbers to all Pis that have none, in the order in which they were seen first, and to this one.
pub(super) fn number(db: &mut Connection, pi: &Identity) -> rusqlite::Result<u32> {
    let work = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let key = pi.key();
    // What was set for it before it was seen, by another of its names.
    for name in [pi.mac.as_deref().map(str::to_owned), Some(pi.address.to_string())].into_iter().flatten() {
        if name != key {
            adopt(&work, &key, &name)?;
        }
    }
    work.execute(
        "INSERT OR IGNORE INTO own (device, ordinal)
         SELECT key, (SELECT coalesce(max(ordinal), 0) FROM own)
                + row_number() OVER (ORDER BY first_seen_ms, key)
         FROM devices WHERE key NOT IN (SELECT device FROM own)",
        [],
    )?;
    work.execute(
        "INSERT OR IGNORE INTO own (device, ordinal) SELECT ?1, coalesce(max(ordinal), 0) + 1 FROM own",
        [&key],
    )?;
    let ordinal = work.query_row("SELECT ordinal FROM own WHERE device = ?1", [&key], |row| row.get(0))?;
    work.commit()?;
    Ok(ordinal)
}

/// Returns the Pi that has the name already.
pub(super) fn give_host_name(
    db: &mut Connection,
    pi: &Identity,
    name: &str,
) -> rusqlite::Result<Option<String>> {
    let work = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let key = pi.key();
    let other = work
        .query_row("SELECT device FROM own WHERE hostname = ?1 AND device != ?2", [name, &key], |row| {
            row.get(0)
        })
        .optional()?;
    if other.is_none() {
        work.execute("UPDATE own SET hostname = ?1 WHERE device = ?2", [name, &key])?;
    }
    work.commit()?;
    Ok(other)
}

/// A Pi has said a better name.
pub(super) fn adopt(work: &Connection, key: &str, old: &str) -> rusqlite::Result<()> {
    work.execute("UPDATE OR IGNORE own SET device = ?1 WHERE device = ?2", [key, old])?;
    work.execute("DELETE FROM own WHERE device = ?1", [old])?;
    Ok(())
}

/// The number of a Pi that nobody knows any more; one with a profile or a place in the device list keeps it.
pub(super) fn forget(work: &Connection, key: &str) -> rusqlite::Result<()> {
    work.prepare_cached(
        "DELETE FROM own WHERE device = ?1 AND device NOT IN (SELECT name FROM listed)
            AND device NOT IN (SELECT who FROM profiles WHERE NOT is_group)",
    )?
    .execute([key])?;
    Ok(())
}

pub(super) fn order(db: &mut Connection, name: &str, source: &str) -> rusqlite::Result<Ordered> {
    let work = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let open = work
        .query_row(
            "SELECT ordered_ms, installation IS NOT NULL FROM personal_orders
             WHERE name = ?1 AND completed_ms IS NULL AND cancelled_ms IS NULL",
            [name],
            |row| {
                Ok(Ordered::Already { ordered_ms: unsigned(row, 0)?, claimed: row.get(1)?, rebound: false })
            },
        )
        .optional()?;
    if let Some(already) = open {
        return Ok(already);
    }
    work.execute(
        "INSERT INTO personal_orders (name, ordered_ms, source) VALUES (?1, ?2, ?3)",
        params![name, signed(now_ms()), source],
    )?;
    work.commit()?;
    Ok(Ordered::New)
}

pub(super) fn cancel(db: &Connection, name: &str) -> rusqlite::Result<bool> {
    let cancelled = db.execute(
        "UPDATE personal_orders SET cancelled_ms = ?2
         WHERE name = ?1 AND completed_ms IS NULL AND cancelled_ms IS NULL",
        params![name, signed(now_ms())],
    )?;
    Ok(cancelled > 0)
}

pub(super) fn orders(db: &Connection) -> rusqlite::Result<Vec<PersonalOrder>> {
    let mut query = db.prepare_cached(
        "SELECT id, name, ordered_ms, source, installation, completed_ms, cancelled_ms FROM personal_orders
         ORDER BY id DESC",
    )?;
    let rows = query.query_map([], |row| {
        Ok(PersonalOrder {
            id: row.get(0)?,
            name: row.get(1)?,
            ordered_ms: unsigned(row, 2)?,
            source: row.get(3)?,
            installation: row.get(4)?,
            completed_ms: moment(row, 5)?,
            cancelled_ms: moment(row, 6)?,
        })
    })?;
    rows.collect()
}

pub(super) fn is_ordered(db: &Connection, pi: &Identity) -> rusqlite::Result<bool> {
    db.prepare_cached(&format!("SELECT EXISTS (SELECT 1 FROM personal_orders WHERE {OPEN})"))?
        .query_row(params![pi.serial, pi.mac, pi.address.to_string()], |row| row.get(0))
}

pub(super) fn begin(
    db: &mut Connection,
    pi: &Identity,
    number: Installation,
) -> rusqlite::Result<Option<Installation>> {
    let work = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let (serial, mac, address) = (&pi.serial, &pi.mac, pi.address.to_string());
    let begun = work.execute(
        &format!("UPDATE personal_orders SET installation = coalesce(installation, ?4) WHERE {OPEN}"),
        params![serial, mac, address, number.to_string()],
    )?;
    if begun == 0 {
        return Ok(None);
    }
    // Several, by several names, are one from now on.
    let first: String = work.query_row(
        &format!("SELECT installation FROM personal_orders WHERE {OPEN} ORDER BY id LIMIT 1"),
        params![serial, mac, address],
        |row| row.get(0),
    )?;
    work.execute(
        &format!("UPDATE personal_orders SET installation = ?4 WHERE {OPEN}"),
        params![serial, mac, address, first],
    )?;
    work.commit()?;
    Ok(Some(Installation::parse(&first).unwrap_or(number)))
}

pub(super) fn complete(work: &Connection, done: &[(Identity, u64)]) -> rusqlite::Result<()> {
    for (pi, until) in done {
        work.prepare_cached(&format!(
            "UPDATE personal_orders SET completed_ms = ?4 WHERE {OPEN} AND ordered_ms <= ?5"
        ))?
        .execute(params![
            pi.serial,
            pi.mac,
            pi.address.to_string(),
            signed(now_ms()),
            signed(*until)
        ])?;
    }
    if !done.is_empty() {
        work.execute(
            "DELETE FROM personal_orders WHERE id <= (SELECT max(id) FROM personal_orders) - ?1
             AND (completed_ms IS NOT NULL OR cancelled_ms IS NOT NULL)",
            [ORDERS_KEPT],
        )?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "personal/tests.rs"]
mod tests;
