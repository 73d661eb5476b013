//! The Pi's side: what it demands of its server, and how it proves who it is.

use core::fmt;

use ed25519_compact::sha512::Hash;
use ed25519_compact::{Signature, VerifyingState, x25519};

use super::certificate::Absorb;
use super::mac::Marks;
use super::{Certificate, Nonce, ORDER, PublicKey, Root, SIGNED, TRUST, VOUCHED, begin, hex_field, put_hex};
use crate::install::agent::Start;
use crate::install::command::{END, Word};
use crate::install::guard::{Guard, Heard, MARK_BYTES, PIECE};
use crate::install::ours::{self, Clock};
use crate::text::{Piece, Sink, ToText as _};

/// The key pair of a Pi (X25519).
pub struct DeviceKey(x25519::KeyPair);

impl DeviceKey {
    /// From 32 random bytes, which are the secret.
    ///
    /// `None` if no key can be made of them, which random bytes are not.
    #[must_use]
    pub fn new(secret: [u8; 32]) -> Option<Self> {
        let secret = x25519::SecretKey::new(secret);
        let public = secret.recover_public_key().ok()?;
        Some(Self(x25519::KeyPair { pk: public, sk: secret }))
    }

    /// The secret of this key and a server's; `None` if that is no key.
    pub(super) fn agree(&self, server: PublicKey) -> Option<[u8; 32]> {
        let public = x25519::PublicKey::from_ed25519(&ed25519_compact::PublicKey::new(server.0)).ok()?;
        Some(*public.dh(&self.0.sk).ok()?)
    }

    /// What a server pins.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(*self.0.pk)
    }
}

/// The public half only.
impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceKey({:?})", self.public())
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for DeviceKey {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "DeviceKey({})", self.public());
    }
}

/// What a Pi has learnt of time and revocations, which never goes back: it has no clock that runs without power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Floor {
    /// A moment that has passed, in seconds since 1970, UTC.
    pub time: u64,
    /// Certificates with a smaller counter are revoked.
    pub since: u64,
}

/// Why nothing is done that a server ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Refusal {
    /// The server has no certificate.
    NoCertificate,
    /// Another key has signed the certificate, or it was changed.
    WrongCertificate,
    /// The certificate has expired.
    Expired {
        /// Until when it was good, in seconds since 1970, UTC.
        until: u64,
    },
    /// The certificate is revoked.
    Revoked,
    /// The order is not signed.
    Unsigned,
    /// The signature is not of this order, to this Pi, on this connection.
    WrongSignature,
}

impl Refusal {
    /// What is wrong, for people.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate => "the server has no certificate",
            Self::WrongCertificate => "the server's certificate is not signed by this Pi's public key",
            Self::Expired { .. } => "the server's certificate has expired",
            Self::Revoked => "the server's certificate is revoked",
            Self::Unsigned => "the server's order is not signed",
            Self::WrongSignature => "the signature of the server's order is wrong",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

/// One connection of a Pi, from its greeting on.
pub struct PiTrust {
    nonce: Nonce,
    key: Option<DeviceKey>,
    is_kept: bool,
    root: Option<Root>,
    floor: Floor,
    /// The hash of the greeting.
    said: [u8; 64],
    /// The last report.
    report: &'static str,
    server: Option<Server>,
    marks: Option<Marks>,
    checking: Option<(VerifyingState, Clock)>,
    /// The block that is being read orders something, and nothing vouches for it.
    is_unsigned: bool,
    refusal: Option<Refusal>,
    clock: Option<Clock>,
}

/// What the server has shown.
struct Server {
    key: PublicKey,
    certificate: Result<Certificate, Refusal>,
}

impl PiTrust {
    /// For one connection. With a root every order has to be signed.
    ///
    /// `key` is the Pi's own key pair, and whether an installation leaves it alone; `nonce` are random bytes that were
    /// never used before.
    #[must_use]
    pub fn new(nonce: Nonce, key: Option<(DeviceKey, bool)>, root: Option<Root>, floor: Floor) -> Self {
        let (key, is_kept) = key.map_or((None, false), |(key, is_kept)| (Some(key), is_kept));
        Self {
            nonce,
            key,
            is_kept,
            root,
            floor,
            said: [0; 64],
            report: "",
            server: None,
            marks: None,
            checking: None,
            is_unsigned: false,
            refusal: None,
            clock: None,
        }
    }

    /// What is known of time and revocations by now.
    #[must_use]
    pub const fn floor(&self) -> Floor {
        self.floor
    }

    /// The time of the order that was taken, if it was signed.
    #[must_use]
    pub const fn clock(&self) -> Option<Clock> {
        self.clock
    }

    /// Why an order was not taken.
    #[must_use]
    pub const fn refusal(&self) -> Option<Refusal> {
        self.refusal
    }

    /// Whether the server has said who it is.
    #[must_use]
    pub const fn is_answered(&self) -> bool {
        self.server.is_some()
    }

    /// Writes the line before the greeting.
    fn write_trust(&self, to: &mut impl Sink) {
        begin(to, TRUST);
        put_hex(to, " nonce=", &self.nonce.0);
        if let Some(key) = &self.key {
            put_hex(to, " key=", &key.public().0);
            if self.is_kept {
                to.text(" kept=1");
            }
        }
    }

    /// The server has said who it is; only the first time counts.
    fn answered(&mut self, fields: &[u8]) {
        let (Some(nonce), Some(key)) = (hex_field(fields, "nonce"), hex_field(fields, "key")) else { return };
        if self.server.is_some() {
            return;
        }
        let (nonce, key) = (Nonce(nonce), PublicKey(key));
        self.server = Some(Server { key, certificate: self.judge(fields) });
        let Some(pair) = &self.key else { return };
        if let Some(secret) = pair.agree(key) {
            self.marks = Some(Marks::new(&secret, [nonce, self.nonce], [key, pair.public()]));
        }
    }

