//! A client of the rpc service.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use piman_core::rpc::Protocol;
use tokio::net::{TcpStream, ToSocketAddrs, UnixStream};
use tokio::time::timeout;

use super::engine::{Answer, Functions, Request};
use super::join::join;
use super::login::{RpcError, Secret};
use super::peer::Peer;
use crate::net::socket::Living;

/// Binds nothing.
#[derive(Debug, Clone, Copy)]
pub struct Nothing;

impl Functions for Nothing {
    fn call(&self, _peer: &Peer, request: Request) -> Answer {
        let text = format!("LookupError: no function is bound to opcode {}", request.opcode);
        Box::pin(std::future::ready(Err(text)))
    }
}

/// Connects and logs in within `within`. The protocol is a [`Protocol`], or the one of a [`Codec`](piman_core::rpc::Codec); both
/// [`Protocol::Auto`] and [`Protocol::Pickle`] allow old servers and give the password to the server in clear;
/// [`Protocol::Piman`] never falls back to an old login. The connection lives in
/// a task of its own until [`Peer::close`] or the end.
///
/// # Errors
/// [`RpcError`].
pub async fn connect(
    server: impl ToSocketAddrs,
    protocol: impl Into<Protocol>,
    secret: Secret,
    functions: Arc<dyn Functions>,
    within: Duration,
) -> Result<Peer, RpcError> {
    let protocol = protocol.into();
    let began = Instant::now();
    let stream =
        timeout(within, TcpStream::connect(server)).await.map_err(|_| RpcError::Unreachable(within))??;
    let within = within.saturating_sub(began.elapsed());
    crate::net::socket::tune(&stream);
    let address = Some(stream.peer_addr()?.ip().to_canonical());
    let (peer, running) =
        join(Living::new(stream), address, protocol, Some(secret), functions, within).await?;
    tokio::spawn(running);
    Ok(peer)
}

/// Connects to the operator's socket of a server on this machine.
///
/// # Errors
/// [`RpcError`].
pub async fn connect_operator(socket: &Path, within: Duration) -> Result<Peer, RpcError> {
    let stream = UnixStream::connect(socket).await?;
    let (peer, running) = join(stream, None, Protocol::Piman, None, Arc::new(Nothing), within).await?;
    tokio::spawn(running);
    Ok(peer)
}
