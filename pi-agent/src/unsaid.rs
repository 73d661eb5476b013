//! What the server could not be told of an installation, kept in the installed system until it can be: its agent tells
//! it (`pi-agent run`), or the next boot from the network does.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use piman_core::hash::Hash;
use piman_core::hosted::backoff::Backoff;
use piman_core::install::receipt::{NAME, Proof, UNSAID};
use piman_core::install::{Can, Hello, Installation, Notice, REVISION, Stage};

use crate::control::{ControlConnection, Peer, Server};
use crate::identity::Identity;
use crate::trust::{Device, Trust};

/// What is in front of the key of this Pi.
const KEY: &str = " key=";
/// The longest that is read, in bytes.
const LONGEST: u64 = 4096;
/// How long the server's machine may take to acknowledge what it was told.
pub(crate) const DELIVERY: Duration = Duration::from_secs(10);

/// What was not said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unsaid {
    /// The installation is complete: the proof says which.
    Installed,
    /// The system could not be booted, for this reason.
    NotBooted(String),
}

/// Keeps it in the system at `root`, with the number of the installation that the proof there is of. What was kept
/// before is of an earlier installation.
///
/// # Errors
/// If it cannot be written, or there is no proof.
///
/// With this Pi's key, which only root can read there, it is told as this Pi.
pub fn keep(root: &Path, server: Option<(&Server, Option<&Device>)>, what: &Unsaid) -> io::Result<()> {
    let (host, port) = server.map_or(("-", 0), |(server, _)| (server.host.as_str(), server.control_port));
    let key = server
        .and_then(|(_, device)| device?.secret())
        .map_or_else(String::new, |secret| format!("{KEY}{}", Hash(*secret)));
    let proof = proof(root).ok_or(io::ErrorKind::NotFound)?;
    let which = which(&proof);
    let text = match what {
        Unsaid::Installed => format!("{host} {port} {which}{key}\ninstalled\n"),
        Unsaid::NotBooted(why) => format!("{host} {port} {which}{key}\nnot booted\n{why}\n"),
    };
    let new = root.join(".piman-unsaid-new");
    // Whatever an archive has put there, a link for example, is not written to.
    let _ = fs::remove_file(&new);
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, place(root))
}

/// What is kept in the system at `root`, and which server is to be told, if that was known. What is not of the
/// installation that the proof there is of, as on a copy of another card, is removed.
#[must_use]
pub fn kept(root: &Path) -> Option<(Option<Server>, Unsaid)> {
    let found = read(root);
    if found.is_none() {
        forget(root);
    }
    found.map(|Kept { server, what, .. }| (server, what))
}

/// What is kept.
struct Kept {
    server: Option<Server>,
    what: Unsaid,
    proof: Proof,
    device: Option<Device>,
}

fn read(root: &Path) -> Option<Kept> {
    let meta = fs::symlink_metadata(place(root)).ok().filter(fs::Metadata::is_file)?;
    let text = fs::read_to_string(place(root)).ok().filter(|_| meta.len() <= LONGEST)?;
    let mut lines = text.splitn(3, '\n');
    let line = lines.next()?;
    let (line, key) = line.split_once(KEY).unwrap_or((line, ""));
    let device = Hash::parse(key).map(|secret| Device::with_secret(secret.0));
    let (rest, named) = line.rsplit_once(' ')?;
    let (host, port) = rest.rsplit_once(' ')?;
    let proof = proof(root).filter(|proof| which(proof) == named)?;
    let control_port = port.parse().ok()?;
    let server = Server { host: host.to_owned(), control_port, rootfs_port: 0 };
    let what = match lines.next()? {
        "installed" => Unsaid::Installed,
        "not booted" => Unsaid::NotBooted(lines.next()?.trim().to_owned()),
        _ => return None,
    };
    Some(Kept { server: Some(server).filter(|server| server.control_port != 0), what, proof, device })
}

fn proof(root: &Path) -> Option<Proof> {
    Proof::parse(&fs::read(root.join(NAME)).ok()?)
}

/// How a record names the installation; old servers give it no number.
fn which(proof: &Proof) -> String {
    proof.installation.map_or_else(|| "-".to_owned(), |installation: Installation| installation.to_string())
}