    /// Whether the server may order anything.
    fn judge(&self, fields: &[u8]) -> Result<Certificate, Refusal> {
        let root = self.root.as_ref().ok_or(Refusal::WrongCertificate)?;
        let certificate = Certificate::parse(fields).ok_or(Refusal::NoCertificate)?;
        if !certificate.is_of(root) {
            return Err(Refusal::WrongCertificate);
        }
        if certificate.counter < self.floor.since.max(certificate.since) {
            return Err(Refusal::Revoked);
        }
        Ok(certificate)
    }

    /// A signed block begins.
    fn begin(&mut self, fields: &[u8]) {
        self.checking = None;
        let (Some(server), Some(clock), Some(signature)) =
            (&self.server, Clock::parse(fields), hex_field(fields, "sig"))
        else {
            return;
        };
        if server.certificate.is_err() {
            return;
        }
        let key = ed25519_compact::PublicKey::new(server.key.0);
        let Ok(mut state) = key.verify_incremental(&Signature::new(signature)) else { return };
        absorb_order(&mut |bytes: &[u8]| state.absorb(bytes), &self.said, self.report, clock);
        self.checking = Some((state, clock));
    }
}

impl Guard for PiTrust {
    const SPEAKS: bool = true;

    fn write_line(&self, to: &mut Piece<PIECE>) {
        self.write_trust(to);
    }

    fn greet(&mut self, start: &Start<'_>) {
        let mut hash = Hash::new();
        let mut to = Absorb(|bytes: &[u8]| hash.update(bytes));
        self.write_trust(&mut to);
        to.byte(b'\n');
        if let Some(hello) = start.hello {
            ours::Notice::Hello(hello).write_text(&mut to);
            to.byte(b'\n');
        }
        if let Some(text) = start.disk {
            ours::Notice::Disk { text }.write_text(&mut to);
            to.byte(b'\n');
        }
        self.said = hash.finalize();
    }

    fn reported(&mut self, word: &'static str) {
        self.report = word;
    }

    fn hear(&mut self, line: &[u8]) -> Heard {
        let line = line.trim_ascii();
        match ours::split(line) {
            Some((verb, fields)) if verb == TRUST.as_bytes() => {
                self.answered(fields);
                return Heard::Take;
            }
            Some((verb, fields)) if verb == SIGNED.as_bytes() => {
                self.begin(fields);
                return Heard::Skip;
            }
            _ if self.root.is_none() => return Heard::Take,
            _ => {}
        }
        if let Some((state, _)) = &mut self.checking {
            state.absorb(line);
            state.absorb(b"\n");
        }
        if line != END {
            let is_order = orders(line);
            self.is_unsigned |= is_order && self.checking.is_none();
            return if is_order && self.checking.is_some() { Heard::Take } else { Heard::Skip };
        }
        let is_unsigned = core::mem::take(&mut self.is_unsigned);
        let refusal = match (self.checking.take(), &self.server) {
            (Some((state, clock)), Some(Server { certificate: Ok(certificate), .. })) => {
                let now = clock.seconds.max(self.floor.time);
                if state.verify().is_err() {
                    Refusal::WrongSignature
                } else if now >= certificate.until {
                    Refusal::Expired { until: certificate.until }
                } else {
                    self.floor = Floor { time: now, since: self.floor.since.max(certificate.since) };
                    self.clock = Some(clock);
                    return Heard::Take;
                }
            }
            _ if !is_unsigned => return Heard::Skip,
            (_, Some(Server { certificate: Err(refusal), .. })) => *refusal,
            _ => Refusal::Unsigned,
        };
        self.refusal = Some(refusal);
        Heard::Refuse
    }

    fn mark(&mut self, words: &mut impl FnMut(&mut Piece<PIECE>)) -> Option<[u8; MARK_BYTES]> {
        let (mut mac, is_first) = self.marks.as_mut()?.next();
        if is_first {
            mac.absorb(&self.said);
        }
        let mut piece = Piece::new();
        while piece.fill(words) {
            mac.absorb(piece.bytes());
        }
        Some(mac.mark())
    }

    fn write_mark(to: &mut Piece<PIECE>, mark: &[u8; MARK_BYTES]) {
        begin(to, VOUCHED);
        put_hex(to, " mac=", mark);
    }
}

/// What a signature of an order begins with.
pub(super) fn absorb_order(absorb: &mut dyn FnMut(&[u8]), said: &[u8; 64], report: &str, clock: Clock) {
    absorb(ORDER.as_bytes());
    absorb(said);
    absorb(report.as_bytes());
    absorb(b"\n");
    absorb(&clock.seconds.to_le_bytes());
    absorb(&clock.nanos.to_le_bytes());
}

/// Whether a line orders anything. What does not, does nothing on a Pi that has a root.
fn orders(line: &[u8]) -> bool {
    match Word::parse(line) {
        Some(Word::Boot | Word::Format | Word::Reinstall) => true,
        Some(Word::Ip) => false,
        None => {
            ours::split(line).is_some_and(|(verb, _)| [&b"offer"[..], b"personal", b"wait"].contains(&verb))
        }
    }
}

/// Without the secrets.
impl fmt::Debug for PiTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, root, floor, refusal, .. } = self;
        write!(f, "PiTrust({key:?}, {root:?}, {floor:?}, {refusal:?})")
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for PiTrust {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "PiTrust({}, {}, {}, {})", self.key, self.root, self.floor, self.refusal);
    }
}
