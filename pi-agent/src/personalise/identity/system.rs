//! What a system makes for itself at its first boot, and must make anew on every card.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Context;

use crate::card::root_files::{self, Access, unless_absent};
use crate::card::root_path::resolve;

const MACHINE_ID: &str = "/etc/machine-id";
const DBUS_MACHINE_ID: &str = "/var/lib/dbus/machine-id";
/// Seeds of random numbers: of systemd, of System V's scripts, of SeedRNG.
const SEEDS: [&str; 5] = [
    "/var/lib/systemd/random-seed",
    "/var/lib/urandom/random-seed",
    "/var/lib/random-seed",
    "/var/lib/seedrng/seed.credit",
    "/var/lib/seedrng/seed.no-credit",
];
const UNITS: &str = "/etc/systemd/system";
/// The unit by which Raspberry Pi OS makes host keys once.
const REGENERATE: &str = "regenerate_ssh_host_keys.service";
/// Our own.
const UNIT: &str = "piman-host-keys.service";
/// Harmless at every later boot: keys that are there stay.
const UNIT_TEXT: &str = "[Unit]\n\
    Description=SSH host keys of this system, if it has none\n\
    After=cloud-init.service\n\
    Before=ssh.service sshd.service ssh.socket sshd.socket\n\
    ConditionPathIsReadWrite=/etc/ssh\n\
    \n\
    [Service]\n\
    Type=oneshot\n\
    ExecStart=/usr/bin/ssh-keygen -A\n\
    \n\
    [Install]\n\
    WantedBy=multi-user.target\n";

fn has(root: &Path, path: &str) -> bool {
    resolve(root, Path::new(path)).is_ok()
}

fn has_systemd(root: &Path) -> bool {
    ["/lib/systemd/systemd", "/usr/lib/systemd/systemd"].iter().any(|path| has(root, path))
}

/// Takes away a file that is there; a link stays, and so does where it leads.
fn remove(root: &Path, path: &str) -> io::Result<()> {
    match root_files::existing(root, Path::new(path))? {
        Some(file) if fs::symlink_metadata(&file)?.is_file() => unless_absent(fs::remove_file(file)),
        _ => Ok(()),
    }
}

/// Has the system make its own machine-id, and takes away the seeds of its random numbers.
pub(super) fn machine(root: &Path) -> anyhow::Result<()> {
    let path = Path::new(MACHINE_ID);
    let is_there = has(root, MACHINE_ID);
    if is_there || has_systemd(root) {
        let place = root_files::place(root, path).with_context(|| format!("emptying {MACHINE_ID}"))?;
        let access = fs::symlink_metadata(&place).ok().filter(fs::Metadata::is_file);
        let access = access.map_or_else(|| Access::own(0o444), |meta| Access::of(&meta));
        root_files::write(&place, access, b"").with_context(|| format!("emptying {MACHINE_ID}"))?;
    }
    for path in [DBUS_MACHINE_ID].iter().chain(&SEEDS) {
        remove(root, path).with_context(|| format!("taking away {path}"))?;
    }
    Ok(())
}

/// Takes away the host keys of SSH, where something will make others. A system that could not is left with those it has:
/// nobody would get into it.
pub(super) fn host_keys(root: &Path) -> anyhow::Result<()> {
    let Ok(folder) = resolve(root, Path::new("/etc/ssh")) else { return Ok(()) };
    let mut keys = Vec::new();
    for entry in fs::read_dir(&folder).context("looking for host keys")? {
        let entry = entry.context("looking for host keys")?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let plain = name.strip_suffix(".pub").unwrap_or(name);
        if plain.starts_with("ssh_host_") && plain.ends_with("_key") && entry.file_type()?.is_file() {
            keys.push(entry.path());
        }
    }
    if !makes_keys(root).context("having host keys made at the first boot")? {
        if !keys.is_empty() {
            log::warn!("the SSH host keys of the image stay: nothing in it would make others");
        }
        return Ok(());
    }
    for key in keys {
        fs::remove_file(&key).with_context(|| format!("taking away {}", key.display()))?;
    }
    Ok(())
}

