//! Both sides of the protected login as pure steps.

use core::fmt;

use hmac_sha512::{HKDF, HMAC};

use super::hello::{Bytes, FIRST, FLAG_ASKED, FLAG_PASSWORD, Hello, NAME_MAX, VERSION};
use super::pake::{Exponent, Transcript};
use super::record::{RECORD_MAX, RECORD_MIN};
use crate::rpc::auth::same;

/// How many random bytes a login takes.
pub const RANDOM_LENGTH: usize = 80;
/// The length of a proof, in bytes.
pub const PROOF_LENGTH: usize = 32;
/// The length of the server's last message, in bytes.
pub const END_LENGTH: usize = 1 + PROOF_LENGTH;
/// What the key is for.
const CHANNEL: &[u8] = b"piman rpc 1";

/// What one side brings to a login.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    /// The password of up to [`PASSWORD_MAX`](crate::rpc::auth::PASSWORD_MAX) bytes; `None` for none: then the
    /// connection is protected against those who listen, and not against one who pretends to be the other side.
    pub password: Option<&'a str>,
    /// The name of this side, in printable ASCII of up to [`NAME_MAX`] bytes; one that is something else is left
    /// out.
    pub name: &'a str,
    /// The longest content of a record that this side takes, in bytes: [`RECORD_MIN`] to [`RECORD_MAX`].
    pub record_max: u16,
    /// Whether the client asked first, by [`EITHER`](crate::rpc::auth::EITHER). A server gives `false`.
    pub asked: bool,
    /// Random bytes, which are never used again.
    pub random: &'a [u8; RANDOM_LENGTH],
}

/// Whether there is a password, and never which; nothing of the random bytes.
impl fmt::Debug for Terms<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = self.password.is_some();
        f.debug_struct("Terms").field("password", &has).field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for Terms<'_> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Terms(password: {=bool}, name: {=str})", self.password.is_some(), self.name)
    }
}

impl Terms<'_> {
    fn split(&self) -> (Exponent, [u8; 16]) {
        let (number, nonce) = self.random.split_first_chunk().unwrap_or((&[0; 64], &[]));
        (Exponent::new(number), nonce.first_chunk().copied().unwrap_or_default())
    }

    fn password(&self) -> &[u8] {
        self.password.unwrap_or_default().as_bytes()
    }

    fn hello(&self, nonce: [u8; 16], share: [u8; 32]) -> Hello<'_> {
        let password = if self.password.is_some() { FLAG_PASSWORD } else { 0 };
        let asked = if self.asked { FLAG_ASKED } else { 0 };
        // Both limits fit into 16 bits.
        let record_max = self.record_max.clamp(RECORD_MIN as u16, RECORD_MAX as u16);
        Hello { version: VERSION, flags: password | asked, record_max, nonce, share, name: self.name }
    }
}

/// What a server says at the end of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Status {
    /// The client may stay.
    Welcome,
    /// Its password is another one.
    WrongPassword,
    /// Another peer with its name is connected, and answers.
    NameTaken,
    /// Too many attempts from its address, or in all: its password was not looked at.
    TooManyAttempts,
    /// The server does not speak the client's version.
    Version,
    /// Something else, of a later version.
    Other(u8),
}

impl Status {
    /// Its byte on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Welcome => 0,
            Self::WrongPassword => 1,
            Self::NameTaken => 2,
            Self::TooManyAttempts => 3,
            Self::Version => 4,
            Self::Other(code) => code,
        }
    }

    /// What a byte means.
    #[must_use]
    pub fn of(code: u8) -> Self {
        let known =
            [Self::Welcome, Self::WrongPassword, Self::NameTaken, Self::TooManyAttempts, Self::Version];
        known.get(usize::from(code)).copied().unwrap_or(Self::Other(code))
    }

    /// What a server sends in place of its hello.
    #[must_use]
    pub fn refusal(self) -> [u8; 3] {
        [FIRST, 0, self.code()]
    }
}

