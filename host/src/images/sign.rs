//! Keys and signatures as the minisign tool makes and checks them, and the signed manifests in
//! the state folder.

use std::fs::{self, OpenOptions};
use std::io::{self, Cursor, ErrorKind, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use minisign::{PublicKey, SecretKey, SecretKeyBox, SignatureBox};
use piman_core::base64;
use piman_core::hash::Hash;
use piman_core::install::manifest::{self, BYTES_MAX, Manifest};

use crate::sys::files::{make_private, parent, replace, sync_folder};
use crate::text::password;

/// How a secret key is protected.
#[derive(Debug, Clone, clap::Args)]
pub struct Password {
    /// The secret key has no password
    #[arg(long, conflicts_with = "password_file")]
    pub(crate) no_password: bool,
    /// File with the password, in its first line [default: it is asked for]
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

impl Password {
    /// The password; `None`: ask for it.
    pub(crate) fn read(&self) -> anyhow::Result<Option<String>> {
        let Some(file) = &self.password_file else {
            let asks = io::stdin().is_terminal();
            ensure!(asks, "there is no terminal to ask for the password: --password-file or --no-password");
            return Ok(None);
        };
        password::read(file).map(Some)
    }
}

pub(crate) fn create(path: &Path, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        sync_folder(parent(path))
    };
    written().with_context(|| format!("writing {}", path.display()))
}

/// Reads a secret key, for whose password it asks if it has one.
///
/// # Errors
/// If it is no key, or the password is wrong.
pub fn secret_key(file: &Path, password: &Password) -> anyhow::Result<SecretKey> {
    let name = file.display();
    let text = fs::read_to_string(file).with_context(|| format!("reading the secret key {name}"))?;
    // Without a password, minisign writes no checksum, on which the crate would insist.
    let line = text.lines().nth(1).unwrap_or_default().trim();
    let bytes: Vec<u8> = base64::decode(line.as_bytes()).collect::<Option<_>>().unwrap_or_default();
    if bytes.get(2..4) == Some(&[0, 0]) {
        return SecretKey::from_bytes(&bytes).with_context(|| format!("{name} is no secret key"));
    }
    let boxed = SecretKeyBox::from_string(&text).with_context(|| format!("{name} is no secret key"))?;
    let key = boxed.into_secret_key(password.read()?);
    key.with_context(|| format!("opening the secret key {name}: is the password right?"))
}

/// The bytes of a secret key: its seed and its public key.
///
/// # Errors
/// If it is no key of minisign.
pub fn secret_bytes(key: &SecretKey) -> anyhow::Result<[u8; 64]> {
    // Two bytes each of the algorithms, the salt, two limits, and the number of the key come first.
    const AT: usize = 2 + 2 + 2 + 32 + 8 + 8 + 8;
    let bytes = key.to_bytes();
    let secret = bytes.get(AT..AT + 64).and_then(|bytes| bytes.try_into().ok());
    secret.context("this is no secret key of minisign")
}

/// Signs a manifest; returns the text of a `.minisig` file.
///
/// # Errors
/// If the key cannot sign.
pub fn sign(text: &str, key: &SecretKey) -> anyhow::Result<String> {
    let manifest = Manifest::parse(text).context("this is no manifest")?;
    let Manifest { image, name, counter, .. } = manifest;
    let trusted = format!("timestamp:{counter}\tpiman image={image} name={name} counter={counter}");
    let public = PublicKey::from_secret_key(key)?;
    let signature = minisign::sign(Some(&public), key, Cursor::new(text), Some(&trusted), None);
    Ok(signature.context("signing the manifest")?.into_string())
}

fn folder(state: &Path) -> PathBuf {
    state.join("manifests")
}

fn file(state: &Path, id: Hash) -> PathBuf {
    folder(state).join(format!("{id}.signed"))
}

/// Keeps a signed manifest in the state folder, from where a server sends it.
///
/// # Errors
/// If it cannot be made or written.
pub fn keep(state: &Path, signature: &str, text: &str) -> anyhow::Result<PathBuf> {
    SignatureBox::from_string(signature).context("this is no signature of minisign")?;
    let image = Manifest::parse(text).context("this is no manifest")?.image;
    let signature: Vec<&str> = signature.lines().take(4).collect();
    let whole = format!("{}\n{text}", signature.join("\n"));
    ensure!(signature.len() == 4 && whole.len() <= BYTES_MAX, "this is no signature of minisign");
    let (folder, file) = (folder(state), file(state, image));
    let written = || {
        if !folder.exists() {
            make_private(&folder)?;
            sync_folder(state)?;
        }
        replace(&file, 0o600, whole.as_bytes())
    };
    written().with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

/// Whether anything is signed there.
pub(crate) fn has_manifests(state: &Path) -> bool {
    fs::read_dir(folder(state)).is_ok_and(|mut files| files.next().is_some())
}

/// What is signed of the image with this hash, as it is sent; `None` if it is not signed.
#[must_use]
pub fn signed(state: &Path, id: Hash) -> Option<Vec<u8>> {
    let file = file(state, id);
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(e) => {
            if e.kind() != ErrorKind::NotFound {
                tracing::error!("{} cannot be read, so this image counts as not signed: {e}", file.display());
            }
            return None;
        }
    };
    let right =
        manifest::split(&bytes).and_then(|(_, text)| Manifest::parse(text)).is_some_and(|m| m.image == id);
    if !right {
        tracing::error!("{} is damaged, so this image counts as not signed: sign it again", file.display());
    }
    Some(bytes).filter(|_| right)
}

/// Takes in what was signed elsewhere.
///
/// # Errors
/// If the two do not belong together, or are for another image.
pub fn import(state: &Path, id: Hash, manifest: &Path, signature: &Path) -> anyhow::Result<PathBuf> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    let (text, signature) = (read(manifest)?, read(signature)?);
    let found = Manifest::parse(&text).with_context(|| format!("{} is no manifest", manifest.display()))?;
    if found.image != id {
        bail!("{} is the manifest of another image, {:.16}", manifest.display(), found.image);
    }
    keep(state, &signature, &text)
}
