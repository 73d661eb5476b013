//! The way to a client: the largest block that fits it, and which errors on it pass.
//!
//! Blocks are sent whole, without permission to cut them (DF), so that a router on the way can say that they are too
//! large. When it does, or when the first block is lost twice (not every router says it), the transfer goes on in
//! packets that may be cut: its block size is agreed on and cannot change. A boot ROM may be unable to put the
//! pieces together. It asks again, and is then granted blocks that fit.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use tokio::net::UdpSocket;

use crate::sys::lock::lock;

/// The block of a client whose larger ones are lost: what RFC 1350 has, and fits everywhere.
const SMALL: u16 = 512;
/// How long that is remembered of a client.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Of how many clients.
const CLIENTS_MAX: usize = 4096;
/// The headers before a block: of IPv4 or IPv6, of UDP, of TFTP.
const HEADERS: u32 = 20 + 8 + 4;
const HEADERS_V6: u32 = 40 + 8 + 4;

/// Clients that large blocks do not reach.
#[derive(Debug, Default)]
pub(super) struct Paths(Mutex<HashMap<IpAddr, Instant>>);

impl Paths {
    /// The largest block for the client that this socket is connected to.
    pub(super) fn blksize(&self, socket: &UdpSocket, client: IpAddr) -> u16 {
        let (mtu, headers) = match client {
            IpAddr::V4(_) => (sockopt::ip_mtu(socket), HEADERS),
            IpAddr::V6(_) => (sockopt::ipv6_mtu(socket), HEADERS_V6),
        };
        let fits = mtu.map_or(u16::MAX, |mtu| {
            u16::try_from(mtu.saturating_sub(headers)).unwrap_or(u16::MAX).max(SMALL / 8)
        });
        let small = lock(&self.0).get(&client).is_some_and(|since| since.elapsed() < REMEMBERED);
        if small { fits.min(SMALL) } else { fits }
    }

    /// The blocks that this client was sent do not reach it.
    pub(super) fn lost(&self, client: IpAddr) {
        let mut clients = lock(&self.0);
        if clients.len() >= CLIENTS_MAX {
            clients.retain(|_, since| since.elapsed() < REMEMBERED);
        }
        if clients.len() < CLIENTS_MAX {
            clients.insert(client, Instant::now());
        }
    }
}

/// Whether packets of this socket may be cut on their way.
pub(super) fn allow_cutting(socket: &UdpSocket, client: IpAddr, allow: bool) -> io::Result<()> {
    let set = match (client, allow) {
        (IpAddr::V4(_), true) => sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DONT),
        (IpAddr::V4(_), false) => sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE),
        (IpAddr::V6(_), true) => sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::DONT),
        (IpAddr::V6(_), false) => sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::PROBE),
    };
    Ok(set?)
}

/// Whether a packet is too large for the way.
pub(super) fn is_too_large(e: &io::Error) -> bool {
    Errno::from_io_error(e) == Some(Errno::MSGSIZE)
}

/// Whether an error may pass: what a router or the client's system says at one moment need not hold at the next, and
/// anybody can send such words in their name.
pub(super) fn may_pass(e: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(e),
        Some(
            Errno::CONNREFUSED
                | Errno::HOSTUNREACH
                | Errno::NETUNREACH
                | Errno::HOSTDOWN
                | Errno::NETDOWN
                | Errno::NOBUFS
                | Errno::NOPROTOOPT
        )
    )
}
