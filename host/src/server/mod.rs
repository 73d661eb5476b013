//! `piman serve`: everything a server consists of, from start to end.

mod http_boot;
mod opened;
mod privileges;
pub mod serial;
pub mod services;
mod signals;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};
use piman_core::hosted::dial::serial::Listening;
use piman_core::install::{CONTROL_PORT, FETCH_PORT, ROOTFS_PORT};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::time::Instant;

use crate::config::Settings;
use crate::config::live::{LIMITS, Live};
use crate::net::drain::Drain;
use crate::netboot::ready;
use crate::state::server_lock::ServerLock;
use crate::state::{self, Identity, Preview, Recorder, Sqlite, State};
use crate::telemetry::Named;
use crate::transfer::Transfers;
use crate::{messages, provision, rpc};
use opened::{Opened, secret};
use services::{Started, Who, timeouts};
pub use signals::Signals;
use signals::{Asked, outlive_hangups};

/// How often a server that is being stopped looks whether everything has finished.
const LOOK: Duration = Duration::from_millis(50);
/// How long the last notes may take to be saved.
const FLUSH: Duration = Duration::from_secs(5);

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the options")]
pub struct Addresses {
    pub install: Option<provision::Addresses>,
    pub transfer: Option<SocketAddr>,
    pub telemetry: Option<SocketAddr>,
    pub tftp: Option<SocketAddr>,
    pub http_boot: Option<SocketAddr>,
    /// The mode and the interface.
    pub dhcp: Option<String>,
    pub rpc: Option<SocketAddr>,
    /// The channels with their names.
    pub messages: Vec<(String, SocketAddr)>,
}

impl Addresses {
    /// By the usual port of each service.
    fn by_port(&self) -> serial::Services {
        let all = [
            (CONTROL_PORT, self.install.map(|i| i.control)),
            (ROOTFS_PORT, self.install.map(|i| i.rootfs)),
            (FETCH_PORT, self.install.map(|i| i.fetch)),
            (piman_core::transfer::PORT, self.transfer),
            (piman_core::telemetry::PORT, self.telemetry),
            (piman_core::rpc::PORT, self.rpc),
            (piman_core::messages::PORT, self.messages.first().map(|(_, address)| *address)),
        ];
        serial::Services(all.into_iter().filter_map(|(port, address)| Some((port, address?))).collect())
    }
}

/// A running server.
pub struct Server {
    addresses: Addresses,
    live: Arc<Live>,
    install: Option<provision::Running>,
    transfers: Option<Arc<Transfers>>,
    drain: Drain,
    recorder: Arc<Recorder>,
    state: Arc<dyn State>,
    /// Decisions have threads of their own: a disk that is slow to read for a transfer delays none.
    control: Runtime,
    bulk: Runtime,
    listeners: Vec<tokio::task::JoinHandle<()>>,
    state_thread: JoinHandle<()>,
    rpc: Option<rpc::Server>,
    messages: Option<messages::Running>,
    lines: Vec<Listening>,
    /// Last, so that nobody else serves before all of this has ended.
    _lock: ServerLock,
}

impl Server {
    /// Starts everything; when it returns, all listeners accept. What can fail is done first: a start that fails
    /// has changed nothing in the state folder, or in another one.
    ///
    /// # Errors
    /// If another server uses the state folder, the settings contradict each other or the state, or the archive, the
    /// state folder or a port cannot be used; the message says what to do.
    pub fn start(settings: Settings) -> anyhow::Result<Self> {
        Self::start_as(settings, false)
    }

    /// The same for a process that is nothing but this server and has no other thread: it gives up, for good, all
    /// privileges that a server with open ports does not need.
    ///
    /// # Errors
    /// As [`start`](Self::start), or if `--user` cannot be used.
    pub fn start_alone(settings: Settings) -> anyhow::Result<Self> {
        Self::start_as(settings, true)
    }

