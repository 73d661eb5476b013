//! What a server meets where it is put up: a narrow way to the Pi, an interface that comes late, another DHCP
//! server, relays, UEFI.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use piman_core::dhcp::{Builder, Header, Kind, Message, Op, code};
use piman_tests::binaries;
use piman_tests::disk::run;
use piman_tests::netns::{Network, said};
use piman_tests::wait::until;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const SERVER: [&str; 4] = ["--dhcp", "server", "--dhcp-range", "192.168.77.10-192.168.77.12"];

/// A socket in a namespace.
fn socket_in(namespace: &str, at: &str) -> UdpSocket {
    let namespace = fs::File::open(Path::new("/run/netns").join(namespace)).unwrap();
    let at = at.to_owned();
    let made = std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let socket = UdpSocket::bind(at).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket
    });
    made.join().unwrap()
}

/// Fetches a file with blocks of 1468 bytes; returns the size that was granted, and the file.
fn fetch(namespace: &str, name: &str) -> (usize, Vec<u8>) {
    let socket = socket_in(namespace, "0.0.0.0:0");
    let request = [b"\0\x01", name.as_bytes(), b"\0octet\0blksize\x001468\0"].concat();
    socket.send_to(&request, "192.168.77.1:69").unwrap();
    let mut buffer = [0; 2000];
    let (n, from) = socket.recv_from(&mut buffer).unwrap();
    let granted = String::from_utf8_lossy(&buffer[2..n]).into_owned();
    let granted: usize = granted.split('\0').nth(1).unwrap().parse().unwrap();
    socket.connect(from).unwrap();
    let mut file = Vec::new();
    let mut acked = 0u16;
    loop {
        let [high, low] = acked.to_be_bytes();
        socket.send(&[0, 4, high, low]).unwrap();
        let n = socket.recv(&mut buffer).unwrap();
        if buffer[..2] != [0, 3] || buffer[2..4] != (acked + 1).to_be_bytes() {
            continue;
        }
        file.extend_from_slice(&buffer[4..n]);
        acked += 1;
        if n < granted + 4 {
            let [high, low] = acked.to_be_bytes();
            socket.send(&[0, 4, high, low]).unwrap();
            return (granted, file);
        }
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
fn a_way_that_is_narrower_than_the_interface() {
    let mut network = Network::make();
    let server = network.server.clone();
    let router = network.other("192.168.77.3/24");
    let far = format!("{router}-far");
    for line in [
        format!("netns add {far}"),
        format!("-n {router} link add down0 type veth peer name eth0 netns {far}"),
        format!("-n {router} address add 10.9.0.1/24 dev down0"),
        format!("-n {router} link set down0 mtu 1400 up"),
        format!("-n {far} address add 10.9.0.2/24 dev eth0"),
        format!("-n {far} link set eth0 up"),
        format!("-n {far} route add default via 10.9.0.1"),
        format!("-n {server} route add 10.9.0.0/24 via 192.168.77.3"),
    ] {
        run(Command::new("ip").args(line.split_whitespace()));
    }
    network.adopt(&far);
    run(network.command(&router, "sh").args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]));
    network.serve(&["--dhcp", "proxy"]);
    let bytes: Vec<u8> = (0..100_000u32).map(|n| (n / 7) as u8).collect();
    fs::write(network.dir.path().join("boot/big"), &bytes).unwrap();
    let (granted, file) = fetch(&far, "big");
    assert!(granted == 1468 && file == bytes, "{granted}, {} bytes", file.len());
    network.wait("log", "blocks of 1468 bytes do not reach it");
    let (granted, file) = fetch(&far, "big");
    assert!(granted == 1368 && file == bytes, "{granted}, {} bytes: it fits now", file.len());
    // Others are not made slower.
    network.ip(&network.pi, "address add 192.168.77.10/24 dev eth0");
    assert_eq!(fetch(&network.pi, "big").0, 1468);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
fn an_interface_that_comes_late() {
    let mut network = Network::make();
    let server = network.server.clone();
    network.serve(&["--dhcp", "proxy"]);
    network.stop();
    network.ip(&server, "address flush dev cable");
    let piman = |network: &Network, more: &[&str]| {
        let mut command = network.command(&server, &binaries::piman().display().to_string());
        command.args(["serve", "--state", "state", "--netboot", "boot", "--dhcp", "proxy", "--listen"]);
        command.args(["192.168.77.9", "--dhcp-interface", "late"]).args(more);
        command
    };
    let text = said(piman(&network, &["--wait-for-interface=300ms"]));
    assert!(text.contains("in vain") && text.contains("192.168.77.9"), "{text}");
    let text = said(piman(&network, &["--wait-for-interface=0"]));
    assert!(!text.contains("waiting for"), "{text}");
    let waiting = piman(&network, &["--wait-for-interface"]);
    network.start(waiting, "late");
    network.wait("late", "waiting for the address 192.168.77.9");
    network.ip(&server, "address add 192.168.77.9/24 dev cable");
    network.wait("late", "waiting for the interface late and an IPv4 address on it");
    network.ip(&server, "link add late type veth peer name far");
    network.ip(&server, "link set late up");
    network.ip(&server, "address add 192.168.80.1/24 dev late");
    network.wait("late", "dhcp proxy late");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
fn another_dhcp_server_is_found_at_the_start() {
    let mut network = Network::make();
    let other = network.other("192.168.77.2/24");
    network.serve(&["--dhcp", "proxy"]);
    network.stop();
    let mut there = network.command(&other, &binaries::piman().display().to_string());
    there
        .args(["serve", "--state", "there-state", "--netboot", "boot", "--dhcp-interface", "eth0"])
        .args(SERVER);
    network.start(there, "there");
    network.wait("there", "dhcp server eth0");
    let serve = |network: &Network, more: &[&str]| {
        let mut command = network.command(&network.server, &binaries::piman().display().to_string());
        command.args(["serve", "--state", "state", "--netboot", "boot", "--dhcp-interface", "cable"]);
        command.args(SERVER).args(more);
        command
    };
    let text = said(serve(&network, &[]));
    assert!(text.contains("192.168.77.2 gives addresses on cable already"), "{text}");
    assert!(text.contains("--dhcp proxy") && text.contains("--dhcp-force"), "{text}");
    let forced = serve(&network, &["--dhcp-force"]);
    network.start(forced, "forced");
    network.wait("forced", "dhcp server cable");
    assert!(network.text("forced").contains("192.168.77.2 gives addresses on cable already"));
}

/// A packet of a client, with these options beside its kind.
fn packet(kind: Kind, address: Ipv4Addr, relay: Ipv4Addr, options: &[(u8, &[u8])]) -> Vec<u8> {
    let header = Header {
        flags: Header::BROADCAST,
        client_address: address,
        relay,
        ..Header::new(Op::Request, 7, [2, 0, 0, 0, 1, 1])
    };
    let mut bytes = [0; 1000];
    let mut builder = Builder::new(&mut bytes, &header);
    builder.option(code::KIND, &[kind.number()]);
    for (code, value) in options {
        builder.option(*code, value);
    }
    let length = builder.finish().unwrap();
    bytes[..length].to_vec()
}

fn option(packet: &[u8], code: u8) -> Vec<u8> {
    Message::parse(packet).unwrap().option(code).map(|value| value.bytes().collect()).unwrap_or_default()
}

/// Asks until there is an answer of this kind.
fn answer(socket: &UdpSocket, to: &str, packet: &[u8], kind: Kind) -> (Vec<u8>, SocketAddr) {
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut buffer = [0; 2000];
    let mut got = None;
    until("an answer", || {
        socket.send_to(packet, to).unwrap();
        got = socket.recv_from(&mut buffer).ok();
        got.is_some_and(|(n, _)| Message::parse(&buffer[..n]).unwrap().kind() == Some(kind))
    });
    let (n, from) = got.unwrap();
    (buffer[..n].to_vec(), from)
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
fn what_a_relay_adds_comes_back() {
    let mut network = Network::make();
    let relay = network.other("192.168.77.3/24");
    let socket = socket_in(&relay, "192.168.77.3:67");
    let information: &[u8] = b"\x01\x04\0\x02\x01\x05\x02\x08\0\x06\x02\0\0\0\0\x07\x98\0";
    let class: &[u8] = b"PXEClient:Arch:00007:UNDI:003000";
    let at = Ipv4Addr::new(192, 168, 77, 3);
    let options = [(code::CLASS, class), (code::RELAY_INFORMATION, information)];
    let discover = packet(Kind::Discover, Ipv4Addr::UNSPECIFIED, at, &options);
    for mode in [&SERVER[..], &["--dhcp", "proxy"]] {
        network.serve(&[mode, &["--dhcp-everybody"]].concat());
        let (offer, _) = answer(&socket, "192.168.77.1:67", &discover, Kind::Offer);
        assert_eq!(option(&offer, code::RELAY_INFORMATION), information, "{mode:?}");
        network.stop();
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
fn a_boot_rom_that_is_not_in_the_device_list_gets_no_answer() {
    let mut network = Network::make();
    network.serve(&[&SERVER[..], &["--only-known"]].concat());
    let (server, pi) = (network.server.clone(), network.pi.clone());
    network.ip(&pi, "route add default dev eth0");
    let socket = socket_in(&pi, "0.0.0.0:68");
    // What the boot ROM of a Pi 4 with the serial number ...abcdef01 says.
    let guid: &[u8] = b"\0RPi4\x11\x31\xc0\0\0\x01\x02\x03\x01\xef\xcd\xab";
    let client: [(u8, &[u8]); 2] =
        [(code::MACHINE_ID, guid), (code::CLASS, b"PXEClient:Arch:00000:UNDI:002001")];
    let none = Ipv4Addr::UNSPECIFIED;
    let discover = packet(Kind::Discover, none, none, &client);
    socket.send_to(&discover, "255.255.255.255:67").unwrap();
    network.wait("log", "gets no answer by DHCP: it is not in the device list");
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv_from(&mut [0; 2000]).is_err(), "it has no answer");
    socket.set_nonblocking(false).unwrap();
    let mut add = network.command(&server, binaries::piman().to_str().unwrap());
    run(add.args(["devices", "add", "10000000abcdef01", "--state", "state"]));
    answer(&socket, "255.255.255.255:67", &discover, Kind::Offer);
    assert_eq!(network.text("log").matches("gets no answer by DHCP").count(), 1, "it is said once");
}

/// As EDK2 sends it: without the broadcast flag it would not hear an answer here.
#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
fn uefi_firmware_gets_an_address_and_a_file() {
    let mut network = Network::make();
    network.serve(&[&SERVER[..], &["--dhcp-everybody", "--dhcp-file", "boot.efi"]].concat());
    let pi = network.pi.clone();
    network.ip(&pi, "route add default dev eth0");
    let socket = socket_in(&pi, "0.0.0.0:68");
    let none = Ipv4Addr::UNSPECIFIED;
    let guid = [&[0][..], &[7; 16]].concat();
    let client: [(u8, &[u8]); 5] = [
        (57, &1472u16.to_be_bytes()),
        (code::MACHINE_ID, &guid),
        (94, &[1, 3, 0]),
        (93, &[0, 7]),
        (code::CLASS, b"PXEClient:Arch:00007:UNDI:003000"),
    ];
    let discover = packet(Kind::Discover, none, none, &client);
    let (offer, _) = answer(&socket, "255.255.255.255:67", &discover, Kind::Offer);
    // With this it is an offer that EDK2 takes as it is; without it it looks for another server.
    assert_eq!(option(&offer, code::VENDOR), b"\x06\x01\x08\xff");
    assert_eq!(option(&offer, code::CLASS), b"PXEClient");
    assert_eq!(option(&offer, code::BOOT_FILE), b"boot.efi");
    let ip = Message::parse(&offer).unwrap().your_address().unwrap();
    let selects =
        [&client[..], &[(code::SERVER, &[192, 168, 77, 1]), (code::REQUESTED_ADDRESS, &ip.octets())]];
    let request = packet(Kind::Request, none, none, &selects.concat());
    answer(&socket, "255.255.255.255:67", &request, Kind::Ack);
    // A client that looks for the boot server all the same finds it.
    network.ip(&pi, "route flush dev eth0");
    network.ip(&pi, &format!("address add {ip}/24 dev eth0"));
    let again = socket_in(&pi, &format!("{ip}:4011"));
    let request = packet(Kind::Request, ip, none, &client);
    let (ack, from) = answer(&again, "192.168.77.1:4011", &request, Kind::Ack);
    assert_eq!((option(&ack, code::BOOT_FILE).as_slice(), from.port()), (&b"boot.efi"[..], 4011));
}
