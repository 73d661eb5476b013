//! The device list: who is served with `--only-known`.

use rusqlite::{Connection, TransactionBehavior, params};

use super::{signed, unsigned};
use crate::state::{Identity, Listed, ListedPi};
use crate::sys::clock::now_ms;

/// Whether one of these names is in the list. A serial number may be there by its last 8 digits, as boot ROMs show it.
const IS_LISTED: &str = "EXISTS (SELECT 1 FROM listed WHERE name IN (?1, ?2)
    OR length(name) = 8 AND length(?1) = 16 AND name = substr(?1, 9))";

pub(super) fn is_listed(db: &Connection, pi: &Identity) -> rusqlite::Result<Listed> {
    let ask = |serial: Option<&str>, mac: Option<&str>| -> rusqlite::Result<bool> {
        db.prepare_cached(&format!("SELECT {IS_LISTED}"))?.query_row(params![serial, mac], |row| row.get(0))
    };
    let address = pi.address.to_string();
    // An address is another Pi's tomorrow: it stands for those alone that have no better name.
    if pi.serial.is_some() || pi.mac.is_some() {
        let yes = ask(pi.serial.as_deref(), pi.mac.as_deref())?;
        return Ok(if yes { Listed::Yes } else { Listed::No });
    }
    if ask(None, Some(&address))? {
        return Ok(Listed::Yes);
    }
    let mut query = db.prepare_cached("SELECT serial, mac FROM devices WHERE address = ?1")?;
    let mut rows = query.query([&address])?;
    while let Some(row) = rows.next()? {
        let (serial, mac): (Option<String>, Option<String>) = (row.get(0)?, row.get(1)?);
        if ask(serial.as_deref(), mac.as_deref())? {
            return Ok(Listed::LastSeenHere);
        }
    }
    Ok(Listed::No)
}

pub(super) fn all(db: &Connection) -> rusqlite::Result<Vec<ListedPi>> {
    let mut query = db.prepare_cached("SELECT name, label, added_ms, source FROM listed ORDER BY name")?;
    let rows = query.query_map([], |row| {
        Ok(ListedPi {
            name: row.get(0)?,
            label: row.get(1)?,
            added_ms: unsigned(row, 2)?,
            source: row.get(3)?,
        })
    })?;
    rows.collect()
}

/// Returns how many are new; of those that are there already the label is changed, if one is given.
pub(super) fn add(
    db: &mut Connection,
    pis: &[(String, Option<String>)],
    source: &str,
) -> rusqlite::Result<usize> {
    let work = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut new = 0;
    for (name, label) in pis {
        let inserted = work.execute(
            "INSERT INTO listed (name, label, added_ms, source) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (name) DO NOTHING",
            params![name, label, signed(now_ms()), source],
        )?;
        if inserted == 0 && label.is_some() {
            work.execute("UPDATE listed SET label = ?2 WHERE name = ?1", params![name, label])?;
        }
        new += inserted;
    }
    work.commit()?;
    Ok(new)
}

/// Returns those that were in the list.
pub(super) fn remove(db: &mut Connection, names: &[String]) -> rusqlite::Result<Vec<String>> {
    let work = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut gone = Vec::new();
    for name in names {
        if work.execute("DELETE FROM listed WHERE name = ?1", [name])? > 0 {
            gone.push(name.clone());
        }
    }
    work.commit()?;
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Batch, Change, Sqlite, State as _};

    #[test]
    fn who_is_listed() {
        let folder = tempfile::tempdir().unwrap();
        let state = Sqlite::serve(folder.path()).unwrap();
        let pi = |serial: Option<&str>, mac: Option<&str>, host: u8| Identity {
            serial: serial.map(Into::into),
            mac: mac.map(Into::into),
            address: [10, 0, 0, host].into(),
        };
        let list = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|n| ((*n).to_owned(), None)).collect();
            state.add_listed(&names, "test").unwrap()
        };
        assert_eq!(list(&["10000000abcdef01", "abcdef02", "b8:27:eb:00:00:03", "10.0.0.4"]), 4);
        assert_eq!(list(&["10.0.0.4"]), 0);
        let seen = pi(Some("10000000abcdef01"), None, 9);
        state.save(&Batch { changes: vec![Change::of(seen)], ..Batch::default() }).unwrap();
        for (who, want) in [
            (pi(Some("10000000abcdef01"), None, 1), Listed::Yes),
            (pi(Some("10000000abcdef02"), None, 1), Listed::Yes),
            (pi(Some("abcdef02"), None, 1), Listed::Yes),
            (pi(Some("10000000abcdef03"), None, 1), Listed::No),
            (pi(Some("abcdef01"), None, 1), Listed::No),
            (pi(Some("10000000abcdef03"), Some("b8:27:eb:00:00:03"), 1), Listed::Yes),
            (pi(None, Some("b8:27:eb:00:00:04"), 1), Listed::No),
            (pi(None, None, 4), Listed::Yes),
            (pi(Some("10000000abcdef03"), None, 4), Listed::No),
            (pi(None, None, 9), Listed::LastSeenHere),
            (pi(Some("10000000abcdef03"), None, 9), Listed::No),
            (pi(None, None, 8), Listed::No),
        ] {
            assert_eq!(state.is_listed(&who).unwrap(), want, "{who:?}");
        }
        state.add_listed(&[("10.0.0.4".into(), Some("by the window".into()))], "test").unwrap();
        assert_eq!(state.listed().unwrap()[0].label.as_deref(), Some("by the window"));
        assert_eq!(state.remove_listed(&["10.0.0.4".into(), "10.0.0.5".into()]).unwrap(), ["10.0.0.4"]);
        assert_eq!(state.listed().unwrap().len(), 3);
    }
}
