//! Reaching a server: over TCP by its name, over a serial line by the line's device, over Bluetooth by its
//! address. What comes back is a TCP stream in all cases, so that nothing else has to know.
//!
//! | server | how | feature |
//! |---|---|---|
//! | `HOST` | TCP | |
//! | `serial:DEVICE[:BAUD]` | streams over a line, `serial`; one program a line | `serial` |
//! | `XX:XX:XX:XX:XX:XX` | RFCOMM, `bluetooth` | `bluetooth` |

#[cfg(feature = "dial-bluetooth")]
pub mod bluetooth;
#[cfg(feature = "dial-serial")]
mod mux;
#[cfg(feature = "dial-serial")]
pub mod serial;

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::prelude::rust_2024::*;
use std::time::Duration;

use rustix::net::sockopt;

/// Connects to a service by its usual port; each address of the host may take so long.
///
/// # Errors
/// If the name is unknown, nobody answers, or this program was built without what it takes.
pub fn connect(host: &str, port: u16, within: Duration) -> io::Result<TcpStream> {
    if let Some(line) = host.strip_prefix("serial:") {
        #[cfg(feature = "dial-serial")]
        return serial::connect(&line.parse().map_err(io::Error::other)?, port, within);
        #[cfg(not(feature = "dial-serial"))]
        return Err(lacks(line, "serial"));
    }
    if is_bluetooth(host) {
        #[cfg(feature = "dial-bluetooth")]
        return bluetooth::connect(host, port, within);
        #[cfg(not(feature = "dial-bluetooth"))]
        return Err(lacks(host, "bluetooth"));
    }
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    let unknown = |e: io::Error| io::Error::new(e.kind(), format!("looking up the address of {host}: {e}"));
    for address in (host, port).to_socket_addrs().map_err(unknown)? {
        match TcpStream::connect_timeout(&address, within) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(e) => last = io::Error::new(e.kind(), format!("connecting to {address}: {e}")),
        }
    }
    Err(last)
}

/// Has a server that lost power noticed after two minutes, also while nothing is to be said.
///
/// # Errors
/// The kernel's, if it refuses.
pub fn keepalive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(stream, 4)?;
    Ok(())
}

/// `XX:XX:XX:XX:XX:XX`; an IPv6 address has not six groups of two.
fn is_bluetooth(host: &str) -> bool {
    let group = |g: &str| g.len() == 2 && g.bytes().all(|b| b.is_ascii_hexdigit());
    host.split(':').count() == 6 && host.split(':').all(group)
}

#[cfg(not(all(feature = "dial-serial", feature = "dial-bluetooth")))]
fn lacks(what: &str, feature: &str) -> io::Error {
    let text = format!("{what}: this program was built without the feature `{feature}`");
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// Both ends of a stream within this program.
#[cfg(any(feature = "dial-serial", feature = "dial-bluetooth"))]
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let ours = TcpStream::connect(listener.local_addr()?)?;
    // Anybody on this machine may have been quicker.
    loop {
        let (theirs, from) = listener.accept()?;
        if from == ours.local_addr()? {
            ours.set_nodelay(true)?;
            theirs.set_nodelay(true)?;
            return Ok((ours, theirs));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_servers() {
        assert!(is_bluetooth("dc:a6:32:00:00:01") && is_bluetooth("DC:A6:32:00:00:01"));
        for other in ["pi.lan", "10.0.0.1", "::1", "fe80::1:2:3:4:5", "1:2:3:4:5:6", "dc:a6:32:00:00:0g"] {
            assert!(!is_bluetooth(other), "{other}");
        }
        let error = connect("serial:/dev/no-such-line", 1, Duration::from_millis(10)).unwrap_err();
        assert!(error.to_string().contains("/dev/no-such-line"), "{error}");
    }
}
