//! The control port, with all connections taken.

use piman_tests::tar;

use super::*;

#[test]
fn a_few_addresses_that_take_all_connections_give_way() {
    let folder = tempfile::tempdir().unwrap();
    let limits = ["--no-date", "--connections", "120", "--connections-per-address", "30"];
    // It is read after the start.
    let archive = tar::of_bytes(1000);
    let server = Server::start(archive.path(), folder.path(), &limits);
    server.wait_log("is good");
    let port = server.port("control");
    let mut said = [0; 9];
    // They report, and then they may be silent for two hours.
    let mut greedy = Vec::new();
    for host in 1..=4 {
        for _ in 0..30 {
            let mut stream = from([127, 0, 1, host], port);
            stream.write_all(b"IS_INSTALLED\n").unwrap();
            stream.read_exact(&mut said).unwrap();
            greedy.push(stream);
        }
    }
    // The first of the first host is the only one that has moved lately.
    greedy[0].write_all(b"RECEIVED_BOOT\n").unwrap();
    server.wait_log("received boot");
    let mut others = Vec::new();
    for host in 1..=60 {
        let mut stream = from([127, 0, 2, host], port);
        stream.write_all(b"IS_INSTALLED\n").unwrap();
        stream.read_exact(&mut said).unwrap_or_else(|e| panic!("Pi {host} is served: {e}"));
        assert_eq!(&said, b"boot\nEOM\n");
        others.push(stream);
    }
    let open = |stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        let peeked = stream.peek(&mut [0]);
        matches!(peeked, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
    };
    wait_until("sixty gave way", || greedy.iter().filter(|s| open(s)).count() == 60);
    assert!(open(&greedy[0]), "the idlest go");
    assert!(others.iter().all(open), "the others keep theirs");
}
