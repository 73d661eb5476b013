//! `piman call --server`: a call of a function of a server, from any machine that reaches it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use piman_core::rpc::{ID, PORT, Protocol};

use super::client::connect;
use super::data::Data;
use super::engine::{Answer, Functions, Request};
use super::login::{RpcError, Secret};
use super::peer::{CallError, Peer};
use crate::sys::random;

/// The longest wait for a connection and a login.
const LOGIN: Duration = Duration::from_secs(10);

/// Which server to call.
#[derive(Debug, Clone, Args)]
pub struct Direct {
    /// Call a function of the server at HOST, and not of a Pi; HOST:PORT if it is not at port 25565
    #[arg(long, value_name = "HOST")]
    pub server: Option<String>,
    /// What the server speaks: piman (protected, and never anything else), pickle (an old TCPTalks server) or auto
    /// (either). Pickle and auto allow old servers: they give the password to the server in clear, and calls of an old
    /// one are not protected; an old server that takes one client only may end when it is asked in piman,
    /// so say pickle for it [default: auto; with a password: piman]
    #[arg(long, value_name = "PROTOCOL", requires = "server")]
    pub protocol: Option<Protocol>,
    /// The password that the server wants, in the first line of this file
    #[arg(long, value_name = "FILE", requires = "server")]
    pub password_file: Option<PathBuf>,
}

/// What a server may ask of whoever calls it: old servers ask every client for its id and wait for it.
struct DirectPeer {
    id: String,
}

impl Functions for DirectPeer {
    fn call(&self, _peer: &Peer, request: Request) -> Answer {
        let answer = if request.opcode == i64::from(ID) {
            Ok(self.id.as_str().into())
        } else {
            Err(format!("LookupError: no function is bound to opcode {}", request.opcode))
        };
        Box::pin(std::future::ready(answer))
    }
}

/// An id of six characters that no other client of the server has.
fn id() -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let letter = |byte: u8| LETTERS.get(usize::from(byte) % LETTERS.len()).map_or('0', |b| char::from(*b));
    random::bytes::<6>().into_iter().map(letter).collect()
}

/// Calls one function of the server.
///
/// # Errors
/// If there is no connection or no login. An error of the function is the inner one.
pub(crate) fn ask(
    host: &str,
    direct: &Direct,
    opcode: u8,
    args: Vec<Data>,
    keywords: Vec<(Data, Data)>,
    within: Duration,
) -> anyhow::Result<Result<Data, CallError>> {
    let secret = match &direct.password_file {
        Some(file) => Secret::read(file)?,
        None => Secret::new(None),
    };
    let has_password = direct.password_file.is_some();
    let protocol = direct.protocol.unwrap_or_else(|| Protocol::default_for(has_password));
    if has_password && protocol != Protocol::Piman {
        tracing::warn!(
            "--protocol {protocol}: the password crosses the network in clear; whoever listens can read it"
        );
    }
    let (name, port) = name_and_port(host)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting")?;
    runtime.block_on(async {
        let functions = Arc::new(DirectPeer { id: id() });
        let server = connect((name, port), protocol, secret, functions, LOGIN.min(within)).await;
        let server =
            server.map_err(advice).with_context(|| format!("calling the server {name} port {port}"))?;
        let result = server.call_with(opcode, args, keywords, within).await;
        server.close();
        // The connection ends in order before this program does.
        let _ = tokio::time::timeout(LOGIN, server.closed()).await;
        Ok(result)
    })
}

/// What the operator can do about it.
fn advice(e: RpcError) -> anyhow::Error {
    match e {
        RpcError::NoPassword => anyhow::anyhow!("{e}: give it with --password-file FILE"),
        other => other.into(),
    }
}

/// `HOST` or `HOST:PORT`; an IPv6 address with a port is in brackets.
fn name_and_port(text: &str) -> anyhow::Result<(&str, u16)> {
    let (name, port) = match text.rsplit_once(':') {
        // Several colons without brackets: an IPv6 address alone.
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => {
            let number = port.parse().with_context(|| format!("--server {text}: {port} is not a port"))?;
            (name, number)
        }
        _ => (text, PORT),
    };
    let name = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    if name.is_empty() {
        bail!("--server {text}: the host is missing");
    }
    Ok((name, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_with_and_without_a_port() {
        for (text, want) in [
            ("lab", ("lab", 25565)),
            ("lab:7", ("lab", 7)),
            ("10.0.0.1:80", ("10.0.0.1", 80)),
            ("fe80::1", ("fe80::1", 25565)),
            ("[fe80::1]", ("fe80::1", 25565)),
            ("[fe80::1]:9", ("fe80::1", 9)),
        ] {
            assert_eq!(name_and_port(text).unwrap(), want, "{text}");
        }
        for wrong in ["", ":7", "lab:", "lab:x", "lab:65536", "[]:7"] {
            assert!(name_and_port(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_id_has_six_characters() {
        assert!((0..100).all(|_| id().len() == 6 && id().bytes().all(|b| b.is_ascii_alphanumeric())));
    }
}
