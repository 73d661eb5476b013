//! Marks of lines: HMAC-SHA-512, of which the first [`MARK_BYTES`] bytes count.
//!
//! The key of a connection is the mark, whole, of [`CONTEXT`] and then the server's nonce, the Pi's nonce, the server's
//! key and the Pi's key, with the X25519 secret of the two as key; its first 32 bytes. The n-th marked line of a
//! connection is marked with n (from 0, 4 bytes, little endian) in front, the first also with the hash of the greeting:
//! so it counts for that as well.

use ed25519_compact::sha512::Hash;

use super::{Nonce, PublicKey};
use crate::install::guard;
use crate::text::Sink;

/// The bytes of a mark.
pub const MARK_BYTES: usize = guard::MARK_BYTES;

/// What the key of a connection is made for.
pub const CONTEXT: &str = "piman connection 1\n";

/// The size of SHA-512's block, in bytes.
const BLOCK: usize = 128;

/// A mark that is being made.
pub(super) struct Mac {
    inner: Hash,
    outer: Hash,
}

impl Mac {
    /// With a key of at most a block.
    pub(super) fn new(key: &[u8; 32]) -> Self {
        let padded = |with: u8| {
            let mut block = [with; BLOCK];
            block.iter_mut().zip(key).for_each(|(place, byte)| *place ^= byte);
            let mut hash = Hash::new();
            hash.update(block);
            hash
        };
        Self { inner: padded(0x36), outer: padded(0x5c) }
    }

    pub(super) fn absorb(&mut self, bytes: &[u8]) {
        self.inner.update(bytes);
    }

    /// All of it, to make keys of.
    pub(super) fn finish(mut self) -> [u8; 64] {
        self.outer.update(self.inner.finalize());
        self.outer.finalize()
    }

    /// The mark.
    pub(super) fn mark(self) -> [u8; MARK_BYTES] {
        self.finish().first_chunk().copied().unwrap_or_default()
    }
}

impl Sink for Mac {
    fn byte(&mut self, byte: u8) {
        self.absorb(&[byte]);
    }

    fn text(&mut self, text: &str) {
        self.absorb(text.as_bytes());
    }
}

/// The marks of one connection.
#[derive(Clone)]
pub(super) struct Marks {
    key: [u8; 32],
    count: u32,
}

impl Marks {
    /// From what both sides compute, and what each has said.
    pub(super) fn new(secret: &[u8; 32], nonces: [Nonce; 2], keys: [PublicKey; 2]) -> Self {
        let [server_nonce, pi_nonce] = nonces;
        let [server_key, pi_key] = keys;
        let mut mac = Mac::new(secret);
        mac.absorb(CONTEXT.as_bytes());
        for part in [&server_nonce.0[..], &pi_nonce.0, &server_key.0, &pi_key.0] {
            mac.absorb(part);
        }
        Self { key: mac.finish().first_chunk().copied().unwrap_or_default(), count: 0 }
    }

    /// The mark of the next line, which is to be given to it; whether it is the first.
    pub(super) fn next(&mut self) -> (Mac, bool) {
        let mut mac = Mac::new(&self.key);
        mac.absorb(&self.count.to_le_bytes());
        let is_first = self.count == 0;
        self.count = self.count.wrapping_add(1);
        (mac, is_first)
    }
}

/// Whether two marks are the same, in a time that does not tell where they differ.
pub(super) fn is_same(one: &[u8; MARK_BYTES], other: &[u8; MARK_BYTES]) -> bool {
    one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    /// RFC 4231, cases 1 and 3, whose keys are filled up with zeros to 32 bytes, which changes nothing.
    #[test]
    fn as_the_standard_has_it() {
        let cases: [(&[u8], &[u8], &str); 2] = [
            (
                &[0x0b; 20],
                b"Hi There",
                "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cdedaa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854",
            ),
            (
                &[0xaa; 20],
                &[0xdd; 50],
                "fa73b0089d56a284efb0f0756c890be9b1b5dbdd8ee81a3655f83e33b2279d39bf3e848279a722c806b485a47e67c807b946a337bee8942674278859e13292fb",
            ),
        ];
        for (key, message, want) in cases {
            let mut padded = [0; 32];
            padded[..key.len()].copy_from_slice(key);
            let mut mac = Mac::new(&padded);
            mac.absorb(message);
            let digits: String = mac.finish().iter().map(|byte| std::format!("{byte:02x}")).collect();
            assert_eq!(digits, want);
        }
    }
}
