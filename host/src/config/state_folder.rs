//! Where the state is.

use std::path::PathBuf;

/// Where the state of a server that runs as root is, if nothing else is configured.
pub const ROOT_STATE: &str = "/var/lib/piman";

/// Where the state is if nobody says: `/var/lib/piman` for root, else in the user's own folder.
#[must_use]
pub fn state_folder() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return ROOT_STATE.into();
    }
    let folder = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute());
    folder("XDG_STATE_HOME")
        .or_else(|| Some(folder("HOME")?.join(".local/state")))
        .map_or_else(|| "piman-state".into(), |f| f.join("piman"))
}
