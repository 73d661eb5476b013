//! `pi-agent run`: the service on the installed Pi. It dials the server, comes back for ever, and does what
//! it is asked, a call at a time in threads of its own.
//!
//! | file | what lives there |
//! |---|---|
//! | `line` | one connection: login, calls in, answers out |
//! | `protected` | the login to a server of ours, after which all is sealed |
//! | `old` | the same to an old TCPTalks server |
//! | `calls` | calls of either kind of server: a thread each, and the answer |
//! | `functions` | what the Pi can be asked |
//! | `status` | CPU, memory, disk, processes, temperature, uptime, image |
//! | `hook` | programs of the hook folder |
//! | [`messages`] | message channels that the Pi has joined |
//! | `socket` | the socket to a server: options, the wait for it, a refusal in words |
//! | [`mod@unit`] | the service in a system that was just installed |

mod calls;
mod functions;
mod hook;
mod line;
pub mod messages;
mod old;
mod owned;
mod protected;
mod socket;
mod status;
pub mod unit;
mod value;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use piman_core::rpc::Protocol;

use crate::identity::Identity;
use crate::unsaid;
use messages::{Address, Member};
use piman_core::hosted::backoff::Backoff;

/// How long a connection must live for the waits to start anew.
const STEADY: Duration = Duration::from_secs(30);

/// What the service is told.
#[derive(Debug, Clone)]
pub struct Service {
    /// Where the server is; empty: nowhere, there are only message channels.
    pub host: String,
    /// On which port it takes calls.
    pub port: u16,
    /// The file with the password, in its first line; `None`: no password.
    pub password_file: Option<PathBuf>,
    /// Which protocol the server speaks; `None`: what gives no password away.
    pub protocol: Option<Protocol>,
    /// Where the programs are that may be run by name.
    pub hooks: PathBuf,
    /// What starts the Pi again.
    pub reboot: PathBuf,
    /// The root of /proc, /sys, /var and the proof: `/`, except in tests.
    pub root: PathBuf,
    /// Who this Pi is.
    pub identity: Identity,
    /// Message channels to join.
    pub messages: Vec<Address>,
    /// The hook that gets each message; `None`: they are logged.
    pub on_message: Option<String>,
}

/// Serves for ever: a lost or refused connection is dialled again, with waits of up to a minute.
pub fn run(service: &Arc<Service>) -> ! {
    if unsaid::kept(&service.root).is_some() {
        let service = Arc::clone(service);
        let telling = std::thread::Builder::new().name("unsaid".into());
        if let Err(e) = telling.spawn(move || unsaid::tell(&service.root, &service.identity)) {
            log::error!("telling the server how the installation ended: starting a thread: {e}");
        }
    }
    for address in &service.messages {
        let (service, address) = (Arc::clone(service), address.clone());
        let name = format!("messages {address}");
        let joined = std::thread::Builder::new().name(name.clone()).spawn(move || {
            match Member::new(&service, &address) {
                Ok(mut member) => again(&address.to_string(), || member.serve()),
                Err(e) => log::error!("{address}: {e:#}"),
            }
        });
        if let Err(e) = joined {
            log::error!("{name}: starting a thread: {e}");
        }
    }
    if service.host.is_empty() {
        loop {
            std::thread::park();
        }
    }
    if let (Some(protocol @ (Protocol::Auto | Protocol::Pickle)), Some(_)) =
        (service.protocol, &service.password_file)
    {
        log::warn!(
            "--protocol {protocol}: the password crosses the network in clear; whoever listens can read it"
        );
    }
    let mut proven = false;
    again(&format!("{}:{}", service.host, service.port), || line::serve(service, &mut proven))
}

/// Connects again whenever the connection is over.
fn again(server: &str, mut serve: impl FnMut() -> anyhow::Result<()>) -> ! {
    let mut backoff = Backoff::default();
    loop {
        let began = Instant::now();
        match serve() {
            Ok(()) => log::info!("{server}: the server closed the connection"),
            Err(e) => log::warn!("{server}: {e:#}"),
        }
        if began.elapsed() > STEADY {
            backoff.reset();
        }
        let wait = backoff.wait();
        log::info!("again in {:.1} s", wait.as_secs_f32());
        std::thread::sleep(wait);
    }
}
