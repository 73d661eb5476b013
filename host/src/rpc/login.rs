//! From a connection to a talk on the server's side: which protocol, and who may.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use piman_core::Error;
use piman_core::error::PeerError;
use piman_core::messages::{FAILED, GO, MessageStream, Role};
use piman_core::rpc::auth::{
    Authenticator, Challenge, EITHER, Handshake, KEY_CONTEXT, LOGIN_MS, PASSWORD_MAX, PENALTY_MS, Verdict,
    same, verify,
};
use piman_core::rpc::secure::{FIRST, LoginFault, Status};
use piman_core::rpc::{Codec, Encode, Protocol};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::attempts::{Attempts, Judged};
use super::engine::{Engine, Functions, MESSAGE_MAX, decode, encode};
use super::mail::{Mail, Mailbox};
use super::peer::Peer;
use super::secure::{Entered, admit};
use super::wire::{Lost, Pickles, frames, pickles, send};
use crate::messages::transport::ahead::{Ahead, Clock};
use crate::sys::random;
use crate::text::password;

/// The memory of an idle connection for reading, in bytes.
pub(super) const PIECE: usize = 2048;
/// How long a peer may stand still in the midst of a message: a slow one takes nothing for minutes, since its system
/// has room for much that it has not read. Whether its system is there is found out sooner.
pub(super) const STALL: Duration = Duration::from_secs(300);

/// A password and the key that is made of it.
#[derive(Clone)]
pub struct Secret {
    password: Option<String>,
    key: [u8; 32],
}

impl Secret {
    /// Of a password; `None` is no secret: a server then accepts everybody.
    #[must_use]
    pub fn new(password: Option<String>) -> Self {
        let key = blake3::derive_key(KEY_CONTEXT, password.as_deref().unwrap_or("").as_bytes());
        Self { password, key }
    }

    /// The password, if there is one.
    pub(super) fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// Of the password in the first line of a file.
    ///
    /// # Errors
    /// If the file cannot be read, or its first line is empty.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let line = password::read(file)?;
        let (password, name) = (line.trim(), file.display());
        ensure!(!password.is_empty(), "the password in {name} is empty: write it into the first line");
        ensure!(
            password.len() <= PASSWORD_MAX,
            "the password in {name} has {} bytes: choose one of at most {PASSWORD_MAX}",
            password.len()
        );
        Ok(Self::new(Some(password.to_owned())))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.password.is_some() { "Secret(..)" } else { "Secret(none)" })
    }
}

impl Authenticator for Secret {
    fn tag(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in parts {
            hasher.update(part);
        }
        hasher.finalize().into()
    }
}

/// Why there is no talk.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// The two sides have different passwords, or somebody between them changed what they sent.
    #[error("the password is wrong: the two sides have different ones; is it the right server?")]
    Denied,
    /// The server has no password, and we have one: it may not be the one that is meant.
    #[error("{}", LoginFault::NoPasswordThere)]
    ServerNotTrusted,
    /// Another peer with this name is connected.
    #[error(
        "a peer with the name {0} is connected already, and it answers: the login of another one is refused"
    )]
    NameTaken(String),
    /// The server refuses the login.
    #[error("{}", LoginFault::Refused(*.0))]
    Refused(Status),
    /// An old peer, where only the protected login is allowed.
    #[error("an old peer, or one without the protected login: refused by rpc-old-peers = false")]
    OldPeer,
    /// The server wants a password, and we have none.
    #[error("the server wants a password, and none was given")]
    NoPassword,
    /// Too many wrong passwords came before: nobody has looked at this one.
    #[error("too many wrong passwords: this one was not looked at")]
    Unseen,
    /// No login in time.
    #[error("the client did not log in within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// The server does not answer the login.
    #[error("{}", unanswered(*.within, *.protocol))]
    Unanswered {
        /// How long we have waited.
        within: Duration,
        /// What it was asked by.
        protocol: Protocol,
    },
    /// The server answers the login by something that is no answer to it.
    #[error(
        "the server answered the login by something else than a TCPTalks or piman server does: is it another service?"
    )]
    NoAnswer,
    /// The server closes the connection in place of an answer to the login.
    #[error("{}", closed(*.midway, *.protocol))]
    Closed {
        /// In the middle of its answer.
        midway: bool,
        /// What it was asked by.
        protocol: Protocol,
    },
    /// The peer closes the connection in place of a greeting.
    #[error("the peer closed the connection before its greeting")]
    Cut,
    /// No connection.
    #[error("no connection within {:.1} s", .0.as_secs_f32())]
    Unreachable(Duration),
    /// Something else than talks.
    #[error("the peer does not speak this protocol")]
    Unauthenticated,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The connection failed in the midst of a login.
    #[error("{0}")]
    Lost(String),
}

fn unanswered(within: Duration, protocol: Protocol) -> String {
    format!("the server did not answer the login within {:.1} s: {}", within.as_secs_f32(), hint(protocol))
}

fn closed(midway: bool, protocol: Protocol) -> String {
    if midway {
        return "the server closed the connection in the middle of its answer to the login".into();
    }
    format!("the server closed the connection without an answer to the login: {}", hint(protocol))
}

