//! HTTP boot: a host that opens all connections, and asks for all it can.

use std::fs;
use std::thread;

use piman_tests::http::Client;
use piman_tests::server::Server;

#[test]
fn who_takes_all_connections_stops_no_pi() {
    let dir = tempfile::tempdir().unwrap();
    let boot = dir.path().join("boot");
    fs::create_dir(&boot).unwrap();
    let image: Vec<u8> = (0..8_u32 << 20).map(|n| (n ^ (n >> 8)) as u8).collect();
    fs::write(boot.join("kernel8.img"), &image).unwrap();
    let more =
        ["--tftp-port", "0", "--http-boot-port", "0", "--connections", "64", "--connections-per-address"];
    let all = [&["--netboot", boot.to_str().unwrap()][..], &more, &["32"]].concat();
    let server = Server::start_services(&dir.path().join("state"), &all);
    let port = server.port("http-boot");
    let client = |n: u8| Client::from([127, 0, 0, n], port);
    // Two hosts have all places: some of their connections say nothing, the others ask and read nothing.
    let mut greedy: Vec<Client> = (0..64).map(|n| client(2 + n % 2)).collect();
    greedy.iter_mut().skip(32).for_each(|client| client.ask("/kernel8.img", ""));
    // No more for one of them.
    assert_eq!(client(2).rest(), 0);
    server.wait_log("http-boot: 127.0.0.2 is refused");
    // A room of Pis is served all the same.
    thread::scope(|scope| {
        for n in 10..26 {
            let (client, image) = (&client, &image);
            scope.spawn(move || assert!(client(n).get("/kernel8.img", "").body == *image, "{n}"));
        }
    });
    drop(greedy);
}

#[test]
fn memory_stays_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let boot = dir.path().join("boot");
    fs::create_dir(&boot).unwrap();
    fs::write(boot.join("kernel8.img"), vec![0; 32 << 20]).unwrap();
    let all = ["--netboot", boot.to_str().unwrap(), "--tftp-port", "0", "--http-boot-port", "0"];
    let server = Server::start_services(&dir.path().join("state"), &all);
    let port = server.port("http-boot");
    super::forget_peak(&server);
    let before = server.memory_kb("VmHWM");
    let mut clients: Vec<Client> = (0..200).map(|_| Client::from([127, 0, 0, 2], port)).collect();
    for client in &mut clients {
        // The longest head that may be, and a file that is not read.
        client.send(format!("GET /kernel8.img?{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(3900)));
    }
    for client in &mut clients {
        let mut status = [0; 12];
        std::io::Read::read_exact(&mut client.0, &mut status).unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
    }
    let grown = server.memory_kb("VmHWM").saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} kB for 200 connections");
}
