//! What a server may do once its ports are open: as little as it needs.

use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, chown};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use nix::unistd::{Gid, Uid, User, initgroups, setgroups, setresgid, setresuid};
use rustix::fs::Access;
use rustix::process::geteuid;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
};

use crate::config::Settings;

/// Who a server runs as from some moment on.
struct As {
    name: String,
    uid: u32,
    gid: u32,
    /// Whether the system knows it, with its further groups.
    is_known: bool,
}

impl As {
    /// By a name or a number.
    fn find(text: &str) -> anyhow::Result<Self> {
        let looking = || format!("looking up the user {text} (--user)");
        let found = match text.parse() {
            Ok(uid) => User::from_uid(Uid::from_raw(uid)).with_context(looking)?,
            Err(_) => User::from_name(text).with_context(looking)?,
        };
        let user = match (found, text.parse()) {
            (Some(user), _) => {
                Self { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw(), is_known: true }
            }
            (None, Ok(uid)) => Self { name: text.to_owned(), uid, gid: uid, is_known: false },
            (None, Err(_)) => {
                bail!(
                    "there is no user {text} (--user): make one with `useradd --system {text}`, or name another"
                )
            }
        };
        ensure!(user.uid != 0, "--user {text} is root, so nothing would be given up: name an ordinary user");
        Ok(user)
    }

    /// Makes the state folder for it, or sees that it has it already.
    fn own(&self, folder: &Path) -> anyhow::Result<()> {
        let (name, shown) = (&self.name, folder.display());
        match fs::metadata(folder) {
            Ok(found) if found.uid() == self.uid => Ok(()),
            Ok(found) => bail!(
                "the state folder {shown} belongs to user {}, not to {name} (--user): `chown -R {name} {shown}` gives \
                 it to {name}",
                found.uid()
            ),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let make = || {
                    if let Some(parent) = folder.parent() {
                        fs::create_dir_all(parent)?;
                    }
                    DirBuilder::new().mode(0o700).create(folder)?;
                    chown(folder, Some(self.uid), Some(self.gid))
                };
                make().with_context(|| format!("making the state folder {shown} for {name}"))
            }
            Err(e) => Err(e).with_context(|| format!("looking at the state folder {shown}")),
        }
    }

    /// Becomes it; what is in `kept` stays permitted.
    fn switch(&self) -> anyhow::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let switch = || -> anyhow::Result<()> {
            set_keep_capabilities(true)?;
            if self.is_known {
                initgroups(&CString::new(self.name.as_str())?, gid)?;
            } else {
                setgroups(&[gid])?;
            }
            setresgid(gid, gid, gid)?;
            setresuid(uid, uid, uid)?;
            Ok(set_keep_capabilities(false)?)
        };
        switch().with_context(|| format!("becoming the user {} (--user)", self.name))
    }
}

/// Gives up, for good, what the server needs no more: every port is open. It must be the only thread of the process,
/// since what is given up here later threads inherit, and others would keep it.
///
/// # Errors
/// If the user of the settings cannot be used, or the kernel refuses.
pub(super) fn give_up(settings: &Settings) -> anyhow::Result<()> {
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    ensure!(threads == 1, "privileges cannot be given up: {threads} threads run already");
    let user = settings.user.as_deref().map(As::find).transpose()?;
    let user = user.filter(|user| user.uid != geteuid().as_raw());
    let is_root = geteuid().is_root();
    if let Some(user) = &user {
        ensure!(
            is_root,
            "only root can become {} (--user): start the server with sudo, or leave --user out",
            user.name
        );
        user.own(&settings.state)?;
    }
    let wanted = needed(settings, is_root && user.is_none());
    let now = capabilities(None).context("asking which capabilities there are")?;
    let kept = now.permitted & wanted;
    let drop = || -> std::io::Result<()> {
        if now.effective.contains(CapabilitySet::SETPCAP) {
            for capability in (now.permitted - kept).iter() {
                remove_capability_from_bounding_set(capability)?;
            }
        }
        clear_ambient_capability_set()?;
        Ok(())
    };
    drop().context("giving up capabilities")?;
    if let Some(user) = &user {
        user.switch()?;
    }
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).context("giving up capabilities")?;
    set_no_new_privs(true).context("giving up further privileges")?;
    let who =
        user.as_ref().map_or_else(|| format!("user {}", geteuid().as_raw()), |u| format!("user {}", u.name));
    tracing::info!("privileges: {who}; capabilities kept: {}; no new privileges", names(kept));
    if let Some(user) = &user {
        reachable(settings, &user.name)?;
    }
    Ok(())
}

/// What is used after the ports are open.
fn needed(settings: &Settings, stays_root: bool) -> CapabilitySet {
    let mut needed = CapabilitySet::empty();
    // Before an address is given, an echo request asks whether somebody has it.
    if settings.netboot.as_ref().is_some_and(crate::netboot::Settings::gives_addresses) {
        needed |= CapabilitySet::NET_RAW;
    }
    if stays_root {
        // Archives and folders of other users, as root has always used them.
        needed |= CapabilitySet::DAC_OVERRIDE;
        // The next list of reinstalls is given to whoever wrote the one before.
        if settings.reinstall_file.is_some() {
            needed |= CapabilitySet::CHOWN;
        }
    }
    needed
}

fn names(kept: CapabilitySet) -> String {
    let names: Vec<String> = kept.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    if names.is_empty() { "none".into() } else { names.join(" ") }
}

/// Whether the user that the server has become can use what it was given: it is said now, and not at the first Pi.
fn reachable(settings: &Settings, user: &str) -> anyhow::Result<()> {
    let writes = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    let reads = Access::READ_OK | Access::EXEC_OK;
    let folders = [
        ("--state", Some(settings.state.as_path()), writes),
        ("--transfer-dir", settings.transfer.as_ref().map(|t| t.folder.as_path()), writes),
        ("--telemetry-dir", settings.telemetry.as_ref().map(|t| t.folder.as_path()), writes),
        ("--netboot", settings.netboot.as_ref().map(|n| n.folder.as_path()), reads),
        ("--rootfs", settings.rootfs.as_deref(), Access::READ_OK),
    ];
    for (flag, path, access) in folders {
        let Some(path) = path else { continue };
        rustix::fs::access(path, access).with_context(|| {
            let may = if access == writes { "write to" } else { "read" };
            format!(
                "the user {user} (--user) cannot {may} {} ({flag}); give it to {user} with chown",
                path.display()
            )
        })?;
    }
    Ok(())
}
