//! From a connection to a talk: which protocol, and who may.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use piman_core::frame::{Frames, GO, Mail, Role};
use piman_core::talks::auth::{
    Challenge, Handshake, KEY_CONTEXT, Keyed, LOGIN_MS, LoginOut, PENALTY_MS, Verdict, admits, same,
};
use piman_core::talks::{Codec, Encode, LoginError, prove};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::engine::{Engine, Functions, MESSAGE_MAX, Peer, decode, encode};
use super::wire::{Lost, Pickles, frames, pickles, send};
use crate::frame::ahead::{Ahead, Clock};
use crate::{password, random};

/// The memory of an idle connection for reading, in bytes.
const PIECE: usize = 2048;
/// How long a peer may stand still in the midst of a message.
const STALL: Duration = Duration::from_secs(30);

/// A password and the key that is made of it.
#[derive(Clone)]
pub struct Secret {
    password: Option<String>,
    key: [u8; 32],
}

impl Secret {
    /// Of a password; `None` is no secret: a server then admits everybody.
    #[must_use]
    pub fn new(password: Option<String>) -> Self {
        let key = blake3::derive_key(KEY_CONTEXT, password.as_deref().unwrap_or("").as_bytes());
        Self { password, key }
    }

    /// Of the password in the first line of a file.
    ///
    /// # Errors
    /// If it cannot be read, or there is none in it.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let line = password::read(file)?;
        let (password, name) = (line.trim(), file.display());
        ensure!(!password.is_empty(), "the password in {name} is empty: write it into the first line");
        Ok(Self::new(Some(password.to_owned())))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.password.is_some() { "Secret(..)" } else { "Secret(none)" })
    }
}

impl Keyed for Secret {
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
pub enum NoTalk {
    /// The peer does not have our password, or we do not have its.
    #[error("the password is wrong")]
    Denied,
    /// The server does not know the password: it may not be the one that is meant.
    #[error("the server does not know the password; is it the right server?")]
    Impostor,
    /// No login in time.
    #[error("the peer did not log in, or did not answer the login, within {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// Something else than talks.
    #[error("the peer does not speak this protocol")]
    Stranger,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The connection failed in the midst of a login.
    #[error("{0}")]
    Lost(String),
}

impl From<Lost> for NoTalk {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost.to_string())
    }
}

/// Serves one client to the end of its connection; its first byte says what it speaks. `address` is
/// `None` for the operator, who needs no login.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    address: Option<std::net::IpAddr>,
    secret: &Secret,
    functions: &Arc<dyn Functions>,
) -> Result<(), NoTalk> {
    let within = Duration::from_millis(LOGIN_MS);
    let mut stream = Ahead::new(stream, STALL);
    match timeout(within, stream.peek()).await.map_err(|_| NoTalk::Silent(within))?? {
        None => Ok(()),
        Some(GO) => {
            let mut buf = [0; PIECE];
            let opening = async {
                let mut talk = open(&mut stream, Role::Server, &mut buf).await?;
                let mut mail = Mail::default();
                let admitted = address.is_none() || challenge(&mut talk, &mut mail, secret).await?;
                Ok::<_, NoTalk>((talk, mail, admitted))
            };
            let (mut talk, mut mail, admitted) =
                timeout(within, opening).await.map_err(|_| NoTalk::Silent(within))??;
            if !admitted {
                sleep(Duration::from_millis(PENALTY_MS)).await;
                send(&mut talk, &message(Codec::Postcard, &Verdict(false)), &mut mail).await?;
                stream.close().await;
                return Err(NoTalk::Denied);
            }
            let (peer, ends) = Peer::new(address, Codec::Postcard);
            let mut engine = Engine::new(peer, Arc::clone(functions));
            Ok(frames(&mut talk, mail, &mut engine, ends).await?)
        }
        first => {
            let (mut stream, mut incoming) = (stream.into_inner(), Pickles::new(first));
            let login = timeout(within, next(&mut stream, &mut incoming)).await;
            let login = login.map_err(|_| NoTalk::Silent(within))??;
            let password = secret.password.as_deref();
            if decode(Codec::Pickle, &login, |value| admits(password, value)) != Some(true) {
                sleep(Duration::from_millis(PENALTY_MS)).await;
                stream.write_all(&message(Codec::Pickle, &Verdict(false))).await?;
                Ahead::new(stream, STALL).close().await;
                return Err(NoTalk::Denied);
            }
            stream.write_all(&message(Codec::Pickle, &Verdict(true))).await?;
            let (peer, ends) = Peer::new(address, Codec::Pickle);
            let mut engine = Engine::new(peer, Arc::clone(functions));
            Ok(pickles(&mut stream, incoming, &mut engine, ends, STALL).await?)
        }
    }
}

