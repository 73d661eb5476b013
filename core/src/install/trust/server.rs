//! The server's side: its key, and what a Pi has shown on one connection.

use alloc::string::{String, ToString as _};
use core::fmt;

use ed25519_compact::sha512::Hash;
use ed25519_compact::{KeyPair, Seed, x25519};

use super::certificate::Absorb;
use super::mac::{self, Marks};
use super::pi::absorb_order;
use super::{Certificate, Nonce, PublicKey, SIGNED, TRUST, VOUCHED, begin, hex_field, put_hex};
use crate::install::ours::{self, Clock, field};
use crate::install::report::Report;
use crate::install::{Command, Notice};
use crate::text::{Sink, ToText as _};

/// The key of a server (Ed25519), with the certificate of it if there is one.
pub struct ServerKey {
    pair: KeyPair,
    /// The same key, to agree on secrets.
    agreeing: x25519::SecretKey,
    certificate: Option<Certificate>,
}

impl ServerKey {
    /// From 32 random bytes, which are the secret. `None` if no key can be made of them, which random bytes are not.
    ///
    /// A certificate of another key counts as missing.
    #[must_use]
    pub fn new(secret: [u8; 32], certificate: Option<Certificate>) -> Option<Self> {
        let pair = KeyPair::try_from_seed(Seed::new(secret)).ok()?;
        let agreeing = x25519::SecretKey::from_ed25519(&pair.sk).ok()?;
        let certificate = certificate.filter(|certificate| certificate.key.0 == *pair.pk);
        Some(Self { pair, agreeing, certificate })
    }

    /// What the signing key certifies.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(*self.pair.pk)
    }

    /// The same key, to agree on secrets.
    pub(super) const fn agreeing(&self) -> &x25519::SecretKey {
        &self.agreeing
    }

    /// The certificate.
    #[must_use]
    pub const fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_ref()
    }

    /// The line that says who the server is, with its end.
    fn answer(&self, nonce: Nonce) -> String {
        let mut line = Text::new(TRUST);
        put_hex(&mut line, " nonce=", &nonce.0);
        match &self.certificate {
            Some(certificate) => certificate.write_text(&mut line),
            None => put_hex(&mut line, " key=", &self.pair.pk[..]),
        }
        line.end()
    }

    /// The line that signs a block, with its end.
    fn sign(&self, said: &[u8; 64], report: &str, clock: Clock, block: &str) -> String {
        let mut message = alloc::vec::Vec::with_capacity(block.len() + 128);
        absorb_order(&mut |bytes: &[u8]| message.extend_from_slice(bytes), said, report, clock);
        message.extend_from_slice(block.as_bytes());
        let signature = self.pair.sk.sign(&message, None);
        let mut line = Text::new(SIGNED);
        clock.write_text(&mut line);
        put_hex(&mut line, " sig=", &signature[..]);
        line.end()
    }
}

/// The public half only.
impl fmt::Debug for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerKey({:?}, {:?})", self.public(), self.certificate)
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for ServerKey {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "ServerKey({}, {})", self.public(), self.certificate);
    }
}

/// A line of ours that is being written.
struct Text(String);

impl Text {
    fn new(verb: &str) -> Self {
        let mut text = Self(String::new());
        begin(&mut text, verb);
        text
    }

    fn end(mut self) -> String {
        self.0.push('\n');
        self.0
    }
}

impl Sink for Text {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte.into());
    }

    fn text(&mut self, text: &str) {
        self.0.push_str(text);
    }
}

/// The key that a Pi says it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Claim {
    /// The key.
    pub key: PublicKey,
    /// Whether an installation leaves it alone, so that the Pi still has it afterwards.
    pub is_kept: bool,
}

/// What a line is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Said {
    /// It is for [`ServerTrust`] alone.
    Consumed,
    /// Anybody can have said it.
    Plain,
    /// The holder of the key has said it, on this connection.
    Vouched,
    /// Somebody has changed it, or says that it has the key and has not.
    Forged,
}

/// What a Pi has shown on one connection. In memory only for those that say a `trust` line.
pub struct ServerTrust {
    nonce: Nonce,
    pi_nonce: Nonce,
    claim: Option<Claim>,
    /// The greeting so far.
    said: Hash,
    report: &'static str,
    marks: Option<Marks>,
    /// The mark of the line that comes next.
    next: Option<[u8; mac::MARK_BYTES]>,
    is_proven: bool,
}

