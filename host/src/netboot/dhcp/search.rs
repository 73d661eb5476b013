//! Other DHCP servers on the interface: found by asking for an address, as a client does.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use piman_core::dhcp::{CLIENT_PORT, SERVER_PORT};

use super::message::{found, search};
use super::server::{Mode, Settings, open};
use crate::sys::clock::now_ms;
use crate::sys::mac::Mac;

/// How long another server may take to answer: some first look for three seconds whether somebody has the
/// address that they will offer.
const WAIT: Duration = Duration::from_secs(4);
/// After how long the question is repeated.
const AGAIN: Duration = Duration::from_secs(1);

/// Makes sure that no other server gives addresses, where this one is to give some.
///
/// # Errors
/// If another one answers and `--dhcp-force` is not given.
pub fn alone(settings: &Settings) -> anyhow::Result<()> {
    if settings.mode == Mode::Proxy {
        return Ok(());
    }
    let interface = &settings.interface;
    let others = others(interface, WAIT).unwrap_or_else(|e| {
        tracing::warn!("dhcp: whether another server gives addresses on {interface} is not known: {e:#}");
        Vec::new()
    });
    if others.is_empty() {
        return Ok(());
    }
    let list = others.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let what = format!(
        "{list} gives addresses on {interface} already: two servers would contradict each other, and machines get addresses twice"
    );
    if settings.force {
        tracing::warn!("dhcp: {what}; this one starts all the same (--dhcp-force)");
        return Ok(());
    }
    bail!("{what}. Use --dhcp proxy beside it, or stop it; --dhcp-force starts all the same")
}

/// The servers that answer on this interface within `wait`. Nothing is changed by asking.
///
/// # Errors
/// If the port of clients cannot be had.
pub fn others(interface: &str, wait: Duration) -> anyhow::Result<Vec<Ipv4Addr>> {
    let socket = open(interface, CLIENT_PORT)?;
    socket.set_nonblocking(false)?;
    let number = u32::try_from(now_ms() & 0xffff_ffff).unwrap_or(1);
    // A hardware address that nobody has: locally administered.
    let [a, b, c, d] = number.to_be_bytes();
    let question = search(Mac([0x02, 0x70, a, b, c, d]), number).context("building a question")?;
    let deadline = Instant::now() + wait;
    let mut ask = Instant::now();
    let mut servers = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        let now = Instant::now();
        if now >= deadline {
            return Ok(servers);
        }
        if now >= ask {
            socket
                .send_to(&question, (Ipv4Addr::BROADCAST, SERVER_PORT))
                .context("asking for DHCP servers")?;
            ask = now + AGAIN;
        }
        let left = deadline.min(ask).saturating_duration_since(now).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(left))?;
        let Ok(n) = socket.recv(&mut buffer) else { continue };
        if let Some(server) = found(buffer.get(..n).unwrap_or_default(), number)
            && !servers.contains(&server)
        {
            servers.push(server);
        }
    }
}
