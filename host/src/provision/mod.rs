//! The install service as a part of a server: three ports, the archive behind them, its images.

pub mod archive_port;
pub mod bounded_cache;
pub mod bundles;
pub mod context;
pub mod control;
mod decide;
pub mod fetch_port;
pub mod legacy;
pub mod names;
mod personal;
pub mod proof;
pub mod reinstall_file;
pub mod server_key;

use std::future::{Future, ready};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, ensure};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle as Task;

use crate::config::Settings;
use crate::config::live::Live;
use crate::images;
use crate::images::build_queue::BuildQueue;
use crate::images::catalog::{Catalog, News, Tell};
use crate::images::source::Source;
use crate::net::drain::Drain;
use crate::net::listen::{Gate, accept, bind};
use crate::net::queue::FairQueue;
use crate::net::workers::WorkerPool;
use crate::state::{Recorder, State};
use bounded_cache::BoundedCache;
use bundles::Bundles;
use context::InstallContext;
use legacy::Installs;
use names::Names;
use proof::ProvenPis;
use server_key::ServerKeys;

/// Where the service listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the options")]
pub struct Addresses {
    pub control: SocketAddr,
    pub rootfs: SocketAddr,
    pub fetch: SocketAddr,
}

/// The service with its ports open; it does not accept yet.
pub struct Bound {
    /// Where it listens.
    pub addresses: Addresses,
    archive: Option<Source>,
    listeners: [std::net::TcpListener; 3],
}

/// What it shares with the other services.
pub struct Shared {
    /// What is remembered.
    pub state: Arc<dyn State>,
    /// The same, to be noted in.
    pub recorder: Arc<Recorder>,
    /// What keeps the server from ending at once.
    pub drain: Drain,
}

/// The service at work.
pub struct Running {
    /// What its connections share.
    pub service: Arc<InstallContext>,
    /// The control port.
    pub accepting: Task<()>,
    /// The ports that send archives and images: a Pi that was told to format still comes here
    /// while the server is being stopped.
    pub sending: [Task<()>; 2],
    workers: Arc<WorkerPool>,
    threads: Vec<JoinHandle<()>>,
    stop_files: Arc<reinstall_file::Stop>,
}

impl Bound {
    /// Binds the ports. `archive` is for everyone who gets no other image.
    ///
    /// # Errors
    /// If one of them cannot be used; the message says what to do.
    pub fn open(settings: &Settings, archive: Option<Source>) -> anyhow::Result<Self> {
        let folder = settings.state.join(images::ext4::FOLDER);
        ensure!(
            !settings.images || !folder.exists() || folder.is_dir(),
            "{} is no folder: remove it, or turn images off with --no-images",
            folder.display()
        );
        let ip = settings.listen;
        let listeners = [
            bind(ip, settings.control_port, "--control-port")?,
            bind(ip, settings.rootfs_port, "--rootfs-port")?,
            bind(ip, settings.fetch_port, "--fetch-port")?,
        ];
        let [control, rootfs, fetch] = &listeners;
        let addresses = Addresses {
            control: control.local_addr()?,
            rootfs: rootfs.local_addr()?,
            fetch: fetch.local_addr()?,
        };
        Ok(Self { addresses, archive, listeners })
    }