/// What a client has after its login: run it to the end.
pub(super) type Running = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Logs in as a client. The connection lives as long as the returned future is polled. `secret` is `None` for
/// the operator, who needs no login.
pub(super) async fn join<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    address: Option<std::net::IpAddr>,
    codec: Codec,
    secret: Option<Secret>,
    functions: Arc<dyn Functions>,
    within: Duration,
) -> Result<(Peer, Running), NoTalk> {
    let (peer, ends) = Peer::new(address, codec);
    let this = peer.clone();
    if codec == Codec::Pickle {
        let (mut stream, mut incoming) = (stream, Pickles::new(None));
        let password = secret.as_ref().and_then(|s| s.password.as_deref());
        let login = async {
            stream.write_all(&message(codec, &LoginOut(password))).await?;
            next(&mut stream, &mut incoming).await
        };
        let verdict = timeout(within, login).await.map_err(|_| NoTalk::Silent(within))??;
        match decode(codec, &verdict, Verdict::parse).flatten() {
            Some(Verdict(true)) => {}
            Some(Verdict(false)) => return Err(NoTalk::Denied),
            None => return Err(NoTalk::Stranger),
        }
        let running: Running = Box::pin(async move {
            let mut engine = Engine::new(this, functions);
            tell(pickles(&mut stream, incoming, &mut engine, ends, STALL).await);
        });
        return Ok((peer, running));
    }
    // The buffer and what borrows it live in one future, which tells when the login is done.
    let (done, mut login) = tokio::sync::oneshot::channel();
    let mut running: Running = Box::pin(async move {
        let mut stream = Ahead::new(stream, STALL);
        let mut buf = [0; PIECE];
        let opening = async {
            let mut talk = open(&mut stream, Role::Client, &mut buf).await?;
            if let Some(secret) = &secret {
                prove(&mut talk, secret, random::bytes()).await.map_err(|e| match e {
                    LoginError::Denied => NoTalk::Denied,
                    LoginError::Impostor => NoTalk::Impostor,
                    LoginError::Stranger => NoTalk::Stranger,
                    other => NoTalk::Lost(other.to_string()),
                })?;
            }
            Ok::<_, NoTalk>(talk)
        };
        let opened = timeout(within, opening).await.unwrap_or(Err(NoTalk::Silent(within)));
        let mut talk = match opened {
            Ok(talk) => talk,
            Err(e) => {
                // Whoever waited for it may be gone.
                let _ = done.send(Err(e));
                return;
            }
        };
        let _ = done.send(Ok(()));
        let mut engine = Engine::new(this, functions);
        tell(frames(&mut talk, Mail::default(), &mut engine, ends).await);
    });
    let verdict = tokio::select! {
        biased;
        verdict = &mut login => verdict,
        // It ends at once when the login fails.
        () = &mut running => return Err(login.try_recv().ok().and_then(Result::err).unwrap_or(NoTalk::Stranger)),
    };
    verdict.unwrap_or(Err(NoTalk::Stranger))?;
    Ok((peer, running))
}

fn tell(ended: Result<(), Lost>) {
    if let Err(e) = ended {
        log::info!("talks: {e}");
    }
}

type Talk<'b, S> = Frames<'b, &'b mut Ahead<S>, Clock>;

async fn open<'b, S: AsyncRead + AsyncWrite + Unpin>(
    stream: &'b mut Ahead<S>,
    role: Role,
    buf: &'b mut [u8],
) -> Result<Talk<'b, S>, NoTalk> {
    let limit = u32::try_from(MESSAGE_MAX).unwrap_or(u32::MAX);
    Frames::open(stream, Clock, role, limit, buf).await.map_err(|e| NoTalk::Lost(e.to_string()))
}

/// The server's side of the challenge: whether the client knows the key.
async fn challenge<S: AsyncRead + AsyncWrite + Unpin>(
    talk: &mut Talk<'_, S>,
    mail: &mut Mail,
    secret: &Secret,
) -> Result<bool, NoTalk> {
    let Handshake::Hello(client) = step(talk, mail).await? else { return Err(NoTalk::Stranger) };
    let challenge = Challenge { client, server: random::bytes() };
    send(talk, &message(Codec::Postcard, &Handshake::Challenge(challenge.server)), mail).await?;
    let Handshake::Proof(proof) = step(talk, mail).await? else { return Err(NoTalk::Stranger) };
    if secret.password.is_some() && !same(&challenge.client_proof(secret), &proof) {
        return Ok(false);
    }
    let proof = Handshake::Proof(challenge.server_proof(secret));
    send(talk, &message(Codec::Postcard, &proof), mail).await?;
    Ok(true)
}

async fn step<S: AsyncRead + AsyncWrite + Unpin>(
    talk: &mut Talk<'_, S>,
    mail: &mut Mail,
) -> Result<Handshake, NoTalk> {
    let message = whole(talk, mail).await?;
    decode(Codec::Postcard, &message, Handshake::parse).flatten().ok_or(NoTalk::Stranger)
}

/// The next whole message.
async fn whole<S: AsyncRead + AsyncWrite + Unpin>(
    talk: &mut Talk<'_, S>,
    mail: &mut Mail,
) -> Result<Vec<u8>, NoTalk> {
    while mail.whole.is_empty() {
        if !talk.receive(mail).await.map_err(|e| NoTalk::Lost(e.to_string()))? {
            return Err(NoTalk::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    Ok(mail.whole.remove(0))
}

/// The next whole pickle.
async fn next(stream: &mut (impl AsyncRead + Unpin), incoming: &mut Pickles) -> Result<Vec<u8>, NoTalk> {
    loop {
        if let Some(message) = incoming.next()? {
            return Ok(message);
        }
        if !incoming.read(stream).await? {
            return Err(NoTalk::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// A message of a login; none is larger than its buffer.
fn message(codec: Codec, value: &dyn Encode) -> Vec<u8> {
    encode(codec, value).unwrap_or_default()
}
