//! How much is kept, and what goes first: whoever makes up names pushes out nobody but what was made up.

use rusqlite::{Connection, Params, params};

use super::{DEVICES_KEPT, keys, personal};

/// How many devices that no operator named are kept of one address.
const AT_ADDRESS: i64 = 256;
/// An address with more devices than this is crowded: a Pi has its address for itself.
const CROWD: i64 = 8;
/// How many events of all devices together are kept.
const EVENTS_KEPT: i64 = 500_000;
/// So many events are recorded between two looks at how many there are.
const LOOK: i64 = 1_000;

/// What an operator named is never forgotten.
const NAMED: &str = "key IN (SELECT name FROM listed) OR key IN (SELECT name FROM orders)
    OR key IN (SELECT name FROM personal_orders) OR key IN (SELECT device FROM members)
    OR key IN (SELECT who FROM choices WHERE NOT is_group) OR key IN (SELECT who FROM rules WHERE NOT is_group)
    OR key IN (SELECT who FROM profiles WHERE NOT is_group)";
/// What was installed, has a key, or has come again after an hour, goes after what was seen once.
const PROVEN: &str = "image IS NOT NULL OR card IS NOT NULL OR last_seen_ms - first_seen_ms > 3600000
    OR key IN (SELECT device FROM keys)";

/// A device is new, at this address: whatever is too much goes.
pub(super) fn forget_devices(work: &Connection, address: &str) -> rusqlite::Result<()> {
    let here: i64 = work
        .prepare_cached("SELECT count(*) FROM devices WHERE address = ?1")?
        .query_row([address], |row| row.get(0))?;
    if here > AT_ADDRESS {
        // The newest first: that one says the serial number of another makes nobody forget it.
        let sql = format!(
            "DELETE FROM devices WHERE key IN (SELECT key FROM devices WHERE address = ?1 AND NOT ({NAMED})
                ORDER BY ({PROVEN}), first_seen_ms DESC LIMIT ?2) RETURNING key"
        );
        delete(work, &sql, params![address, here - AT_ADDRESS])?;
    }
    let count: i64 = work.prepare_cached("SELECT count(*) FROM devices")?.query_row([], |row| row.get(0))?;
    if count > DEVICES_KEPT {
        // A tenth at once, so that it is not done for every new device.
        let sql = format!(
            "DELETE FROM devices WHERE key IN (SELECT key FROM
                (SELECT *, count(*) OVER (PARTITION BY address) > ?1 AS crowded FROM devices)
                WHERE NOT ({NAMED})
                ORDER BY crowded DESC, ({PROVEN}), iif(crowded, -first_seen_ms, last_seen_ms) LIMIT ?2)
                RETURNING key"
        );
        delete(work, &sql, params![CROWD, DEVICES_KEPT / 10])?;
    }
    Ok(())
}

