//! The hardware addresses of known Pis: those that an operator named, and those that were installed.

use std::collections::HashSet;

use crate::state::State;
use crate::sys::mac::Mac;

/// All of them; without the state nobody is known.
pub(super) fn known(state: &dyn State) -> HashSet<Mac> {
    let read = || {
        let mut known: HashSet<Mac> = HashSet::new();
        let listed = state.listed()?;
        let ordered = state.orders()?.into_iter().map(|order| order.name);
        let named: HashSet<String> = listed.into_iter().map(|pi| pi.name).chain(ordered).collect();
        known.extend(named.iter().filter_map(|name| name.parse::<Mac>().ok()));
        for device in state.devices()? {
            let is_known = device.image.is_some() || device.card.is_some() || named.contains(&device.key);
            let mac = device.mac.as_deref().filter(|_| is_known);
            known.extend(mac.and_then(|mac| mac.parse::<Mac>().ok()));
        }
        Ok::<_, crate::state::StateError>(known)
    };
    read().unwrap_or_else(|e| {
        tracing::warn!("dhcp: which Pis are known cannot be read, so none is preferred: {e}");
        HashSet::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Batch, Change, Identity, Sqlite};

    #[test]
    fn those_that_are_named_or_installed() {
        let folder = tempfile::tempdir().unwrap();
        let state = Sqlite::serve(folder.path()).unwrap();
        let mac = |n: u8| Mac([0xb8, 0x27, 0xeb, 0, 0, n]);
        state.add_listed(&[(mac(1).to_string(), None), ("serial3".into(), None)], "test").unwrap();
        let changes =
            [(2, "serial2", true), (3, "serial3", false), (4, "serial4", false)].map(|(n, serial, has)| {
                let mac = Some(mac(n).to_string().into());
                let pi = Identity { serial: Some(serial.into()), mac, address: [10, 0, 0, n].into() };
                Change { image: has.then_some(piman_core::hash::Hash([n; 32])), ..Change::of(pi) }
            });
        state.save(&Batch { changes: changes.into(), ..Batch::default() }).unwrap();
        assert_eq!(known(&state), [1, 2, 3].map(mac).into());
    }
}
