//! `piman key`.

use anyhow::{Context, ensure};
use minisign::KeyPair;
use std::path::PathBuf;

use crate::images::sign::{Password, create};

/// `piman key`.
#[derive(Debug, clap::Subcommand)]
pub enum KeyCommand {
    /// Make a key pair: the secret key signs images, the public key goes to the Pis
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
}

/// Runs `piman key`; returns what to show.
///
/// # Errors
/// If a file cannot be written or is there already.
pub fn run(command: &KeyCommand) -> anyhow::Result<String> {
    let KeyCommand::Generate { secret, public, password } = command;
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
        "secret key {}: signs images (`piman image sign`); keep it away from the server if you can\n\
         public key {}: for the Pis, by `piman netboot build --public-key`, or as\n  piman.key={text}\n",
        secret.display(),
        public.display()
    ))
}
