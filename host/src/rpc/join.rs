//! From a connection to a talk on the client's side.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use piman_core::messages::Role;
use piman_core::rpc::auth::{EITHER, LoginOut, Verdict};
use piman_core::rpc::secure::FIRST;
use piman_core::rpc::{Codec, Protocol};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::engine::{Engine, Functions, decode};
use super::login::{PIECE, RpcError, STALL, Secret, lost, message, next, open};
use super::mail::Mailbox;
use super::peer::{Ends, Peer};
use super::secure::enter;
use super::wire::{Lost, Pickles, frames, pickles};
use crate::messages::transport::ahead::Ahead;

/// What a client has after its login: run it to the end.
pub(super) type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How long a server may take to answer, and what it was asked by.
#[derive(Clone, Copy)]
struct Asked {
    protocol: Protocol,
    within: Duration,
    deadline: Instant,
}

impl Asked {
    /// What comes of it, or that nothing came.
    async fn answer<T>(self, answer: impl Future<Output = T>) -> Result<T, RpcError> {
        let Self { protocol, within, deadline } = self;
        timeout_at(deadline, answer).await.map_err(|_| RpcError::Unanswered { within, protocol })
    }

    /// The connection was closed in place of an answer.
    fn closed(self, e: RpcError) -> RpcError {
        let is_closed = match &e {
            RpcError::Cut => true,
            RpcError::Io(e) => lost(e),
            _ => false,
        };
        if is_closed { RpcError::Closed { midway: false, protocol: self.protocol } } else { e }
    }
}

/// Logs in as a client. The connection lives as long as the returned future is polled. `secret` is `None` for
/// the operator, who needs no login. Nothing that depends on a password is sent by another login than the protected
/// one, unless the protocol allows old servers.
pub(super) async fn join<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    address: Option<IpAddr>,
    protocol: Protocol,
    secret: Option<Secret>,
    functions: Arc<dyn Functions>,
    within: Duration,
) -> Result<(Peer, Running), RpcError> {
    let asked = Asked { protocol, within, deadline: Instant::now() + within };
    let Some(secret) = secret else {
        let talk = (Ahead::new(stream, STALL), Peer::new(address, Codec::Postcard, false));
        return run(talk, functions, asked).await;
    };
    if protocol == Protocol::Piman {
        return protected(stream, address, &secret, functions, asked).await;
    }
    let (first, stream) = ask(stream, &secret, asked).await?;
    if protocol == Protocol::Auto && first == Some(FIRST) {
        return protected(stream, address, &secret, functions, asked).await;
    }
    let incoming = Pickles::login(first);
    let verdict = verdict(stream, incoming, protocol, secret.password().is_some());
    let (mut stream, incoming) = asked.answer(verdict).await??;
    match address {
        Some(address) => tracing::warn!(
            "rpc: {address}: old login, not protected: whoever is between this machine and that one can read and change all calls"
        ),
        None => tracing::warn!("rpc: old login, not protected"),
    }
    let (peer, ends) = Peer::new(address, Codec::Pickle, false);
    let this = peer.clone();
    let running: Running = Box::pin(async move {
        let mut engine = Engine::new(this, functions);
        tell(pickles(&mut stream, incoming, &mut engine, ends, STALL).await);
    });
    Ok((peer, running))
}

/// Sends a login that old servers take. The first byte of the answer, and the stream behind it.
async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    secret: &Secret,
    asked: Asked,
) -> Result<(Option<u8>, S), RpcError> {
    let mut login = if asked.protocol == Protocol::Auto { EITHER.to_vec() } else { Vec::new() };
    login.extend(message(Codec::Pickle, &LoginOut(secret.password())));
    asked.answer(stream.write_all(&login)).await??;
    let mut stream = Ahead::new(stream, STALL);
    let first = asked.answer(stream.peek()).await?;
    // A server that resets the connection has not answered either.
    let first = first.or_else(|e| if lost(&e) { Ok(None) } else { Err(e) })?;
    if first.is_none() {
        return Err(RpcError::Closed { midway: false, protocol: asked.protocol });
    }
    Ok((first, stream.into_inner()))
}

/// Logs in so that all that follows is protected.
async fn protected<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    address: Option<IpAddr>,
    secret: &Secret,
    functions: Arc<dyn Functions>,
    asked: Asked,
) -> Result<(Peer, Running), RpcError> {
    let entering = enter(stream, secret, asked.protocol != Protocol::Piman);
    let stream = asked.answer(entering).await?.map_err(|e| asked.closed(e))?;
    run((Ahead::new(stream, STALL), Peer::new(address, Codec::Postcard, true)), functions, asked).await
}

/// Opens the messages of a connection that is logged in.
async fn run<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    (mut stream, (peer, ends)): (Ahead<S>, (Peer, Ends)),
    functions: Arc<dyn Functions>,
    asked: Asked,
) -> Result<(Peer, Running), RpcError> {
    let this = peer.clone();
    // The buffer and what borrows it live in one future, which tells when the messages are open.
    let (done, mut opened) = tokio::sync::oneshot::channel();
    let mut running: Running = Box::pin(async move {
        let mut buf = [0; PIECE];
        let opening = asked.answer(open(&mut stream, Role::Client, &mut buf)).await;
        let mut talk = match opened_or(opening, asked) {
            Ok(talk) => talk,
            Err(e) => {
                // Whoever waited for it may be gone.
                let _ = done.send(Err(e));
                return;
            }
        };
        let _ = done.send(Ok(()));
        let mut engine = Engine::new(this, functions);
        tell(frames(&mut talk, Mailbox::open(), &mut engine, ends).await);
        stream.finish().await;
    });
    let verdict = tokio::select! {
        biased;
        verdict = &mut opened => verdict,
        // It ends at once when the login fails.
        () = &mut running => return Err(opened.try_recv().ok().and_then(Result::err).unwrap_or(RpcError::Unauthenticated)),
    };
    verdict.unwrap_or(Err(RpcError::Unauthenticated))?;
    Ok((peer, running))
}

fn opened_or<T>(opening: Result<Result<T, RpcError>, RpcError>, asked: Asked) -> Result<T, RpcError> {
    opening.and_then(|opened| opened).map_err(|e| asked.closed(e))
}

/// The answer of an old server to our login.
async fn verdict<S: AsyncRead + Unpin>(
    mut stream: S,
    mut incoming: Pickles,
    protocol: Protocol,
    has_password: bool,
) -> Result<(S, Pickles), RpcError> {
    let verdict = next(&mut stream, &mut incoming).await.map_err(|e| match e {
        RpcError::Io(e) if lost(&e) => RpcError::Closed { midway: true, protocol },
        RpcError::Lost(_) => RpcError::NoAnswer,
        other => other,
    })?;
    match decode(Codec::Pickle, &verdict, Verdict::parse).flatten() {
        Some(Verdict(true)) => {
            incoming.logged_in();
            Ok((stream, incoming))
        }
        Some(Verdict(false)) if has_password => Err(RpcError::Denied),
        Some(Verdict(false)) => Err(RpcError::NoPassword),
        None => Err(RpcError::NoAnswer),
    }
}

fn tell(ended: Result<(), Lost>) {
    if let Err(e) = ended {
        tracing::info!("rpc: {e}");
    }
}
