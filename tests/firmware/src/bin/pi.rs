//! A Pi without an operating system. Arguments: the server's address, then SERVICE=PORT of each service
//! that is to be used: `control` with `rootfs`, `transfer`, `frames`, `talks`, `stream`.
#![no_std]
#![no_main]

use core::future::poll_fn;
use core::task::Poll;

use piman_core::transport::smoltcp::{Clock as _, Stack};
use piman_firmware::pi::clock::Clock;
use piman_firmware::pi::lan9118::Lan9118;
use piman_firmware::say;
use piman_firmware::semihosting::{arguments, exit};
use piman_firmware::services::{self, Failed};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, IpEndpoint};

/// What a socket holds in each direction, in bytes: no more than the controller does.
const RECEIVED: usize = 8192;
const SENT: usize = 2048;

#[cortex_m_rt::entry]
fn main() -> ! {
    let Some(core) = cortex_m::Peripherals::take() else { exit(false) };
    let clock = Clock::start(core.SYST);
    let Some(mut device) = Lan9118::start() else {
        say!("there is no LAN9118");
        exit(false)
    };
    let mac = device.mac();
    let mut config = Config::new(EthernetAddress(mac).into());
    config.random_seed = 0x5eed;
    let interface = Interface::new(config, &mut device, Instant::ZERO);
    let (mut received, mut sent) = ([[0; RECEIVED]; 2], [[0; SENT]; 2]);
    let mut storage = [SocketStorage::EMPTY; 3];
    let mut set = SocketSet::new(&mut storage[..]);
    let mut handles = received.iter_mut().zip(&mut sent).map(|(received, sent)| {
        set.add(tcp::Socket::new(
            tcp::SocketBuffer::new(&mut received[..]),
            tcp::SocketBuffer::new(&mut sent[..]),
        ))
    });
    let (Some(one), Some(two)) = (handles.next(), handles.next()) else { exit(false) };
    drop(handles);
    let dhcp = set.add(dhcpv4::Socket::new());
    let net = Stack::new(device, interface, set, clock, 0x3a7);
    let done = net.run(work(&net, [one, two], dhcp));
    match &done {
        Ok(()) => say!("done after {} ms", clock.now_ms()),
        Err(e) => say!("failed: {e}"),
    }
    exit(done.is_ok())
}

/// The network of the board.
type Net<'a> = Stack<'a, Lan9118, Clock>;

async fn work(net: &Net<'_>, sockets: [SocketHandle; 2], dhcp: SocketHandle) -> Result<(), Failed> {
    let address = configure(net, dhcp).await;
    say!("address {address}");
    let mut line = [0; 256];
    let mut words = arguments(&mut line).skip(1);
    let server: IpAddress = words.next().and_then(|w| w.parse().ok()).ok_or(Failed("no address is given"))?;
    let mut control = None;
    for word in words {
        let service = word.split_once('=').and_then(|(name, port)| Some((name, port.parse().ok()?)));
        let (name, port) = service.ok_or(Failed("that is not SERVICE=PORT"))?;
        let to = IpEndpoint::new(server, port);
        match (name, control) {
            ("control", _) => control = Some(to),
            ("rootfs", Some(control)) => services::install(net, sockets, control, to).await?,
            ("transfer", _) => services::transfer(net, sockets[0], to, "file.bin").await?,
            ("frames", _) => services::frames(net, sockets[0], to).await?,
            ("rpc", _) => services::talks(net, sockets[0], to, "open sesame").await?,
            ("telemetry", _) => services::records(net, sockets[0], to, 1000).await?,
            _ => return Err(Failed("there is no such service")),
        }
    }
    Ok(())
}

/// Waits for an address from DHCP, and takes it.
async fn configure(net: &Net<'_>, dhcp: SocketHandle) -> IpCidr {
    poll_fn(|_| {
        net.with(|_, interface, sockets| {
            let Some(dhcpv4::Event::Configured(config)) = sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp).poll()
            else {
                return Poll::Pending;
            };
            let address = IpCidr::Ipv4(config.address);
            interface.update_ip_addrs(|addresses| {
                addresses.clear();
                // There is room for one.
                let _ = addresses.push(address);
            });
            if let Some(router) = config.router {
                // And for one route.
                let _ = interface.routes_mut().add_default_ipv4_route(router);
            }
            Poll::Ready(address)
        })
    })
    .await
}