    /// Accepts from now on: decisions on one runtime, connections for what is large
    /// on the other, which hands them to threads of their own.
    ///
    /// # Errors
    /// If a thread cannot be started or the images cannot be opened.
    pub fn start(
        self,
        live: &Arc<Live>,
        Shared { state, recorder, drain }: Shared,
        control: &Runtime,
        bulk: &Runtime,
    ) -> anyhow::Result<Running> {
        let Self { addresses, archive, listeners } = self;
        let settings = live.now();
        let images = settings.images.then_some(settings.state.as_path());
        let (builds, images_thread) = BuildQueue::start(images, Arc::clone(&recorder))
            .context("opening the images in the state folder")?;
        let stop_files = Arc::new(reinstall_file::Stop::default());
        let mut threads: Vec<JoinHandle<()>> = images_thread.into_iter().collect();
        if let Some(file) = &settings.reinstall_file {
            threads.push(reinstall_file::watch(file, Arc::clone(&state), Arc::clone(&stop_files))?);
        }
        let hear = hear(Arc::clone(&recorder), Arc::clone(&builds));
        let catalog =
            Catalog::open(state, archive, settings.allow_unfit, hear).context("starting a thread")?;
        let service = Arc::new(InstallContext {
            rootfs_port: addresses.rootfs.port(),
            fetch_port: addresses.fetch.port(),
            catalog,
            builds,
            bundles: Bundles::default(),
            recorder,
            slots: FairQueue::new(settings.slots),
            drain,
            last_identity: BoundedCache::default(),
            names: Names::default(),
            proven: ProvenPis::default(),
            keys: ServerKeys::open(&settings.state)?,
            waiting: BoundedCache::default(),
            refused: BoundedCache::default(),
            installs: Installs::default(),
            live: Arc::clone(live),
        });

        let gate = |name| Gate::new(name, settings.connections, settings.connections_per_address);
        let [for_control, for_rootfs, for_fetch] = [&service, &service, &service].map(Arc::clone);
        let [control_listener, rootfs_listener, fetch_listener] = listeners;
        let accepting =
            control.spawn(ended(accept(control_listener, gate("control"), move |stream, address, pass| {
                let service = Arc::clone(&for_control);
                async move {
                    pass.serve(Box::pin(control::run(stream, address, service))).await;
                }
            })));
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let workers = Arc::new(WorkerPool::start(cores).context("starting the threads for transfers")?);
        let [rootfs_workers, fetch_workers] = [&workers, &workers].map(Arc::clone);
        let sending = [
            bulk.spawn(ended(accept(rootfs_listener, gate("rootfs"), move |stream, address, pass| {
                let service = Arc::clone(&for_rootfs);
                rootfs_workers.run(stream, move |stream| async move {
                    pass.serve(Box::pin(archive_port::send(stream, address, service))).await;
                });
                ready(())
            }))),
            bulk.spawn(ended(accept(fetch_listener, gate("fetch"), move |stream, address, pass| {
                let service = Arc::clone(&for_fetch);
                fetch_workers.run(stream, move |stream| async move {
                    pass.serve(Box::pin(fetch_port::answer(stream, address, service))).await;
                });
                ready(())
            }))),
        ];
        Ok(Running { service, accepting, sending, workers, threads, stop_files })
    }
}

impl Running {
    /// Does what the settings, which were read again, say now.
    pub fn reload(&self) {
        let settings = self.service.settings();
        self.service.slots.set_slots(settings.slots);
        if let Err(e) = self.service.catalog.take_unfit(settings.allow_unfit) {
            tracing::warn!("images cannot be read, so those that are unfit stay as they were: {e}");
        }
    }

    /// Ends the transfers that are left, and stops its threads; returns them, to be waited for.
    /// The runtimes that accept have been ended before.
    #[must_use]
    pub fn stop(self) -> Vec<JoinHandle<()>> {
        drop(self.workers);
        let mut threads = self.threads;
        threads.extend(self.service.catalog.close());
        self.service.builds.stop();
        self.stop_files.stop();
        threads
    }
}

/// What is done when an archive was found good or bad: its image is made, those of others are swept away.
fn hear(recorder: Arc<Recorder>, builds: Arc<BuildQueue>) -> Tell {
    Box::new(move |catalog, path, news| {
        if let News::Good(archive, id) = &news {
            let all = catalog.all();
            builds.renew(archive, *id, all.as_deref());
        }
        tell(&recorder, path, &news);
        // Perhaps it was taken off the list of images before it was deleted.
        if let News::Bad(_) = &news
            && let Err(e) = catalog.follow()
        {
            tracing::warn!("images cannot be read: {e}");
        }
    })
}

/// Tells the log and the state what became of a version of the archive.
fn tell(recorder: &Recorder, path: &Path, news: &News<'_>) {
    let alert = match news {
        News::Good(archive, id) => {
            tracing::info!("{} is good: {} bytes, image {id:.16}", archive.path().display(), archive.bytes());
            None
        }
        News::Bad(reason) => {
            tracing::error!("{reason}");
            Some((*reason).to_owned())
        }
        News::Dropped => None,
    };
    recorder.alert(&format!("archive {}", path.display()), alert);
}

async fn ended(accepting: impl Future<Output = anyhow::Result<()>>) {
    if let Err(e) = accepting.await {
        tracing::error!("{e:#}");
    }
}
