//! Serial lines and Bluetooth in front of a server: what comes over them is joined with its services.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;
use piman_core::hosted::dial::serial::{Line, Listening, listen};
use socket2::{Domain, Socket, Type};

/// How long a service of this server may take to accept.
const CONNECT: Duration = Duration::from_secs(5);

/// Where a server's services are, by their usual ports.
#[derive(Debug, Clone)]
pub struct Services(pub Vec<(u16, SocketAddr)>);

impl Services {
    /// An offer names the ports as they are, everything else the usual ones.
    fn find(&self, port: u16) -> io::Result<SocketAddr> {
        let real = || self.0.iter().find(|(_, address)| address.port() == port);
        let usual = || self.0.iter().find(|(usual, _)| *usual == port);
        let missing = || io::Error::new(io::ErrorKind::NotFound, "this server has no such service");
        let (_, address) = usual().or_else(real).ok_or_else(missing)?;
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            ip => ip,
        };
        Ok(SocketAddr::new(ip, address.port()))
    }

    /// From an address of loopback that is this line's alone: so a Pi that has said who it is on one
    /// stream is known on all.
    fn connect(&self, port: u16, line: u8) -> io::Result<TcpStream> {
        let to = self.find(port)?;
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if to.ip().is_loopback() && to.is_ipv4() {
            socket.bind(&SocketAddr::from(([127, 83, 0, line], 0)).into())?;
        }
        socket.connect_timeout(&to.into(), CONNECT)?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket.into())
    }
}

/// Opens the lines.
///
/// # Errors
/// If one of them cannot be opened; the message says what to do.
pub fn start(lines: &[Line], services: &Services) -> anyhow::Result<Vec<Listening>> {
    let mut all = Vec::new();
    for (line, number) in lines.iter().zip(1..=u8::MAX) {
        let services = services.clone();
        let connect = Box::new(move |port| services.connect(port, number));
        let listening = listen(line, connect).with_context(|| {
            format!(
                "cannot use {line} (--serial); it must be a serial line that this user may read and write"
            )
        })?;
        tracing::info!("serial: listening on {line}");
        all.push(listening);
    }
    Ok(all)
}

/// Listens on Bluetooth channels: telemetry on the first, transfer and rpc on the next two.
///
/// # Errors
/// If there is no Bluetooth or a channel is taken.
#[cfg(feature = "bluetooth")]
pub fn start_bluetooth(first: u8, services: &Services) -> anyhow::Result<()> {
    use anyhow::ensure;
    use piman_core::hosted::dial::bluetooth::{CHANNEL_MAX, listen};
    use piman_core::{rpc, telemetry, transfer};
    ensure!(
        (1..=CHANNEL_MAX - 2).contains(&first),
        "--bluetooth takes a channel of 1 to {}",
        CHANNEL_MAX - 2
    );
    for (channel, port) in (first..).zip([telemetry::PORT, transfer::PORT, rpc::PORT]) {
        let services = services.clone();
        if services.find(port).is_err() {
            continue;
        }
        listen(channel, move || services.connect(port, u8::MAX)).context("--bluetooth")?;
        tracing::info!("Bluetooth: port {port} is on channel {channel}");
    }
    Ok(())
}

/// This program was built without it.
///
/// # Errors
/// Always.
#[cfg(not(feature = "bluetooth"))]
pub fn start_bluetooth(_first: u8, _services: &Services) -> anyhow::Result<()> {
    anyhow::bail!("--bluetooth: this piman was built without the feature `bluetooth`")
}
