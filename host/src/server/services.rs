//! The transfer and the telemetry service as parts of a server: both are off unless they have a folder.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::config::services::{TelemetrySettings, TransferSettings};
use crate::net::drain::Drain;
use crate::net::listen::{Gate, bind};
use crate::net::min_rate::Limits;
use crate::net::socket::tune;
use crate::telemetry::{Named, RecordStore, TelemetryServer};
use crate::transfer::{Folder, Timeouts, Transfers};
use crate::{telemetry, transfer};

/// Says as whom an address is known.
pub type Who = Arc<dyn Fn(IpAddr) -> Named + Send + Sync>;

/// A service that listens and does not accept yet.
#[derive(Debug)]
pub struct Bound {
    listener: std::net::TcpListener,
    /// Where it listens.
    pub address: SocketAddr,
    gate: Arc<Gate>,
    kind: Kind,
}

/// A service that accepts.
#[derive(Debug)]
pub struct Started {
    /// Until this is aborted.
    pub accepting: JoinHandle<()>,
    /// The transfer service, if it is this.
    pub transfers: Option<Arc<Transfers>>,
}

#[derive(Debug)]
enum Kind {
    /// The folder is opened when nothing else can fail: uploads have a folder in it.
    Transfer(TransferSettings, Timeouts),
    Telemetry(Arc<TelemetryServer>),
}

impl Bound {
    /// Looks at the folder and binds the port of the transfer service. `talk`: how long a client may take for what it
    /// says before the bytes of a file; `limits`: for those.
    ///
    /// # Errors
    /// If one of them cannot be used; the message says what to do.
    pub fn transfer(
        settings: &TransferSettings,
        ip: IpAddr,
        talk: Duration,
        limits: Limits,
        gate: Arc<Gate>,
    ) -> anyhow::Result<Self> {
        Folder::check(&settings.folder).with_context(|| unusable("--transfer-dir", &settings.folder))?;
        let timeouts = timeouts(talk, limits);
        Self::bind(ip, settings.port, "--transfer-port", gate, Kind::Transfer(settings.clone(), timeouts))
    }

    /// Opens the folder and binds the port of the telemetry service.
    ///
    /// # Errors
    /// If one of them cannot be used; the message says what to do.
    pub fn telemetry(settings: &TelemetrySettings, ip: IpAddr, gate: Arc<Gate>) -> anyhow::Result<Self> {
        let store = RecordStore::open(&settings.folder, settings.rotation, settings.sync)
            .and_then(|store| store.limited(settings.allowance))
            .with_context(|| unusable("--telemetry-dir", &settings.folder))?;
        let streams = Arc::new(TelemetryServer::new(Arc::new(store)));
        Self::bind(ip, settings.port, "--telemetry-port", gate, Kind::Telemetry(streams))
    }

    fn bind(ip: IpAddr, port: u16, flag: &str, gate: Arc<Gate>, kind: Kind) -> anyhow::Result<Self> {
        let listener = bind(ip, port, flag)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, gate, kind })
    }

    /// Accepts from now on.
    ///
    /// # Errors
    /// If the folder cannot be used after all.
    pub fn start(self, drain: &Drain, who: &Who, runtime: &Runtime) -> anyhow::Result<Started> {
        let (drain, who) = (drain.clone(), Arc::clone(who));
        let transfers = match &self.kind {
            Kind::Transfer(settings, timeouts) => {
                let folder = Folder::open(&settings.folder)
                    .with_context(|| unusable("--transfer-dir", &settings.folder))?;
                Some(Arc::new(Transfers::new(Arc::new(folder.limited(settings.allowance)), *timeouts)))
            }
            Kind::Telemetry(_) => None,
        };
        let serving = transfers.clone();
        let accepting = runtime.spawn(async move {
            let ended = match (self.kind, serving) {
                (Kind::Transfer(TransferSettings { keep, .. }, _), Some(transfers)) => {
                    let begin = move |socket: &_| {
                        tune(socket);
                        drain.transfer()
                    };
                    transfer::run(self.listener, self.gate, transfers, keep, begin).await
                }
                (Kind::Transfer(..), None) => Ok(()),
                (Kind::Telemetry(streams), _) => {
                    let who = move |address| who(address);
                    telemetry::run(self.listener, self.gate, streams, who, tune).await
                }
            };
            if let Err(e) = ended {
                tracing::error!("{e:#}");
            }
        });
        Ok(Started { accepting, transfers })
    }
}

/// How long a client may take: for what it says before the bytes of a file, and for those.
pub fn timeouts(talk: Duration, limits: Limits) -> Timeouts {
    Timeouts { talk: talk.min(Duration::from_secs(60)), limits }
}

fn unusable(flag: &str, folder: &Path) -> String {
    format!(
        "cannot use {} ({flag}); it must be a folder that this user may write to (`mkdir -p {0}`)",
        folder.display()
    )
}
