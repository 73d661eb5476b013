//! Who may order: a server's key, certified by the key that signs images.

use core::fmt;

use super::{PublicKey, hex_field, put_hex};
use crate::base64;
use crate::install::ours::{number, put};
use crate::text::{self, Sink, ToText};

/// What is signed begins with this.
const HEADING: &str = "piman server certificate 1\n";

/// The public key that certifies servers: the one that signs images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Root(PublicKey);

impl Root {
    /// The key in a line of base64 as minisign writes it: `Ed`, a number of 8 bytes, the key. `None` if it is something
    /// else.
    #[must_use]
    pub fn from_minisign(line: &str) -> Option<Self> {
        let mut all = [0; 42];
        let mut decoded = base64::decode(line.trim_ascii().as_bytes());
        for place in &mut all {
            *place = decoded.next()??;
        }
        let key = text::after(&all, b"Ed")?.get(8..)?;
        decoded.next().is_none().then_some(Self(PublicKey(key.try_into().ok()?)))
    }

    /// One by its bytes.
    #[must_use]
    pub const fn new(key: PublicKey) -> Self {
        Self(key)
    }
}

/// That a server's key may order until a date.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Certificate {
    /// The server's key.
    pub key: PublicKey,
    /// Until when, in seconds since 1970, UTC.
    pub until: u64,
    /// A later certificate has a larger one.
    pub counter: u64,
    /// Certificates with a smaller counter are revoked.
    pub since: u64,
    /// Over the text of the above.
    pub signature: [u8; 64],
}

impl Certificate {
    /// Reads the fields; `None` if one is missing.
    #[must_use]
    pub fn parse(fields: &[u8]) -> Option<Self> {
        Some(Self {
            key: PublicKey(hex_field(fields, "key")?),
            until: number(fields, "until")?,
            counter: number(fields, "counter")?,
            since: number(fields, "since")?,
            signature: hex_field(fields, "sig")?,
        })
    }

    /// Whether the signing key has signed it. Whether it has expired or is revoked is another question.
    #[must_use]
    pub fn is_of(&self, root: &Root) -> bool {
        let root = ed25519_compact::PublicKey::new(root.0.0);
        let signature = ed25519_compact::Signature::new(self.signature);
        let Ok(mut state) = root.verify_incremental(&signature) else { return false };
        self.signed(&mut Absorb(|bytes: &[u8]| state.absorb(bytes)));
        state.verify().is_ok()
    }

    /// Certifies a key. `secret` is the signing key's: the seed and the public key, 64 bytes.
    #[must_use]
    #[cfg(feature = "alloc")]
    pub fn sign(key: PublicKey, until: u64, (counter, since): (u64, u64), secret: &[u8; 64]) -> Self {
        let mut certificate = Self { key, until, counter, since, signature: [0; 64] };
        let mut text = alloc::vec::Vec::new();
        certificate.signed(&mut Absorb(|bytes: &[u8]| text.extend_from_slice(bytes)));
        let secret = ed25519_compact::SecretKey::new(*secret);
        certificate.signature = *secret.sign(&text, None);
        certificate
    }

    /// What the signature is over.
    fn signed(&self, to: &mut impl Sink) {
        to.text(HEADING);
        self.put_fields(to);
    }

    fn put_fields(&self, to: &mut impl Sink) {
        put_hex(to, " key=", &self.key.0);
        put(to, " until=", self.until);
        put(to, " counter=", self.counter);
        put(to, " since=", self.since);
    }
}

/// The fields, each with a space in front.
impl ToText for Certificate {
    fn write_text(&self, to: &mut impl Sink) {
        self.put_fields(to);
        put_hex(to, " sig=", &self.signature);
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, until, counter, since, .. } = self;
        write!(f, "Certificate({key:.16}, until {until}, counter {counter}, since {since})")
    }
}

/// Gives a text on as bytes.
pub(super) struct Absorb<F>(pub(super) F);

impl<F: FnMut(&[u8])> Sink for Absorb<F> {
    fn byte(&mut self, byte: u8) {
        (self.0)(&[byte]);
    }

    fn text(&mut self, text: &str) {
        (self.0)(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_compact::{KeyPair, Seed};
    use std::format;

    #[test]
    fn certified_by_the_one_key_and_for_all_that_it_says() {
        let pair = KeyPair::from_seed(Seed::new([1; 32]));
        let root = Root::new(PublicKey(*pair.pk));
        let certificate = Certificate::sign(PublicKey([7; 32]), 2_000_000_000, (12, 5), &pair.sk);
        assert!(certificate.is_of(&root));
        let text = format!("{certificate}");
        assert_eq!(Certificate::parse(text.as_bytes()), Some(certificate));
        let other = KeyPair::from_seed(Seed::new([2; 32]));
        assert!(!certificate.is_of(&Root::new(PublicKey(*other.pk))));
        assert!(!certificate.is_of(&Root::new(PublicKey([0; 32]))), "a key that is no key");
        for changed in [
            Certificate { key: PublicKey([8; 32]), ..certificate },
            Certificate { until: 2_000_000_001, ..certificate },
            Certificate { counter: 13, ..certificate },
            Certificate { since: 4, ..certificate },
            Certificate { signature: [0; 64], ..certificate },
        ] {
            assert!(!changed.is_of(&root), "{changed:?}");
        }
        for (key, _) in [("key", 0), ("until", 0), ("counter", 0), ("since", 0), ("sig", 0)] {
            let without = text.replacen(&format!(" {key}="), " other=", 1);
            assert_eq!(Certificate::parse(without.as_bytes()), None, "{key}");
        }
    }

    /// The bytes of a certificate are the same in every version.
    #[test]
    fn golden_bytes() {
        let pair = KeyPair::from_seed(Seed::new([1; 32]));
        let certificate = Certificate::sign(PublicKey([7; 32]), 2_000_000_000, (12, 5), &pair.sk);
        let key = "07".repeat(32);
        let want = format!(" key={key} until=2000000000 counter=12 since=5 sig={GOLDEN}");
        assert_eq!(format!("{certificate}"), want);
    }

    /// As OpenSSL signs it.
    const GOLDEN: &str = "46c359c8eba70ea5a740ea346d0a1279909bdf811b5f88fdff05aad61e698dc5\
        4a85ce8c0d2d119d10066b573d85200a45eebd11623c3f054e88ad1ff9358209";

    #[test]
    fn a_key_as_minisign_writes_it() {
        let line = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
        let Some(Root(key)) = Root::from_minisign(line) else { panic!("no key") };
        assert_eq!(format!("{key:.8}"), "79a561e7");
        for bad in ["", "RWQ", &line[..55], &format!("{line}AAAA"), &line.replacen("RWQ", "RXQ", 1), "é"] {
            assert_eq!(Root::from_minisign(bad), None, "{bad}");
        }
    }
}
