//! Listeners: binding with errors that help, and the accept loop.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

pub use super::gate::{Gate, Pass};

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
