//! `piman key`: the key that signs images, and the certificates of servers.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use minisign::{KeyPair, SecretKey};
use piman_core::install::trust::{Certificate, PublicKey, ServerKey};

use super::state_arg::StateFolder;
use crate::images::sign::{self, Password, create};
use crate::provision::server_key;
use crate::sys::clock::now_ms;
use crate::text::human::when_utc;

/// `piman key`.
#[derive(Debug, clap::Subcommand)]
pub enum KeyCommand {
    /// Make a key pair: the secret key signs images and certifies servers, the public key goes to the Pis
    #[command(after_help = "Both files are as minisign has them, which can use them as well.")]
    Generate {
        /// Secret key to make; it is never overwritten
        #[arg(long, value_name = "FILE", default_value = "piman.key")]
        secret: PathBuf,
        /// Public key to make
        #[arg(long, value_name = "FILE", default_value = "piman.pub")]
        public: PathBuf,
        /// How the secret key is protected
        #[command(flatten)]
        password: Password,
    },
    /// Certify a server: Pis with the public key obey no server that has no certificate
    #[command(
        after_help = "A running server takes a new certificate at once. Where the secret key is on another \
        machine: `piman key show` here, `piman key certify --server-key KEY --out FILE` there, `piman key import FILE` \
        here."
    )]
    Certify {
        /// Where the server's key is, and its certificate goes
        #[command(flatten)]
        state: StateFolder,
        /// By whom
        #[command(flatten)]
        by: Signer,
        /// The public key of a server elsewhere, in place of one with its state here
        #[arg(long, value_name = "KEY", requires = "out")]
        server_key: Option<String>,
        /// The certificate goes into this file; it is never overwritten
        #[arg(long, value_name = "FILE", requires = "server_key")]
        out: Option<PathBuf>,
    },
    /// Take in a certificate that was made elsewhere
    Import {
        /// Where it goes
        #[command(flatten)]
        state: StateFolder,
        /// The certificate
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Give the server another key, with a certificate; the old one stays good until its end
    Rotate {
        /// Where the server's key is
        #[command(flatten)]
        state: StateFolder,
        /// By whom
        #[command(flatten)]
        by: Signer,
    },
    /// The same, when somebody else may have the old key: Pis that hear of it obey no older certificate
    Revoke {
        /// Where the server's key is
        #[command(flatten)]
        state: StateFolder,
        /// By whom
        #[command(flatten)]
        by: Signer,
    },
    /// Show the server's key, which is made if there is none, and its certificate
    Show {
        /// Where they are
        #[command(flatten)]
        state: StateFolder,
    },
}

/// Who certifies, and for how long.
#[derive(Debug, Args)]
pub struct Signer {
    /// Secret key, as `piman key generate` makes it
    #[arg(long, value_name = "FILE", default_value = "piman.key")]
    secret: PathBuf,
    /// How long the certificate is good
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// How the secret key is protected
    #[command(flatten)]
    password: Password,
}

/// Runs `piman key`; returns what to show.
///
/// # Errors
/// If a file cannot be read or written, or is there already and must not be.
pub fn run(command: &KeyCommand) -> anyhow::Result<String> {
    match command {
        KeyCommand::Generate { secret, public, password } => generate(secret, public, password),
        KeyCommand::Certify { state: _, by, server_key: Some(key), out: Some(out) } => {
            let key =
                PublicKey::parse(key).context("--server-key: this is no key that `piman key show` shows")?;
            let certificate = certify(key, by, 0)?;
            create(out, 0o644, format!("{}\n", certificate.to_string().trim_start()).as_bytes())?;
            Ok(format!("{}: {}\n", out.display(), about(&certificate)))
        }
        KeyCommand::Certify { state, by, .. } => {
            let folder = folder(state)?;
            let own = own(&folder)?;
            let certificate = certify(own.public(), by, since(&own))?;
            keep(&folder, &certificate)
        }
        KeyCommand::Import { state, file } => {
            let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
            let certificate =
                server_key::certificate(&text).with_context(|| format!("reading {}", file.display()))?;
            keep(&folder(state)?, &certificate)
        }
        KeyCommand::Rotate { state, by } => renew(&folder(state)?, by, false),
        KeyCommand::Revoke { state, by } => renew(&folder(state)?, by, true),
        KeyCommand::Show { state } => show(&folder(state)?),
    }
}

