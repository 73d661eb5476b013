//! The first message of both sides: what each offers or has chosen, its name, its share of the key.

use heapless::Vec;

use super::login::LoginFault;
use super::pake::SHARE;
use super::record::{RECORD_MAX, RECORD_MIN};
use crate::rpc::Codec;

/// The first byte of a protected login. No pickle begins with it, and it is no greeting and no refusal of messages.
pub const FIRST: u8 = 0xFB;
/// The version that is spoken here, the only one so far.
pub const VERSION: u8 = 1;
/// The longest name, in bytes.
pub const NAME_MAX: usize = 64;
/// A flag: this side has a password.
pub const FLAG_PASSWORD: u8 = 1;
/// A flag of the client: it asked first, by a login that old servers take as well.
pub const FLAG_ASKED: u8 = 2;
/// What comes before the name, in bytes: the shortest hello.
pub const HELLO_MIN: usize = 55;
/// The longest hello, in bytes.
pub const HELLO_MAX: usize = HELLO_MIN + NAME_MAX;
/// postcard over messages.
const POSTCARD: u8 = 1;

/// The bytes of a hello.
pub(super) type Bytes = Vec<u8, HELLO_MAX>;

/// A hello; on the wire, numbers big-endian:
///
/// | at | bytes | |
/// |---|---|---|
/// | 0 | 1 | [`FIRST`] |
/// | 1 | 1 | version: the client's highest, from 1; the server's choice |
/// | 2 | 1 | codec: 1 for postcard over messages |
/// | 3 | 1 | flags: [`FLAG_PASSWORD`], [`FLAG_ASKED`]; the others are 0 |
/// | 4 | 2 | the longest content of a record that this side takes, in bytes |
/// | 6 | 16 | random bytes, which are never used again |
/// | 22 | 32 | the share of the key, an element of ristretto255 |
/// | 54 | 1 | the length of the name, up to [`NAME_MAX`] |
/// | 55 | | the name, in printable ASCII; a Pi's serial number, or nothing |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Hello<'a> {
    /// The client's highest version, or the server's choice.
    pub version: u8,
    /// See [`FLAG_PASSWORD`] and [`FLAG_ASKED`].
    pub flags: u8,
    /// The longest content of a record that this side takes, in bytes.
    pub record_max: u16,
    /// Random bytes, which are never used again.
    pub nonce: [u8; 16],
    /// The share of the key.
    pub share: [u8; SHARE],
    /// The name of this side.
    pub name: &'a str,
}

/// How long the hello is that begins with these bytes; `None` while less than its 55 fixed bytes are here.
///
/// # Errors
/// [`LoginFault::NotSpoken`] if it cannot be a hello.
pub fn hello_length(bytes: &[u8]) -> Result<Option<usize>, LoginFault> {
    if bytes.first().is_some_and(|first| *first != FIRST) {
        return Err(LoginFault::NotSpoken);
    }
    match bytes.get(HELLO_MIN - 1) {
        None => Ok(None),
        Some(n) if usize::from(*n) <= NAME_MAX => Ok(Some(HELLO_MIN + usize::from(*n))),
        Some(_) => Err(LoginFault::NotSpoken),
    }
}

impl<'a> Hello<'a> {
    /// Reads a whole hello and no more.
    ///
    /// # Errors
    /// [`LoginFault::NotSpoken`] if it is none, or with a codec that is not known here.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, LoginFault> {
        Self::read(bytes).ok_or(LoginFault::NotSpoken)
    }

    fn read(bytes: &'a [u8]) -> Option<Self> {
        let ([first, version, codec, flags], rest) = bytes.split_first_chunk()?;
        let (record_max, rest) = rest.split_first_chunk()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (share, rest) = rest.split_first_chunk()?;
        let ([length], name) = rest.split_first_chunk()?;
        let record_max = u16::from_be_bytes(*record_max);
        let is_right = *first == FIRST
            && *version > 0
            && *codec == POSTCARD
            && flags & !(FLAG_PASSWORD | FLAG_ASKED) == 0
            && (RECORD_MIN..=RECORD_MAX).contains(&usize::from(record_max))
            && usize::from(*length) == name.len()
            && name.len() <= NAME_MAX
            && is_name(name);
        if !is_right {
            return None;
        }
        let name = core::str::from_utf8(name).ok()?;
        Some(Self { version: *version, flags: *flags, record_max, nonce: *nonce, share: *share, name })
    }

    /// Writes it. A name that is too long, or not printable, is left out.
    pub(super) fn write(&self) -> Bytes {
        let name =
            Some(self.name.as_bytes()).filter(|n| n.len() <= NAME_MAX && is_name(n)).unwrap_or_default();
        let mut bytes = Bytes::new();
        let parts: [&[u8]; 6] = [
            &[FIRST, self.version, POSTCARD, self.flags],
            &self.record_max.to_be_bytes(),
            &self.nonce,
            &self.share,
            // No more than `NAME_MAX`.
            &[name.len() as u8],
            name,
        ];
        for part in parts {
            // All parts together fit.
            let _ = bytes.extend_from_slice(part);
        }
        bytes
    }

    /// Whether this side has a password.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.flags & FLAG_PASSWORD != 0
    }

    /// The codec of what follows.
    #[must_use]
    pub fn codec(&self) -> Codec {
        Codec::Postcard
    }
}

/// Printable ASCII, without spaces at either end.
fn is_name(name: &[u8]) -> bool {
    name.iter().all(|b| (b' '..=b'~').contains(b)) && name.trim_ascii().len() == name.len()
}
