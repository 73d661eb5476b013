//! A client of the messages service.

use std::time::Duration;

use piman_core::messages::Role;
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::ahead::Ahead;
use super::peer::{Failure, Hooks, Peer, Settings, run};
use super::plugins::{MakePlugins, Plugins};
use crate::net::socket::Living;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address, or nobody listens there.
    #[error("cannot connect to {server}: {source}")]
    Connect {
        /// Whom.
        server: String,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody answered in time.
    #[error("{server} does not answer within {} s", .within.as_secs_f32())]
    Timeout {
        /// Whom.
        server: String,
        /// How long it was tried.
        within: Duration,
    },
    /// The greeting failed.
    #[error("{server}: {source}")]
    Greeting {
        /// Whom.
        server: String,
        /// Why.
        source: Failure,
    },
}

/// Connects within `within`, greeting included; the connection then lives in a task of its own
/// until [`Peer::close`] or the end.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(
    server: impl ToSocketAddrs + ToString,
    within: Duration,
    settings: Settings,
    plugins: Option<&MakePlugins>,
    mut hooks: impl Hooks,
) -> Result<Peer, ConnectError> {
    let name = server.to_string();
    let plugins = Plugins(plugins.map_or_else(Vec::new, |make| make()));
    let connecting = async {
        let failed = |source| ConnectError::Connect { server: name.clone(), source };
        let stream = TcpStream::connect(server).await.map_err(failed)?;
        let address = stream.peer_addr().map_err(failed)?;
        crate::net::socket::tune(&stream);
        let (peer, ends) = Peer::new(address, 0, &settings);
        let (opened, open) = oneshot::channel();
        let this = peer.clone();
        tokio::spawn(async move {
            let stream = Ahead::new(Living::new(stream), settings.stall);
            run(stream, Role::Client, (this, ends), &settings, plugins, &mut hooks, opened).await;
        });
        match open.await {
            Ok(Ok(())) => Ok(peer),
            Ok(Err(source)) => Err(ConnectError::Greeting { server: name.clone(), source }),
            Err(_) => Err(failed(std::io::ErrorKind::ConnectionAborted.into())),
        }
    };
    match timeout(within, connecting).await {
        Ok(done) => done,
        Err(_) => Err(ConnectError::Timeout { server: name, within }),
    }
}
