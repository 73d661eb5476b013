//! `piman devices approve` and `forget`: which key belongs to which Pi.

use std::fmt::Write as _;

use anyhow::{bail, ensure};
use piman_core::install::trust::PublicKey;

use super::reinstall::operator;
use crate::state::State;
use crate::state::keys::PendingKey;
use crate::state::resolve::resolve;
use crate::sys::clock::now_ms;
use crate::text::human::{columns, when};

/// The fewest digits that stand for a key.
const PREFIX_MIN: usize = 8;

/// Takes the key that was shown with this name for the Pi's own.
///
/// # Errors
/// If nobody waits by this name, or several do and none was chosen, or the state cannot be read or written; then
/// nothing was changed.
pub fn approve(state: &dyn State, name: &str, chosen: Option<&str>) -> anyhow::Result<String> {
    let name = resolve(name, &state.devices()?)?.name;
    let waiting: Vec<PendingKey> = state.pending_keys()?.into_iter().filter(|p| p.device == name).collect();
    ensure!(
        !waiting.is_empty(),
        "nobody waits who says that it is {name}; `piman devices --pending` shows who waits; nothing was changed"
    );
    let keys: Vec<&PendingKey> =
        waiting.iter().filter(|p| p.key.is_some_and(|key| is_chosen(key, chosen))).collect();
    let (key, address) = match keys.as_slice() {
        [PendingKey { key: Some(key), address, .. }] => (*key, address),
        [] if chosen.is_none() => bail!(
            "what says that it is {name} shows no key: an old agent, or somebody else; `piman devices forget {name}` \
             lets it in without one; nothing was changed"
        ),
        [] => bail!("none of those that say that they are {name} has this key; nothing was changed"),
        several => {
            let mut text = format!("several say that they are {name}; choose one with --key:\n");
            for PendingKey { key, address, last_ms, .. } in several {
                let key = key.unwrap_or_default();
                // Writing to a string does not fail.
                let _ = writeln!(text, "  {key:.16} at {address}, {}", when(*last_ms, now_ms()));
            }
            bail!("{text}nothing was changed")
        }
    };
    state.pin(&name, key, &operator(), true)?;
    Ok(format!("{name} has the key {key:.16} from now on, which is at {address}\n"))
}

fn is_chosen(key: PublicKey, chosen: Option<&str>) -> bool {
    chosen.is_none_or(|chosen| {
        let chosen = chosen.trim().to_ascii_lowercase();
        chosen.len() >= PREFIX_MIN && key.to_string().starts_with(&chosen)
    })
}

/// Takes its key away from a Pi.
///
/// # Errors
/// If it has none, or the state cannot be read or written.
pub fn forget(state: &dyn State, name: &str) -> anyhow::Result<String> {
    let name = resolve(name, &state.devices()?)?.name;
    ensure!(state.forget_key(&name)?, "{name} has no key; nothing was changed");
    Ok(format!("{name} has no key any more: the next that says this name is taken for it\n"))
}

/// Those that wait because they have not shown that they are who they say; nothing if there are none.
///
/// # Errors
/// If the state cannot be read.
pub fn pending(state: &dyn State) -> anyhow::Result<Option<String>> {
    let waiting = state.pending_keys()?;
    if waiting.is_empty() {
        return Ok(None);
    }
    let rows = waiting.into_iter().map(|PendingKey { device, key, address, last_ms, .. }| {
        let command = match key {
            Some(_) => format!("piman devices approve {device}"),
            None => format!("piman devices forget {device}"),
        };
        let key = key.map_or_else(|| "none".into(), |key| format!("{key:.16}"));
        [device, key, address.to_string(), when(last_ms, now_ms()), command]
    });
    Ok(Some(columns(["SAYS IT IS", "WITH KEY", "ADDRESS", "LAST SEEN", "IF IT IS"], rows)))
}
