//! A few dozen Pis at once, more than are served at the same time: everybody gets everything in turn,
//! and who looks sees who waits.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use piman_tests::netns::Network;
use piman_tests::server::{Server, wait_until};
use piman_tests::tar;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// So many Pis.
const PIS: usize = 24;

/// Sockets that have asked for a file in the Pi's namespace, got its first blocks, and are silent.
fn silent(network: &Network, file: &str, count: usize) -> Vec<UdpSocket> {
    let namespace = fs::File::open(Path::new("/run/netns").join(&network.pi)).unwrap();
    let request = [b"\0\x01", file.as_bytes(), b"\0octet\0"].concat();
    let made = std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        (0..count)
            .map(|_| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                socket.send_to(&request, "192.168.77.1:69").unwrap();
                let (length, from) = socket.recv_from(&mut [0; 600]).unwrap();
                assert_eq!(length, 516);
                socket.connect(from).unwrap();
                // A client that has answered once has a place.
                socket.send(&[0, 4, 0, 1]).unwrap();
                let (length, _) = socket.recv_from(&mut [0; 600]).unwrap();
                assert_eq!(length, 516);
                socket
            })
            .collect()
    });
    made.join().unwrap()
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
#[cfg_attr(lacks = "curl", ignore = "needs curl")]
fn of_boot_files() {
    let mut network = Network::make();
    network.serve(&[
        "--dhcp",
        "server",
        "--dhcp-range",
        "192.168.77.10-192.168.77.12",
        "--tftp-transfers",
        "2",
    ]);
    let pi = network.pi.clone();
    network.ip(&pi, "address add 192.168.77.10/24 dev eth0");
    let bytes: Vec<u8> = (0..300_000u32).map(|n| (n / 7) as u8).collect();
    fs::write(network.dir.path().join("boot/big"), &bytes).unwrap();
    let holding = silent(&network, "big", 2);
    let mut clients: Vec<_> = (0..PIS)
        .map(|n| {
            let mut curl = network.command(&network.pi, "curl");
            curl.args(["-s", "-S", "--max-time", "100", "-o", &format!("got{n}"), "tftp://192.168.77.1/big"]);
            curl.spawn().unwrap()
        })
        .collect();
    let all = format!("2 files are being sent, {PIS} requests wait for their turn");
    wait_until("devices show the storm", || network.piman(&["devices"]).contains(&all));
    network.wait("log", "requests wait for their turn");
    for socket in &holding {
        // The client changed its mind.
        socket.send(b"\0\x05\0\0enough\0").unwrap();
    }
    for client in &mut clients {
        assert!(client.wait().unwrap().success(), "{}", network.text("log"));
    }
    for n in 0..PIS {
        assert!(fs::read(network.dir.path().join(format!("got{n}"))).unwrap() == bytes, "{n}");
    }
    network.wait("log", "nobody waits any more");
    wait_until("the storm is over", || !network.piman(&["devices"]).contains("wait for their turn"));
    let timeline = || network.piman(&["device", "b8:27:eb:00:00:01"]);
    wait_until("it is in the timeline", || timeline().contains("big: waits for its turn"));
}

#[test]
fn of_installations() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("rootfs.tar.zst");
    fs::copy(tar::of_bytes(24 << 20).path(), &archive).unwrap();
    let server = Server::start(&archive, &folder.path().join("state"), &["--no-date", "--slots", "2"]);
    server.wait_log("is good");
    let length = fs::metadata(&archive).unwrap().len();
    let mut running: Vec<_> = (0..PIS).map(|_| server.connect("rootfs")).collect();
    let all = format!("2 of 2 slots are taken, {} transfers wait for one", PIS - 2);
    wait_until("devices show the storm", || server.piman(&["devices"]).contains(&all));
    server.wait_log("waits for its turn");
    // One that has waited long enough.
    drop(running.pop());
    let readers: Vec<_> = running
        .into_iter()
        .map(|mut stream| {
            std::thread::spawn(move || {
                let mut got = 0;
                let mut buffer = vec![0; 1 << 16];
                loop {
                    match stream.read(&mut buffer) {
                        Ok(0) => return got,
                        Ok(n) => got += n as u64,
                        Err(e) if e.kind() == ErrorKind::Interrupted => {}
                        Err(e) => panic!("{e}"),
                    }
                }
            })
        })
        .collect();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), length);
    }
    wait_until("the storm is over", || !server.piman(&["devices"]).contains("slots are taken"));
    // Not one for each step of each that waits.
    let lines = server.log().matches("waits for its turn").count();
    assert!(lines <= PIS * 6, "{lines}");
}
