//! Whose images this Pi installs: a public key, and what must be true of an offer before
//! anything is erased.
//!
//! | file | what lives there |
//! |---|---|
//! | `rollback` | the counter below which a card takes no image |
//! | `device` | the key pair of this Pi |

mod device;
mod rollback;

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use minisign_verify::{PublicKey, Signature};
use piman_core::install::fetch::{Kind, Request};
use piman_core::install::manifest::{self, BYTES_MAX, Manifest};
use piman_core::install::trust::{Nonce, PiTrust, Root};
use piman_core::install::{Offer, Stage};

pub use device::Device;
pub use rollback::{first_block, raise, remember, rollback_counter};

use crate::card::random;
use crate::failure::{Cause, Failure};
use crate::fetch::{Link, Retry, Source};
use crate::identity::Identity;

/// Where an initramfs has the key.
pub const FILE: &str = piman_core::install::KEY_FILE;

/// How often a connection for the signature is made again.
const TRIES: u32 = 8;

/// The key that this program was built with, if any.
const BUILT_IN: Option<&str> = option_env!("PIMAN_PUBLIC_KEY");

/// A public key, and where it came from.
#[derive(Clone)]
pub struct Key {
    key: PublicKey,
    /// The same, for the certificates of servers.
    root: Root,
    from: String,
}

/// What a connection needs to know whom it talks to, and to show who this Pi is.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// Who certifies servers; `None`: every server is obeyed.
    pub root: Option<Root>,
    /// This Pi's own key.
    pub device: Option<Device>,
}

impl Trust {
    /// Begins a connection.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn connection(&self) -> io::Result<PiTrust> {
        let key = self.device.as_ref().and_then(|device| Some((device.key()?, device.is_kept)));
        let floor = self.device.as_ref().map(|device| device.floor).unwrap_or_default();
        Ok(PiTrust::new(Nonce(random::bytes()?), key, self.root, floor))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.from)
    }
}

/// Where it came from, for people.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "public key: {}", self.from)
    }
}

impl Key {
    /// Reads a key as minisign writes it: its file, or the line of base64 in it.
    ///
    /// # Errors
    /// If it is no public key of minisign.
    pub fn parse(text: &str, from: impl Into<String>) -> anyhow::Result<Self> {
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        let none = || anyhow!("this is no public key of minisign");
        let key = PublicKey::from_base64(line).map_err(|_| none())?;
        let root = Root::from_minisign(line).ok_or_else(none)?;
        Ok(Self { key, root, from: from.into() })
    }

    /// The same key, for the certificates of servers.
    #[must_use]
    pub const fn root(&self) -> Root {
        self.root
    }

    /// The key of this program: the one it was built with, else the one of its initramfs, else
    /// the one that was given, a file or base64. An earlier one is never replaced by a later.
    ///
    /// # Errors
    /// If the one that counts cannot be read: a Pi that should have a key must not go on without.
    pub fn find(given: Option<&str>) -> anyhow::Result<Option<Self>> {
        Self::first(BUILT_IN, Path::new(FILE), given)
    }

