//! A room that is switched on: hundreds of Pis ask for an address within one second, and again after 4, 8, 16
//! and 32 seconds, as boot ROMs do.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use piman_core::dhcp::{Builder, Header, Kind, Message, Op, code};
use piman_tests::netns::Network;
use rustix::net::sockopt;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// When a client asks again, in seconds after it asked first.
const AGAIN: [u64; 4] = [4, 8, 16, 32];
/// Within this time all of them ask for the first time.
const SWITCHED_ON: Duration = Duration::from_secs(1);

/// One of the Pis.
struct Pi {
    number: u32,
    asks: Vec<Instant>,
    asked: usize,
    offered: Option<(Ipv4Addr, Duration)>,
}

fn discover(number: u32) -> Vec<u8> {
    let [.., high, low] = number.to_be_bytes();
    let header = Header {
        flags: Header::BROADCAST,
        ..Header::new(Op::Request, number, [0xb8, 0x27, 0xeb, 1, high, low])
    };
    let mut bytes = [0; 600];
    let mut builder = Builder::new(&mut bytes, &header);
    builder.option(code::KIND, &[Kind::Discover.number()]);
    builder.option(code::CLASS, b"PXEClient:Arch:00000:UNDI:002001");
    let length = builder.finish().unwrap();
    bytes[..length].to_vec()
}

/// Lets so many Pis ask in the Pi's namespace until each has an offer or has asked five times.
fn switch_on(network: &Network, count: u32) -> Vec<Pi> {
    let namespace = fs::File::open(Path::new("/run/netns").join(&network.pi)).unwrap();
    let asking = std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let socket = UdpSocket::bind("0.0.0.0:68").unwrap();
        socket.set_broadcast(true).unwrap();
        // What the clients of this one socket are sent would otherwise be lost here.
        sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20).unwrap();
        let begun = Instant::now();
        let mut pis: Vec<Pi> = (0..count)
            .map(|number| {
                let first = begun + SWITCHED_ON * number / count;
                let again = AGAIN.iter().map(|s| first + Duration::from_secs(*s));
                Pi { number, asks: std::iter::once(first).chain(again).collect(), asked: 0, offered: None }
            })
            .collect();
        let mut buffer = [0; 2000];
        loop {
            let waiting = pis.iter_mut().filter(|pi| pi.offered.is_none());
            let Some(next) = waiting.filter(|pi| pi.asked < 5).min_by_key(|pi| pi.asks[pi.asked]) else {
                return pis;
            };
            let left = next.asks[next.asked].saturating_duration_since(Instant::now());
            if left < Duration::from_millis(1) {
                socket.send_to(&discover(next.number), "255.255.255.255:67").unwrap();
                next.asked += 1;
                continue;
            }
            socket.set_read_timeout(Some(left)).unwrap();
            let n = match socket.recv(&mut buffer) {
                Ok(n) => n,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
                Err(e) => panic!("{e}"),
            };
            let reply = Message::parse(&buffer[..n]).unwrap();
            assert_eq!(reply.kind(), Some(Kind::Offer));
            let ip = reply.your_address().unwrap();
            let pi = &mut pis[reply.number() as usize];
            let took = pi.asks[0].elapsed();
            let (first, _) = *pi.offered.get_or_insert((ip, took));
            assert_eq!(first, ip, "one Pi was offered two addresses");
        }
    });
    asking.join().unwrap()
}

fn room(count: u32) {
    let mut network = Network::make();
    let server = network.server.clone();
    network.ip(&server, "address flush dev cable");
    network.ip(&server, "address add 192.168.77.1/22 dev cable");
    let pi = network.pi.clone();
    // An interface without an address sends to nobody but by a route.
    network.ip(&pi, "route add default dev eth0");
    network.serve(&["--dhcp", "server", "--dhcp-range", "192.168.78.1-192.168.79.250"]);
    let pis = switch_on(&network, count);
    let mut tries = HashMap::<usize, usize>::new();
    let mut longest = Duration::ZERO;
    let mut addresses = HashMap::new();
    for pi in &pis {
        let (try_, took) = pi.offered.map_or((0, Duration::ZERO), |(_, took)| (pi.asked, took));
        *tries.entry(try_).or_default() += 1;
        longest = longest.max(took);
        if let Some((ip, _)) = pi.offered {
            assert_eq!(addresses.insert(ip, pi.number), None, "{ip} was offered twice");
        }
    }
    println!("{count} Pis: offers by number of tries {tries:?} (0: none), the last after {longest:?}");
    let late: Vec<u32> =
        pis.iter().filter(|p| p.offered.is_none() || p.asked > 2).map(|p| p.number).collect();
    assert!(late.is_empty() && longest < Duration::from_secs(10), "{tries:?}, {longest:?}, late: {late:?}");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
fn of_140_pis() {
    room(140);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
fn of_300_pis() {
    room(300);
}