/// Why there is no login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum LoginFault {
    /// The other side does not speak the protected login.
    NotSpoken,
    /// The two sides have different passwords, or somebody between them changed what they sent.
    WrongPassword,
    /// The server has a password, and this client has none.
    PasswordWanted,
    /// The client has a password, and the server has none: it may not be the one that is meant.
    NoPasswordThere,
    /// The server refuses for another reason; before its proof anybody in between can say so.
    Refused(Status),
}

impl fmt::Display for LoginFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotSpoken => "the other side does not speak the protected login",
            Self::WrongPassword | Self::Refused(Status::WrongPassword) => {
                "the password is wrong: the two sides have different ones; is it the right server?"
            }
            Self::PasswordWanted => "the server wants a password, and none was given",
            Self::NoPasswordThere => {
                "the server has no password, so it cannot prove that it is the one that is meant; is it the right server?"
            }
            Self::Refused(Status::NameTaken) => {
                "a peer with the same name is connected already, and it answers: the server keeps that one"
            }
            Self::Refused(Status::TooManyAttempts) => {
                "too many attempts to log in with a wrong password: the server did not look at this one; try later"
            }
            Self::Refused(Status::Version) => {
                "the server does not speak this version of the protected login: bring both sides to the same release"
            }
            Self::Refused(_) => "the server refuses the login, for a reason that is not known here",
        })
    }
}

impl core::error::Error for LoginFault {}

/// What the records after a login are sealed with.
#[derive(Clone)]
pub struct Keys {
    pub(super) ours: [u8; 32],
    pub(super) theirs: [u8; 32],
    /// The longest content of a record that the other side takes.
    pub(super) record_max: usize,
}

/// Never the keys.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for Keys {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Keys(..)")
    }
}

/// The key of both sides, from which all others are made.
struct Master([u8; 64]);

impl Master {
    fn new(key: &[u8; 64]) -> Self {
        Self(HKDF::extract(CHANNEL, key))
    }

    fn part(&self, name: &str) -> [u8; 32] {
        let mut part = [0; 32];
        HKDF::expand(&mut part, self.0, name);
        part
    }

    fn client_proof(&self) -> [u8; PROOF_LENGTH] {
        self.part("client proof")
    }

    fn server_proof(&self, status: Status) -> [u8; PROOF_LENGTH] {
        let tag = HMAC::mac([status.code()], self.part("server proof"));
        tag.first_chunk().copied().unwrap_or_default()
    }

    fn keys(&self, is_client: bool, record_max: u16) -> Keys {
        let (client, server) = (self.part("client records"), self.part("server records"));
        let (ours, theirs) = if is_client { (client, server) } else { (server, client) };
        Keys { ours, theirs, record_max: record_max.into() }
    }
}

/// The side that dials.
///
/// Send [`hello`](Self::hello), give the server's to [`proceed`](Self::proceed), send the proof, give the server's end
/// to [`finish`](Self::finish).
pub struct Client {
    exponent: Exponent,
    hello: Bytes,
    has_password: bool,
    nonce: [u8; 16],
    share: [u8; 32],
    /// With the longest record of the server.
    master: Option<(Master, u16)>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client(..)")
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for Client {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Client(..)")
    }
}

impl Client {
    /// Begins a login.
    #[must_use]
    pub fn new(terms: &Terms<'_>) -> Self {
        let (exponent, nonce) = terms.split();
        let share = exponent.share(terms.password(), CHANNEL, &nonce);
        let hello = terms.hello(nonce, share).write();
        Self { exponent, hello, has_password: terms.password.is_some(), nonce, share, master: None }
    }

    /// What the client sends first.
    #[must_use]
    pub fn hello(&self) -> &[u8] {
        &self.hello
    }