    fn first(built_in: Option<&str>, file: &Path, given: Option<&str>) -> anyhow::Result<Option<Self>> {
        let read = |path: &Path| -> anyhow::Result<Self> {
            let name = path.display();
            let text = std::fs::read_to_string(path).with_context(|| format!("reading {name}"))?;
            Self::parse(&text, name.to_string()).with_context(|| format!("reading {name}"))
        };
        match (built_in, given) {
            (Some(text), _) => Self::parse(text, "this program").map(Some),
            // A link that leads nowhere is there, too: nothing is installed because a key is lost.
            (None, _) if is_there(file)? => read(file).map(Some),
            (None, Some(path)) if path.starts_with('/') || Path::new(path).exists() => {
                read(Path::new(path)).map(Some)
            }
            (None, Some(text)) => Self::parse(text, "the command line").map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Checks that an offer is signed, for this Pi, and no step back behind `rollback_counter`. Returns it
    /// with what is not signed of it left out.
    ///
    /// # Errors
    /// [`Cause::Refused`] if it is not, [`Cause::Network`] if the signature cannot be fetched.
    pub fn check(
        &self,
        offer: Option<Offer>,
        identity: &Identity,
        rollback_counter: u64,
        connect: impl Fn(u16) -> io::Result<TcpStream>,
    ) -> Result<Offer, Failure> {
        let refuse = |e: anyhow::Error| {
            let error = anyhow!("{e:#} ({self}); nothing was changed");
            Failure { stage: Stage::Disk, cause: Cause::Refused, error }
        };
        let offer =
            offer.ok_or_else(|| refuse(anyhow!("the server does not say what it sends, signed or not")))?;
        let bytes = offer.more.manifest_bytes as usize;
        if bytes == 0 {
            let error = anyhow!("the image {:.12} is not signed: `piman image sign` does that", offer.id);
            return Err(refuse(error));
        }
        if bytes > BYTES_MAX {
            return Err(refuse(anyhow!("the manifest offered is too large: {bytes} bytes")));
        }
        let request = Request { kind: Kind::Manifest, id: offer.id, offset: 0, length: bytes as u64 };
        let (link, retry) = (Link::default(), Retry::default().times(TRIES));
        let connect = || connect(offer.fetch_port);
        // Whether it came as it was signed is seen by the signature.
        let signed = Source::new(connect, &link, retry, "the signature").table(&request, |_| true, "")?;
        self.judge(&signed, offer, identity, rollback_counter).map_err(refuse)
    }

    fn judge(
        &self,
        signed: &[u8],
        offer: Offer,
        identity: &Identity,
        rollback_counter: u64,
    ) -> anyhow::Result<Offer> {
        let (signature, text) = manifest::split(signed).context("what came is no signed manifest")?;
        let signature = Signature::decode(signature.trim_end())
            .map_err(|_| anyhow!("the image's signature is not in minisign's format"))?;
        match self.key.verify(text.as_bytes(), &signature, true) {
            Ok(()) => {}
            Err(minisign_verify::Error::UnexpectedKeyId) => bail!("the image is signed by another key"),
            Err(_) => bail!("the image's signature is wrong: its manifest was changed"),
        }
        let manifest =
            Manifest::parse(text).context("the signed manifest is not understood by this agent")?;
        ensure!(
            (manifest.image, manifest.bytes) == (offer.id, offer.bytes),
            "the signature is another image's, {:.12}",
            manifest.image
        );
        ensure!(
            manifest.is_for(identity.serial.as_deref(), identity.mac.as_deref()),
            "the image is signed for other Pis, not for this one"
        );
        let counter = manifest.counter;
        ensure!(
            counter >= rollback_counter,
            "the image is older (counter {counter}) than what this card has had ({rollback_counter})"
        );
        log::info!("image {:.12} `{}` is signed, counter {counter}", manifest.image, manifest.name);
        let mut offer = offer;
        (offer.more.counter, offer.more.unpacked_bytes) = (counter, manifest.unpacked_bytes);
        offer.more.entries = manifest.entries;
        offer.image = offer.image.filter(|image| manifest.tables().any(|(_, table)| table == image.table));
        Ok(offer)
    }
}

/// Whether a file has this name, readable or not.
fn is_there(file: &Path) -> anyhow::Result<bool> {
    match file.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).with_context(|| format!("looking for {}", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

    #[test]
    fn keys_in_their_order() {
        let folder = std::env::temp_dir().join(format!("keys-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (file, none) = (folder.join("piman.pub"), folder.join("none"));
        std::fs::write(&file, format!("untrusted comment: minisign public key\n{ONE}\n")).unwrap();
        let from = |built_in, path: &Path, given| {
            Key::first(built_in, path, given).map(|key| key.map(|key| key.from))
        };
        let name = file.display().to_string();
        assert_eq!(from(None, &none, None).unwrap(), None);
        assert_eq!(from(None, &none, Some(ONE)).unwrap().as_deref(), Some("the command line"));
        assert_eq!(from(None, &none, Some(&name)).unwrap().as_ref(), Some(&name));
        assert_eq!(from(None, &file, Some(ONE)).unwrap().as_ref(), Some(&name));
        assert_eq!(from(Some(ONE), &file, Some(ONE)).unwrap().as_deref(), Some("this program"));
        // One that should be there and cannot be read is not passed over.
        std::fs::write(&file, "").unwrap();
        assert!(from(None, &file, Some(ONE)).is_err());
        for given in ["/nowhere", "RWQ", ""] {
            assert!(from(None, &none, Some(given)).is_err(), "{given}");
        }
        let link = folder.join("link");
        std::os::unix::fs::symlink(&none, &link).unwrap();
        assert!(from(None, &link, None).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
