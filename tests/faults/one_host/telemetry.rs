//! Records: whose file they go into, and how many there may be.

use std::path::Path;

use piman_core::install::{Can, Hello, Notice, Paths};
use piman_tests::tar;

use super::*;

fn says(address: [u8; 4], server: &Server, serial: &str) -> TcpStream {
    let hello = Notice::Hello(Hello {
        serial: Some(serial),
        mac: None,
        model: None,
        agent: None,
        disk_bytes: 1 << 30,
        root_bytes: 1 << 30,
        card_id: None,
        card: None,
        installation: None,
        paths: Paths { stream: true, image: false },
        can: Can::default(),
        revision: 0,
        found: None,
        print: None,
        personal: None,
    });
    let mut control = from(address, server.port("control"));
    control.write_all(format!("{hello}\nIS_INSTALLED\n").as_bytes()).unwrap();
    let mut said = [0; 64];
    assert!(control.read(&mut said).unwrap() > 0);
    control
}

/// Sends a record; whether it is acknowledged within a while.
fn record(stream: &mut TcpStream, text: &str) -> bool {
    stream.write_all(text.as_bytes()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    stream.read(&mut [0; 64]).is_ok_and(|n| n > 0)
}

fn connect(address: [u8; 4], server: &Server) -> TcpStream {
    let mut stream = from(address, server.port("telemetry"));
    stream.read_exact(&mut [0; 22]).unwrap();
    stream
}

fn text(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap_or_default()
}

#[test]
fn nobody_writes_into_the_file_of_another_pi() {
    let folder = tempfile::tempdir().unwrap();
    let records = folder.path().join("records");
    fs::create_dir(&records).unwrap();
    let more = ["--no-date", "--telemetry-dir", records.to_str().unwrap(), "--telemetry-port", "0"];
    // It is read after the start.
    let archive = tar::of_bytes(1000);
    let server = Server::start(archive.path(), &folder.path().join("state"), &more);
    let (pi, other) = ([127, 0, 5, 1], [127, 0, 5, 2]);
    let _controls = [pi, other].map(|address| says(address, &server, "10000000abcdef01"));
    assert!(record(&mut connect(other, &server), "false\n"));
    let mut connected = connect(pi, &server);
    assert!(record(&mut connected, "true\n"));
    assert!(record(&mut connect(other, &server), "false\n"));
    assert_eq!(text(&records, "10000000abcdef01.csv"), "true\n");
    assert_eq!(text(&records, "127.0.5.2.csv"), "false\nfalse\n");
}

#[test]
fn an_address_has_a_quota_of_records() {
    let folder = tempfile::tempdir().unwrap();
    let records = folder.path().join("records");
    fs::create_dir(&records).unwrap();
    let quotas = ["--telemetry-peer-quota-mib", "1", "--telemetry-quota-mib", "2"];
    let more =
        [&["--telemetry-dir", records.to_str().unwrap(), "--telemetry-port", "0"][..], &quotas].concat();
    let server = Server::start_services(&folder.path().join("state"), &more);
    let line = format!("{}\n", "x".repeat(8000));
    let fills = |address| {
        let mut stream = connect(address, &server);
        (0..1000).take_while(|_| record(&mut stream, &line)).count() * line.len()
    };
    let brought = fills([127, 0, 5, 1]);
    assert!((900_000..=1 << 20).contains(&brought), "{brought}");
    server.wait_log("--telemetry-peer-quota-mib");
    assert!(record(&mut connect([127, 0, 5, 2], &server), "1\n"), "others are served");
    fills([127, 0, 5, 3]);
    assert!(!record(&mut connect([127, 0, 5, 4], &server), "1\n"), "all together have one, too");
    let all: u64 = fs::read_dir(&records).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(all <= 2 << 20, "{all}");
}
