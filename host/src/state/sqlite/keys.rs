//! The keys of Pis, and who waits for an operator because of his.

use std::net::Ipv4Addr;

use piman_core::install::trust::PublicKey;
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};

use super::{signed, unsigned};
use crate::state::Identity;
use crate::state::keys::{Keys, PendingKey, PinnedKey};
use crate::sys::clock::now_ms;

/// How many that wait are kept, in all and of one address; the oldest go first.
const PENDING_MAX: i64 = 1_000;
const PENDING_OF_ONE: i64 = 16;

/// The keys that matter for a Pi that says who it is.
pub(super) fn of(db: &Connection, pi: &Identity) -> rusqlite::Result<Keys> {
    let key = pi.key();
    let own = pinned(db, &key)?;
    let of_mac = match &pi.mac {
        Some(mac) if **mac != *key => db
            .prepare_cached(
                "SELECT keys.device FROM keys JOIN devices ON devices.key = keys.device
                 WHERE (devices.mac = ?1 OR keys.device = ?1) AND keys.device <> ?2 LIMIT 1",
            )?
            .query_row([&**mac, &*key], |row| row.get(0))
            .optional()?,
        _ => None,
    };
    Ok(Keys { own, of_mac })
}

fn pinned(db: &Connection, device: &str) -> rusqlite::Result<Option<PublicKey>> {
    let mut query = db.prepare_cached("SELECT key FROM keys WHERE device = ?1")?;
    query.query_row([device], |row| public(row, 0)).optional()
}

/// A key that cannot be read is one that nobody has: its Pi waits for the operator.
fn public(row: &Row<'_>, at: usize) -> rusqlite::Result<PublicKey> {
    let text: String = row.get(at)?;
    Ok(PublicKey::parse(&text).unwrap_or_default())
}

/// Whether this device has a key.
pub(super) fn is_pinned(db: &Connection, device: &str) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT EXISTS (SELECT 1 FROM keys WHERE device = ?1)")?
        .query_row([device], |row| row.get(0))
}

pub(super) fn all(db: &Connection) -> rusqlite::Result<Vec<PinnedKey>> {
    let mut query = db.prepare_cached("SELECT device, key, pinned_ms, source FROM keys ORDER BY device")?;
    let rows = query.query_map([], |row| {
        Ok(PinnedKey {
            device: row.get(0)?,
            key: public(row, 1)?,
            pinned_ms: unsigned(row, 2)?,
            source: row.get(3)?,
        })
    })?;
    rows.collect()
}

/// Pins a key; `replaces`: in the place of another one. Returns whether it is the Pi's key now. Who said its name with
/// this key, or has none any more to wait for, waits no longer.
pub(super) fn pin(
    db: &mut Connection,
    device: &str,
    key: PublicKey,
    (source, replaces): (&str, bool),
) -> rusqlite::Result<bool> {
    let work = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let text = key.to_string();
    let given = params![device, text, signed(now_ms()), source];
    if replaces {
        work.execute(
            "INSERT OR REPLACE INTO keys (device, key, pinned_ms, source) VALUES (?1, ?2, ?3, ?4)",
            given,
        )?;
        work.execute("DELETE FROM pending_keys WHERE device = ?1", [device])?;
    } else {
        work.execute(
            "INSERT INTO keys (device, key, pinned_ms, source) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (device) DO NOTHING",
            given,
        )?;
    }
    let is_it = pinned(&work, device)? == Some(key);
    work.commit()?;
    Ok(is_it)
}

/// Takes the key of a device away; returns whether it had one.
pub(super) fn forget(db: &mut Connection, device: &str) -> rusqlite::Result<bool> {
    let work = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let gone = forget_in(&work, device)?;
    work.commit()?;
    Ok(gone)
}

pub(super) fn forget_in(work: &Connection, device: &str) -> rusqlite::Result<bool> {
    work.prepare_cached("DELETE FROM pending_keys WHERE device = ?1")?.execute([device])?;
    Ok(work.prepare_cached("DELETE FROM keys WHERE device = ?1")?.execute([device])? > 0)
}

/// Who waits, the last heard first.
pub(super) fn pending(db: &Connection) -> rusqlite::Result<Vec<PendingKey>> {
    let mut query = db.prepare_cached(
        "SELECT device, key, address, first_ms, last_ms FROM pending_keys ORDER BY last_ms DESC, device",
    )?;
    let rows = query.query_map([], |row| {
        let (key, address): (String, String) = (row.get(1)?, row.get(2)?);
        Ok(PendingKey {
            device: row.get(0)?,
            key: PublicKey::parse(&key),
            address: address.parse().unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
            first_ms: unsigned(row, 3)?,
            last_ms: unsigned(row, 4)?,
        })
    })?;
    rows.collect()
}

