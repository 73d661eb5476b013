//! Everything of a server that may fail: archive, ports, folders, lines. It is done before the state is written.

use std::net::TcpListener;
use std::path::PathBuf;

use anyhow::Context;
use piman_core::hosted::dial::serial::Listening;
use tokio::runtime::{Builder, Runtime};

use super::services::Bound;
use super::{Addresses, http_boot, privileges, serial};
use crate::config::Settings;
use crate::images::source::Source;
use crate::net::listen::{Gate, bind};
use crate::{messages, netboot, provision, rpc};

/// A server with its ports open, which has written nothing and does not accept yet.
pub(super) struct Opened {
    pub(super) addresses: Addresses,
    pub(super) install: Option<provision::Bound>,
    pub(super) transfer: Option<Bound>,
    pub(super) telemetry: Option<Bound>,
    pub(super) rpc: Option<TcpListener>,
    pub(super) secret: rpc::Secret,
    /// The socket of the operator's commands.
    pub(super) operator: PathBuf,
    pub(super) messages: Option<messages::Bound>,
    pub(super) netboot: Option<netboot::Bound>,
    /// Only with `netboot`.
    pub(super) http_boot: Option<http_boot::Bound>,
    pub(super) control: Runtime,
    pub(super) bulk: Runtime,
    pub(super) lines: Vec<Listening>,
}

impl Opened {
    /// Opens everything; `has_images`: whether the state has images that are installed; `alone`: whether the process is
    /// nothing but this server, so that privileges can be given up when the ports are open.
    ///
    /// # Errors
    /// If something cannot be used; the message says what to do.
    pub(super) fn open(settings: &Settings, has_images: bool, alone: bool) -> anyhow::Result<Self> {
        let source = settings.rootfs.as_deref().map(Source::open).transpose()?;
        let installs = source.is_some() || has_images;
        if !installs {
            tracing::info!(
                "nothing is installed: there is neither --rootfs nor an image of `piman image add`"
            );
        }
        let ip = settings.listen;
        let install = installs.then(|| provision::Bound::open(settings, source)).transpose()?;
        let gate = |name| Gate::new(name, settings.connections, settings.connections_per_address);
        let transfer = settings
            .transfer
            .as_ref()
            .map(|s| Bound::transfer(s, ip, settings.stall, settings.old, gate("transfer")));
        let telemetry = settings.telemetry.as_ref().map(|s| Bound::telemetry(s, ip, gate("telemetry")));
        let (transfer, telemetry) = (transfer.transpose()?, telemetry.transpose()?);
        let rpc = settings.rpc_port.map(|port| bind(ip, port, "--rpc-port")).transpose()?;
        let operator = settings.state.join(rpc::SOCKET);
        if rpc.is_some() {
            rpc::check_operator(&operator)?;
        }
        let messages = settings.messages.as_ref().map(messages::Bound::open).transpose()?;
        let secret = secret(settings)?;
        let http_boot = settings.netboot.as_ref().and_then(|n| n.http_port);
        let http_boot =
            http_boot.map(|port| http_boot::Bound::open(ip, port, gate("http-boot"))).transpose()?;
        // Last, since it may take seconds: other DHCP servers are looked for.
        let netboot = settings.netboot.as_ref().map(|n| netboot::Bound::open(n, ip)).transpose()?;
        let addresses = Addresses {
            install: install.as_ref().map(|i| i.addresses),
            transfer: transfer.as_ref().map(|t| t.address),
            telemetry: telemetry.as_ref().map(|s| s.address),
            tftp: netboot.as_ref().map(|n| n.tftp),
            http_boot: http_boot.as_ref().map(|h| h.address),
            dhcp: netboot.as_ref().and_then(netboot::Bound::dhcp),
            rpc: rpc.as_ref().map(TcpListener::local_addr).transpose()?,
            messages: messages.as_ref().map_or_else(Vec::new, |m| m.addresses.clone()),
        };
        // Before there are threads, which would keep what this one gives up.
        if alone {
            privileges::give_up(settings)?;
        }
        let control = runtime("control", 2)?;
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let bulk = runtime("bulk", cores.max(2))?;
        // Whoever connects over a line already waits until the service behind it accepts.
        let services = addresses.by_port();
        let lines = serial::start(&settings.serial, &services)?;
        if let Some(first) = settings.bluetooth {
            serial::start_bluetooth(first, &services)?;
        }
        Ok(Self {
            addresses,
            install,
            transfer,
            telemetry,
            rpc,
            secret,
            operator,
            messages,
            netboot,
            http_boot,
            control,
            bulk,
            lines,
        })
    }
}

/// The password of the rpc port.
pub(super) fn secret(settings: &Settings) -> anyhow::Result<rpc::Secret> {
    let Some(file) = &settings.rpc_password_file else {
        if settings.rpc_port.is_some() {
            tracing::warn!("rpc: without --rpc-password-file everybody may connect and pass for a Pi");
        }
        return Ok(rpc::Secret::new(None));
    };
    rpc::Secret::read(file)
}

fn runtime(name: &str, threads: usize) -> anyhow::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build()
        .with_context(|| format!("starting the {name} threads"))
}