/// Deletes devices, and what is known of each.
fn delete(work: &Connection, sql: &str, given: impl Params) -> rusqlite::Result<()> {
    let gone: Vec<String> =
        work.prepare_cached(sql)?.query_map(given, |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for key in &gone {
        work.prepare_cached("DELETE FROM happenings WHERE device = ?1")?.execute([key])?;
        personal::forget(work, key)?;
        keys::forget_in(work, key)?;
        work.prepare_cached("DELETE FROM given WHERE device = ?1")?.execute([key])?;
    }
    Ok(())
}

/// So many events were just recorded.
pub(super) fn forget_events(work: &Connection, new: usize) -> rusqlite::Result<()> {
    let last: i64 = work
        .prepare_cached("SELECT coalesce(max(id), 0) FROM happenings")?
        .query_row([], |row| row.get(0))?;
    let new = i64::try_from(new).unwrap_or(i64::MAX);
    if last / LOOK == last.saturating_sub(new) / LOOK {
        return Ok(());
    }
    forget_events_over(work, EVENTS_KEPT)
}

fn forget_events_over(work: &Connection, kept: i64) -> rusqlite::Result<()> {
    let count: i64 = work.query_row("SELECT count(*) FROM happenings", [], |row| row.get(0))?;
    let mut over = count - kept;
    // First those of whoever was seen once, then those of all that nobody named, then the oldest.
    for whose in [format!("NOT ({NAMED}) AND NOT ({PROVEN})"), format!("NOT ({NAMED})"), "true".to_owned()] {
        if over <= 0 {
            break;
        }
        let sql = format!(
            "DELETE FROM happenings WHERE id IN (SELECT id FROM happenings
                WHERE device IN (SELECT key FROM devices WHERE {whose}) ORDER BY id LIMIT ?1)"
        );
        over -= i64::try_from(work.execute(&sql, [over])?).unwrap_or(i64::MAX);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;
    use crate::state::Change;

    fn pi(serial: &str, address: [u8; 4]) -> Change {
        let identity = Identity { serial: Some(serial.into()), mac: None, address: address.into() };
        Change::of(identity)
    }

    fn event(text: &str) -> DeviceEvent {
        DeviceEvent { at_ms: 1, kind: "hello".into(), text: text.into() }
    }

    fn save_all(state: &Sqlite, changes: Vec<Change>) {
        state.save(&Batch { changes, ..Batch::default() }).unwrap();
    }

    fn keys(state: &Sqlite) -> Vec<String> {
        state.devices().unwrap().into_iter().map(|d| d.key).collect()
    }

    #[test]
    fn invented_serial_numbers_push_out_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let state = Sqlite::serve(folder.path()).unwrap();
        // Twenty real Pis, each at its address: some were installed, some are in the list, some ordered, some new.
        let real: Vec<_> = (0..20_u8)
            .map(|n| {
                let mut change = pi(&format!("real{n:04}"), [10, 0, 0, n]);
                change.image = (n < 5).then_some(Hash([n; 32]));
                change.seen_ms = 1000;
                change
            })
            .collect();
        let names: Vec<_> = real.iter().map(|c| c.identity.key()).collect();
        state.add_listed(&[(names[5].clone(), None)], "test").unwrap();
        state.order(&names[6], "test", None).unwrap();
        save_all(&state, real);
        // One host says 20,100 of them, then each of 100 hosts 300.
        for n in 0..201 {
            save_all(&state, (0..100).map(|i| pi(&format!("one{n:04}{i:04}"), [10, 9, 9, 9])).collect());
        }
        assert!(keys(&state).len() <= 20 + 256, "{}", keys(&state).len());
        for n in 0..100 {
            save_all(&state, (0..300).map(|i| pi(&format!("many{n:04}{i:04}"), [10, 8, 0, n])).collect());
        }
        let kept = keys(&state);
        assert!(kept.len() <= 20_000, "{}", kept.len());
        assert!(names.iter().all(|name| kept.contains(name)), "none of the real ones is forgotten");
    }

    #[test]
    fn forged_addresses_push_out_neither_what_is_named_nor_what_was_installed() {
        let folder = tempfile::tempdir().unwrap();
        let state = Sqlite::serve(folder.path()).unwrap();
        let mut installed = pi("installed", [10, 0, 0, 1]);
        installed.image = Some(Hash([1; 32]));
        state.add_listed(&[("listed".to_owned(), None)], "test").unwrap();
        save_all(&state, vec![installed, pi("listed", [10, 0, 0, 2]), pi("once", [10, 0, 0, 3])]);
        for n in 0..210_u8 {
            let forged = (0..100).map(|i| Change::of(Identity::of([172, 16, n, i].into()))).collect();
            save_all(&state, forged);
        }
        let kept = keys(&state);
        assert!(kept.len() <= 20_000);
        assert!(["installed", "listed"].iter().all(|name| kept.iter().any(|k| k == name)));
    }

    #[test]
    fn whoever_says_the_name_of_another_makes_nobody_forget_it() {
        let folder = tempfile::tempdir().unwrap();
        let state = Sqlite::serve(folder.path()).unwrap();
        let mut real = pi("real", [10, 0, 0, 1]);
        real.seen_ms -= 1000;
        save_all(&state, vec![real]);
        save_all(&state, vec![pi("real", [10, 9, 9, 9])]);
        save_all(&state, (0..600).map(|i| pi(&format!("one{i:04}"), [10, 9, 9, 9])).collect());
        assert!(keys(&state).iter().any(|k| k == "real"));
    }

    #[test]
    fn the_events_of_all_have_one_limit() {
        let folder = tempfile::tempdir().unwrap();
        let state = Sqlite::serve(folder.path()).unwrap();
        state.add_listed(&[("named".to_owned(), None)], "test").unwrap();
        let with = |mut change: Change, n: usize| {
            change.events = (0..n).map(|i| event(&i.to_string())).collect();
            change
        };
        let mut installed = with(pi("installed", [10, 0, 0, 2]), 100);
        installed.image = Some(Hash([1; 32]));
        save_all(&state, vec![with(pi("named", [10, 0, 0, 1]), 100), installed]);
        save_all(&state, (0..10).map(|i| with(pi(&format!("once{i}"), [10, 0, 1, i]), 100)).collect());
        let left = |name| state.events(name).unwrap().len();
        let trim = |kept| state.write(|db| forget_events_over(db, kept)).unwrap();
        trim(700);
        assert_eq!((left("named"), left("installed"), left("once0"), left("once9")), (100, 100, 0, 100));
        trim(150);
        assert_eq!((left("named"), left("installed"), left("once9")), (100, 50, 0));
        trim(30);
        assert_eq!((left("named"), left("installed")), (30, 0));
        assert_eq!(state.events("named").unwrap()[0].text, "70", "the newest stay");
    }
}
