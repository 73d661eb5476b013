//! Writing what happened, in one transaction.

use rusqlite::{Connection, params};

use super::{HAPPENINGS_KEPT, ORDERS_KEPT, kept, keys, personal, signed};
use crate::state::{Batch, Change, Identity};
use crate::sys::clock::now_ms;

pub(super) fn save(db: &mut Connection, batch: &Batch) -> rusqlite::Result<()> {
    let work = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for change in &batch.changes {
        save_change(&work, change)?;
    }
    let events = batch.changes.iter().map(|change| change.events.len()).sum();
    if events > 0 {
        kept::forget_events(&work, events)?;
    }
    for (order, at) in &batch.completed {
        work.prepare_cached(
            "UPDATE orders SET completed_ms = coalesce(completed_ms, ?3) WHERE id = ?1 AND ordered_ms = ?2",
        )?
        .execute(params![order.id, signed(order.ordered_ms), signed(*at)])?;
    }
    personal::complete(&work, &batch.personalised)?;
    if !batch.completed.is_empty() {
        work.execute(
            "DELETE FROM orders WHERE id <= (SELECT max(id) FROM orders) - ?1
             AND (completed_ms IS NOT NULL OR cancelled_ms IS NOT NULL)",
            [ORDERS_KEPT],
        )?;
    }
    for pending in &batch.pending_keys {
        keys::note_pending(&work, pending)?;
    }
    for (kind, text) in &batch.alerts {
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
    if !change.is_proven && keys::is_pinned(work, &key)? {
        let from = format!(" (not proven, from {})", change.identity.address);
        return save_events(work, &key, change, &from);
    }
    adopt(work, &change.identity, &key)?;
    let (seen, address) = (signed(change.seen_ms), change.identity.address.to_string());
    let new = work
        .prepare_cached(
            "INSERT INTO devices (key, address, first_seen_ms, last_seen_ms) VALUES (?1, ?2, ?3, ?3)
             ON CONFLICT (key) DO NOTHING",
        )?
        .execute(params![key, address, seen])?;
    // First: another disk forgets what the one before was, and what it is comes after it.
    if let Some(facts) = &change.facts {
        work.prepare_cached(
            "UPDATE devices SET model = coalesce(?2, model), agent = coalesce(?3, agent), card = ?4,
                disk_bytes = iif(?5 > 0, ?5, disk_bytes), root_bytes = iif(?6 > 0, ?6, root_bytes),
                disk = iif(found IS ?7 AND print IS ?8, disk, NULL), found = ?7, print = ?8
             WHERE key = ?1",
        )?
        .execute(params![
            key,
            facts.model,
            facts.agent,
            facts.card.map(|id| id.to_string()),
            signed(facts.disk_bytes),
            signed(facts.root_bytes),
            facts.found.map(|found| found.word()),
            facts.print.map(|print| print.to_string()),
        ])?;
    }
    let (done, total) = change.progress.unwrap_or_default();
    let (error, error_given) = (change.error.clone().flatten(), change.error.is_some());
    work.prepare_cached(
        "UPDATE devices SET serial = coalesce(?2, serial), mac = coalesce(?3, mac), address = ?4,
            last_seen_ms = max(last_seen_ms, ?5), stage = coalesce(?6, stage),
            done_bytes = iif(?7, ?8, done_bytes), total_bytes = iif(?7, ?9, total_bytes),
            image = coalesce(?10, image), last_error = iif(?11, ?12, last_error),
            last_error_ms = iif(?11, iif(?12 IS NULL, NULL, ?5), last_error_ms),
            disk = coalesce(?13, disk), waits = iif(?14, ?15, waits)
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
        change.disk,
        change.waits.is_some(),
        change.waits.clone().flatten(),
    ])?;
    save_events(work, &key, change, "")?;
    if new > 0 { kept::forget_devices(work, &address) } else { Ok(()) }
}

/// Writes what happened, with a remark behind it.
fn save_events(work: &Connection, key: &str, change: &Change, remark: &str) -> rusqlite::Result<()> {
    for h in &change.events {
        work.prepare_cached(
            "INSERT INTO happenings (device, at_ms, kind, text) VALUES (?1, ?2, ?3, ?4 || ?5)",
        )?
        .execute(params![key, signed(h.at_ms), h.kind, h.text, remark])?;
    }
    if !change.events.is_empty() {
        work.prepare_cached(
            "DELETE FROM happenings WHERE device = ?1 AND id <=
                (SELECT id FROM happenings WHERE device = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        )?
        .execute(params![key, HAPPENINGS_KEPT])?;
    }
    Ok(())
}

/// A Pi that was known by its address or hardware address only has said its name.
fn adopt(work: &Connection, pi: &Identity, key: &str) -> rusqlite::Result<()> {
    if pi.serial.is_none() && pi.mac.is_none() {
        return Ok(());
    }
    let by_address = Some(pi.address.to_string());
    let by_mac = pi.serial.as_ref().and(pi.mac.as_ref()).map(|mac| mac.to_string());
    for old in [by_address, by_mac].into_iter().flatten() {
        // One with a key is another Pi, whatever this one says.
        let sql = "DELETE FROM devices WHERE key = ?1 AND key NOT IN (SELECT device FROM keys)";
        let gone = work.prepare_cached(sql)?.execute([&old])?;
        if gone > 0 {
            work.execute("UPDATE happenings SET device = ?1 WHERE device = ?2", [key, &old])?;
            personal::adopt(work, key, &old)?;
        }
    }
    Ok(())
}
