//! `piman serve`: everything a server consists of, from start to end.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use piman_core::hash::Hash;
use piman_core::install::layout::filesystem_bytes;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::archive::{Archive, Source};
use crate::builds::Builds;
use crate::config::Settings;
use crate::files::Bound;
use crate::listen::{Gate, accept, bind};
use crate::service::{Busy, Installs, Recent, Service};
use crate::slots::Slots;
use crate::state::{Recorder, Sqlite, State, now_ms};
use crate::{control, fetch, netboot, reinstall_file, rootfs, talks};

/// How often a server that is being stopped looks whether everything has finished.
const LOOK: Duration = Duration::from_millis(50);
/// How long the last notes may take to be saved.
const FLUSH: Duration = Duration::from_secs(5);

/// How long a Pi is expected to come back, in milliseconds: 30 days.
const LATELY_MS: u64 = 30 * 24 * 3600 * 1000;
/// For how many sizes of cards images are made before anybody asks.
const AHEAD_MAX: usize = 8;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the options")]
pub struct Addresses {
    pub control: SocketAddr,
    pub rootfs: SocketAddr,
    pub fetch: SocketAddr,
    pub transfer: Option<SocketAddr>,
    pub stream: Option<SocketAddr>,
    pub tftp: Option<SocketAddr>,
    /// The mode and the interface.
    pub dhcp: Option<String>,
    pub talks: Option<SocketAddr>,
}

/// A running server.
pub struct Server {
    addresses: Addresses,
    service: Arc<Service>,
    /// Decisions have threads of their own: a disk that is slow to read for a transfer delays none.
    control: Runtime,
    bulk: Runtime,
    listeners: Vec<tokio::task::JoinHandle<()>>,
    /// Those that send archives and images: a Pi that was told to format still comes here
    /// while the server is being stopped.
    sending: [tokio::task::JoinHandle<()>; 2],
    threads: Vec<JoinHandle<()>>,
    state_thread: JoinHandle<()>,
    stop_files: Arc<reinstall_file::Stop>,
    talks: Option<talks::Server>,
}

