//! Orders to reinstall.

use std::fmt::Write as _;

use piman_core::hash::Hash;
use piman_core::install::{Fingerprint, Installation};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::{moment, signed, unsigned};
use crate::state::decision::{Ask, Cancelled, Claimed};
use crate::state::{Identity, OpenOrder, Order, Ordered};
use crate::sys::clock::now_ms;

/// No disk has it: agents make theirs by a hash.
const NOWHERE: Option<Fingerprint> = Fingerprint::new(u64::MAX);

/// Those that are open for this Pi, by any of its names; one that was given to another Pi,
/// which had the address at that time, is that one's.
pub(super) fn open(db: &Connection, pi: &Identity) -> rusqlite::Result<Vec<OpenOrder>> {
    let mut query = db.prepare_cached(
        "SELECT id, ordered_ms, claimed_ms IS NOT NULL, installation, print FROM orders
         WHERE name IN (?1, ?2, ?3) AND completed_ms IS NULL AND cancelled_ms IS NULL
         AND (claimed_by IS NULL OR claimed_by IN (?1, ?2, ?3))",
    )?;
    let rows = query.query_map(params![pi.serial, pi.mac, pi.address.to_string()], |row| {
        let (number, print): (Option<String>, Option<String>) = (row.get(3)?, row.get(4)?);
        // What cannot be read stands for a content that is nowhere: such an order erases nothing.
        let print = print.and_then(|print| Fingerprint::parse(&print).or(NOWHERE));
        Ok(OpenOrder {
            id: row.get(0)?,
            ordered_ms: unsigned(row, 1)?,
            claimed: row.get(2)?,
            installation: number.as_deref().and_then(Installation::parse),
            print,
        })
    })?;
    rows.collect()
}

/// Claims the orders that allow what is on the disk, records why, or says that there is nothing to claim.
pub(super) fn claim(db: &mut Connection, ask: &Ask<'_>) -> rusqlite::Result<Option<Claimed>> {
    let work = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut orders = open(&work, ask.pi)?;
    // What is installed by policy carries out what was ordered for whatever is on the disk, too.
    orders
        .retain(|order| order.allows(ask.found, ask.print) || ask.policy.is_some() && order.print.is_none());
    if orders.is_empty() && ask.policy.is_none() {
        return Ok(None);
    }
    // The installation that was begun first names it, however often it has to be tried.
    let number = orders.iter().find_map(|order| order.installation).unwrap_or(ask.number);
    let now = signed(now_ms());
    let mut reason = String::new();
    for order in &orders {
        work.execute(
            "UPDATE orders SET claimed_ms = coalesce(claimed_ms, ?2), claimed_by = ?3, installation = ?4
             WHERE id = ?1",
            params![order.id, now, ask.pi.key(), number.to_string()],
        )?;
        let (name, source): (String, String) =
            work.query_row("SELECT name, source FROM orders WHERE id = ?1", [order.id], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        // Writing to a string does not fail.
        let _ = write!(reason, "order {} for {name} by {source}; ", order.id);
    }
    if let (true, Some(policy)) = (orders.is_empty(), ask.policy) {
        let _ = write!(reason, "{policy}; ");
    }
    let _ = write!(reason, "on the disk: {}", ask.found.map_or("not reported", |found| found.word()));
    if !ask.disk.is_empty() {
        let _ = write!(reason, " ({})", ask.disk);
    }
    if let Some(print) = ask.print {
        let _ = write!(reason, ", fingerprint {print}");
    }
    work.execute(
        "INSERT OR REPLACE INTO given (device, installation, image) VALUES (?1, ?2, ?3)",
        params![ask.pi.key(), number.to_string(), ask.image.map(|image| image.to_string())],
    )?;
    work.execute(
        "INSERT INTO happenings (device, at_ms, kind, text) VALUES (?1, ?2, 'reason', ?3)",
        params![ask.pi.key(), now, format!("may be formatted as installation {number}: {reason}")],
    )?;
    work.commit()?;
    Ok(Some(Claimed { number, orders: orders.len(), reason }))
}

/// Whether this Pi was given this image last, as this installation. A Pi that knows no installations says none.
pub(super) fn is_given(
    db: &Connection,
    pi: &Identity,
    (image, number): (Hash, Option<Installation>),
) -> rusqlite::Result<bool> {
    let given = params![pi.key(), number.map(|n| n.to_string()), image.to_string()];
    db.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM given WHERE device = ?1 AND (?2 IS NULL OR installation = ?2)
            AND (image IS NULL OR image = ?3))",
    )?
    .query_row(given, |row| row.get(0))
}

