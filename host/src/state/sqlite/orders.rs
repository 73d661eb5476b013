//! Orders to reinstall.

use piman_core::install::Installation;
use rusqlite::{Connection, OptionalExtension, params};

use super::{durably, moment, signed, unsigned};
use crate::state::{Identity, OpenOrder, Order, Ordered};
use crate::sys::clock::now_ms;

/// Those that are open for this Pi, by any of its names; one that was given to another Pi,
/// which had the address at that time, is that one's.
pub(super) fn open(db: &Connection, pi: &Identity) -> rusqlite::Result<Vec<OpenOrder>> {
    let mut query = db.prepare_cached(
        "SELECT id, ordered_ms, given_ms IS NOT NULL, installation FROM orders
         WHERE name IN (?1, ?2, ?3) AND completed_ms IS NULL AND cancelled_ms IS NULL
         AND (given_to IS NULL OR given_to IN (?1, ?2, ?3))",
    )?;
    let rows = query.query_map(params![pi.serial, pi.mac, pi.address.to_string()], |row| {
        let number: Option<String> = row.get(3)?;
        Ok(OpenOrder {
            id: row.get(0)?,
            ordered_ms: unsigned(row, 1)?,
            given: row.get(2)?,
            installation: number.as_deref().and_then(Installation::parse),
        })
    })?;
    rows.collect()
}

/// Brought to the disk at once: after a power cut, too, it is known which installation is
/// the one that was ordered.
pub(super) fn give(
    db: &mut Connection,
    given: &[OpenOrder],
    pi: &Identity,
    number: Installation,
) -> rusqlite::Result<()> {
    durably(db, |work| {
        for order in given {
            work.execute(
                "UPDATE orders SET given_ms = coalesce(given_ms, ?3), given_to = ?4, installation = ?5
                 WHERE id = ?1 AND ordered_ms = ?2",
                params![order.id, signed(order.ordered_ms), signed(now_ms()), pi.key(), number.to_string()],
            )?;
        }
        Ok(())
    })
}

pub(super) fn order(db: &mut Connection, name: &str, source: &str) -> rusqlite::Result<Ordered> {
    durably(db, |work| {
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
        Ok(Ordered::New)
    })
}

pub(super) fn cancel(db: &mut Connection, name: &str) -> rusqlite::Result<bool> {
    let changed = durably(db, |work| {
        work.execute(
            "UPDATE orders SET cancelled_ms = ?2
         WHERE name = ?1 AND completed_ms IS NULL AND cancelled_ms IS NULL",
            params![name, signed(now_ms())],
        )
    })?;
    Ok(changed > 0)
}

pub(super) fn all(db: &Connection) -> rusqlite::Result<Vec<Order>> {
    let mut query = db.prepare_cached(
        "SELECT id, name, ordered_ms, source, given_ms, completed_ms, cancelled_ms, given_to, installation
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
            given_to: row.get(7)?,
            installation: row.get(8)?,
        })
    })?;
    rows.collect()
}
