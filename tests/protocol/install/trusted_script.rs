//! What the firmware whose size is measured gets from its certified server (`tests/firmware/src/sizes/trusted.rs`).

use piman_core::install::trust::{DeviceKey, Nonce, ServerTrust};
use piman_core::install::{Can, Clock, Command, Hello, Notice, Paths, REVISION};

use super::hostile::{NOW, server};
use super::offer;

#[test]
fn the_script_of_the_firmware_is_what_a_server_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/firmware/src/sizes/trusted.txt");
    let key = DeviceKey::new([9; 32]).unwrap().public();
    let trust = format!("PIMAN/1 trust nonce={} key={key} kept=1", "04".repeat(16));
    let hello = Notice::Hello(Hello {
        revision: REVISION,
        serial: Some("10000000abcdef01"),
        mac: Some("b8:27:eb:00:00:01"),
        model: Some("mps2 an386"),
        agent: Some("0.1.0"),
        disk_bytes: 31_914_983_424,
        root_bytes: 31_864_651_776,
        card: Some(piman_core::hash::Hash([7; 32])),
        paths: Paths { stream: true, image: false },
        can: Can::default(),
        ..Hello::default()
    });
    let (server, clock) = (server(9, NOW + 1000), Clock { seconds: NOW, nanos: 7 });
    let mut talk = ServerTrust::begin(trust.as_bytes(), || Nonce([3; 16])).unwrap();
    talk.hear(hello.to_string().as_bytes(), &server);
    let mut says = String::new();
    let greeting = Command::Hello { clock: None };
    says += &format!("{}{greeting}", talk.head(&greeting, clock, &server));
    talk.hear(b"IS_INSTALLED", &server);
    let order = Command::Format(Some(offer()));
    says += &format!("{}{order}", talk.head(&order, clock, &server));
    if std::env::var_os("PIMAN_RECORD").is_some() {
        std::fs::write(path, &says).unwrap();
    }
    assert_eq!(says, std::fs::read_to_string(path).unwrap(), "PIMAN_RECORD=1 writes it anew");
}
