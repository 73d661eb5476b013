//! The connection of a command to a channel, made again when it is lost.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use piman_core::hosted::backoff::Backoff;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::output::Output;
use super::{Common, MessagesError};
use crate::messages::Plugin;
use crate::messages::transport::{Failure, Hooks, MakePlugins, NotSent, Peer, Settings, connect};
use crate::sys::lock::lock;

/// How many messages may wait to be printed.
const WAITING_MAX: usize = 256;

/// Connects, and again.
pub(super) struct Link<'a> {
    common: &'a Common,
    plugins: Box<MakePlugins>,
    tries: u32,
    backoff: Backoff,
}

impl<'a> Link<'a> {
    pub(super) fn new(common: &'a Common, tries: u32) -> Self {
        let backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(30));
        Self { common, plugins: Plugin::make(&common.plugins), tries, backoff }
    }

    pub(super) fn server(&self) -> String {
        self.common.server.to_string()
    }

    /// Connects; an attempt that fails is repeated as often as was asked for.
    pub(super) async fn connect(&mut self) -> Result<Line, MessagesError> {
        let within = self.common.timeout.0;
        let settings = Settings { limit: self.common.limit_mib << 20, stall: within, ..Settings::default() };
        let mut failed = 0_u32;
        loop {
            let (to, messages) = mpsc::channel(WAITING_MAX);
            let why: Arc<Mutex<Option<String>>> = Arc::default();
            let hooks = Forward { to, why: Arc::clone(&why) };
            let server = self.server();
            match connect(server.clone(), within, settings.clone(), Some(&*self.plugins), hooks).await {
                Ok(peer) => {
                    if failed > 0 {
                        tracing::info!("connected to {server}");
                    }
                    return Ok(Line { server, within, peer, messages, why });
                }
                Err(e) => {
                    failed = failed.saturating_add(1);
                    if failed == self.tries {
                        return Err(e.into());
                    }
                    let wait = self.backoff.wait();
                    // Once; the others would say the same.
                    let level = if failed == 1 { tracing::Level::WARN } else { tracing::Level::DEBUG };
                    crate::log_at!(level, "{e}; trying again");
                    sleep(wait).await;
                }
            }
        }
    }

    /// After a connection that was there.
    pub(super) async fn lost(&mut self, why: Option<&str>) {
        let why = why.unwrap_or("the server closed it");
        tracing::warn!("the connection to {} is lost: {why}; trying again", self.common.server);
        self.backoff.reset();
        sleep(self.backoff.wait()).await;
    }
}

/// A connection.
pub(super) struct Line {
    server: String,
    within: Duration,
    pub(super) peer: Peer,
    messages: mpsc::Receiver<Vec<u8>>,
    why: Arc<Mutex<Option<String>>>,
}

impl Line {
    /// The next message; `None` if the connection is over.
    pub(super) async fn next(&mut self) -> Option<Vec<u8>> {
        self.messages.recv().await
    }

    /// Why it is over, if it was not closed in order.
    pub(super) fn why(&self) -> Option<String> {
        lock(&self.why).take()
    }

    /// Sends one message, and prints the reply if there is to be one.
    pub(super) async fn send(
        &mut self,
        what: &str,
        message: Vec<u8>,
        reply: bool,
        output: &mut Output,
    ) -> anyhow::Result<()> {
        let (what, server) = (format!("{what} ({} bytes)", message.len()), self.server.clone());
        if let Err(why) = self.peer.send(message).await {
            return Err(match (why, self.why()) {
                (NotSent::Closed, Some(why)) => MessagesError::Lost { server, why },
                (why, _) => MessagesError::NotSent { what, server, why },
            }
            .into());
        }
        if !reply {
            return Ok(());
        }
        match timeout(self.within, self.next()).await {
            Ok(Some(message)) => output.message(&message).map(drop),
            Ok(None) => {
                let why =
                    self.why().unwrap_or_else(|| format!("it was closed before a reply to {what} came"));
                Err(MessagesError::Lost { server, why }.into())
            }
            Err(_) => Err(MessagesError::NoReply { server, what, within: self.within }.into()),
        }
    }

    pub(super) async fn close(self) -> anyhow::Result<()> {
        self.peer.close();
        self.peer.closed().await;
        Ok(())
    }
}

/// Hands on what comes.
pub(super) struct Forward {
    to: mpsc::Sender<Vec<u8>>,
    why: Arc<Mutex<Option<String>>>,
}

impl Hooks for Forward {
    fn message(&mut self, peer: &Peer, message: Vec<u8>) {
        if self.to.try_send(message).is_err() {
            *lock(&self.why) = Some("messages came more quickly than they could be printed".into());
            peer.cut();
        }
    }

    fn ready(&mut self) -> bool {
        self.to.capacity() > WAITING_MAX / 2
    }

    fn close(&mut self, _peer: &Peer, why: Option<&Failure>) {
        if let Some(why) = why {
            lock(&self.why).get_or_insert_with(|| why.to_string());
        }
    }
}
