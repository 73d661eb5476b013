//! The folder `CONFIG` of the boot partition, which Home Assistant OS reads at every start. Its own system cannot be
//! written to: what this folder has no place for cannot be done.

use piman_core::install::personal::Place;

use super::draft::{Done, Work};
use super::profile::{At, Profile, User};
use super::{plain, wifi};

pub(super) fn write(work: &mut Work<'_>) -> Done {
    check(&work.rest)?;
    if let Some(network) = work.rest.wifi.take() {
        let text = wifi::network_manager(&network);
        work.file(Place::Boot, "/CONFIG/network/piman-wifi", 0o600, text.as_bytes())?;
    }
    if let Some(servers) = work.rest.ntp.take() {
        let servers: Vec<&str> = servers.iter().map(|server| &**server).collect();
        let text = format!("[Time]\nNTP={}\n", servers.join(" "));
        work.file(Place::Boot, "/CONFIG/timesyncd.conf", 0o644, text.as_bytes())?;
    }
    let users = std::mem::take(&mut work.rest.users);
    let keys: String = users.iter().flat_map(|user| &user.ssh_keys).map(|key| format!("{key}\n")).collect();
    if !keys.is_empty() {
        work.file(Place::Boot, "/CONFIG/authorized_keys", 0o600, keys.as_bytes())?;
    }
    let facts = work.subject.facts.clone();
    plain::files(work, &facts)
}

/// Whether all of it can be done.
fn check(profile: &Profile) -> Done {
    let is_keys_only = |user: &User| {
        let User { name, full_name, uid, password_hash, groups, shell, locked, .. } = user;
        &**name == "root"
            && full_name.is_none()
            && uid.is_none()
            && password_hash.is_none()
            && groups.is_empty()
            && shell.is_none()
            && !locked
    };
    let cannot = [
        ("hostname", profile.hostname.is_some()),
        ("locale", profile.locale.is_some()),
        ("timezone", profile.timezone.is_some()),
        ("keyboard", profile.keyboard.is_some()),
        ("ssh", profile.ssh.is_some()),
        ("service", profile.service.is_some()),
        ("scripts", !profile.scripts.is_empty()),
        ("folders", !profile.folders.is_empty()),
        ("files outside of `at = \"boot\"`", profile.files.iter().any(|file| file.at != At::Boot)),
        ("accounts other than root with ssh-keys alone", !profile.users.iter().all(is_keys_only)),
        ("the country of a Wi-Fi network", profile.wifi.as_ref().is_some_and(|wifi| wifi.country.is_some())),
    ];
    let cannot: Vec<&str> =
        cannot.into_iter().filter(|(_, is_there)| *is_there).map(|(key, _)| key).collect();
    if cannot.is_empty() {
        return Ok(());
    }
    Err(format!("Home Assistant OS takes none of these: {}", cannot.join(", ")))
}