/// Forgets it: the server knows.
pub fn forget(root: &Path) {
    if let Err(e) = fs::remove_file(place(root))
        && e.kind() != io::ErrorKind::NotFound
    {
        log::warn!("{} cannot be removed: {e}", place(root).display());
    }
}

/// Tells the server what the system at `root` keeps for it, trying until it is told, and forgets it then. Without a
/// proof that can be read there is nothing to tell.
pub fn tell(root: &Path, identity: &Identity) {
    let mut backoff = Backoff::default();
    while let Some(Kept { server, what, proof, device }) = read(root) {
        let Some(server) = server else { return };
        match try_tell(&proof, identity, (&server, device), &what) {
            Ok(()) => {
                log::info!("the server {} was told how the installation ended", server.host);
                return forget(root);
            }
            Err(e) => log::warn!("telling the server {} how the installation ended: {e:#}", server.host),
        }
        std::thread::sleep(backoff.wait());
    }
    forget(root);
}

fn try_tell(
    proof: &Proof,
    identity: &Identity,
    (server, device): (&Server, Option<Device>),
    what: &Unsaid,
) -> anyhow::Result<()> {
    let hello = Hello {
        revision: REVISION,
        can: Can::default(),
        serial: identity.serial.as_deref(),
        mac: identity.mac.as_deref(),
        model: identity.model.as_deref(),
        agent: Some(env!("CARGO_PKG_VERSION")),
        card: Some(proof.image),
        installation: proof.installation,
        ..Hello::default()
    };
    // A server is told, whoever it is: it orders nothing here.
    let trust = Trust { root: None, device };
    let mut talk = ControlConnection::resume(server, hello, Peer::Ours, &trust)?;
    talk.notify(match what {
        Unsaid::Installed => Notice::Committed { id: proof.image, installation: proof.installation },
        Unsaid::NotBooted(why) => Notice::Failed { stage: Stage::Boot, text: why },
    })?;
    ensure!(talk.is_delivered(DELIVERY), "it does not acknowledge what it is told");
    Ok(())
}

fn place(root: &Path) -> PathBuf {
    root.join(UNSAID)
}

#[cfg(test)]
mod tests {
    use super::*;
    use piman_core::install::More;
    use piman_core::install::receipt::Way;

    fn prove(root: &Path, installation: Option<u64>) {
        let more = More { installation: installation.map(Installation), ..More::default() };
        fs::write(root.join(NAME), Proof::now(Hash([7; 32]), Way::Archive, more).encode()).unwrap();
    }

    #[test]
    fn what_is_of_another_installation_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert!(keep(root, None, &Unsaid::Installed).is_err(), "there is no proof");
        for other in [Some(6), None] {
            prove(root, Some(5));
            keep(root, None, &Unsaid::Installed).unwrap();
            prove(root, other);
            assert_eq!(kept(root), None);
            assert!(!place(root).exists(), "{other:?}");
        }
    }

    #[test]
    fn without_a_proof_nothing_is_told_and_nothing_kept() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let server = Server { host: "127.0.0.1".into(), control_port: 9, rootfs_port: 0 };
        for spoil in [|proof: &Path| fs::remove_file(proof), |proof: &Path| fs::write(proof, "none")] {
            prove(root, Some(5));
            keep(root, Some((&server, None)), &Unsaid::Installed).unwrap();
            spoil(&root.join(NAME)).unwrap();
            tell(root, &Identity::default());
            assert!(!place(root).exists());
        }
    }

    #[test]
    fn what_is_kept_and_what_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert_eq!(kept(root), None);
        prove(root, None);
        let server = Server { host: "fe80::1".into(), control_port: 3333, rootfs_port: 0 };
        for what in [Unsaid::Installed, Unsaid::NotBooted("no init:\nreally".into())] {
            keep(root, Some((&server, None)), &what).unwrap();
            assert_eq!(kept(root), Some((Some(server.clone()), what.clone())));
            keep(root, None, &what).unwrap();
            assert_eq!(kept(root), Some((None, what)));
        }
        forget(root);
        forget(root);
        assert_eq!(kept(root), None);
        for bad in
            ["", "a 1 -\n", "a\ninstalled\n", "a 70000 -\ninstalled\n", "a 1 -\ndance\n", "a 1 -\nnot booted"]
        {
            fs::write(place(root), bad).unwrap();
            assert_eq!(kept(root), None, "{bad:?}");
        }
    }
}