pub(super) fn note_pending(work: &Connection, pending: &PendingKey) -> rusqlite::Result<()> {
    let PendingKey { device, key, address, first_ms, last_ms } = pending;
    let (key, address) = (key.map_or_else(String::new, |key| key.to_string()), address.to_string());
    let new = work
        .prepare_cached(
            "INSERT INTO pending_keys (device, key, address, first_ms, last_ms) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (device, key) DO UPDATE SET address = ?3, last_ms = max(last_ms, ?5)
             RETURNING first_ms = ?4",
        )?
        .query_row(params![device, key, address, signed(*first_ms), signed(*last_ms)], |row| row.get(0))?;
    if new {
        for (of, max) in [(Some(&address), PENDING_OF_ONE), (None, PENDING_MAX)] {
            work.prepare_cached(
                "DELETE FROM pending_keys WHERE rowid IN (SELECT rowid FROM pending_keys
                    WHERE ?1 IS NULL OR address = ?1 ORDER BY last_ms DESC, rowid DESC LIMIT -1 OFFSET ?2)",
            )?
            .execute(params![of, max])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::super::*;
    use super::*;
    use crate::state::Change;

    fn pi(serial: &str, mac: Option<&str>) -> Identity {
        Identity { serial: Some(serial.into()), mac: mac.map(Into::into), address: [10, 0, 0, 1].into() }
    }

    fn waits(device: &str, key: Option<u8>, host: u8, at: u64) -> PendingKey {
        let key = key.map(|n| PublicKey([n; 32]));
        PendingKey { device: device.into(), key, address: [10, 0, 0, host].into(), first_ms: at, last_ms: at }
    }

    #[test]
    fn the_first_key_stays() {
        let folder = tempfile::tempdir().unwrap();
        let state = Sqlite::serve(folder.path()).unwrap();
        let [one, two] = [1, 2].map(|n| PublicKey([n; 32]));
        assert_eq!(state.keys_of(&pi("aa", None)).unwrap(), Keys::default());
        assert!(state.pin("aa", one, "first contact", false).unwrap());
        assert!(state.pin("aa", one, "first contact", false).unwrap());
        assert!(!state.pin("aa", two, "first contact", false).unwrap());
        assert_eq!(state.keys_of(&pi("aa", None)).unwrap().own, Some(one));
        assert!(state.pin("aa", two, "op", true).unwrap());
        assert_eq!(state.pinned_keys().unwrap()[0].source, "op");
        assert!(state.forget_key("aa").unwrap() && !state.forget_key("aa").unwrap());
        assert_eq!(state.keys_of(&pi("aa", None)).unwrap().own, None);
    }

    #[test]
    fn a_hardware_address_belongs_to_the_pi_with_a_key() {
        let folder = tempfile::tempdir().unwrap();
        let state = Sqlite::serve(folder.path()).unwrap();
        let mac = "b8:27:eb:00:00:01";
        let changes = vec![Change::of(pi("aa", Some(mac)))];
        state.save(&Batch { changes, ..Batch::default() }).unwrap();
        let other = || state.keys_of(&pi("bb", Some(mac))).unwrap().of_mac;
        assert_eq!(other(), None, "nothing is proven yet");
        state.pin("aa", PublicKey([1; 32]), "first contact", false).unwrap();
        assert_eq!(other().as_deref(), Some("aa"));
        assert_eq!(state.keys_of(&pi("aa", Some(mac))).unwrap().of_mac, None);
    }

    #[test]
    fn what_nobody_has_proven_changes_nothing_that_is() {
        let folder = tempfile::tempdir().unwrap();
        let state = Sqlite::serve(folder.path()).unwrap();
        let save = |change| state.save(&Batch { changes: vec![change], ..Batch::default() }).unwrap();
        save(Change { stage: Some("booted".into()), ..Change::of(pi("aa", None)) });
        state.pin("aa", PublicKey([1; 32]), "first contact", false).unwrap();
        let before = state.devices().unwrap();
        let event = DeviceEvent { at_ms: 1, kind: "tftp".into(), text: "kernel8.img".into() };
        let mut claim = pi("aa", Some("b8:27:eb:00:00:09"));
        claim.address = [10, 0, 0, 66].into();
        let change =
            Change { stage: Some("failed".into()), events: vec![event], ..Change::of(claim.clone()) };
        save(change.clone());
        assert_eq!(state.devices().unwrap(), before);
        assert_eq!(state.events("aa").unwrap()[0].text, "kernel8.img (not proven, from 10.0.0.66)");
        save(Change { is_proven: true, ..change });
        let after = &state.devices().unwrap()[0];
        assert_eq!((after.stage.as_deref(), &*after.address), (Some("failed"), "10.0.0.66"));
    }

    #[test]
    fn who_waits_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let state = Sqlite::serve(folder.path()).unwrap();
        let save = |pending| state.save(&Batch { pending_keys: pending, ..Batch::default() }).unwrap();
        save(vec![waits("aa", Some(7), 1, 1), waits("aa", None, 1, 2)]);
        save((0..200).map(|n| waits(&format!("made up {n}"), Some(1), 9, 10 + n)).collect());
        let all = state.pending_keys().unwrap();
        assert_eq!(all.iter().filter(|p| p.address == IpAddr::from([10, 0, 0, 9])).count(), 16);
        assert_eq!(all.iter().filter(|p| p.device == "aa").count(), 2);
        save((0..2000).map(|n| waits(&format!("more {n}"), Some(1), (n % 250) as u8, 1000 + n)).collect());
        assert_eq!(state.pending_keys().unwrap().len(), 1000);
        state.pin("more 1999", PublicKey([1; 32]), "op", true).unwrap();
        assert!(state.pending_keys().unwrap().iter().all(|p| p.device != "more 1999"));
    }
}
