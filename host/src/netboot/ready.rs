//! Waiting for the interface and the addresses that a server is to use: after the machine was switched on they may
//! come later than the server.

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

use super::dhcp::server::address;

/// How long a server waits under systemd, and where `--wait-for-interface` names no time.
pub const LIMIT: Duration = Duration::from_secs(120);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(200);

/// Whether systemd has started this very program as a service.
#[must_use]
pub fn is_service() -> bool {
    // A terminal hands both variables on to what is started in it, with the number of another process.
    let started: Option<u32> = std::env::var("SYSTEMD_EXEC_PID").ok().and_then(|pid| pid.parse().ok());
    let parent_is_init = rustix::process::getppid().is_some_and(|parent| parent.is_init());
    let here = started.map_or(parent_is_init, |pid| pid == std::process::id());
    here && std::env::var_os("INVOCATION_ID").is_some()
}

/// What is not there yet, in words: one of these addresses, or an IPv4 address on the interface.
fn missing(listen: &[IpAddr], interface: Option<&str>) -> Option<String> {
    let absent = |ip: &&IpAddr| {
        let bound = UdpSocket::bind((**ip, 0));
        !ip.is_unspecified() && bound.is_err_and(|e| e.kind() == ErrorKind::AddrNotAvailable)
    };
    if let Some(ip) = listen.iter().find(absent) {
        return Some(format!("the address {ip} on this machine (to listen on)"));
    }
    let interface = interface.filter(|name| address(name).is_err())?;
    Some(format!("the interface {interface} and an IPv4 address on it (--dhcp-interface)"))
}

/// Waits until this machine has these addresses, and the interface has one. Without a `limit` it does not look: binding
/// to them reports what is wrong.
///
/// # Errors
/// If that is not so within `limit`.
pub fn wait(listen: &[IpAddr], interface: Option<&str>, limit: Duration) -> anyhow::Result<()> {
    if limit.is_zero() {
        return Ok(());
    }
    let begun = Instant::now();
    let mut said = None;
    while let Some(what) = missing(listen, interface) {
        let left = limit.saturating_sub(begun.elapsed());
        if left.is_zero() {
            bail!(
                "waited {} s for {what} in vain: `ip -brief address` shows what there is; --wait-for-interface TIME waits for longer",
                limit.as_secs()
            );
        }
        if said.as_ref() != Some(&what) {
            tracing::info!("waiting for {what}, for {} s at most", left.as_secs().max(1));
            said = Some(what);
        }
        thread::sleep(LOOK.min(left));
    }
    if said.is_some() {
        tracing::info!("it is there, after {:.1} s", begun.elapsed().as_secs_f64());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_comes_is_named() {
        let here: IpAddr = [127, 0, 0, 1].into();
        assert!(wait(&[here, [0; 4].into()], Some("lo"), Duration::ZERO).is_ok());
        let limit = Duration::from_millis(300);
        // An address for documentation, which nobody has.
        let text = wait(&[here, [192, 0, 2, 1].into()], None, limit).unwrap_err().to_string();
        assert!(text.contains("192.0.2.1"), "{text}");
        let text = wait(&[here], Some("no-such-if"), limit).unwrap_err().to_string();
        assert!(text.contains("no-such-if"), "{text}");
    }
}
