//! `pi-agent run`: the service on the installed Pi. It dials the server, comes back for ever, and does what
//! it is asked, a call at a time in threads of its own.
//!
//! | file | what lives there |
//! |---|---|
//! | `line` | one connection: login, calls in, answers out |
//! | `old` | the same to an old TCPTalks server |
//! | `functions` | what the Pi can be asked |
//! | `status` | CPU, memory, disk, processes, temperature, uptime, image |
//! | `hook` | programs of the hook folder |
//! | [`mod@unit`] | the service in a system that was just installed |

mod functions;
mod hook;
mod line;
mod old;
mod status;
pub mod unit;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use piman_core::talks::Protocol;

use crate::backoff::Backoff;
use crate::identity::Identity;

/// How long a connection must live for the waits to start anew.
const STEADY: Duration = Duration::from_secs(30);

/// What the service is told.
#[derive(Debug, Clone)]
pub struct Service {
    /// Where the server is.
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
}

/// Serves for ever: a lost or refused connection is dialled again, with waits of up to a minute.
pub fn run(service: &Arc<Service>) -> ! {
    let mut backoff = Backoff::default();
    if let (Some(protocol @ (Protocol::Auto | Protocol::Pickle)), Some(_)) =
        (service.protocol, &service.password_file)
    {
        log::warn!(
            "--protocol {protocol}: the password crosses the network in clear; whoever listens can read it"
        );
    }
    let mut proven = false;
    loop {
        let began = Instant::now();
        match line::serve(service, &mut proven) {
            Ok(()) => log::info!("the server closed the connection"),
            Err(e) => log::warn!("{}:{}: {e:#}", service.host, service.port),
        }
        if began.elapsed() > STEADY {
            backoff.reset();
        }
        let wait = backoff.wait();
        log::info!("again in {:.1} s", wait.as_secs_f32());
        std::thread::sleep(wait);
    }
}
