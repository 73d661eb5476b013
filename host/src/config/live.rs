//! What a running server takes over when its configuration is read again, and what waits for a restart.

use std::sync::{Arc, RwLock};

use super::Settings;

/// The settings of a running server.
#[derive(Debug)]
pub struct Live(RwLock<Arc<Settings>>);

/// Options that depend on each other, so that one changes several settings.
pub const LIMITS: &str = "timeouts and min-rate";

/// What became of settings that were read again, by the names of their options.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// These hold from now on.
    pub taken: Vec<&'static str>,
    /// These are other than those that the server runs with, and wait for a restart.
    pub restart: Vec<&'static str>,
}

impl Live {
    /// A server that starts with these.
    #[must_use]
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self(RwLock::new(Arc::new(settings))))
    }

    /// Those that hold now. Whoever began with others goes on with them.
    #[must_use]
    pub fn now(&self) -> Arc<Settings> {
        Arc::clone(&self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Takes over what can change while the server runs.
    pub fn reload(&self, mut new: Settings) -> Reloaded {
        let mut now = self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut next = Settings::clone(&now);
        // These have names of their own.
        if let (Some(new), Some(now)) = (&mut new.netboot, &now.netboot) {
            new.only_known = now.only_known;
            if let (Some(new), Some(now)) = (&mut new.dhcp, &now.dhcp) {
                new.state.clone_from(&now.state);
            }
        }
        let reloaded = merge(&mut next, new);
        *now = Arc::new(next);
        reloaded
    }
}

/// Moves what can change from `new` to `now`.
fn merge(now: &mut Settings, new: Settings) -> Reloaded {
    let mut reloaded = Reloaded::default();
    macro_rules! fields {
        (take $($taken:ident: $taken_name:expr),*; restart $($kept:ident: $kept_name:literal),*; derived $($derived:ident),*) => {
            // All are named, so that a new one cannot be forgotten.
            let Settings { $($taken,)* $($kept,)* $($derived,)* } = new;
            $(if now.$taken != $taken {
                now.$taken = $taken;
                reloaded.taken.push($taken_name);
            })*
            $(if now.$kept != $kept {
                reloaded.restart.push($kept_name);
            })*
            $(now.$derived = $derived;)*
        };
    }
    fields!(
        take
            date: "no-date", allow_unfit: "allow-unfit", policy: "policy", old_pis_wait: "old-pis", identity: "identity", slots: "slots",
            timeouts: LIMITS, stall: LIMITS, ours: LIMITS, old: LIMITS, shutdown: "shutdown-timeout";
        restart
            rootfs: "rootfs", user: "user", listen: "listen", control_port: "control-port", rootfs_port: "rootfs-port",
            fetch_port: "fetch-port", rpc_port: "rpc-port", rpc_password_file: "rpc-password-file",
            rpc_old_peers: "rpc-old-peers", state: "state",
            images: "no-images", reinstall_file: "reinstall-file", only_known: "only-known", connections: "connections",
            connections_per_address: "connections-per-address", transfer: "transfer-...", telemetry: "telemetry-...",
            messages: "messages-...", netboot: "netboot, tftp-..., http-boot-port, dhcp-...", serial: "serial", bluetooth: "bluetooth";
        // Nothing but a start heeds these.
        derived given, wait
    );
    reloaded.taken.dedup();
    reloaded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Options;

    fn settings(text: &str) -> Settings {
        Settings::try_from(
            toml::from_str::<Options>(&format!("rootfs = '/a'\nstate = '/s'\n{text}")).unwrap(),
        )
        .unwrap()
    }

    #[test]
    fn what_can_change_does_and_the_rest_is_said() {
        let live = Live::new(settings("slots = 1\ncontrol-port = 9"));
        let before = live.now();
        let reloaded = live.reload(settings("slots = 2\ncontrol-port = 8\nstall-timeout = 7"));
        assert_eq!(reloaded.taken, ["slots", LIMITS]);
        assert_eq!(reloaded.restart, ["control-port"]);
        let now = live.now();
        assert_eq!((before.slots, now.slots, now.control_port, now.stall.as_secs()), (1, 2, 9, 7));
        // What waits for a restart is said each time.
        let reloaded = live.reload(settings("slots = 2\ncontrol-port = 8\nstall-timeout = 7"));
        assert_eq!((reloaded.taken.len(), reloaded.restart), (0, vec!["control-port"]));
        assert_eq!(
            live.reload(settings("slots = 2\ncontrol-port = 9\nstall-timeout = 7")),
            Reloaded::default()
        );
    }
}