impl ServerTrust {
    /// Begins with a line, if it is the one that a Pi says before its greeting. `nonce` are random bytes that were never
    /// used before.
    #[must_use]
    pub fn begin(line: &[u8], nonce: impl FnOnce() -> Nonce) -> Option<Self> {
        let line = line.trim_ascii();
        let (verb, fields) = ours::split(line)?;
        if verb != TRUST.as_bytes() {
            return None;
        }
        let pi_nonce = Nonce(hex_field(fields, "nonce")?);
        let is_kept = field(fields, "kept") == Some(b"1");
        let claim = hex_field(fields, "key").map(|key| Claim { key: PublicKey(key), is_kept });
        let mut said = Hash::new();
        absorb_line(&mut said, line);
        let (nonce, report, marks) = (nonce(), "", None);
        Some(Self { nonce, pi_nonce, claim, said, report, marks, next: None, is_proven: false })
    }

    /// The key that it says it has.
    #[must_use]
    pub const fn claim(&self) -> Option<Claim> {
        self.claim
    }

    /// Whether it has shown that it has the key. Then only lines that are [`Said::Vouched`] come from it.
    #[must_use]
    pub const fn is_proven(&self) -> bool {
        self.is_proven
    }

    /// Takes a line and says what it is worth.
    pub fn hear(&mut self, line: &[u8], key: &ServerKey) -> Said {
        let line = line.trim_ascii();
        if let Some((verb, fields)) = ours::split(line) {
            if verb == VOUCHED.as_bytes() {
                self.next = hex_field(fields, "mac");
                return Said::Consumed;
            }
            // The first counts.
            if verb == TRUST.as_bytes() {
                return Said::Consumed;
            }
        }
        let worth = match self.next.take() {
            Some(mark) if self.is_marked_by(&mark, line, key) => {
                self.is_proven = true;
                Said::Vouched
            }
            Some(_) => return Said::Forged,
            None => Said::Plain,
        };
        match Report::parse(line) {
            Report::Ours(Notice::Hello(_) | Notice::Disk { .. }) if self.marks.is_none() => {
                absorb_line(&mut self.said, line);
            }
            report @ (Report::Installed | Report::Uninstalled) => {
                self.report = report.word().unwrap_or_default();
            }
            _ => {}
        }
        worth
    }

    fn is_marked_by(&mut self, mark: &[u8; mac::MARK_BYTES], line: &[u8], key: &ServerKey) -> bool {
        if self.marks.is_none() {
            let Some(Claim { key: pi, .. }) = self.claim else { return false };
            let Ok(secret) = x25519::PublicKey::new(pi.0).dh(&key.agreeing) else { return false };
            self.marks = Some(Marks::new(&secret, [self.nonce, self.pi_nonce], [key.public(), pi]));
        }
        let Some(marks) = &mut self.marks else { return false };
        let (mut mac, is_first) = marks.next();
        if is_first {
            mac.absorb(&self.said.finalize());
        }
        mac.absorb(line);
        mac.absorb(b"\n");
        mac::is_same(&mac.mark(), mark)
    }

    /// The lines that go in front of a command, each with its end.
    #[must_use]
    pub fn head(&self, command: &Command<'_>, clock: Clock, key: &ServerKey) -> String {
        match command {
            Command::Hello { .. } => key.answer(self.nonce),
            // Without a certificate nobody believes it.
            _ if key.certificate().is_none() => String::new(),
            _ => self.sign(&command.to_string(), clock, key),
        }
    }

    /// The line that goes in front of a block of orders, with its end.
    #[must_use]
    pub fn sign(&self, block: &str, clock: Clock, key: &ServerKey) -> String {
        key.sign(&self.said.finalize(), self.report, clock, block)
    }
}

fn absorb_line(hash: &mut Hash, line: &[u8]) {
    let mut to = Absorb(|bytes: &[u8]| hash.update(bytes));
    (to.0)(line);
    to.byte(b'\n');
}

/// Without the secrets.
impl fmt::Debug for ServerTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerTrust({:?}, proven: {})", self.claim, self.is_proven)
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for ServerTrust {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "ServerTrust({}, proven: {})", self.claim, self.is_proven);
    }
}

#[cfg(test)]
mod tests;
