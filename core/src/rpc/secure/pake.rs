//! CPace over ristretto255 with SHA-512 (draft-irtf-cfrg-cpace, suite CPACE-RISTR255-SHA512, initiator and
//! responder): two sides with the same password get the same key, and who tries another one gets nothing from it
//! but that it was wrong.
//!
//! The group, the hash and the mapping are those of libraries; what is here is what the draft says about their use.
//! The crates of CPace and SPAKE2 need an allocator or a second version of a hash crate, or follow older drafts.

use curve25519_dalek::ristretto::{CompressedRistretto, RistrettoPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::IsIdentity;
use hmac_sha512::Hash;

const DSI: &[u8] = b"CPaceRistretto255";
const DSI_ISK: &[u8] = b"CPaceRistretto255_ISK";
/// How many bytes SHA-512 takes at once: the password fills the first of these blocks alone.
const BLOCK: usize = 128;

/// The length of a share, in bytes.
pub(super) const SHARE: usize = 32;

/// Both shares, and what was sent with each.
#[derive(Clone, Copy)]
pub(super) struct Transcript<'a> {
    pub(super) client: (&'a [u8; SHARE], &'a [u8]),
    pub(super) server: (&'a [u8; SHARE], &'a [u8]),
}

/// The secret number of one side.
pub(super) struct Exponent(Scalar);

impl Exponent {
    /// Of random bytes that are never used again.
    pub(super) fn new(random: &[u8; 64]) -> Self {
        Self(Scalar::from_bytes_mod_order_wide(random))
    }

    /// What is sent to the other side.
    pub(super) fn share(&self, password: &[u8], channel: &[u8], session: &[u8]) -> [u8; SHARE] {
        (generator(password, channel, session) * self.0).compress().to_bytes()
    }

    /// The key of both sides; `None` if the share of the other one is no element, or the neutral one.
    pub(super) fn key(
        &self,
        session: &[u8],
        theirs: &[u8; SHARE],
        transcript: Transcript<'_>,
    ) -> Option<[u8; 64]> {
        let secret = CompressedRistretto(*theirs).decompress()? * self.0;
        if secret.is_identity() {
            return None;
        }
        let mut hash = Parts(Hash::new());
        for part in [DSI_ISK, session, secret.compress().as_bytes()] {
            hash.add(part);
        }
        for (share, with) in [transcript.client, transcript.server] {
            hash.add(share);
            hash.add(with);
        }
        Some(hash.0.finalize())
    }
}

/// The element that both sides begin with; only who has the password knows it.
fn generator(password: &[u8], channel: &[u8], session: &[u8]) -> RistrettoPoint {
    RistrettoPoint::from_uniform_bytes(&generator_hash(password, channel, session))
}

fn generator_hash(password: &[u8], channel: &[u8], session: &[u8]) -> [u8; 64] {
    let mut hash = Parts(Hash::new());
    hash.add(DSI);
    hash.add(password);
    let padding = BLOCK.saturating_sub(length_with_prefix(password) + length_with_prefix(DSI) + 1);
    hash.add([0; BLOCK].get(..padding).unwrap_or_default());
    hash.add(channel);
    hash.add(session);
    hash.0.finalize()
}

fn length_with_prefix(part: &[u8]) -> usize {
    let (mut n, mut prefix) = (part.len() >> 7, 1);
    while n > 0 {
        (n, prefix) = (n >> 7, prefix + 1);
    }
    part.len() + prefix
}

/// A hash of several parts, each with its length in LEB128 in front.
struct Parts(Hash);

