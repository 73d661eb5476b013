//! What happens with a Pi by what is on its disk.

use piman_core::install::Found;
use rusqlite::{Connection, TransactionBehavior, params};

use super::{GROUP_OF, NAME_RANK};
use crate::state::Identity;
use crate::state::decision::{Action, Policy, Rule, Scope};

/// How everybody is called in the table.
const EVERYBODY: &str = "*";

/// The rules in the order in which they count: everybody's, the group's, the Pi's own.
pub(super) fn policy_of(db: &Connection, pi: &Identity, base: Policy) -> rusqlite::Result<Policy> {
    let mut query = db.prepare_cached(&format!(
        "SELECT found, action, 1 AS rank, 0 AS name FROM rules WHERE NOT is_group AND who = ?4
         UNION ALL SELECT found, action, 2, 0 FROM rules WHERE is_group AND who = {GROUP_OF}
         UNION ALL SELECT found, action, 3, {NAME_RANK} FROM rules WHERE NOT is_group AND who IN (?1, ?2, ?3)
         ORDER BY rank, name DESC"
    ))?;
    let rows = query.query_map(params![pi.serial, pi.mac, pi.address.to_string(), EVERYBODY], |row| {
        rule(row.get(0)?, row.get(1)?)
    })?;
    Ok(base.with(&rows.collect::<rusqlite::Result<Vec<_>>>()?))
}

/// A word that is not known is one of a newer piman: then nothing is erased.
fn rule(found: String, action: String) -> rusqlite::Result<Rule> {
    let found = Found::from_word(&found).ok_or_else(|| rusqlite::Error::InvalidColumnName(found))?;
    Ok(Rule { found, action: Action::from_word(&action).unwrap_or(Action::Wait) })
}

pub(super) fn all(db: &Connection) -> rusqlite::Result<Vec<(Scope, Rule)>> {
    let mut query =
        db.prepare_cached("SELECT who, is_group, found, action FROM rules ORDER BY is_group, who, found")?;
    let rows = query.query_map([], |row| {
        let (who, is_group): (String, bool) = (row.get(0)?, row.get(1)?);
        let scope = match (who, is_group) {
            (who, true) => Scope::Group(who),
            (who, false) if who == EVERYBODY => Scope::Server,
            (who, false) => Scope::Device(who),
        };
        Ok((scope, rule(row.get(2)?, row.get(3)?)?))
    })?;
    rows.collect()
}

pub(super) fn set(db: &mut Connection, scope: &Scope, rules: &[Rule]) -> rusqlite::Result<()> {
    let (who, is_group) = match scope {
        Scope::Server => (EVERYBODY, false),
        Scope::Group(name) => (name.as_str(), true),
        Scope::Device(name) => (name.as_str(), false),
    };
    let work = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if rules.is_empty() {
        work.execute("DELETE FROM rules WHERE who = ?1 AND is_group = ?2", params![who, is_group])?;
    }
    for rule in rules {
        work.execute(
            "INSERT OR REPLACE INTO rules (who, is_group, found, action) VALUES (?1, ?2, ?3, ?4)",
            params![who, is_group, rule.found.word(), rule.action.word()],
        )?;
    }
    work.commit()
}
