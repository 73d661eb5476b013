//! Accounts, written into the system directly.

use piman_core::install::personal::{Item, Place, User as Account};

use super::draft::{Done, Work};
use super::profile::{Secret, Sudo, User};

/// The groups whose members may become root, by distribution; the one that a system has not is left out.
const ADMINISTRATORS: [&str; 2] = ["sudo", "wheel"];

pub(super) fn write(work: &mut Work<'_>) -> Done {
    std::mem::take(&mut work.rest.users).iter().try_for_each(|user| one(work, user, false))
}

/// Makes one account, or changes it. `keeps_password`: if it is there already.
pub(super) fn one(work: &mut Work<'_>, user: &User, keeps_password: bool) -> Done {
    let User { name, uid, locked, .. } = user;
    let groups = groups(user).join(",");
    let keys: String = user.ssh_keys.iter().map(|key| format!("{key}\n")).collect();
    let account = Account {
        id: uid.unwrap_or(0),
        locked: *locked,
        keeps_password: keeps_password || user.password_hash.is_none() && !locked,
        name,
        password: user.password_hash.as_ref().map_or("", Secret::reveal),
        shell: user.shell.as_deref().unwrap_or_default(),
        groups: &groups,
        full_name: user.full_name.as_deref().unwrap_or_default(),
        keys: &keys,
    };
    work.add(&Item::User(account))?;
    // sudo passes over names with a dot.
    let sudoers = format!("/etc/sudoers.d/010_piman-{}", name.replace('.', "_"));
    match user.sudo {
        Sudo::Without(_) => {
            let text = format!("{name} ALL=(ALL) NOPASSWD: ALL\n");
            work.file(Place::Root, &sudoers, 0o440, text.as_bytes())
        }
        Sudo::With(_) => work.remove(&sudoers),
        Sudo::Unsaid => Ok(()),
    }
}

/// Its further groups, with those that make it an administrator.
pub(super) fn groups(user: &User) -> Vec<&str> {
    let mut groups: Vec<&str> = user.groups.iter().map(|group| &**group).collect();
    if user.sudo.is_allowed() {
        groups.extend(ADMINISTRATORS.into_iter().filter(|g| !user.groups.iter().any(|own| &**own == *g)));
    }
    groups
}
