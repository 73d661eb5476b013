//! The channels on their ports.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::channel::Channel;
use super::settings::{MAIN, Settings};
use crate::messages::transport::{self, Budget, Failure, Hooks, Peer, Plan, Server};
use crate::net::listen::bind;

/// What all members together may hold of messages that are not complete.
const UNFINISHED_MAX: usize = 256 << 20;
/// What may wait for one member, in bytes; one message may be larger.
const QUEUE_BYTES: usize = 16 << 20;
/// How long members have at the end to take what waits for them.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// A service that listens and does not accept yet.
#[derive(Debug)]
pub struct Bound {
    channels: Vec<Arc<Channel>>,
    listeners: Vec<std::net::TcpListener>,
    /// Which channel each of them is for.
    of: Vec<Arc<Channel>>,
    limit: u32,
    queue: usize,
    /// Where it listens: `messages` for the main channel, `messages/NAME` for the others.
    pub addresses: Vec<(String, SocketAddr)>,
}

impl Bound {
    /// Binds all ports.
    ///
    /// # Errors
    /// If one of them cannot be used; the message says what to do.
    pub fn open(settings: &Settings) -> anyhow::Result<Self> {
        let mut bound = Self {
            channels: Vec::new(),
            listeners: Vec::new(),
            of: Vec::new(),
            limit: settings.limit,
            queue: settings.queue,
            addresses: Vec::new(),
        };
        for plan in &settings.channels {
            let channel = Arc::new(Channel::new(plan.name.clone(), plan.kind));
            let shown = if plan.name == MAIN { "messages".into() } else { format!("messages/{}", plan.name) };
            for (address, flag) in &plan.at {
                let listener = bind(address.ip(), address.port(), flag)?;
                bound.addresses.push((shown.clone(), listener.local_addr()?));
                bound.listeners.push(listener);
                bound.of.push(Arc::clone(&channel));
            }
            bound.channels.push(channel);
        }
        Ok(bound)
    }

    /// Accepts from now on, on the runtime this is called in. The limits of connections hold for all
    /// channels together.
    ///
    /// # Errors
    /// If a listener cannot be used.
    pub fn start(self, connections: usize, per_address: usize, stall: Duration) -> anyhow::Result<Running> {
        let (of, channels) = (Arc::new(self.of), self.channels);
        let settings = transport::Settings {
            limit: self.limit,
            queue: self.queue,
            queue_bytes: QUEUE_BYTES,
            per_address,
            budget: Some(Budget::new(UNFINISHED_MAX.max(self.limit as usize))),
            stall,
            ..transport::Settings::default()
        };
        let addresses = Vec::new();
        let hooks = move || Seat { of: Arc::clone(&of), taken: None };
        let plan = Plan { addresses, connections, settings, plugins: None, hooks };
        let server = Server::start_on(self.listeners, plan)?;
        Ok(Running { server, channels })
    }
}

/// A running service; dropping it cuts all connections.
#[derive(Debug)]
pub struct Running {
    server: Server,
    channels: Vec<Arc<Channel>>,
}

impl Running {
    /// Stops accepting and lets members take what waits for them, for as long as `at_most` and 10 s.
    pub async fn stop(self, at_most: Duration) {
        for channel in &self.channels {
            channel.end();
        }
        let cut = self.server.stop(at_most.min(DRAIN_MAX)).await;
        if cut > 0 {
            log::warn!("stopping: {cut} members of message channels did not take what was sent to them");
        }
    }
}

/// A connection's place in its channel.
struct Seat {
    of: Arc<Vec<Arc<Channel>>>,
    taken: Option<(Arc<Channel>, u64)>,
}

impl Hooks for Seat {
    fn start(&mut self, peer: &Peer) {
        self.taken = self.of.get(peer.listener()).map(|channel| (Arc::clone(channel), channel.join(peer)));
    }

    fn message(&mut self, peer: &Peer, message: Vec<u8>) {
        if let Some((channel, id)) = &self.taken {
            channel.message(*id, peer, message);
        }
    }

    fn ready(&mut self) -> bool {
        self.taken.as_ref().is_none_or(|(channel, _)| !channel.is_congested())
    }

    fn close(&mut self, peer: &Peer, why: Option<&Failure>) {
        let Some((channel, id)) = self.taken.take() else { return };
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        channel.leave(id, peer, &why);
    }
}
