//! A host that takes addresses in the names of many.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use piman_core::dhcp::{Builder, Header, Kind, Op, code};
use piman_tests::netns::Network;
use piman_tests::server::wait_until;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How many hardware addresses it makes up: many more than there are addresses to give.
const MADE_UP: u32 = 60;

fn packet(number: u32, kind: Kind, asked: Option<Ipv4Addr>) -> Vec<u8> {
    let [.., high, low] = number.to_be_bytes();
    let header = Header {
        flags: Header::BROADCAST,
        ..Header::new(Op::Request, number, [0xb8, 0x27, 0xeb, 9, high, low])
    };
    let mut bytes = [0; 600];
    let mut builder = Builder::new(&mut bytes, &header);
    builder.option(code::KIND, &[kind.number()]);
    builder.option(code::CLASS, b"PXEClient:Arch:00000:UNDI:002001");
    if let Some(ip) = asked {
        builder.option(code::REQUESTED_ADDRESS, &ip.octets());
    }
    let length = builder.finish().unwrap();
    bytes[..length].to_vec()
}

/// Sends, in the namespace of another host, one packet for each made-up hardware address.
fn take_all(host: &str, kind: Kind) {
    let namespace = fs::File::open(Path::new("/run/netns").join(host)).unwrap();
    let sending = std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let socket = UdpSocket::bind("0.0.0.0:68").unwrap();
        socket.set_broadcast(true).unwrap();
        for n in 0..MADE_UP {
            let asked = (kind == Kind::Request).then(|| Ipv4Addr::new(192, 168, 77, 10 + (n % 11) as u8));
            socket.send_to(&packet(n, kind, asked), "192.168.77.255:67").unwrap();
            std::thread::park_timeout(Duration::from_millis(2));
        }
    });
    sending.join().unwrap();
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
#[cfg_attr(lacks = "busybox", ignore = "needs busybox")]
fn one_host_leaves_addresses_to_the_others() {
    let mut network = Network::make();
    let host = network.other("192.168.77.200/24");
    network.serve(&["--dhcp", "server", "--dhcp-range", "192.168.77.10-192.168.77.20"]);
    let leases = |network: &Network| network.text("state/dhcp-leases");
    for kind in [Kind::Discover, Kind::Request] {
        take_all(&host, kind);
        wait_until("all are taken", || leases(&network).lines().count() >= 11);
        let told = network.udhcpc("");
        assert!(told.contains("ip=192.168.77."), "{told}");
    }
    // A Pi that is in the device list keeps its address, whoever asks.
    let _ = network.piman(&["devices", "add", "b8:27:eb:00:00:01"]);
    let told = network.udhcpc("");
    let ip = told.lines().find_map(|line| line.strip_prefix("ip=")).unwrap().to_owned();
    let own = |network: &Network| {
        let of_pi = |line: &&str| line.contains("b8:27:eb:00:00:01");
        leases(network).lines().find(of_pi).map(|line| line.split(' ').next().unwrap().to_owned())
    };
    for kind in [Kind::Discover, Kind::Request, Kind::Discover] {
        take_all(&host, kind);
        assert_eq!(own(&network), Some(ip.clone()));
    }
    assert!(network.udhcpc("").contains(&ip));
}