    /// The server's hello has come. What the client sends next: a proof, by which the server sees whether it has the
    /// same password, and nobody else anything.
    ///
    /// # Errors
    /// [`LoginFault`]; close the connection. Nothing that depends on the password has been said then.
    pub fn proceed(&mut self, server: &[u8]) -> Result<[u8; PROOF_LENGTH], LoginFault> {
        if let [FIRST, 0, code] = server {
            return Err(LoginFault::Refused(Status::of(*code)));
        }
        let hello = Hello::parse(server)?;
        if hello.version != VERSION {
            return Err(LoginFault::Refused(Status::Version));
        }
        match (self.has_password, hello.has_password()) {
            (false, true) => return Err(LoginFault::PasswordWanted),
            (true, false) => return Err(LoginFault::NoPasswordThere),
            _ => {}
        }
        let both = Transcript { client: (&self.share, &self.hello), server: (&hello.share, server) };
        let key = self.exponent.key(&self.nonce, &hello.share, both).ok_or(LoginFault::NotSpoken)?;
        let master = Master::new(&key);
        let proof = master.client_proof();
        self.master = Some((master, hello.record_max));
        Ok(proof)
    }

    /// The server's end has come: the keys of the records.
    ///
    /// # Errors
    /// [`LoginFault`]; close the connection.
    pub fn finish(&self, end: &[u8; END_LENGTH]) -> Result<Keys, LoginFault> {
        let Some((master, record_max)) = &self.master else { return Err(LoginFault::NotSpoken) };
        let [code, proof @ ..] = end;
        let status = Status::of(*code);
        match (same(&master.server_proof(status), proof), status) {
            (true, Status::Welcome) => Ok(master.keys(true, *record_max)),
            (true, other) | (false, other @ Status::TooManyAttempts) => Err(LoginFault::Refused(other)),
            (false, _) => Err(LoginFault::WrongPassword),
        }
    }
}

/// The side that was dialled.
///
/// Give the client's hello to [`new`](Self::new), send [`hello`](Self::hello), give the client's proof to
/// [`verify`](Self::verify), send [`end`](Self::end).
pub struct Server {
    hello: Bytes,
    master: Master,
    record_max: u16,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Server(..)")
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for Server {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Server(..)")
    }
}

impl Server {
    /// The hello of a client has come, whole.
    ///
    /// # Errors
    /// [`LoginFault::NotSpoken`] if it is none: close the connection. [`LoginFault::Refused`]: send
    /// [`Status::refusal`] before.
    pub fn new(terms: &Terms<'_>, client: &[u8]) -> Result<Self, LoginFault> {
        let theirs = Hello::parse(client)?;
        // Who speaks a later version speaks this one, too.
        if theirs.version < VERSION {
            return Err(LoginFault::Refused(Status::Version));
        }
        let (exponent, nonce) = terms.split();
        let share = exponent.share(terms.password(), CHANNEL, &theirs.nonce);
        let hello = terms.hello(nonce, share).write();
        let both = Transcript { client: (&theirs.share, client), server: (&share, &hello) };
        let key = exponent.key(&theirs.nonce, &theirs.share, both).ok_or(LoginFault::NotSpoken)?;
        let (master, record_max) = (Master::new(&key), theirs.record_max);
        Ok(Self { hello, master, record_max })
    }

    /// What the server sends first.
    #[must_use]
    pub fn hello(&self) -> &[u8] {
        &self.hello
    }

    /// Whether the client has the same password. Ask once for each login: each is one guess.
    #[must_use]
    pub fn verify(&self, proof: &[u8; PROOF_LENGTH]) -> bool {
        same(&self.master.client_proof(), proof)
    }

    /// What the server sends last. `verified` is what [`verify`](Self::verify) returned: to a client without the
    /// password the server proves nothing.
    #[must_use]
    pub fn end(&self, status: Status, verified: bool) -> [u8; END_LENGTH] {
        let mut end = [0; END_LENGTH];
        let proof = if verified { self.master.server_proof(status) } else { [0; PROOF_LENGTH] };
        for (to, from) in end.iter_mut().zip([status.code()].into_iter().chain(proof)) {
            *to = from;
        }
        end
    }

    /// What the records are sealed with.
    #[must_use]
    pub fn keys(&self) -> Keys {
        self.master.keys(false, self.record_max)
    }
}

const _: () = assert!(RECORD_MAX <= u16::MAX as usize && NAME_MAX <= u8::MAX as usize);
