//! The key that `boot.img` is signed with: RSA with 2048 bits, the only one that boot loaders take.
//!
//! `ring` signs, since it works in constant time, checks each signature before it gives it away, has no known fault, and
//! brings three crates. Crates that were looked at first: `rsa` 0.9 has an advisory without a fix (RUSTSEC-2023-0071) and
//! brings fourteen, its successor 0.10 a second generation of `digest`; `aws-lc-rs` wants cmake; `graviola` ends the program
//! on processors without AES, such as the Pi 4's; `openssl` wants a library of the machine.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use ring::rand::SystemRandom;
use ring::rsa::KeyPair;
use ring::signature::RSA_PKCS1_SHA256;

use super::lint::{Finding, Weight};
use crate::netboot::boot_sig::SIGNATURE;

/// The largest key file that is read, in bytes; one with 2048 bits has 1,700.
const FILE_MAX: u64 = 64 << 10;
/// Permissions that nobody but the owner of a secret should have.
const OTHERS: u32 = 0o077;

/// A secret key.
pub(super) struct BootKey(KeyPair);

impl BootKey {
    /// Reads a file in PEM form, as `openssl genrsa 2048` writes it (PKCS#8) and `-traditional` does (PKCS#1); also says if
    /// others can read it.
    ///
    /// # Errors
    /// If it cannot be read, or is not such a key; the message says what it is, and what to do.
    pub(super) fn read(path: &Path) -> anyhow::Result<(Self, Option<Finding>)> {
        let name = path.display();
        let mut pem = Vec::new();
        let read = || -> std::io::Result<(Vec<u8>, u32)> {
            let file = File::open(path)?;
            let mode = file.metadata()?.permissions().mode();
            file.take(FILE_MAX + 1).read_to_end(&mut pem)?;
            Ok((pem, mode))
        };
        let (pem, mode) = read().with_context(|| format!("reading the key {name}"))?;
        ensure!(pem.len() as u64 <= FILE_MAX, "{name} is no key: it has more than {} KiB", FILE_MAX >> 10);
        let key = Self::parse(&pem).with_context(|| format!("{name} cannot sign boot.img"))?;
        let finding = (mode & OTHERS != 0).then(|| {
            let text = format!(
                "{name} can be read or written by others (mode {:03o}): whoever has it signs what your Pis boot; `chmod \
                 600 {name}`",
                mode & 0o777
            );
            Finding::new(Weight::Warning, text)
        });
        Ok((key, finding))
    }

    fn parse(pem: &[u8]) -> anyhow::Result<Self> {
        const MAKE: &str = "`openssl genrsa -out boot-key.pem 2048` makes one";
        let has = |words: &str| pem.windows(words.len()).any(|w| w == words.as_bytes());
        if has("BEGIN ENCRYPTED PRIVATE KEY") || has("Proc-Type: 4,ENCRYPTED") {
            bail!(
                "it is encrypted, and a password is not asked for: `openssl pkey -in KEY.pem -out OTHER.pem` decrypts it; \
                 remove OTHER.pem afterwards"
            );
        }
        let (label, der) =
            pem_rfc7468::decode_vec(pem).map_err(|e| anyhow!("it is no whole PEM file: {e}; {MAKE}"))?;
        let key = match label {
            "PRIVATE KEY" => KeyPair::from_pkcs8(&der),
            "RSA PRIVATE KEY" => KeyPair::from_der(&der),
            "PUBLIC KEY" | "RSA PUBLIC KEY" => bail!("it is the public key; the secret key signs"),
            other => bail!("it is a \"{other}\" and no RSA key; {MAKE}"),
        };
        let key = key.map_err(|e| match e.to_string().as_str() {
            "TooSmall" => anyhow!(
                "it is an RSA key of fewer than 2048 bits, and boot loaders take 2048 bits only; {MAKE}"
            ),
            "TooLarge" => anyhow!(
                "it is an RSA key of more than 4096 bits, and boot loaders take 2048 bits only; {MAKE}"
            ),
            "WrongAlgorithm" => anyhow!("it is a key of another kind than RSA; {MAKE}"),
            what => anyhow!("it is damaged, or a kind of RSA key that is not known ({what}); {MAKE}"),
        })?;
        let bits = key.public().modulus_len() * 8;
        ensure!(
            bits == SIGNATURE * 8,
            "it is an RSA key of {bits} bits, and boot loaders take 2048 bits only; {MAKE}"
        );
        Ok(Self(key))
    }

    /// The signature of this: PKCS#1 v1.5, of its SHA-256.
    ///
    /// # Errors
    /// If the system gives no random numbers, or the key does not sign.
    pub(super) fn sign(&self, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut signature = vec![0; SIGNATURE];
        self.0.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), bytes, &mut signature).map_err(|_| {
            anyhow!("the key does not sign: is it damaged? or the system gives no random numbers")
        })?;
        Ok(signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(pem: &str, words: &str) {
        let e = BootKey::parse(pem.as_bytes()).map(|_| ()).unwrap_err();
        assert!(format!("{e:#}").contains(words), "{words}: {e:#}");
    }

    #[test]
    fn what_is_no_key() {
        says("", "no whole PEM");
        says("-----BEGIN PRIVATE KEY-----\nAAAA\n", "no whole PEM");
        says("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "damaged");
        says("-----BEGIN RSA PRIVATE KEY-----\nMAMCAQA=\n-----END RSA PRIVATE KEY-----\n", "damaged");
        says("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "the public key");
        says("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n", "EC PRIVATE KEY");
        says("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n", "encrypted");
        says("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n", "encrypted");
    }
}
