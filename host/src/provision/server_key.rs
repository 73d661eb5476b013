//! The server's own key and its certificate, in the state folder.
//!
//! | file | what it holds |
//! |---|---|
//! | `server.key` | the secret, 64 hexadecimal digits, for its owner alone |
//! | `server.cert` | the certificate, as `piman key certify` writes it |

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail, ensure};
use piman_core::install::trust::{Certificate, PublicKey, ServerKey};

use crate::sys::clock::now_ms;
use crate::sys::files::{replace, sync_folder};
use crate::sys::lock::lock;
use crate::sys::random;
use crate::text::human::when_utc;

/// The name of the secret in the state folder.
pub const KEY: &str = "server.key";
/// The name of the certificate.
pub const CERTIFICATE: &str = "server.cert";

/// The largest file that is read for a key or a certificate, in bytes.
const FILE_MAX: u64 = 4096;
/// How long before its end a certificate is worth a warning, in seconds.
pub const SOON: u64 = 30 * 24 * 3600;

/// The key of this server, which follows the files.
pub struct ServerKeys {
    folder: PathBuf,
    current: Mutex<Current>,
}

struct Current {
    key: Arc<ServerKey>,
    stamp: Stamp,
}

/// What tells whether the files have changed.
type Stamp = [Option<(u64, u64, i64, i64)>; 2];

impl ServerKeys {
    /// Reads the key of a state folder, or makes it.
    ///
    /// # Errors
    /// If it cannot be read or made.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let stamp = stamp(folder);
        let key = match read(folder)? {
            Some(key) => key,
            None => make(folder)?,
        };
        warn(&key);
        let current = Mutex::new(Current { key: Arc::new(key), stamp });
        Ok(Self { folder: folder.to_owned(), current })
    }

    /// The key as it is now.
    #[must_use]
    pub fn now(&self) -> Arc<ServerKey> {
        let mut current = lock(&self.current);
        // What is certified counts at once; two looks cost less than a signature.
        let stamp = stamp(&self.folder);
        if stamp != current.stamp {
            current.stamp = stamp;
            match read(&self.folder) {
                Ok(Some(key)) => {
                    warn(&key);
                    current.key = Arc::new(key);
                }
                Ok(None) => tracing::error!(
                    "{} is gone: going on with the key that it had",
                    self.folder.join(KEY).display()
                ),
                Err(e) => tracing::error!("going on with the key that this server had: {e:#}"),
            }
        }
        Arc::clone(&current.key)
    }
}

fn stamp(folder: &Path) -> Stamp {
    [KEY, CERTIFICATE].map(|name| {
        let found = fs::metadata(folder.join(name)).ok()?;
        Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
    })
}

/// Says what an operator has to do about a certificate.
fn warn(key: &ServerKey) {
    let Some(certificate) = key.certificate() else { return };
    let now = now_ms() / 1000;
    let until = when_utc(certificate.until);
    if certificate.until <= now {
        tracing::error!(
            "this server's certificate has expired ({until}): no Pi with a public key obeys it; `piman key certify` makes another"
        );
    } else if certificate.until - now < SOON {
        tracing::warn!("this server's certificate expires on {until}: `piman key certify` makes another");
    }
}

/// The key in a state folder, with its certificate; `None`: there is none.
///
/// # Errors
/// If one of the files cannot be read, or is something else.
pub fn read(folder: &Path) -> anyhow::Result<Option<ServerKey>> {
    let Some(secret) = read_file(&folder.join(KEY))? else { return Ok(None) };
    let path = folder.join(CERTIFICATE);
    let certificate = match read_file(&path)? {
        None => None,
        Some(text) => Some(certificate(&text).with_context(|| format!("reading {}", path.display()))?),
    };
    let secret = PublicKey::parse(secret.trim());
    let key = secret.and_then(|secret| ServerKey::new(secret.0, certificate));
    let key = key.with_context(|| {
        format!(
            "{} is no key of a server; put it back from a backup, or remove it: the server makes another, which needs \
             a certificate of its own (`piman key certify`)",
            folder.join(KEY).display()
        )
    })?;
    if let Some(certificate) = certificate
        && certificate.key != key.public()
    {
        tracing::warn!(
            "{} is the certificate of another key ({:.12}; this server's is {:.12}): `piman key certify` makes one",
            path.display(),
            certificate.key,
            key.public()
        );
    }
    Ok(Some(key))
}

