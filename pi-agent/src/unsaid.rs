//! What the server could not be told of an installation, kept in the installed system until it can be: its agent tells
//! it (`pi-agent run`), or the next boot from the network does.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use piman_core::hosted::backoff::Backoff;
use piman_core::install::receipt::{NAME, Proof};
use piman_core::install::{Can, Hello, Notice, REVISION, Stage};

use crate::control::{ControlConnection, Peer, Server};
use crate::identity::Identity;

/// Where it is kept.
const FILE: &str = ".piman-unsaid";
/// The longest that is read, in bytes.
const LONGEST: u64 = 4096;
/// How long the server's machine may take to acknowledge what it was told.
const DELIVERY: Duration = Duration::from_secs(10);

/// What was not said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unsaid {
    /// The installation is complete: the proof says which.
    Installed,
    /// The system could not be booted, for this reason.
    NotBooted(String),
}

/// Keeps it in the system at `root`. What was kept before is of an earlier installation.
///
/// # Errors
/// If it cannot be written.
pub fn keep(root: &Path, server: Option<&Server>, what: &Unsaid) -> io::Result<()> {
    let (host, port) = server.map_or(("-", 0), |server| (server.host.as_str(), server.control_port));
    let text = match what {
        Unsaid::Installed => format!("{host} {port}\ninstalled\n"),
        Unsaid::NotBooted(why) => format!("{host} {port}\nnot booted\n{why}\n"),
    };
    let new = root.join(".piman-unsaid-new");
    let mut file = fs::File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, place(root))
}

/// What is kept in the system at `root`, and which server is to be told, if that was known.
#[must_use]
pub fn kept(root: &Path) -> Option<(Option<Server>, Unsaid)> {
    let meta = fs::symlink_metadata(place(root)).ok().filter(fs::Metadata::is_file)?;
    let text = fs::read_to_string(place(root)).ok().filter(|_| meta.len() <= LONGEST)?;
    let mut lines = text.splitn(3, '\n');
    let (host, port) = lines.next()?.rsplit_once(' ')?;
    let control_port = port.parse().ok()?;
    let server = Server { host: host.to_owned(), control_port, rootfs_port: 0 };
    let what = match lines.next()? {
        "installed" => Unsaid::Installed,
        "not booted" => Unsaid::NotBooted(lines.next()?.trim().to_owned()),
        _ => return None,
    };
    Some((Some(server).filter(|server| server.control_port != 0), what))
}

/// Forgets it: the server knows.
pub fn forget(root: &Path) {
    if let Err(e) = fs::remove_file(place(root))
        && e.kind() != io::ErrorKind::NotFound
    {
        log::warn!("{} cannot be removed: {e}", place(root).display());
    }
}

/// Tells the server what the system at `root` keeps for it, trying until it is told, and forgets it then.
pub fn tell(root: &Path, identity: &Identity) {
    let mut backoff = Backoff::default();
    while let Some((Some(server), what)) = kept(root) {
        match try_tell(root, identity, &server, &what) {
            Ok(()) => {
                log::info!("the server {} was told how the installation ended", server.host);
                return forget(root);
            }
            Err(e) => log::warn!("telling the server {} how the installation ended: {e:#}", server.host),
        }
        std::thread::sleep(backoff.wait());
    }
}

fn try_tell(root: &Path, identity: &Identity, server: &Server, what: &Unsaid) -> anyhow::Result<()> {
    let block = fs::read(root.join(NAME)).context("reading the proof")?;
    let proof = Proof::parse(&block).context("the proof of what is installed is none")?;
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
    let mut talk = ControlConnection::resume(server, hello, Peer::Ours)?;
    talk.notify(match what {
        Unsaid::Installed => Notice::Committed { id: proof.image, installation: proof.installation },
        Unsaid::NotBooted(why) => Notice::Failed { stage: Stage::Boot, text: why },
    })?;
    ensure!(talk.is_delivered(DELIVERY), "it does not acknowledge what it is told");
    Ok(())
}

fn place(root: &Path) -> PathBuf {
    root.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_and_what_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert_eq!(kept(root), None);
        let server = Server { host: "fe80::1".into(), control_port: 3333, rootfs_port: 0 };
        for what in [Unsaid::Installed, Unsaid::NotBooted("no init:\nreally".into())] {
            keep(root, Some(&server), &what).unwrap();
            assert_eq!(kept(root), Some((Some(server.clone()), what.clone())));
            keep(root, None, &what).unwrap();
            assert_eq!(kept(root), Some((None, what)));
        }
        forget(root);
        forget(root);
        assert_eq!(kept(root), None);
        for bad in ["", "a 1\n", "a\ninstalled\n", "a 70000\ninstalled\n", "a 1\ndance\n", "a 1\nnot booted"]
        {
            fs::write(place(root), bad).unwrap();
            assert_eq!(kept(root), None, "{bad:?}");
        }
    }
}