impl Parts {
    fn add(&mut self, part: &[u8]) {
        let mut n = part.len();
        loop {
            // The lowest seven bits.
            let low = (n & 0x7F) as u8;
            n >>= 7;
            self.0.update([if n > 0 { low | 0x80 } else { low }]);
            if n == 0 {
                break;
            }
        }
        self.0.update(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::read_hex;

    fn hex<const N: usize>(digits: &str) -> [u8; N] {
        let mut bytes = [0; N];
        assert!(read_hex(&mut bytes, digits.as_bytes()), "{digits}");
        bytes
    }

    /// A number of 32 bytes as it is in the draft.
    fn exponent(digits: &str) -> Exponent {
        let mut wide = [0; 64];
        wide[..32].copy_from_slice(&hex::<32>(digits));
        Exponent::new(&wide)
    }

    // The test vectors of draft-irtf-cfrg-cpace, appendix B.3.
    const PASSWORD: &[u8] = b"Password";
    const CHANNEL: &[u8] = b"oc\x0bB_responder\x0bA_initiator";
    const SESSION: &str = "7e4b4791d6a8ef019b936c79fb7f2c57";
    const CLIENT: &str = "da3d23700a9e5699258aef94dc060dfda5ebb61f02a5ea77fad53f4ff0976d08";
    const SERVER: &str = "d2316b454718c35362d83d69df6320f38578ed5984651435e2949762d900b80d";
    const CLIENT_SHARE: &str = "d40fb265a7abeaee7939d91a585fe59f7053f982c296ec413c624c669308f87a";
    const SERVER_SHARE: &str = "08bcf6e9777a9c313a3db6daa510f2d398403319c2341bd506a92e672eb7e307";
    const KEY: &str = "4c5469a16b2364c4b944ebc1a79e51d1674ad47db26e8718154f59faebfaa52d8346f30aa58377117eb20d527f2cbc5c76381f7fd372e89df8239f87f2e02ed1";

    #[test]
    fn the_vectors_of_the_draft() {
        let session: [u8; 16] = hex(SESSION);
        assert_eq!(
            generator_hash(PASSWORD, CHANNEL, &session),
            hex(
                "c63a5750e2439c17ccd8213be14fde2f87e1bc637001a97f5929c77b30ea0e08afbc75ace5d3d73b2842a79d01488c5fd7ea30d475ee609545af1bfd1ff77c8e"
            )
        );
        let generator = generator(PASSWORD, CHANNEL, &session).compress().to_bytes();
        assert_eq!(generator, hex("a6fc82c3b8968fbb2e06fee81ca858586dea50d248f0c7ca6a18b0902a30b36b"));
        let (client, server) = (exponent(CLIENT), exponent(SERVER));
        let (from_client, from_server) = (hex(CLIENT_SHARE), hex(SERVER_SHARE));
        assert_eq!(client.share(PASSWORD, CHANNEL, &session), from_client);
        assert_eq!(server.share(PASSWORD, CHANNEL, &session), from_server);
        let both = Transcript { client: (&from_client, b"ADa"), server: (&from_server, b"ADb") };
        assert_eq!(client.key(&session, &from_server, both), Some(hex(KEY)));
        assert_eq!(server.key(&session, &from_client, both), Some(hex(KEY)));
    }

    #[test]
    fn a_share_that_is_no_element_gives_no_key() {
        let client = exponent(CLIENT);
        let share = hex(CLIENT_SHARE);
        let both = Transcript { client: (&share, b""), server: (&share, b"") };
        // The neutral element, what is not in its one form, and what is on no curve.
        for bad in
            [[0; 32], [0xFF; 32], hex("0100000000000000000000000000000000000000000000000000000000000000")]
        {
            assert_eq!(client.key(b"", &bad, both), None, "{bad:02x?}");
        }
    }

    #[test]
    fn lengths_of_passwords() {
        for (n, length) in [(0, 1), (1, 2), (127, 128), (128, 130), (512, 514), (1 << 14, (1 << 14) + 3)] {
            assert_eq!(length_with_prefix(&std::vec![0; n]), length);
        }
        // Every length gives a generator of its own, at the block's end as well.
        let all: std::collections::BTreeSet<_> =
            (0..300).map(|n| generator_hash(&std::vec![b'x'; n], b"", b"").to_vec()).collect();
        assert_eq!(all.len(), 300);
    }
}
