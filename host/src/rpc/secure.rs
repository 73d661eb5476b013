//! The protected login of our own peers, on both sides.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use piman_core::rpc::Codec;
use piman_core::rpc::auth::{LOGIN_MS, PENALTY_MS};
use piman_core::rpc::secure::{
    Client, END_LENGTH, FIRST, HELLO_MIN, Hello, LoginFault, PROOF_LENGTH, Server, Status, Terms,
    hello_length,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::engine::Engine;
use super::login::{RpcError, Rules, Secret, judge};
use super::peer::{Ends, Peer};
use super::sealed::{RECORD, Sealed};
use crate::messages::transport::ahead::Ahead;
use crate::sys::random;

/// The name of this side: servers and operators have no other so far.
const NAME: &str = "piman";
/// How long a peer may take to read our refusal.
const CLOSING: Duration = Duration::from_secs(1);

/// What a client is let in with.
pub(super) struct Entered<S> {
    pub(super) stream: Sealed<S>,
    pub(super) engine: Engine,
    pub(super) ends: Ends,
}

fn terms<'a>(
    secret: &'a Secret,
    name: &'a str,
    asked: bool,
    random: &'a [u8; piman_core::rpc::secure::RANDOM_LENGTH],
) -> Terms<'a> {
    // A record is shorter than 64 KiB.
    Terms { password: secret.password(), name, record_max: RECORD as u16, asked, random }
}

/// Reads a whole hello, or a refusal in its place. `begun` is what was read of it before.
async fn hello(stream: &mut (impl AsyncRead + Unpin), begun: &[u8]) -> Result<Vec<u8>, RpcError> {
    let mut bytes = begun.to_vec();
    more(stream, &mut bytes, 3).await?;
    if matches!(bytes.as_slice(), [FIRST, 0, _]) {
        return Ok(bytes);
    }
    // What has another first byte will not become longer.
    hello_length(&bytes)?;
    more(stream, &mut bytes, HELLO_MIN).await?;
    let length = hello_length(&bytes)?.unwrap_or(HELLO_MIN);
    more(stream, &mut bytes, length).await?;
    Ok(bytes)
}

/// Reads until there are `length` bytes, and not one more.
async fn more(
    stream: &mut (impl AsyncRead + Unpin),
    bytes: &mut Vec<u8>,
    length: usize,
) -> std::io::Result<()> {
    let had = bytes.len();
    bytes.resize(length.max(had), 0);
    stream.read_exact(bytes.get_mut(had..).unwrap_or_default()).await.map(drop)
}

/// Lets a client in that has sent [`FIRST`], or refuses it. `asked` is whether it asked before by a login that old
/// servers take as well, and has sent nothing since.
///
/// # Errors
/// [`RpcError`]; a client that is refused has been told why.
pub(super) async fn admit<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    address: Option<IpAddr>,
    rules: &Rules<'_>,
    asked: bool,
) -> Result<Entered<S>, RpcError> {
    let within = Duration::from_millis(LOGIN_MS);
    let late = |_| RpcError::Timeout(within);
    let may_try = match address {
        Some(address) if rules.secret.password().is_some() => rules.attempts.may_try(address, Instant::now()),
        _ => true,
    };
    if !may_try {
        refuse(stream, &Status::TooManyAttempts.refusal()).await;
        return Err(RpcError::Unseen);
    }
    let begun: &[u8] = if asked { &[] } else { &[FIRST] };
    let theirs = timeout(within, hello(&mut stream, begun)).await.map_err(late)??;
    let random = random::bytes();
    let server = Server::new(&terms(rules.secret, NAME, false, &random), &theirs);
    // It costs as much as an attempt, whatever comes of it.
    let unfinished = || {
        if let (Some(address), true) = (address, rules.secret.password().is_some()) {
            rules.attempts.unfinished(address, Instant::now());
        }
    };
    let server = match server {
        Ok(server) => server,
        Err(fault) => {
            unfinished();
            if let LoginFault::Refused(status) = fault {
                refuse(stream, &status.refusal()).await;
            }
            return Err(fault.into());
        }
    };
    let mut proof = [0; PROOF_LENGTH];
    let proven = async {
        stream.write_all(server.hello()).await?;
        stream.flush().await?;
        stream.read_exact(&mut proof).await
    };
    match timeout(within, proven).await.map_err(late) {
        Ok(Ok(_)) => {}
        unproven => {
            unfinished();
            unproven??;
        }
    }
    if let Err(e) = judge(address, rules, || server.verify(&proof)) {
        let status =
            if matches!(e, RpcError::Unseen) { Status::TooManyAttempts } else { Status::WrongPassword };
        sleep(Duration::from_millis(PENALTY_MS)).await;
        refuse(stream, &server.end(status, false)).await;
        return Err(e);
    }
    let name = Hello::parse(&theirs)?.name;
    let (peer, ends) = Peer::new(address, Codec::Postcard, true);
    if !name.is_empty() && !rules.functions.claim(&peer, name).await {
        refuse(stream, &server.end(Status::NameTaken, true)).await;
        return Err(RpcError::NameTaken(name.into()));
    }
    // From here on the engine gives the name back.
    let engine = Engine::new(peer, Arc::clone(rules.functions));
    let welcome = async {
        stream.write_all(&server.end(Status::Welcome, true)).await?;
        stream.flush().await
    };
    timeout(within, welcome).await.map_err(late)??;
    Ok(Entered { stream: Sealed::new(stream, &server.keys()), engine, ends })
}

/// Says why, and closes so that the client gets it.
async fn refuse(mut stream: impl AsyncRead + AsyncWrite + Unpin, with: &[u8]) {
    // A client that does not take it learns nothing.
    let _ = timeout(CLOSING, async {
        stream.write_all(with).await?;
        stream.flush().await
    })
    .await;
    Ahead::new(stream, CLOSING).close().await;
}

/// Logs in to a server. `asked` is whether it was asked before, and has answered by [`FIRST`].
///
/// # Errors
/// [`RpcError`].
pub(super) async fn enter<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    secret: &Secret,
    asked: bool,
) -> Result<Sealed<S>, RpcError> {
    let random = random::bytes();
    // Operators and programs have no name that another one could take.
    let mut client = Client::new(&terms(secret, "", asked, &random));
    stream.write_all(client.hello()).await?;
    stream.flush().await?;
    let theirs = hello(&mut stream, &[]).await?;
    let proof = client.proceed(&theirs)?;
    stream.write_all(&proof).await?;
    stream.flush().await?;
    let mut end = [0; END_LENGTH];
    stream.read_exact(&mut end).await?;
    Ok(Sealed::new(stream, &client.finish(&end)?))
}