fn hint(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Piman => {
            "if it is an old TCPTalks server, use the protocol pickle (--protocol pickle); a password then crosses the network in clear"
        }
        _ => "is it a TCPTalks or piman server, and is it free for another client?",
    }
}

impl From<LoginFault> for RpcError {
    fn from(fault: LoginFault) -> Self {
        match fault {
            LoginFault::WrongPassword | LoginFault::Refused(Status::WrongPassword) => Self::Denied,
            LoginFault::PasswordWanted => Self::NoPassword,
            LoginFault::NoPasswordThere => Self::ServerNotTrusted,
            LoginFault::Refused(Status::TooManyAttempts) => Self::Unseen,
            LoginFault::Refused(status) => Self::Refused(status),
            _ => Self::Unauthenticated,
        }
    }
}

impl From<Lost> for RpcError {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost.to_string())
    }
}

/// What a server asks of its clients, and what they may call.
#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    pub(super) secret: &'a Secret,
    pub(super) attempts: &'a Attempts,
    pub(super) functions: &'a Arc<dyn Functions>,
    /// Whether logins are taken that protect nothing after them.
    pub(super) old_peers: bool,
}

/// Serves one client to the end of its connection; its first byte says what it speaks. `address` is
/// `None` for the operator, who needs no login.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    address: Option<IpAddr>,
    rules: Rules<'_>,
) -> Result<(), RpcError> {
    let within = Duration::from_millis(LOGIN_MS);
    let mut stream = Ahead::new(stream, STALL);
    let first = timeout(within, stream.peek()).await.map_err(|_| RpcError::Timeout(within))??;
    match first {
        None => Ok(()),
        Some(FIRST) => serve_protected(admit(stream.into_inner(), address, &rules, false).await?).await,
        Some(GO) if address.is_none() || rules.old_peers => serve_frames(stream, address, rules).await,
        Some(GO) => {
            stream.into_inner().write_all(&[FAILED]).await?;
            Err(RpcError::OldPeer)
        }
        first => serve_pickles(stream.into_inner(), first, address, rules).await,
    }
}

/// Serves one client that began with a pickle.
async fn serve_pickles<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    first: Option<u8>,
    address: Option<IpAddr>,
    rules: Rules<'_>,
) -> Result<(), RpcError> {
    let within = Duration::from_millis(LOGIN_MS);
    let mut incoming = Pickles::login(first);
    let login = timeout(within, next(&mut stream, &mut incoming)).await;
    let login = login.map_err(|_| RpcError::Timeout(within))??;
    if login.starts_with(EITHER) {
        // Nothing may follow before our answer.
        if !incoming.is_idle() {
            return Err(RpcError::Unauthenticated);
        }
        stream.write_all(&[FIRST]).await?;
        stream.flush().await?;
        return serve_protected(admit(stream, address, &rules, true).await?).await;
    }
    let password = rules.secret.password();
    let right = || decode(Codec::Pickle, &login, |value| verify(password, value)) == Some(true);
    let judged = if rules.old_peers { judge(address, &rules, right) } else { Err(RpcError::OldPeer) };
    if let Err(e) = judged {
        sleep(Duration::from_millis(PENALTY_MS)).await;
        stream.write_all(&message(Codec::Pickle, &Verdict(false))).await?;
        Ahead::new(stream, STALL).close().await;
        return Err(e);
    }
    stream.write_all(&message(Codec::Pickle, &Verdict(true))).await?;
    incoming.logged_in();
    let (peer, ends) = Peer::new(address, Codec::Pickle, false);
    let mut engine = Engine::new(peer, Arc::clone(rules.functions));
    Ok(pickles(&mut stream, incoming, &mut engine, ends, STALL).await?)
}

/// Serves one client that has logged in so that all is protected, to the end of its connection.
async fn serve_protected<S: AsyncRead + AsyncWrite + Unpin>(entered: Entered<S>) -> Result<(), RpcError> {
    let within = Duration::from_millis(LOGIN_MS);
    let Entered { stream, mut engine, ends } = entered;
    let (mut stream, mut buf) = (Ahead::new(stream, STALL), [0; PIECE]);
    let opening = timeout(within, open(&mut stream, Role::Server, &mut buf)).await;
    let mut talk = opening.map_err(|_| RpcError::Timeout(within))??;
    let ended = frames(&mut talk, Mailbox::open(), &mut engine, ends).await;
    stream.finish().await;
    Ok(ended?)
}

