//! RFCOMM over the kernel's sockets: a service is a channel.
#![expect(
    unsafe_code,
    reason = "the shape of an RFCOMM address is promised to rustix here, from bluetooth/rfcomm.h"
)]

use std::io::{self, ErrorKind};
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::prelude::rust_2024::*;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::{rpc, telemetry, transfer};
use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `AF_BLUETOOTH` and `BTPROTO_RFCOMM` of the kernel.
const FAMILY: u16 = 31;
const RFCOMM: u32 = 3;
/// The last channel that there is.
pub const CHANNEL_MAX: u8 = 30;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 8;
/// How often a channel is tried that another program uses.
const TAKEN: Duration = Duration::from_millis(200);

/// `struct sockaddr_rc`.
#[repr(C)]
struct Address {
    family: u16,
    device: [u8; 6],
    channel: u8,
    fill: u8,
}

impl Address {
    /// `device` as it is written; on the wire its last byte comes first.
    fn new(mut device: [u8; 6], channel: u8) -> Self {
        device.reverse();
        Self { family: FAMILY, device, channel, fill: 0 }
    }
}

// SAFETY: the pointer is to a `sockaddr_rc`, which lives until `f` returns, and its length is that of it.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f(std::ptr::from_ref(self).cast(), size_of::<Self>() as SocketAddrLen)
    }
}

fn socket() -> io::Result<OwnedFd> {
    let protocol = NonZeroU32::new(RFCOMM).map(rustix::net::Protocol::from_raw);
    let family = AddressFamily::from_raw(FAMILY);
    rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, protocol).map_err(|e| {
        let e = io::Error::from(e);
        io::Error::new(e.kind(), format!("this kernel has no Bluetooth (RFCOMM): {e}"))
    })
}

/// The channel of a service: a port up to 30 is one itself; with the server's first channel 1, stream is on it, transfer
/// on the next, talks on the one after that.
fn channel(port: u16) -> io::Result<u8> {
    match port {
        1..=30 => Ok(port as u8),
        telemetry::PORT => Ok(1),
        transfer::PORT => Ok(2),
        rpc::PORT => Ok(3),
        _ => Err(io::Error::new(ErrorKind::InvalidInput, format!("port {port} is no channel of 1 to 30"))),
    }
}

/// Connects to a service of the device with this address. RFCOMM has one connection for each channel between two
/// devices: who comes second waits for as long as a connection may take.
///
/// # Errors
/// If there is no Bluetooth here, the device does not answer in time, or another program uses the channel.
pub fn connect(address: &str, port: u16, within: Duration) -> io::Result<TcpStream> {
    let mut device = [0; 6];
    for (to, text) in device.iter_mut().zip(address.split(':')) {
        *to = u8::from_str_radix(text, 16).map_err(io::Error::other)?;
    }
    let channel = channel(port)?;
    let deadline = Instant::now() + within;
    let socket = loop {
        // After a failure a socket is of no more use.
        let socket = socket()?;
        // The kernel waits so long for the connection, too.
        set_socket_timeout(&socket, Timeout::Send, Some(within))?;
        let why = match rustix::net::connect(&socket, &Address::new(device, channel)) {
            Ok(()) => break socket,
            Err(Errno::BUSY) if Instant::now() + TAKEN < deadline => {
                thread::sleep(TAKEN);
                continue;
            }
            Err(e @ Errno::BUSY) => (e, ", another program here is connected to it"),
            Err(e) => (e, ""),
        };
        let e = io::Error::from(why.0);
        return Err(io::Error::new(e.kind(), format!("{address}, channel {channel}: {e}{}", why.1)));
    };
    set_socket_timeout(&socket, Timeout::Send, None)?;
    let (ours, theirs) = super::pair()?;
    join(socket, theirs)?;
    Ok(ours)
}

/// Listens on a channel, for ever, in a thread of its own: each connection is joined with one of `service`.
///
/// # Errors
/// If there is no Bluetooth here, or somebody has the channel.
pub fn listen(channel: u8, service: impl Fn() -> io::Result<TcpStream> + Send + 'static) -> io::Result<()> {
    let socket = socket()?;
    let here = |e: Errno| {
        let e = io::Error::from(e);
        io::Error::new(e.kind(), format!("listening on the Bluetooth channel {channel}: {e}"))
    };
    rustix::net::bind(&socket, &Address::new([0; 6], channel)).map_err(here)?;
    rustix::net::listen(&socket, BACKLOG).map_err(here)?;
    thread::Builder::new().name("bluetooth".into()).spawn(move || {
        loop {
            let joined =
                rustix::net::accept(&socket).map_err(io::Error::from).and_then(|s| join(s, service()?));
            if let Err(e) = joined {
                log::warn!("Bluetooth, channel {channel}: {e}");
                thread::sleep(Duration::from_millis(100));
            }
        }
    })?;
    Ok(())
}

/// Moves bytes both ways until both have ended.
fn join(socket: OwnedFd, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (socket, stream) = (Arc::new(socket), Arc::new(stream));
    let (from, to) = (Arc::clone(&socket), Arc::clone(&stream));
    thread::Builder::new().name("bluetooth in".into()).spawn(move || {
        let mut buf = [0; 4096];
        while let Ok((_, n)) = rustix::net::recv(&*from, &mut buf[..], RecvFlags::empty()) {
            if n == 0 || io::Write::write_all(&mut &*to, buf.get(..n).unwrap_or_default()).is_err() {
                break;
            }
        }
        // RFCOMM ends in both directions at once.
        let _ = to.shutdown(Shutdown::Both);
    })?;
    thread::Builder::new().name("bluetooth out".into()).spawn(move || {
        let mut buf = [0; 4096];
        while let Ok(n) = io::Read::read(&mut &*stream, &mut buf) {
            let mut rest = buf.get(..n).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            while !rest.is_empty() {
                match rustix::net::send(&*socket, rest, SendFlags::NOSIGNAL) {
                    Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                    Err(_) => return,
                }
            }
        }
        let _ = rustix::net::shutdown(&*socket, rustix::net::Shutdown::Both);
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_the_kernel_has_them() {
        let address = Address::new([0xDC, 0xA6, 0x32, 0, 0, 1], 7);
        assert_eq!((size_of::<Address>(), address.device), (10, [1, 0, 0, 0x32, 0xA6, 0xDC]));
    }

    #[test]
    fn channels() {
        assert_eq!((channel(30).unwrap(), channel(5003).unwrap(), channel(50001).unwrap()), (30, 1, 2));
        assert!(channel(31).is_err() && channel(0).is_err());
    }
}