/// Sees to it that the first boot makes host keys; whether anything will.
fn makes_keys(root: &Path) -> anyhow::Result<bool> {
    if !has_systemd(root) {
        // The script of OpenRC makes what is missing whenever it starts.
        return Ok(has(root, "/sbin/openrc-run") && has(root, "/etc/init.d/sshd"));
    }
    let folders = ["/etc/systemd/system", "/lib/systemd/system", "/usr/lib/systemd/system"];
    let path = |folder: &&&str| has(root, &format!("{folder}/{REGENERATE}"));
    if let Some(folder) = folders.iter().find(path) {
        // It switches itself off when it has run.
        enable(root, REGENERATE, folder)?;
        return Ok(true);
    }
    if !has(root, "/usr/bin/ssh-keygen") {
        return Ok(false);
    }
    let place = root_files::place(root, Path::new(&format!("{UNITS}/{UNIT}")))?;
    root_files::write(&place, Access::own(0o644), UNIT_TEXT.as_bytes())?;
    enable(root, UNIT, UNITS)?;
    Ok(true)
}

fn enable(root: &Path, unit: &str, folder: &str) -> io::Result<()> {
    let link = root_files::place(root, Path::new(&format!("{UNITS}/multi-user.target.wants/{unit}")))?;
    match symlink(format!("{folder}/{unit}"), link) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        dir
    }

    const SSH: [&str; 6] = [
        "usr/lib/systemd/systemd",
        "etc/ssh/ssh_host_ed25519_key",
        "etc/ssh/ssh_host_ed25519_key.pub",
        "etc/ssh/ssh_host_key_policy",
        "etc/ssh/sshd_config",
        "etc/ssh/moduli",
    ];

    #[test]
    fn a_machine_is_nobody_yet() {
        let dir = root(&["etc/machine-id", "var/lib/systemd/random-seed", "var/lib/urandom/random-seed"]);
        fs::create_dir_all(dir.path().join("var/lib/dbus")).unwrap();
        symlink("/etc/machine-id", dir.path().join("var/lib/dbus/machine-id")).unwrap();
        for _ in 0..2 {
            machine(dir.path()).unwrap();
            assert_eq!(fs::read(dir.path().join("etc/machine-id")).unwrap(), b"");
            assert!(fs::symlink_metadata(dir.path().join("var/lib/dbus/machine-id")).is_ok());
            assert!(!dir.path().join("var/lib/systemd/random-seed").exists());
            assert!(!dir.path().join("var/lib/urandom/random-seed").exists());
        }
        fs::remove_file(dir.path().join("var/lib/dbus/machine-id")).unwrap();
        fs::write(dir.path().join("var/lib/dbus/machine-id"), "old").unwrap();
        machine(dir.path()).unwrap();
        assert!(!dir.path().join("var/lib/dbus/machine-id").exists());
        // A system that has none gets none.
        let other = root(&["etc/hostname"]);
        machine(other.path()).unwrap();
        assert!(!other.path().join("etc/machine-id").exists());
    }

    #[test]
    fn host_keys_go_where_others_are_made() {
        let there = |dir: &Path, path: &str| fs::symlink_metadata(dir.join(path)).is_ok();
        let wants = "etc/systemd/system/multi-user.target.wants";
        // Nothing would make others.
        let dir = root(&SSH);
        host_keys(dir.path()).unwrap();
        assert!(there(dir.path(), SSH[1]));
        // Our unit.
        let dir = root(&[&SSH[..], &["usr/bin/ssh-keygen"]].concat());
        for _ in 0..2 {
            host_keys(dir.path()).unwrap();
            assert!(!there(dir.path(), SSH[1]) && !there(dir.path(), SSH[2]));
            assert!(SSH[3..].iter().all(|file| there(dir.path(), file)));
            let link = fs::read_link(dir.path().join(wants).join(UNIT)).unwrap();
            assert_eq!(link, Path::new("/etc/systemd/system").join(UNIT));
        }
        // That of Raspberry Pi OS, which had switched itself off.
        let unit = format!("usr/lib/systemd/system/{REGENERATE}");
        let dir = root(&[&SSH[..], &["usr/bin/ssh-keygen", &unit]].concat());
        host_keys(dir.path()).unwrap();
        assert!(there(dir.path(), &format!("{wants}/{REGENERATE}")) && !there(dir.path(), SSH[1]));
        assert!(!there(dir.path(), &format!("{wants}/{UNIT}")));
        host_keys(root(&["bin/sh"]).path()).unwrap();
    }
}
