//! What services of Raspberry Pi OS read from its boot partition: `userconf.txt`, `ssh`, and before Bookworm
//! `wpa_supplicant.conf`.

use std::fmt::Write as _;

use piman_core::install::personal::{Item, Place, User as Account};

use super::draft::{Done, Work};
use super::profile::{Profile, Sudo, User};
use super::subject::Occasion;
use super::{accounts, scripts, wifi};
use crate::images::fitness::Has;

/// The account that such a system comes with, and that it renames at its first boot.
const FIRST: &str = "pi";

pub(super) fn write(work: &mut Work<'_>) -> Done {
    if work.subject.occasion == Occasion::Again {
        return Ok(());
    }
    if work.subject.system.has(Has::PiHome)
        && let Some(user) = take_first(&mut work.rest)
    {
        let hash = user.password_hash.as_ref().map_or("", |hash| hash.reveal());
        work.file(Place::Boot, "/userconf.txt", 0o600, format!("{}:{hash}\n", user.name).as_bytes())?;
        // Its folder keeps what is in it when it is renamed.
        let keys: String = user.ssh_keys.iter().map(|key| format!("{key}\n")).collect();
        if !keys.is_empty() {
            let pi = Account { keeps_password: true, name: FIRST, keys: &keys, ..Account::default() };
            work.add(&Item::User(pi))?;
        }
        complete(work, &user);
    }
    if work.rest.ssh == Some(true) {
        work.rest.ssh = None;
        work.file(Place::Boot, "/ssh", 0o644, b"")?;
    }
    // With NetworkManager nobody reads it.
    if !work.subject.system.has(Has::NetworkManager)
        && let Some(network) = work.rest.wifi.take()
    {
        let text = wifi::wpa_supplicant(&network);
        work.file(Place::Boot, "/wpa_supplicant.conf", 0o600, text.as_bytes())?;
    }
    Ok(())
}

/// The account that becomes the system's first one: the first of the profile with a password.
fn take_first(rest: &mut Profile) -> Option<User> {
    let is_first = |user: &User| user.password_hash.is_some() && !user.locked && &*user.name != FIRST;
    let index = rest.users.iter().position(is_first)?;
    Some(rest.users.remove(index))
}

/// What the first boot does not do of an account, when it has its name.
fn complete(work: &mut Work<'_>, user: &User) {
    let name = &user.name;
    let mut text = String::from("#!/bin/sh\n# Completes the first account of the Pi's profile.\n");
    // Writing to a string does not fail.
    if let Some(full_name) = &user.full_name {
        let full_name = full_name.replace('\'', "'\\''");
        let _ = writeln!(text, "usermod -c '{full_name}' {name}");
    }
    if let Some(shell) = &user.shell {
        let shell = shell.replace('\'', "'\\''");
        let _ = writeln!(text, "usermod -s '{shell}' {name}");
    }
    for group in accounts::groups(user) {
        let _ = writeln!(text, "getent group {group} >/dev/null && usermod -a -G {group} {name}");
    }
    if let Some(uid) = user.uid.filter(|uid| *uid != 1000) {
        let _ = writeln!(text, "usermod -u {uid} {name}");
    }
    let sudoers = format!("/etc/sudoers.d/010_piman-{}", name.replace('.', "_"));
    match user.sudo {
        Sudo::Without(_) => {
            let _ = writeln!(text, "umask 0227; echo '{name} ALL=(ALL) NOPASSWD: ALL' >{sudoers}");
        }
        Sudo::With(false) => {
            let _ = writeln!(text, "gpasswd -d {name} sudo\nrm -f /etc/sudoers.d/010_pi-nopasswd");
        }
        Sudo::With(true) | Sudo::Unsaid => {}
    }
    if text.lines().count() > 2 {
        scripts::add_first(work, "piman-account", text + "exit 0\n");
    }
}
