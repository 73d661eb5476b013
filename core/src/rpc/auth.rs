//! Who may call: the password of the old peers, and a challenge between our own, where no secret
//! crosses the wire.
//!
//! Between our own peers, each line one message:
//!
//! | from | message | |
//! |---|---|---|
//! | client | `(b'H', nonce)` | 32 random bytes |
//! | server | `(b'C', nonce)` | 32 random bytes |
//! | client | `(b'P', proof)` | proof of `piman client`, both nonces |
//! | server | `(b'P', proof)` or `(b'A', 0xAA, (False,))` | proof of `piman server`, both nonces |
//!
//! Both sides prove that they know the key; who only connects learns nothing to guess it with.

use super::arena::Kind;
use super::message::Message;
use super::value::Value;
use super::write::{Encode, NoRoom, Out, Tuple};

/// The retcode of a login, and its verdict.
pub const LOGIN: u32 = 0xAA;
/// What the key of both peers is derived for, by BLAKE3 from the password.
pub const KEY_CONTEXT: &str = "piman talks 1: the key of both peers";
/// How long a client may take to log in, in milliseconds.
pub const LOGIN_MS: u64 = 1000;
/// How long a server waits before it answers a wrong password, in milliseconds. Old clients wait for 1000 ms and
/// then report a lost server in place of the wrong password.
pub const PENALTY_MS: u64 = 250;
/// The longest login and the longest verdict, in bytes: nobody has proved anything yet.
pub const LOGIN_MAX: usize = 1024;
/// The longest password of a server, in bytes: a login has to fit into [`LOGIN_MAX`] with it.
pub const PASSWORD_MAX: usize = 512;

/// What a client puts in front of its login, in the same pickle, if it speaks both protocols and does not know
/// the server: a text that is pushed and dropped again.
///
/// An old server sees its usual login and answers it. A server of ours knows by it that the client also speaks
/// frames: it does not look at the login, answers with the greeting of frames, and the login of our own clients
/// follows on the same connection. So neither server ever gets what it does not understand.
pub const EITHER: &[u8] = b"\x80\x02X\x06\0\0\0piman10";

/// Whether two texts are the same, in a time that depends on the length of `given` alone.
#[must_use]
pub fn same(secret: &[u8], given: &[u8]) -> bool {
    let mut differs = u8::from(secret.len() != given.len());
    for (i, byte) in given.iter().enumerate() {
        // Past the end of the secret anything differs already.
        let other = secret.get(i).copied().unwrap_or(0);
        differs = core::hint::black_box(differs | (byte ^ other));
    }
    differs == 0
}

/// The login of an old client: its password, or nothing.
#[derive(Clone, Copy)]
pub struct LoginOut<'p>(pub Option<&'p str>);

/// Whether there is a password, and never which.
#[cfg(feature = "defmt")]
impl defmt::Format for LoginOut<'_> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "LoginOut(password: {=bool})", self.0.is_some())
    }
}

impl Encode for LoginOut<'_> {
    fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom> {
        Tuple(&[&&b"A"[..], &LOGIN, &Tuple(&[&self.0])]).encode(out)
    }
}

/// The verdict on a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Verdict(pub bool);

impl Encode for Verdict {
    fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom> {
        Tuple(&[&&b"A"[..], &LOGIN, &Tuple(&[&self.0])]).encode(out)
    }
}

impl Verdict {
    /// A server's verdict; `None` if the message is something else.
    #[must_use]
    pub fn parse(value: Value<'_>) -> Option<Self> {
        match login(value)? {
            Value::Bool(verdict) => Some(Self(verdict)),
            _ => None,
        }
    }
}

/// What a login message carries.
fn login(value: Value<'_>) -> Option<Value<'_>> {
    match Message::parse(value)? {
        Message::Answer { retcode: LOGIN, mut values } if values.len() == 1 => values.next(),
        _ => None,
    }
}

/// Whether a server with this password accepts a client that says this. Without a password it accepts
/// every login.
#[must_use]
pub fn verify(password: Option<&str>, value: Value<'_>) -> bool {
    match (password, login(value)) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(password), Some(Value::Str(given))) => same(password.as_bytes(), given.as_bytes()),
        (Some(password), Some(Value::Bytes(given))) => same(password.as_bytes(), given),
        (Some(_), Some(_)) => false,
    }
}

/// A keyed hash, as BLAKE3 or HMAC; the key stays with the implementation.
pub trait Authenticator {
    /// The hash of these parts, one after another. Their lengths are fixed or come last.
    fn tag(&self, parts: &[&[u8]]) -> [u8; 32];
}

/// The random bytes of both sides.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Challenge {
    /// Those of the client.
    pub client: [u8; 32],
    /// Those of the server.
    pub server: [u8; 32],
}

impl Challenge {
    /// What the client proves with.
    #[must_use]
    pub fn client_proof(&self, key: &impl Authenticator) -> [u8; 32] {
        key.tag(&[b"piman client", &self.client, &self.server])
    }

    /// What the server proves with.
    #[must_use]
    pub fn server_proof(&self, key: &impl Authenticator) -> [u8; 32] {
        key.tag(&[b"piman server", &self.client, &self.server])
    }
}

/// A step of the challenge, both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Handshake {
    /// The client's random bytes.
    Hello([u8; 32]),
    /// The server's random bytes.
    Challenge([u8; 32]),
    /// A proof of either side.
    Proof([u8; 32]),
}

impl Handshake {
    /// Reads a step; `None` if the message is something else.
    #[must_use]
    pub fn parse(value: Value<'_>) -> Option<Self> {
        let mut items = value.tuple().filter(|t| t.len() == 2)?;
        let (kind, bytes) = (items.next()?.bytes()?, items.next()?.bytes()?.try_into().ok()?);
        match kind {
            b"H" => Some(Self::Hello(bytes)),
            b"C" => Some(Self::Challenge(bytes)),
            b"P" => Some(Self::Proof(bytes)),
            _ => None,
        }
    }
}

impl Encode for Handshake {
    fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom> {
        let (kind, bytes) = match self {
            Self::Hello(b) => (b"H", b),
            Self::Challenge(b) => (b"C", b),
            Self::Proof(b) => (b"P", b),
        };
        out.begin(Kind::Tuple, 2)?;
        out.bytes(kind)?;
        out.bytes(bytes)?;
        out.end(Kind::Tuple, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_the_same_at_every_length() {
        assert!(same(b"", b""));
        for n in 1..20 {
            let secret: std::vec::Vec<u8> = (0..n).collect();
            assert!(same(&secret, &secret));
            assert!(!same(&secret, &secret[..usize::from(n) - 1]));
            assert!(!same(&secret[..usize::from(n) - 1], &secret));
            for at in 0..usize::from(n) {
                let mut other = secret.clone();
                other[at] ^= 0x80;
                assert!(!same(&secret, &other));
            }
        }
        assert!(!same(b"ab", b"ab\0"));
        assert!(!same(b"ab\0", b"ab"));
    }
}
