//! What is for one Pi alone: sealed, so that nobody reads it who has not the key of that Pi, or of the server.
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 15 | [`HEADING`] |
//! | 15 | 32 | the server's public key (Ed25519) |
//! | 47 | 12 | the nonce |
//! | 59 | | the content under ChaCha20-Poly1305 (RFC 8439) |
//! | | 16 | the tag, which covers what is in front of the content as well |
//!
//! The key is the first half of HMAC-SHA-512 over [`CONTEXT`], the server's key and the Pi's, with the X25519 secret of
//! the two as its key. The nonce is the beginning of the mark of the content with the other half: so no nonce serves two
//! contents, the same content for the same Pi is the same bytes, and their hash says nothing to anybody else.

#[cfg(feature = "alloc")]
use alloc::vec::Vec;
use core::fmt;

use chacha20_poly1305::{ChaCha20Poly1305, Key, Nonce};
use ed25519_compact::x25519;

use super::mac::Mac;
#[cfg(feature = "alloc")]
use super::server::ServerKey;
use super::{DeviceKey, PublicKey};

/// What everything sealed begins with.
pub const HEADING: &[u8; 15] = b"piman-sealed 1\n";
/// What the keys of a seal are made for.
pub const CONTEXT: &str = "piman sealed 1\n";
/// What is in front of the content, in bytes.
const FRONT: usize = HEADING.len() + 32 + NONCE;
const NONCE: usize = 12;
const TAG: usize = 16;
/// What a seal adds, in bytes.
pub const OVERHEAD: usize = FRONT + TAG;

/// Why something cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum SealError {
    /// It is not sealed, or not whole.
    NotSealed,
    /// It is for another Pi, or was changed.
    NotForThisPi,
}

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotSealed => "it is not sealed, or not whole",
            Self::NotForThisPi => "it is sealed for another Pi's key, or was changed on its way",
        })
    }
}

impl core::error::Error for SealError {}

/// Whether bytes say that they are sealed.
#[must_use]
pub fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(HEADING)
}

/// The two keys of a seal.
struct Keys {
    content: [u8; 32],
    nonce: [u8; 32],
}

impl Keys {
    fn new(secret: &[u8; 32], server: PublicKey, pi: PublicKey) -> Self {
        let mut mac = Mac::new(secret);
        for part in [CONTEXT.as_bytes(), &server.0, &pi.0] {
            mac.absorb(part);
        }
        let both = mac.finish();
        let half = |part: &[u8]| part.first_chunk().copied().unwrap_or_default();
        let (content, nonce) = both.split_at(32);
        Self { content: half(content), nonce: half(nonce) }
    }

    fn cipher(&self, nonce: [u8; NONCE]) -> ChaCha20Poly1305 {
        ChaCha20Poly1305::new(Key::new(self.content), Nonce::new(nonce))
    }
}

impl DeviceKey {
    /// Opens what is sealed for this Pi, in its place, and returns the content.
    ///
    /// # Errors
    /// [`SealError`]; what is in `sealed` is of no use then.
    pub fn open<'b>(&self, sealed: &'b mut [u8]) -> Result<&'b mut [u8], SealError> {
        let (front, rest) = sealed.split_at_mut_checked(FRONT).ok_or(SealError::NotSealed)?;
        let (content, tag) = rest.split_last_chunk_mut::<TAG>().ok_or(SealError::NotSealed)?;
        let (heading, keys) = front.split_first_chunk::<15>().ok_or(SealError::NotSealed)?;
        let (server, nonce) = keys.split_first_chunk::<32>().ok_or(SealError::NotSealed)?;
        let nonce = nonce.first_chunk().copied().ok_or(SealError::NotSealed)?;
        if heading != HEADING {
            return Err(SealError::NotSealed);
        }
        let secret = self.agree(PublicKey(*server)).ok_or(SealError::NotForThisPi)?;
        let keys = Keys::new(&secret, PublicKey(*server), self.public());
        let opened = keys.cipher(nonce).decrypt(content, *tag, Some(front));
        opened.map_err(|_| SealError::NotForThisPi)?;
        Ok(content)
    }
}

#[cfg(feature = "alloc")]
impl ServerKey {
    /// Seals something for the Pi with this key; `None` if that is no key of a Pi.
    #[must_use]
    pub fn seal(&self, pi: PublicKey, content: &[u8]) -> Option<Vec<u8>> {
        let secret = x25519::PublicKey::new(pi.0).dh(self.agreeing()).ok()?;
        let keys = Keys::new(&secret, self.public(), pi);
        let mut mark = Mac::new(&keys.nonce);
        mark.absorb(content);
        let nonce: [u8; NONCE] = mark.finish().first_chunk().copied().unwrap_or_default();
        let mut sealed = Vec::with_capacity(OVERHEAD + content.len());
        for part in [&HEADING[..], &self.public().0, &nonce, content] {
            sealed.extend_from_slice(part);
        }
        let (front, content) = sealed.split_at_mut_checked(FRONT)?;
        let tag = keys.cipher(nonce).encrypt(content, Some(front));
        sealed.extend_from_slice(&tag);
        Some(sealed)
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;
    use std::vec;

    fn server(seed: u8) -> ServerKey {
        ServerKey::new([seed; 32], None).unwrap()
    }

    fn pi(seed: u8) -> DeviceKey {
        DeviceKey::new([seed; 32]).unwrap()
    }

    #[test]
    fn only_the_pi_opens_it() {
        for content in [vec![], b"piman-personal 1\nwi-fi".to_vec(), vec![7; 100_000]] {
            let sealed = server(1).seal(pi(2).public(), &content).unwrap();
            assert_eq!(sealed.len(), content.len() + OVERHEAD);
            assert!(is_sealed(&sealed) && !is_sealed(&content));
            assert_eq!(pi(2).open(&mut sealed.clone()).unwrap(), content);
            assert_eq!(pi(3).open(&mut sealed.clone()), Err(SealError::NotForThisPi));
            // The same for the same Pi, another for each other.
            assert_eq!(server(1).seal(pi(2).public(), &content).unwrap(), sealed);
            assert_ne!(server(1).seal(pi(3).public(), &content).unwrap(), sealed);
            assert_ne!(server(4).seal(pi(2).public(), &content).unwrap(), sealed);
        }
    }

    #[test]
    fn a_changed_bit_or_a_missing_byte_opens_nothing() {
        let sealed = server(1).seal(pi(2).public(), b"a password").unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(pi(2).open(&mut changed).is_err(), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(pi(2).open(&mut sealed[..length].to_vec()).is_err(), "{length} bytes");
        }
        // No key at all: what everybody could compute.
        assert!(server(1).seal(PublicKey([0; 32]), b"a password").is_none());
    }

    /// What was sealed stays readable: keys, nonce and content are on cards and in orders of other versions.
    #[test]
    fn golden_bytes() {
        let sealed = server(1).seal(pi(2).public(), b"content").unwrap();
        let hash: std::string::String = ed25519_compact::sha512::Hash::hash(&sealed)[..8]
            .iter()
            .map(|b| std::format!("{b:02x}"))
            .collect();
        assert_eq!((sealed.len(), hash.as_str()), (82, "cd64bc8b7ec23ab4"));
    }
}
