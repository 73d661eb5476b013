//! The port of the rpc service, and the operator's socket.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::attempts::Attempts;
use super::connected::{ConnectedPis, Operator};
use super::engine::Functions;
use super::login::{RpcError, Rules, Secret, serve};
use crate::net::listen::{Gate, Pass, accept};
use crate::net::socket::Living;

/// What a server is told.
#[derive(Debug)]
pub struct Plan {
    /// Where Pis connect.
    pub listener: std::net::TcpListener,
    /// Where the operator's commands connect, if they may.
    pub operator: Option<PathBuf>,
    /// Who may.
    pub secret: Secret,
    /// Whether old peers may connect, whose login protects nothing.
    pub old_peers: bool,
    /// How many connections at once.
    pub connections: usize,
    /// How many of one address.
    pub connections_per_address: usize,
}

/// A running server; dropping it stops accepting and asks the connections of all Pis to end. Connections that are
/// logging in, and the operator's, are cut with the runtime.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    connected: ConnectedPis,
    socket: Option<PathBuf>,
    secret: Arc<RwLock<Arc<Secret>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts on the runtime this is called in. `functions` are what peers may call; a [`ConnectedPis`] keeps
    /// account of them.
    ///
    /// # Errors
    /// If the operator's socket cannot be made.
    pub fn start(plan: Plan, connected: ConnectedPis, functions: Arc<dyn Functions>) -> anyhow::Result<Self> {
        let address = plan.listener.local_addr()?;
        let gate = Gate::new("rpc", plan.connections, plan.connections_per_address);
        let mut tasks = Vec::new();
        if let Some(path) = &plan.operator {
            let listener = bind_operator(path)?;
            let operator: Arc<dyn Functions> = Arc::new(Operator(connected.clone()));
            tasks.push(tokio::spawn(operate(listener, operator)));
        }
        let secret = Arc::new(RwLock::new(Arc::new(plan.secret)));
        let (secrets, attempts) = (Arc::clone(&secret), Arc::new(Attempts::new(Instant::now())));
        let old_peers = plan.old_peers;
        let attend = move |stream, address, pass: Pass| {
            let secret = Arc::clone(&secrets.read().unwrap_or_else(PoisonError::into_inner));
            let (attempts, functions) = (Arc::clone(&attempts), Arc::clone(&functions));
            pass.serve(Box::pin(async move {
                crate::net::socket::tune(&stream);
                let rules = Rules { secret: &secret, attempts: &attempts, functions: &functions, old_peers };
                match serve(Living::new(stream), Some(address), rules).await {
                    Ok(()) => {}
                    // The limit has a line of its own, which does not flood the log.
                    Err(e @ RpcError::Unseen) => tracing::debug!("rpc: {address}: {e}"),
                    Err(e) => tracing::info!("rpc: {address}: {e}"),
                }
            }))
        };
        tasks.push(tokio::spawn(async move {
            if let Err(e) = accept(plan.listener, gate, attend).await {
                tracing::error!("{e:#}");
            }
        }));
        Ok(Self { address, connected, socket: plan.operator, secret, tasks })
    }

    /// Whoever connects from now on needs this password; who is connected stays so.
    pub fn set_secret(&self, secret: Secret) {
        *self.secret.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(secret);
    }

    /// Where Pis connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.connected.close();
        if let Some(socket) = &self.socket {
            // What remains is harmless: the next server takes its place.
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// The name under which the operator's socket is made.
fn hidden(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Whether the operator's socket can have this name, before anything is made.
///
/// # Errors
/// If the name is too long.
pub fn check_operator(path: &Path) -> anyhow::Result<()> {
    let fits = [path, &hidden(path)].map(std::os::unix::net::SocketAddr::from_pathname);
    fits.into_iter().collect::<io::Result<Vec<_>>>().map(drop).with_context(|| unusable(path))
}

fn unusable(path: &Path) -> String {
    format!(
        "making the socket {} for `piman call` (a path of more than 100 characters is too long: name another folder \
         with --state)",
        path.display()
    )
}

/// Only whoever runs the server, and root, may connect.
fn bind_operator(path: &Path) -> anyhow::Result<UnixListener> {
    let bind = || -> io::Result<UnixListener> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // Under another name until only the right ones can open it.
        let hidden = hidden(path);
        match std::fs::remove_file(&hidden) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&hidden)?;
        std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&hidden, path)?;
        Ok(listener)
    };
    bind().with_context(|| unusable(path))
}

async fn operate(listener: UnixListener, operator: Arc<dyn Functions>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (operator, attempts) = (Arc::clone(&operator), Attempts::new(Instant::now()));
                tokio::spawn(async move {
                    let (secret, functions) = (Secret::new(None), &operator);
                    let rules = Rules { secret: &secret, attempts: &attempts, functions, old_peers: true };
                    if let Err(e) = serve(stream, None, rules).await {
                        tracing::debug!("rpc: operator: {e}");
                    }
                });
            }
            Err(e) => {
                tracing::error!("rpc: operator: {e}; again in 1 s");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}
