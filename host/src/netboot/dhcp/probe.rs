//! Whether somebody has an address already: an echo request, and what the system learns on its way.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

/// How long to wait for somebody to answer.
const WAIT: Duration = Duration::from_millis(400);
/// An echo request (RFC 792) with number and sequence 0; the checksum of all that is its complement.
const ECHO: [u8; 8] = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];

/// Whether somebody on this interface has this address. Takes 0.4 seconds if nobody has.
///
/// Whoever does not answer echo requests is found by the address resolution that comes before.
///
/// # Errors
/// If the socket is not permitted.
pub fn is_taken(interface: &str, ip: Ipv4Addr) -> io::Result<bool> {
    let known_before = hardware_address(ip).is_some();
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.connect(&SocketAddrV4::new(ip, 0).into())?;
    let deadline = Instant::now() + WAIT;
    // An error here is somebody's "unreachable": nobody has it.
    let _ = socket.send(&ECHO);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        socket.set_read_timeout(Some(left))?;
        let mut buffer = [std::mem::MaybeUninit::<u8>::uninit(); 64];
        match socket.recv(&mut buffer) {
            // Connected: only what comes from that address is received.
            Ok(_) => return Ok(true),
            Err(_) => continue,
        }
    }
    // What was known before may be of somebody who has left.
    Ok(!known_before && hardware_address(ip).is_some())
}

/// The hardware address that the system knows for an address, if somebody has answered for it.
#[must_use]
pub fn hardware_address(ip: Ipv4Addr) -> Option<String> {
    let table = std::fs::read_to_string("/proc/net/arp").ok()?;
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace();
        let (address, _kind, flags, mac) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let complete = u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()? & 2 != 0;
        (complete && address.parse() == Ok(ip)).then(|| mac.to_owned())
    })
}