impl Server {
    /// Starts everything; when it returns, all listeners accept.
    ///
    /// # Errors
    /// If the archive, the state folder or a port cannot be used; the message says what to do.
    pub fn start(settings: Settings) -> anyhow::Result<Self> {
        raise_file_limit();
        let archive = Arc::new(Source::open(&settings.rootfs)?);
        let state: Arc<dyn State> = Arc::new(Sqlite::serve(&settings.state)?);
        let (ip, port) = (settings.listen, settings.control_port);
        let control_listener = bind(ip, port, "--control-port")?;
        let rootfs_listener = bind(ip, settings.rootfs_port, "--rootfs-port")?;
        let fetch_listener = bind(ip, settings.fetch_port, "--fetch-port")?;
        let gate = |name| Gate::new(name, settings.connections, settings.connections_per_address);
        let transfer =
            settings.transfer.as_ref().map(|s| Bound::transfer(s, ip, settings.stall, gate("transfer")));
        let stream = settings.stream.as_ref().map(|s| Bound::stream(s, ip, gate("stream")));
        let (transfer, stream) = (transfer.transpose()?, stream.transpose()?);
        let netboot = settings.netboot.as_ref().map(|n| netboot::Bound::open(n, ip)).transpose()?;
        let talks_listener = settings.talks_port.map(|port| bind(ip, port, "--talks-port")).transpose()?;
        let secret = secret(&settings)?;
        let addresses = Addresses {
            control: control_listener.local_addr()?,
            rootfs: rootfs_listener.local_addr()?,
            fetch: fetch_listener.local_addr()?,
            transfer: transfer.as_ref().map(|t| t.address),
            stream: stream.as_ref().map(|s| s.address),
            tftp: netboot.as_ref().map(|n| n.tftp),
            dhcp: netboot.as_ref().and_then(netboot::Bound::dhcp),
            talks: talks_listener.as_ref().map(std::net::TcpListener::local_addr).transpose()?,
        };

        let (recorder, state_thread) = Recorder::start(Arc::clone(&state)).context("starting a thread")?;
        let images = settings.images.then_some(settings.state.as_path());
        let (builds, images_thread) =
            Builds::start(images, Arc::clone(&recorder)).context("opening the images in the state folder")?;
        let gates = [gate("control"), gate("rootfs"), gate("fetch")];
        let stop_files = Arc::new(reinstall_file::Stop::default());
        let mut threads: Vec<JoinHandle<()>> = images_thread.into_iter().collect();
        if let Some(file) = &settings.reinstall_file {
            threads.push(reinstall_file::watch(file, Arc::clone(&state), Arc::clone(&stop_files))?);
        }
        let service = Arc::new(Service {
            rootfs_port: addresses.rootfs.port(),
            fetch_port: addresses.fetch.port(),
            archive: Arc::clone(&archive),
            builds: Arc::clone(&builds),
            recorder: Arc::clone(&recorder),
            slots: Slots::new(settings.slots),
            busy: Busy::default(),
            heard: Recent::default(),
            waiting: Recent::default(),
            installs: Installs::default(),
            settings,
        });
        let for_boot = Arc::clone(&state);
        let told = Arc::clone(&recorder);
        let watching = archive.watch(move |found| {
            if let Ok((archive, id)) = &found {
                builds.renew(archive, *id, &sizes(&*state));
            }
            tell(&told, found);
        });
        threads.push(watching.context("starting a thread")?);

        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let control = runtime("control", 2)?;
        let bulk = runtime("transfer", cores.max(2))?;
        let here = control.enter();
        let fleet = talks::Fleet::default();
        let talks = talks_listener.map(|listener| {
            let plan = talks::Plan {
                listener,
                operator: Some(service.settings.state.join(talks::SOCKET)),
                secret,
                connections: service.settings.connections,
                connections_per_address: service.settings.connections_per_address,
            };
            talks::Server::start(plan, fleet.clone(), Arc::new(fleet))
        });
        let talks = talks.transpose()?;
        drop(here);
        let [control_gate, rootfs_gate, fetch_gate] = gates;
        let for_control = Arc::clone(&service);
        let for_rootfs = Arc::clone(&service);
        let for_fetch = Arc::clone(&service);
        let mut listeners = vec![control.spawn(ended(accept(
            control_listener,
            control_gate,
            move |stream, address, pass| {
                let service = Arc::clone(&for_control);
                async move {
                    control::attend(stream, address, service).await;
                    drop(pass);
                }
            },
        )))];
        let sending = [
            bulk.spawn(ended(accept(rootfs_listener, rootfs_gate, move |stream, address, pass| {
                let service = Arc::clone(&for_rootfs);
                async move {
                    rootfs::send(stream, address, service).await;
                    drop(pass);
                }
            }))),
            bulk.spawn(ended(accept(fetch_listener, fetch_gate, move |stream, address, pass| {
                let service = Arc::clone(&for_fetch);
                async move {
                    fetch::answer(stream, address, service).await;
                    drop(pass);
                }
            }))),
        ];
        if let Some(netboot) = netboot {
            listeners.extend(netboot.start(recorder, for_boot, &bulk));
        }
        listeners.extend([transfer, stream].into_iter().flatten().map(|b| b.start(&service, &bulk)));
        Ok(Self {
            addresses,
            service,
            control,
            bulk,
            listeners,
            sending,
            threads,
            state_thread,
            stop_files,
            talks,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Runs until a signal (SIGTERM, SIGINT) asks to stop, lets transfers finish, and ends;
    /// a second signal ends at once.
    ///
    /// # Errors
    /// If signals cannot be heard.
    pub fn run(self) -> anyhow::Result<()> {
        let listen = || -> std::io::Result<_> {
            let _here = self.control.enter();
            Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
        };
        let (mut terminate, mut interrupt) = listen().context("listening for signals")?;
        let mut asked = async move || {
            tokio::select! {
                _ = terminate.recv() => (),
                _ = interrupt.recv() => (),
            }
        };
        self.control.block_on(asked());
        let at_most = self.service.settings.shutdown;
        self.end(at_most, asked());
        Ok(())
    }

    /// Stops accepting, lets transfers finish for as long as `at_most`, and ends.
    pub fn stop(self, at_most: Duration) {
        self.end(at_most, std::future::pending());
    }

    fn end(self, at_most: Duration, at_once: impl Future<Output = ()>) {
        for listener in &self.listeners {
            listener.abort();
        }
        // Calls are short: whoever waits for one hears at once that the server is gone.
        drop(self.talks);
        self.control.block_on(async {
            let deadline = Instant::now() + at_most;
            let drain = async {
                let mut said = (0, 0);
                while Instant::now() < deadline {
                    let busy = self.service.busy.counts();
                    if busy == (0, 0) {
                        return;
                    }
                    if said != busy {
                        said = busy;
                        log::info!(
                            "stopping: {} transfers and {} installations go on, for {} s at most; a second signal ends them",
                            busy.0, busy.1, (deadline - Instant::now()).as_secs()
                        );
                    }
                    tokio::time::sleep(LOOK).await;
                }
                log::warn!("stopping: the time is up, {:?} transfers and installations are cut", said);
            };
            tokio::select! {
                () = drain => (),
                () = at_once => log::warn!("stopping at once"),
            }
        });
        for listener in &self.sending {
            listener.abort();
        }
        self.control.shutdown_timeout(Duration::from_secs(1));
        self.bulk.shutdown_timeout(Duration::from_secs(1));
        self.service.archive.close();
        self.service.builds.stop();
        self.stop_files.stop();
        self.service.recorder.flush(FLUSH);
        self.service.recorder.close();
        for thread in self.threads.into_iter().chain([self.state_thread]) {
            thread.thread().unpark();
            if thread.join().is_err() {
                log::error!("a thread of the server had failed");
            }
        }
        log::info!("stopped");
    }
}

/// The sizes of the root filesystems of Pis that were here lately, the commonest first.
fn sizes(state: &dyn State) -> Vec<u64> {
    let devices = state.devices().unwrap_or_else(|e| {
        log::error!("no images are made ahead: {e}");
        Vec::new()
    });
    let lately = now_ms().saturating_sub(LATELY_MS);
    let mut count = HashMap::new();
    for device in devices.iter().filter(|d| d.root_bytes > 0 && d.last_seen_ms > lately) {
        *count.entry(filesystem_bytes(device.root_bytes)).or_insert(0_u32) += 1;
    }
    let mut sizes: Vec<_> = count.into_iter().collect();
    sizes.sort_unstable_by_key(|(size, count)| (Reverse(*count), *size));
    sizes.into_iter().map(|(size, _)| size).take(AHEAD_MAX).collect()
}

/// Tells the log and the state what became of a version of the archive.
fn tell(recorder: &Recorder, found: Result<(&Arc<Archive>, Hash), &str>) {
    match found {
        Ok((archive, id)) => {
            log::info!("{} is good: {} bytes, image {id:.16}", archive.path().display(), archive.bytes());
            recorder.trouble("archive", None);
        }
        Err(reason) => {
            log::error!("{reason}");
            recorder.trouble("archive", Some(reason.to_owned()));
        }
    }
}

async fn ended(accepting: impl Future<Output = anyhow::Result<()>>) {
    if let Err(e) = accepting.await {
        log::error!("{e:#}");
    }
}

/// The password of the talks port.
fn secret(settings: &Settings) -> anyhow::Result<talks::Secret> {
    let Some(file) = &settings.talks_password_file else {
        if settings.talks_port.is_some() {
            log::warn!("talks: without --talks-password-file everybody may connect and pass for a Pi");
        }
        return Ok(talks::Secret::new(None));
    };
    let name = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("reading the password in {name}"))?;
    let password = text.lines().next().unwrap_or("").trim();
    anyhow::ensure!(!password.is_empty(), "the password in {name} is empty: write it into the first line");
    Ok(talks::Secret::new(Some(password.to_owned())))
}

fn runtime(name: &str, threads: usize) -> anyhow::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build()
        .with_context(|| format!("starting the {name} threads"))
}

/// Each connection is an open file; the soft limit of 1024 is from another time.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        log::warn!("the limit of open files cannot be raised, so fewer Pis can connect: {e}");
    }
}
