//! A server of the messages service, on one or several addresses.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use piman_core::Error;
use piman_core::messages::{FULL, Role};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::ahead::Ahead;
use super::peer::{Failure, Hooks, Peer, Settings, run};
use super::plugins::{MakePlugins, Plugins};
use crate::net::listen::{Gate, Pass, accept, bind};
use crate::net::socket::Living;

/// How many at once are told that they are too many; others are only closed.
const REFUSALS: usize = 256;
/// How often a server that is being stopped looks whether all connections are closed.
const LOOK: Duration = Duration::from_millis(20);

/// A running server; dropping it stops accepting and cuts all connections.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    listeners: Vec<JoinHandle<()>>,
    gate: Arc<Gate>,
    stop: watch::Sender<bool>,
}

/// What a server is told.
pub struct Plan<M> {
    /// Where to listen; port 0 is any free one.
    pub addresses: Vec<SocketAddr>,
    /// How many connections at once; whoever comes then is refused with the code 0xFE.
    pub connections: usize,
    /// How they behave.
    pub settings: Settings,
    /// Makes the plugins of each connection.
    pub plugins: Option<Box<MakePlugins>>,
    /// Makes the hooks of each connection.
    pub hooks: M,
}

impl Server {
    /// Starts listening, on the runtime this is called in.
    ///
    /// # Errors
    /// If an address cannot be listened on; the message says what to do.
    pub fn start<H: Hooks, M: Fn() -> H + Send + Sync + 'static>(plan: Plan<M>) -> anyhow::Result<Self> {
        let listeners: Vec<_> = plan
            .addresses
            .iter()
            .map(|a| bind(a.ip(), a.port(), "the port in the address"))
            .collect::<Result<_, _>>()?;
        Self::start_on(listeners, plan)
    }

    /// As [`start`](Self::start), on listeners that are there already; [`Plan::addresses`] counts for
    /// nothing.
    ///
    /// # Errors
    /// If a listener cannot be used.
    pub fn start_on<H: Hooks, M: Fn() -> H + Send + Sync + 'static>(
        listeners: Vec<std::net::TcpListener>,
        plan: Plan<M>,
    ) -> anyhow::Result<Self> {
        let addresses = listeners.iter().map(std::net::TcpListener::local_addr).collect::<Result<_, _>>()?;
        let gate = Gate::new("messages", plan.connections, plan.settings.per_address);
        let (stop, stopped) = watch::channel(false);
        let plan = Arc::new(plan);
        // A connection over the limit gets a refusal. It is sent here and not where connections are accepted, and for
        // a few at a time.
        let door = Gate::new("messages", plan.connections.saturating_add(REFUSALS), usize::MAX);
        let listeners = listeners
            .into_iter()
            .enumerate()
            .map(|(number, listener)| {
                let (plan, gate, stopped) = (Arc::clone(&plan), Arc::clone(&gate), stopped.clone());
                let door = Arc::clone(&door);
                let serve = move |stream, address, door: Pass| {
                    let (plan, gate, stopped) = (Arc::clone(&plan), Arc::clone(&gate), stopped.clone());
                    door.serve(async move {
                        serve(stream, (address, number), &gate, &plan, stopped).await;
                    })
                };
                tokio::spawn(async move {
                    if let Err(e) = accept(listener, door, serve).await {
                        tracing::error!("{e:#}");
                    }
                })
            })
            .collect();
        Ok(Self { addresses, listeners, gate, stop })
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops accepting, lets each connection finish its message and its queue, for as long as
    /// `at_most`. Returns how many were cut then.
    pub async fn stop(self, at_most: Duration) -> usize {
        for listener in &self.listeners {
            listener.abort();
        }
        // Without connections nobody listens.
        let _ = self.stop.send(true);
        let all_closed = async {
            while self.gate.open() > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        let _ = tokio::time::timeout(at_most, all_closed).await;
        self.gate.open()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for listener in &self.listeners {
            listener.abort();
        }
    }
}

async fn serve<H: Hooks, M: Fn() -> H>(
    mut stream: TcpStream,
    (address, listener): (IpAddr, usize),
    gate: &Arc<Gate>,
    plan: &Plan<M>,
    mut stopped: watch::Receiver<bool>,
) {
    let Some(pass) = gate.enter(address) else {
        if stream.write_all(&[FULL]).await.is_ok() {
            Ahead::new(stream, plan.settings.stall).close().await;
        }
        return;
    };
    let Ok(remote) = stream.peer_addr() else { return };
    crate::net::socket::tune(&stream);
    let (peer, ends) = Peer::new(remote, listener, &plan.settings);
    let (opened, open) = oneshot::channel();
    let plugins = Plugins(plan.plugins.as_ref().map_or_else(Vec::new, |make| make()));
    let mut hooks = (plan.hooks)();
    let stream = Ahead::new(Living::new(stream), plan.settings.stall);
    let talk = run(stream, Role::Server, (peer.clone(), ends), &plan.settings, plugins, &mut hooks, opened);
    let stopping = async {
        if stopped.wait_for(|stop| *stop).await.is_ok() {
            peer.close();
            // Nothing follows but that the server is dropped, which is an error.
            let _ = stopped.changed().await;
        }
    };
    let mut cut = true;
    pass.hold(async {
        cut = tokio::select! {
            () = talk => false,
            () = stopping => true,
        };
    })
    .await;
    match open.await {
        Ok(Err(e)) => tracing::info!("messages: {remote}: {e}"),
        Ok(Ok(())) if cut => {
            let why = Failure::Link(Error::Io(ErrorKind::ConnectionAborted.into()));
            hooks.close(&peer, Some(&why));
        }
        _ => {}
    }
    drop(pass);
}