fn generate(secret: &Path, public: &Path, password: &Password) -> anyhow::Result<String> {
    for file in [secret, public] {
        ensure!(!file.exists(), "{} is there already, and is not overwritten", file.display());
    }
    let pair = if password.no_password {
        KeyPair::generate_unencrypted_keypair()
    } else {
        KeyPair::generate_encrypted_keypair(password.read()?)
    };
    let KeyPair { pk, sk } = pair.context("making a key pair")?;
    let text = pk.to_base64();
    let comment = "minisign encrypted secret key";
    create(secret, 0o600, &sk.to_box(Some(comment))?.to_bytes())?;
    create(public, 0o644, &pk.to_box()?.to_bytes())?;
    Ok(format!(
        "secret key {}: signs images (`piman image sign`) and certifies servers (`piman key certify`); keep it away \
         from the server if you can\n\
         public key {}: for the Pis, by `piman netboot build --public-key`, or as\n  piman.key={text}\n",
        secret.display(),
        public.display()
    ))
}

/// The state folder, which is made if there is none.
fn folder(state: &StateFolder) -> anyhow::Result<PathBuf> {
    let folder = state.path()?;
    if !folder.exists() {
        drop(state.open_or_make()?);
    }
    Ok(folder)
}

/// The server's key, which is made if there is none.
fn own(folder: &Path) -> anyhow::Result<ServerKey> {
    match server_key::read(folder)? {
        Some(key) => Ok(key),
        None => server_key::make(folder),
    }
}

/// What is revoked stays so.
fn since(own: &ServerKey) -> u64 {
    own.certificate().map_or(0, |certificate| certificate.since)
}

fn secret(by: &Signer) -> anyhow::Result<SecretKey> {
    sign::secret_key(&by.secret, &by.password)
}

fn certify(key: PublicKey, by: &Signer, since: u64) -> anyhow::Result<Certificate> {
    certify_by(&secret(by)?, key, (by.days, since, now_ms()))
}

/// `now` is in milliseconds since 1970, and counts: a later certificate has a larger one.
fn certify_by(
    secret: &SecretKey,
    key: PublicKey,
    (days, since, now): (u32, u64, u64),
) -> anyhow::Result<Certificate> {
    let secret = sign::secret_bytes(secret)?;
    let until = now / 1000 + u64::from(days) * 24 * 3600;
    let counter = now.max(since);
    Ok(Certificate::sign(key, until, (counter, since), &secret))
}

fn keep(folder: &Path, certificate: &Certificate) -> anyhow::Result<String> {
    let path = server_key::keep(folder, certificate)?;
    Ok(format!("{}: {}\n", path.display(), about(certificate)))
}

/// Another key, with its certificate: the new key is written first, so that for a moment there is one without a
/// certificate, and never a certificate for another key.
fn renew(folder: &Path, by: &Signer, revokes: bool) -> anyhow::Result<String> {
    let before = own(folder)?;
    // What can fail without the key is tried before anything is changed.
    let signer = secret(by)?;
    let now = now_ms();
    let since = if revokes { now } else { since(&before) };
    let key = server_key::make(folder)?;
    let certificate = certify_by(&signer, key.public(), (by.days, since, now))?;
    let mut out = format!("the server's key is {} now; it was {:.16}\n", key.public(), before.public());
    out += &keep(folder, &certificate)?;
    if revokes {
        out +=
            "every older certificate is revoked: a Pi knows it from its next contact with this server on\n";
    }
    Ok(out)
}

fn about(certificate: &Certificate) -> String {
    let Certificate { key, until, .. } = certificate;
    format!("the server {key:.16} may order until {}", when_utc(*until))
}

fn show(folder: &Path) -> anyhow::Result<String> {
    let key = own(folder)?;
    let mut out = format!("key          {}\n", key.public());
    match key.certificate() {
        Some(certificate) => {
            let now = now_ms() / 1000;
            let over = if certificate.until <= now { " (expired: `piman key certify`)" } else { "" };
            out += &format!("certificate  until {}{over}\n", when_utc(certificate.until));
        }
        None => {
            out += "certificate  none: Pis with a public key do not obey this server (`piman key certify`)\n";
        }
    }
    Ok(out)
}
