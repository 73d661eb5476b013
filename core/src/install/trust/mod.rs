//! Who a server is, and who a Pi is, on the control connection (feature `trust`).
//!
//! Both are proven afresh on every connection: each side says a number that nobody has used before, a [`Nonce`]. What
//! the server orders is signed by its key (Ed25519), which the key that signs images has certified until a date
//! ([`Certificate`]). What a Pi says is marked with a key that only the two of them can compute: from its own key pair
//! (X25519), whose public half the server has pinned to the Pi, and the server's.
//!
//! | line | from | says |
//! |---|---|---|
//! | `trust nonce= key= kept=1` | Pi | before its greeting: its nonce; its public key, if it has one; that an installation does not erase that |
//! | `trust nonce= key= until= counter= since= sig=` | piman | before its answer to a greeting, in the same block: its nonce and its key; with the certificate of that, if it has one |
//! | `signed seconds= nanos= sig=` | piman | in front of a block of orders: the time in UTC, and the signature of the block |
//! | `vouched mac=` | Pi | in front of a line: the mark of that line ([`mac`]), made with the key of the connection |
//!
//! What a Pi says in its greeting is bound by its SHA-512: that of the lines `trust`, `hello` and `disk`, as they were
//! said. The signature of a block is over [`ORDER`], that hash, the report that was answered (`IS_INSTALLED` or
//! `IS_UNINSTALLED`), the seconds (8 bytes) and nanoseconds (4) as little endian numbers, and the block. Every line that
//! is hashed, signed or marked is taken without the white space around it, and with one `\n`.
//!
//! | file | what lives there |
//! |---|---|
//! | `certificate` | who may order, until when: [`Certificate`] |
//! | `mac` | marks of lines |
//! | `pi` | the Pi's side: [`PiTrust`] |
//! | `seal` | what is for one Pi alone |
//! | `server` | the server's: [`ServerTrust`], [`ServerKey`] (feature `alloc`) |
//!
//! Source: Ed25519 as RFC 8032 and X25519 as RFC 7748 have them, HMAC-SHA-512 (RFC 2104), ChaCha20-Poly1305 (RFC 8439); public keys and signatures of
//! the signing key as minisign writes them.

mod certificate;
pub mod mac;
mod pi;
pub mod seal;
#[cfg(feature = "alloc")]
mod server;

pub use certificate::{Certificate, Root};
pub use pi::{DeviceKey, Floor, PiTrust, Refusal};
#[cfg(feature = "alloc")]
pub use server::{Claim, Said, ServerKey, ServerTrust};

use core::fmt;

use super::ours::{MARK, field};
use crate::text::{self, Sink};

/// What every signed message begins with that orders something.
pub const ORDER: &str = "piman order 1\n";

/// The verbs of the lines.
const TRUST: &str = "trust";
const SIGNED: &str = "signed";
const VOUCHED: &str = "vouched";

/// A number that is used once: random, 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Nonce(pub [u8; 16]);

/// A public key: X25519 of a Pi, Ed25519 of a server. Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Reads exactly 64 hexadecimal digits; anything else is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        bytes(text.as_bytes()).map(Self)
    }
}

/// All 64 digits; `{:.N}` writes the first N only, for people.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&crate::hash::Hash(self.0), f)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:.16}")
    }
}

/// Exactly so many bytes, of two hexadecimal digits each.
fn bytes<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    text::read_hex(&mut bytes, digits).then_some(bytes)
}

/// A field of exactly so many bytes.
fn hex_field<const N: usize>(fields: &[u8], key: &str) -> Option<[u8; N]> {
    bytes(field(fields, key)?)
}

/// Writes the key, as ` key=`, and the bytes.
fn put_hex(to: &mut impl Sink, key: &str, bytes: &[u8]) {
    to.text(key);
    text::hex(to, bytes);
}

/// Begins a line.
fn begin(to: &mut impl Sink, verb: &str) {
    to.text(MARK);
    to.byte(b' ');
    to.text(verb);
}