/// Reads a certificate as it is written in a file.
///
/// # Errors
/// If it is none.
pub fn certificate(text: &str) -> anyhow::Result<Certificate> {
    Certificate::parse(text.trim().as_bytes()).context("this is no certificate of a server")
}

fn read_file(path: &Path) -> anyhow::Result<Option<String>> {
    let reading = || format!("reading {}", path.display());
    // A link that somebody put there is not followed.
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(reading),
    };
    let mut text = String::new();
    file.take(FILE_MAX + 1).read_to_string(&mut text).with_context(reading)?;
    ensure!(text.len() as u64 <= FILE_MAX, "{} is too large for what it should be", path.display());
    Ok(Some(text))
}

/// Makes a key where there is none.
///
/// # Errors
/// If it cannot be written.
pub fn make(folder: &Path) -> anyhow::Result<ServerKey> {
    let path = folder.join(KEY);
    let secret = random::secret().context("making a key for this server")?;
    let key = ServerKey::new(secret, None).context("making a key for this server")?;
    replace(&path, 0o600, format!("{}\n", PublicKey(secret)).as_bytes())
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(key)
}

/// Keeps a certificate of this folder's key.
///
/// # Errors
/// If it is of another key, or cannot be written.
pub fn keep(folder: &Path, certificate: &Certificate) -> anyhow::Result<PathBuf> {
    let Some(key) = read_file(&folder.join(KEY))?.and_then(|secret| PublicKey::parse(secret.trim())) else {
        bail!("there is no key of a server in {}: `piman key show` makes it", folder.display())
    };
    let own = ServerKey::new(key.0, None).context("reading this server's key")?.public();
    ensure!(
        certificate.key == own,
        "this is the certificate of another server, {:.16}; this one's key is {own}; nothing was changed",
        certificate.key
    );
    let path = folder.join(CERTIFICATE);
    replace(&path, 0o644, format!("{}\n", certificate.to_string().trim_start()).as_bytes())
        .and_then(|()| sync_folder(folder))
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let keys = ServerKeys::open(folder.path()).unwrap();
        let public = keys.now().public();
        assert_eq!(fs::metadata(folder.path().join(KEY)).unwrap().mode() & 0o777, 0o600);
        assert_eq!(ServerKeys::open(folder.path()).unwrap().now().public(), public);
        fs::write(folder.path().join(KEY), "nothing\n").unwrap();
        let error = format!("{:#}", ServerKeys::open(folder.path()).err().unwrap());
        assert!(error.contains("is no key of a server"), "{error}");
        fs::remove_file(folder.path().join(KEY)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join(KEY)).unwrap();
        assert!(ServerKeys::open(folder.path()).is_err());
    }

    #[test]
    fn a_certificate_is_noticed_and_is_of_the_right_key() {
        let folder = tempfile::tempdir().unwrap();
        let keys = ServerKeys::open(folder.path()).unwrap();
        assert_eq!(keys.now().certificate(), None);
        let signer = minisign::KeyPair::generate_unencrypted_keypair().unwrap().sk;
        let secret = crate::images::sign::secret_bytes(&signer).unwrap();
        let of = |key| Certificate::sign(key, 2_000_000_000, (1, 0), &secret);
        let error = keep(folder.path(), &of(PublicKey([7; 32]))).unwrap_err().to_string();
        assert!(error.contains("nothing was changed"), "{error}");
        let certificate = of(keys.now().public());
        keep(folder.path(), &certificate).unwrap();
        assert_eq!(keys.now().certificate(), Some(&certificate));
    }
}
