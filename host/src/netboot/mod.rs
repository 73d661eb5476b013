//! Everything that takes a Pi from power-on to our agent: DHCP, TFTP, and the folder of files.
//!
//! | module | what lives there |
//! |---|---|
//! | [`build`] | makes the folder, and finds what is wrong with it |
//! | [`tftp`] | sends its files |
//! | [`dhcp`] | tells Pis where they are, and gives addresses |
//! | [`ready`] | waits for the interface and the addresses |
//! | [`kernel`] | which kernels the folder has |
//! | [`http_boot`] | finds what boot loaders ask for by HTTP |
//! | [`boot_sig`] | what `boot.img` is checked against |
//! | `pairs` | `boot.img` and `boot.sig` that belong together |
//! | [`who_asks`] | who asks for a file |
//! | [`image_folder`] | which Pi boots from the folder of its own image |
//! | [`only_known`] | who is answered with `--only-known` |
//! | [`boot_events`] | notes what each Pi was told and sent |

pub mod boot_events;
pub mod boot_sig;
pub mod build;
pub mod dhcp;
pub mod http_boot;
pub mod image_folder;
pub mod kernel;
mod known;
pub mod only_known;
mod pairs;
pub mod ready;
pub mod tftp;
pub mod who_asks;

use std::future::Future;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{anyhow, bail};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::state::{Recorder, State};
use boot_events::Timeline;
use http_boot::HttpBoot;
use image_folder::ImageFolders;
use only_known::OnlyKnown;

/// What is wrong with a folder that is served by HTTP and has no image.
pub const NO_BOOT_IMG: &str = "there is no boot.img, so HTTP boots no Pi but those with a folder of their own: `piman \
                               netboot build --boot-image --boot-key KEY.pem` makes it";

/// What the services for booting are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The folder that Pis fetch files from.
    pub folder: PathBuf,
    /// Where TFTP listens.
    pub tftp_port: u16,
    /// How many files are sent at the same time.
    pub tftp_transfers: usize,
    /// Where HTTP boot listens; `None`: not at all.
    pub http_port: Option<u16>,
    /// Whether only Pis of the device list are answered, as far as can be told.
    pub only_known: bool,
    /// Off unless it was asked for.
    pub dhcp: Option<dhcp::Settings>,
}

/// The services as they run.
pub struct Started {
    /// Until these are aborted.
    pub tasks: Vec<JoinHandle<()>>,
    /// The files for whoever asks by HTTP, if somebody serves it.
    pub http: HttpBoot,
}

impl Settings {
    /// Whether addresses are given, and not only told where to boot from.
    #[must_use]
    pub fn gives_addresses(&self) -> bool {
        self.dhcp.as_ref().is_some_and(|dhcp| matches!(dhcp.mode, dhcp::Mode::Server))
    }
}

/// The services, with their ports open.
pub struct Bound {
    /// Where TFTP listens.
    pub tftp: SocketAddr,
    socket: UdpSocket,
    limits: tftp::Limits,
    folder: tftp::Folder,
    only_known: bool,
    dhcp: Option<dhcp::Dhcp>,
}

impl Bound {
    /// Opens the ports.
    ///
    /// # Errors
    /// If the folder or a port cannot be used; the message says what to do.
    pub fn open(settings: &Settings, ip: IpAddr) -> anyhow::Result<Self> {
        let folder = &settings.folder;
        if !folder.is_dir() {
            bail!("{} is no folder: `piman netboot build --out {0}` makes one", folder.display());
        }
        for finding in build::lint::folder(folder) {
            tracing::warn!("{}: {}", folder.display(), finding.text);
        }
        if settings.http_port.is_some() && !folder.join(boot_sig::BOOT_IMG).is_file() {
            tracing::warn!("{}: {NO_BOOT_IMG}", folder.display());
        }
        let socket = bind(ip, settings.tftp_port)?;
        if let Some(dhcp) = &settings.dhcp {
            dhcp::search::alone(dhcp)?;
        }
        let dhcp = settings.dhcp.clone().map(dhcp::Dhcp::open).transpose()?;
        let limits = tftp::Limits { transfers: settings.tftp_transfers, ..tftp::Limits::default() };
        let (tftp, only_known) = (socket.local_addr()?, settings.only_known);
        Ok(Self { tftp, socket, limits, folder: tftp::Folder::new(folder), only_known, dhcp })
    }

    /// In words, where DHCP is answered, if it is.
    #[must_use]
    pub fn dhcp(&self) -> Option<String> {
        self.dhcp.as_ref().map(dhcp::Dhcp::place)
    }

    /// Starts to answer.
    #[must_use]
    pub fn start(self, recorder: Arc<Recorder>, state: Arc<dyn State>, on: &Runtime) -> Started {
        let who_asks = Arc::default();
        let images = Arc::new(ImageFolders::new(Arc::clone(&state), Arc::clone(&who_asks)));
        let only_known = self.only_known.then(|| Arc::new(OnlyKnown::new(Arc::clone(&state), who_asks)));
        let of_dhcp = Arc::clone(&state);
        let timeline = Arc::new(Timeline::new(recorder, state));
        let http = HttpBoot::new(
            self.folder.clone(),
            only_known.clone(),
            Arc::clone(&images),
            Arc::clone(&timeline),
        );
        let sent = Arc::clone(&timeline);
        let tell: tftp::Tell = Arc::new(move |report| sent.tftp(&report));
        let mut tasks = vec![on.spawn(said(tftp::serve(
            self.socket,
            self.folder,
            self.limits,
            tftp::Rules { only_known: only_known.clone(), images: Some(images) },
            tell,
        )))];
        if let Some(dhcp) = self.dhcp {
            let tell: dhcp::Tell = Arc::new(move |report| timeline.dhcp(&report));
            tasks.push(on.spawn(said(dhcp.serve(
                only_known,
                Box::new(move || known::known(&*of_dhcp)),
                tell,
            ))));
        }
        Started { tasks, http }
    }
}

async fn said(serving: impl Future<Output = anyhow::Result<()>>) {
    if let Err(e) = serving.await {
        tracing::error!("{e:#}");
    }
}

/// Binds the port of TFTP.
///
/// # Errors
/// If it is taken or not permitted; the message says what to do.
pub fn bind(ip: IpAddr, port: u16) -> anyhow::Result<UdpSocket> {
    UdpSocket::bind((ip, port)).map_err(|e| {
        let what = format!("cannot listen on {ip}, UDP port {port}: {e}");
        match e.kind() {
            ErrorKind::AddrInUse => anyhow!(
                "{what}; another program has it: `ss -lunp 'sport = :{port}'` says which. Stop it, or choose another port with --tftp-port (boot ROMs ask port 69 only)"
            ),
            ErrorKind::PermissionDenied => anyhow!(
                "{what}; ports below 1024 are not for every user: start as root, or allow it with `setcap cap_net_bind_service=+ep piman`"
            ),
            _ => anyhow!(what),
        }
    })
}