/// Serves one client that speaks frames, from the greetings to the end of its connection.
async fn serve_frames<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: Ahead<S>,
    address: Option<IpAddr>,
    rules: Rules<'_>,
) -> Result<(), RpcError> {
    let within = Duration::from_millis(LOGIN_MS);
    let mut buf = [0; PIECE];
    let opening = async {
        let mut talk = open(&mut stream, Role::Server, &mut buf).await?;
        let mut mail = Mailbox::login();
        let judged = match address {
            None => {
                mail.logged_in();
                Ok(())
            }
            Some(_) => challenge(&mut talk, &mut mail, &rules, address).await?,
        };
        Ok::<_, RpcError>((talk, mail, judged))
    };
    let (mut talk, mut mail, judged) =
        timeout(within, opening).await.map_err(|_| RpcError::Timeout(within))??;
    if let Err(e) = judged {
        sleep(Duration::from_millis(PENALTY_MS)).await;
        let verdict = message(Codec::Postcard, &Verdict(false));
        timeout(within, send(&mut talk, &verdict, &mut mail))
            .await
            .map_err(|_| RpcError::Timeout(within))??;
        stream.close().await;
        return Err(e);
    }
    let (peer, ends) = Peer::new(address, Codec::Postcard, false);
    let mut engine = Engine::new(peer, Arc::clone(rules.functions));
    Ok(frames(&mut talk, mail, &mut engine, ends).await?)
}

/// Whether a login is right. Wrong ones count against the address; a server without a password has none to guess.
pub(super) fn judge(
    address: Option<IpAddr>,
    rules: &Rules<'_>,
    right: impl FnOnce() -> bool,
) -> Result<(), RpcError> {
    let judged = match address {
        Some(address) if rules.secret.password.is_some() => {
            rules.attempts.judge(address, Instant::now(), right)
        }
        _ if right() => Judged::Right,
        _ => Judged::Wrong,
    };
    match judged {
        Judged::Right => Ok(()),
        Judged::Wrong => Err(RpcError::Denied),
        Judged::Unseen => Err(RpcError::Unseen),
    }
}

/// Whether the peer has closed the connection.
pub(super) fn lost(e: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(e.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

type Talk<'b, S> = MessageStream<'b, &'b mut Ahead<S>, Clock>;

pub(super) async fn open<'b, S: AsyncRead + AsyncWrite + Unpin>(
    stream: &'b mut Ahead<S>,
    role: Role,
    buf: &'b mut [u8],
) -> Result<Talk<'b, S>, RpcError> {
    let limit = u32::try_from(MESSAGE_MAX).unwrap_or(u32::MAX);
    MessageStream::open(stream, Clock, role, limit, buf).await.map_err(|e| match e {
        Error::Io(e) if lost(&e) => RpcError::Cut,
        Error::Io(e) => RpcError::Io(e),
        Error::Peer(PeerError::Closed) => RpcError::Cut,
        other => RpcError::Lost(other.to_string()),
    })
}

/// The server's side of the challenge; the inner result says whether the client knows the key.
async fn challenge<S: AsyncRead + AsyncWrite + Unpin>(
    talk: &mut Talk<'_, S>,
    mail: &mut Mailbox,
    rules: &Rules<'_>,
    address: Option<IpAddr>,
) -> Result<Result<(), RpcError>, RpcError> {
    let Handshake::Hello(client) = step(talk, mail).await? else { return Err(RpcError::Unauthenticated) };
    let challenge = Challenge { client, server: random::bytes() };
    send(talk, &message(Codec::Postcard, &Handshake::Challenge(challenge.server)), mail).await?;
    let Handshake::Proof(proof) = step(talk, mail).await? else { return Err(RpcError::Unauthenticated) };
    let secret = rules.secret;
    let right = || secret.password.is_none() || same(&challenge.client_proof(secret), &proof);
    if let Err(e) = judge(address, rules, right) {
        return Ok(Err(e));
    }
    // The client may send what it likes as soon as it has the proof.
    mail.logged_in();
    let proof = Handshake::Proof(challenge.server_proof(secret));
    send(talk, &message(Codec::Postcard, &proof), mail).await?;
    Ok(Ok(()))
}

async fn step<S: AsyncRead + AsyncWrite + Unpin>(
    talk: &mut Talk<'_, S>,
    mail: &mut Mailbox,
) -> Result<Handshake, RpcError> {
    let message = whole(talk, mail).await?;
    decode(Codec::Postcard, &message, Handshake::parse).flatten().ok_or(RpcError::Unauthenticated)
}

/// The next whole message.
async fn whole<S: AsyncRead + AsyncWrite + Unpin>(
    talk: &mut Talk<'_, S>,
    mail: &mut Mailbox,
) -> Result<Vec<u8>, RpcError> {
    while mail.is_empty() {
        if !talk.receive(mail).await.map_err(|e| RpcError::Lost(e.to_string()))? {
            return Err(RpcError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        if mail.is_flooded() {
            return Err(RpcError::Unauthenticated);
        }
    }
    // A client waits for our answer before it goes on.
    match <[Mail; 1]>::try_from(mail.take()) {
        Ok([Mail::Whole(message)]) => Ok(message),
        _ => Err(RpcError::Unauthenticated),
    }
}

/// The next whole pickle.
pub(super) async fn next(
    stream: &mut (impl AsyncRead + Unpin),
    incoming: &mut Pickles,
) -> Result<Vec<u8>, RpcError> {
    loop {
        if let Some(message) = incoming.next()? {
            return Ok(message);
        }
        if !incoming.read(stream).await? {
            return Err(RpcError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// A message of a login; none is larger than its buffer.
pub(super) fn message(codec: Codec, value: &dyn Encode) -> Vec<u8> {
    encode(codec, value).unwrap_or_default()
}