    fn start_as(settings: Settings, alone: bool) -> anyhow::Result<Self> {
        raise_file_limit();
        outlive_hangups()?;
        let lock = ServerLock::on(&settings.state)?;
        let preview = state::preview(&settings.state)?;
        settings.check(&preview)?;
        ready::wait(&settings.own_addresses(), settings.dhcp_interface(), settings.wait)?;
        let opened = Opened::open(&settings, preview.images > 0, alone)?;

        // From here on the state is written.
        let lock = ServerLock::take(&settings.state, lock)?;
        let state: Arc<dyn State> = Arc::new(Sqlite::serve(&settings.state)?);
        let images = state.catalogue().context("which images are installed")?.images;
        ensure!(
            images.is_empty() == (preview.images == 0),
            "images were added or removed while the server was starting: start it again"
        );

        Self::run_all(&settings, opened, state, lock)
    }

    /// Starts to accept.
    fn run_all(
        settings: &Settings,
        opened: Opened,
        state: Arc<dyn State>,
        lock: ServerLock,
    ) -> anyhow::Result<Self> {
        let Opened { addresses, control, bulk, lines, .. } = opened;
        let (recorder, state_thread) = Recorder::start(Arc::clone(&state)).context("starting a thread")?;
        let drain = Drain::default();
        let shared = provision::Shared {
            state: Arc::clone(&state),
            recorder: Arc::clone(&recorder),
            drain: drain.clone(),
        };
        let live = Live::new(settings.clone());
        let install = opened.install.map(|i| i.start(&live, shared, &control, &bulk)).transpose()?;
        let here = control.enter();
        let connected = rpc::ConnectedPis::default();
        let rpc = opened.rpc.map(|listener| {
            let plan = rpc::Plan {
                listener,
                operator: Some(opened.operator),
                secret: opened.secret,
                old_peers: settings.rpc_old_peers,
                connections: settings.connections,
                connections_per_address: settings.connections_per_address,
            };
            rpc::Server::start(plan, connected.clone(), Arc::new(connected))
        });
        let rpc = rpc.transpose()?;
        drop(here);
        // Bulk bytes like any others: decisions have threads of their own.
        let messages = {
            let _here = bulk.enter();
            let (all, per_address) = (settings.connections, settings.connections_per_address);
            opened.messages.map(|m| m.start(all, per_address, settings.stall)).transpose()?
        };
        let mut listeners = Vec::new();
        if let Some(netboot) = opened.netboot {
            let started = netboot.start(Arc::clone(&recorder), Arc::clone(&state), &bulk);
            listeners.extend(started.tasks);
            listeners.extend(opened.http_boot.map(|http| http.start(started.http, &drain, &bulk)));
        }
        let service = install.as_ref().map(|i| Arc::clone(&i.service));
        let who = move |address| match &service {
            Some(service) => {
                let (name, held) = service.records_of(address);
                Named { name, kept: Box::new(held) }
            }
            None => Named { name: Identity::of(address).key(), kept: Box::new(()) },
        };
        let who: Who = Arc::new(who);
        let mut transfers = None;
        for service in [opened.transfer, opened.telemetry].into_iter().flatten() {
            let Started { accepting, transfers: started } = service.start(&drain, &who, &bulk)?;
            listeners.push(accepting);
            transfers = transfers.or(started);
        }
        Ok(Self {
            addresses,
            live,
            install,
            transfers,
            drain,
            recorder,
            state,
            control,
            bulk,
            listeners,
            state_thread,
            rpc,
            messages,
            lines,
            _lock: lock,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Listens for signals, for [`Server::run`]. Before it is said where the server listens: who reads that may send one.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn signals(&self) -> anyhow::Result<Signals> {
        Signals::listen(&self.control)
    }

    /// Runs until a signal (SIGTERM, SIGINT) asks to stop, lets transfers finish, and ends;
    /// a second signal ends at once. At SIGHUP it takes over what `read` says then.
    pub fn run(self, mut signals: Signals, read: impl Fn(&Preview) -> anyhow::Result<Settings>) {
        self.control.block_on(async {
            while let Asked::Reload = signals.next().await {
                self.reload(&read);
            }
        });
        let at_most = self.live.now().shutdown;
        self.end(at_most, async move { signals.stop().await });
    }

    /// Reads the configuration again. One that cannot be used changes nothing; no connection ends.
    fn reload(&self, read: &impl Fn(&Preview) -> anyhow::Result<Settings>) {
        let read = || -> anyhow::Result<_> {
            // Not by looking at the file: whoever closes it beside SQLite takes the locks off that this process has.
            let settings = read(&Preview::of(&self.state.catalogue()?))?;
            // The file that is read stays the same; what is in it may have changed.
            let secret = self.rpc.as_ref().map(|_| secret(&self.live.now())).transpose()?;
            Ok((settings, secret))
        };
        let (settings, secret) = match read() {
            Ok(read) => read,
            Err(e) => {
                return tracing::error!("the configuration is not taken over, all stays as it was: {e:#}");
            }
        };
        let mut reloaded = self.live.reload(settings);
        if self.messages.is_some() && reloaded.taken.contains(&LIMITS) {
            reloaded.restart.push("stall-timeout of messages");
        }
        if let (Some(rpc), Some(secret)) = (&self.rpc, secret) {
            rpc.set_secret(secret);
        }
        if let Some(install) = &self.install {
            install.reload();
        }
        if let Some(transfers) = &self.transfers {
            let now = self.live.now();
            transfers.set_timeouts(timeouts(now.stall, now.old));
        }
        let changed =
            if reloaded.taken.is_empty() { "nothing".to_owned() } else { reloaded.taken.join(", ") };
        tracing::info!("the configuration was read again; changed: {changed}");
        if !reloaded.restart.is_empty() {
            tracing::warn!(
                "other than what runs, and only taken over by a restart: {}",
                reloaded.restart.join(", ")
            );
        }
    }

    /// Stops accepting, lets transfers finish for as long as `at_most`, and ends.
    pub fn stop(self, at_most: Duration) {
        self.end(at_most, std::future::pending());
    }

    fn end(self, at_most: Duration, at_once: impl Future<Output = ()>) {
        let accepting = self.install.as_ref().map(|i| &i.accepting);
        for listener in self.listeners.iter().chain(accepting) {
            listener.abort();
        }
        // Calls are short: whoever waits for one hears at once that the server is gone.
        drop(self.rpc);
        let lines = self.lines;
        let messages = self.messages;
        self.control.block_on(async {
            let deadline = Instant::now() + at_most;
            let drain = async {
                let mut said = (0, 0);
                while Instant::now() < deadline {
                    let busy = self.drain.counts();
                    if busy == (0, 0) {
                        return;
                    }
                    if said != busy {
                        said = busy;
                        tracing::info!(
                            "stopping: {} transfers and {} installations go on, for {} s at most; a second signal ends them",
                            busy.0, busy.1, (deadline - Instant::now()).as_secs()
                        );
                    }
                    tokio::time::sleep(LOOK).await;
                }
                tracing::warn!("stopping: the time is up, {:?} transfers and installations are cut", said);
            };
            let messages = async {
                if let Some(messages) = messages {
                    messages.stop(at_most).await;
                }
            };
            tokio::select! {
                ((), ()) = async { tokio::join!(drain, messages) } => (),
                () = at_once => tracing::warn!("stopping at once"),
            }
        });
        for listener in self.install.iter().flat_map(|i| &i.sending) {
            listener.abort();
        }
        drop(lines);
        self.control.shutdown_timeout(Duration::from_secs(1));
        self.bulk.shutdown_timeout(Duration::from_secs(1));
        let threads = self.install.map_or_else(Vec::new, provision::Running::stop);
        self.recorder.flush(FLUSH);
        self.recorder.close();
        for thread in threads.into_iter().chain([self.state_thread]) {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("a thread of the server had failed");
            }
        }
        tracing::info!("stopped");
    }
}

/// Each connection is an open file; the soft limit of 1024 is from another time.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("the limit of open files cannot be raised, so fewer Pis can connect: {e}");
    }
}
