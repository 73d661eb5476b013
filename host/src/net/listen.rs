//! Listeners: binding with errors that help, limits, and the accept loop.

use std::collections::HashMap;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::sys::lock::lock;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 4096;
const BACK_OFF_MIN: Duration = Duration::from_millis(10);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// Binds a listener; `flag` is the option that names its port, for the error.
///
/// # Errors
/// If the port is taken, not permitted, or the address is not this machine's.
pub fn bind(ip: IpAddr, port: u16, flag: &str) -> anyhow::Result<std::net::TcpListener> {
    let address = SocketAddr::new(ip, port);
    let listener = || -> io::Result<std::net::TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if ip.is_ipv6() {
            socket.set_only_v6(!ip.is_unspecified())?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    listener().map_err(|e| {
        let what = format!("cannot listen on {address}: {e}");
        match e.kind() {
            ErrorKind::AddrInUse => anyhow!(
                "{what}; another program has port {port}: `ss -ltnp 'sport = :{port}'` says which. Stop it, or choose another port with {flag}"
            ),
            ErrorKind::PermissionDenied => anyhow!(
                "{what}; ports below 1024 are not for every user: choose another with {flag}, start as root, or allow it with `setcap cap_net_bind_service=+ep piman`"
            ),
            ErrorKind::AddrNotAvailable => anyhow!(
                "{what}; this machine does not have that address: `ip address` shows what it has, choose one with --listen"
            ),
            _ => anyhow!(what),
        }
    })
}

/// Limits the connections of one listener, in total and for each address.
#[derive(Debug)]
pub struct Gate {
    name: &'static str,
    total: usize,
    per_address: usize,
    open: Mutex<Open>,
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
    said: Option<Instant>,
}

/// The right to one connection; it ends when this is dropped.
#[derive(Debug)]
pub struct Pass {
    gate: Arc<Gate>,
    address: IpAddr,
}

impl Gate {
    /// A gate for the listener called `name`.
    #[must_use]
    pub fn new(name: &'static str, total: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self { name, total, per_address, open: Mutex::default(), refused: AtomicU64::new(0) })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }

    /// Lets one more connection in, or not.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Pass> {
        let mut open = self.lock();
        let here = open.by_address.get(&address).copied().unwrap_or(0);
        if open.total < self.total && here < self.per_address {
            open.total += 1;
            open.by_address.insert(address, here + 1);
            return Some(Pass { gate: Arc::clone(self), address });
        }
        let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        // One line a second at most: whoever floods the port must not flood the log.
        if open.said.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) {
            open.said = Some(Instant::now());
            let whose = if here < self.per_address { "in total" } else { "from this address" };
            tracing::warn!(
                "{}: {address} is refused: {} connections are open {whose} ({refused} refused so far)",
                self.name,
                if here < self.per_address { open.total } else { here }
            );
        }
        None
    }

    /// How many connections are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.lock().total
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut open = self.gate.lock();
        open.total = open.total.saturating_sub(1);
        if let Some(here) = open.by_address.get_mut(&self.address) {
            *here = here.saturating_sub(1);
            if *here == 0 {
                open.by_address.remove(&self.address);
            }
        }
    }
}

/// Accepts for ever; each connection that the gate lets in becomes a task. The listener is
/// closed when this future is dropped.
///
/// # Errors
/// If the listener cannot be used at all.
pub async fn accept<F, S>(listener: std::net::TcpListener, gate: Arc<Gate>, serve: S) -> anyhow::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
    S: Fn(TcpStream, IpAddr, Pass) -> F,
{
    let listener = TcpListener::from_std(listener).context("cannot use a listener")?;
    let mut back_off = BACK_OFF_MIN;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                back_off = BACK_OFF_MIN;
                let address = peer.ip().to_canonical();
                if let Some(pass) = gate.enter(address) {
                    tokio::spawn(serve(stream, address, pass));
                }
            }
            // The peer is gone again: nothing is wrong here.
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
            Err(e) => {
                let files = [Errno::MFILE.raw_os_error(), Errno::NFILE.raw_os_error()];
                let hint = match e.raw_os_error() {
                    Some(n) if files.contains(&n) => " (too many files are open: raise `ulimit -n`)",
                    _ => "",
                };
                tracing::error!("{}: cannot accept{hint}: {e}; again in {back_off:?}", gate.name);
                tokio::time::sleep(back_off).await;
                back_off = (back_off * 2).min(BACK_OFF_MAX);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_in_total_and_by_address() {
        let gate = Gate::new("control", 3, 2);
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = gate.enter(a).unwrap();
        let _second = gate.enter(a).unwrap();
        assert!(gate.enter(a).is_none());
        let _third = gate.enter(b).unwrap();
        assert!(gate.enter(b).is_none());
        drop(first);
        assert!(gate.enter(b).is_some());
        assert_eq!(gate.open(), 2);
    }
}