pub(super) fn order(
    db: &mut Connection,
    name: &str,
    source: &str,
    print: Option<Fingerprint>,
) -> rusqlite::Result<Ordered> {
    let work = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let print = print.map(|print| print.to_string());
    let open = work
        .query_row(
            "SELECT id, ordered_ms, claimed_ms IS NOT NULL, print FROM orders
             WHERE name = ?1 AND completed_ms IS NULL AND cancelled_ms IS NULL",
            [name],
            |row| {
                let before: Option<String> = row.get(3)?;
                let rebound = print.is_some() && print != before;
                let already =
                    Ordered::Already { ordered_ms: unsigned(row, 1)?, claimed: row.get(2)?, rebound };
                Ok((row.get::<_, i64>(0)?, already))
            },
        )
        .optional()?;
    if let Some((id, already)) = open {
        // Who has seen what is on the disk now decides for that.
        if let Ordered::Already { rebound: true, .. } = already {
            work.execute(
                "UPDATE orders SET print = ?2, source = ?3 WHERE id = ?1",
                params![id, print, source],
            )?;
            work.commit()?;
        }
        return Ok(already);
    }
    work.execute(
        "INSERT INTO orders (name, ordered_ms, source, print) VALUES (?1, ?2, ?3, ?4)",
        params![name, signed(now_ms()), source, print],
    )?;
    work.commit()?;
    Ok(Ordered::New)
}

pub(super) fn cancel(db: &mut Connection, name: &str) -> rusqlite::Result<Cancelled> {
    let work = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let begun = work
        .query_row(
            "SELECT claimed_ms, claimed_by FROM orders
             WHERE name = ?1 AND completed_ms IS NULL AND cancelled_ms IS NULL",
            [name],
            |row| Ok((moment(row, 0)?, row.get::<_, Option<String>>(1)?)),
        )
        .optional()?;
    let Some((since_ms, by)) = begun else { return Ok(Cancelled::NoOrder) };
    work.execute(
        "UPDATE orders SET cancelled_ms = ?2
         WHERE name = ?1 AND completed_ms IS NULL AND cancelled_ms IS NULL",
        params![name, signed(now_ms())],
    )?;
    work.commit()?;
    Ok(match since_ms {
        Some(since_ms) => Cancelled::Begun { by: by.unwrap_or_else(|| name.to_owned()), since_ms },
        None => Cancelled::Yes,
    })
}

pub(super) fn all(db: &Connection) -> rusqlite::Result<Vec<Order>> {
    let mut query = db.prepare_cached(
        "SELECT id, name, ordered_ms, source, claimed_ms, completed_ms, cancelled_ms, claimed_by, installation,
            print FROM orders ORDER BY id DESC",
    )?;
    let rows = query.query_map([], |row| {
        Ok(Order {
            id: row.get(0)?,
            name: row.get(1)?,
            ordered_ms: unsigned(row, 2)?,
            source: row.get(3)?,
            claimed_ms: moment(row, 4)?,
            completed_ms: moment(row, 5)?,
            cancelled_ms: moment(row, 6)?,
            claimed_by: row.get(7)?,
            installation: row.get(8)?,
            print: row.get(9)?,
        })
    })?;
    rows.collect()
}
