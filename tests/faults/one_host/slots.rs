//! Slots for transfers, and those who keep one.

use std::io::BufRead as _;
use std::time::Instant;

use piman_core::hash::Hash;
use piman_core::install::fetch::{Kind, Request};
use piman_tests::tar;

use super::*;

#[test]
fn whoever_has_everything_and_does_not_close_keeps_no_slot() {
    let folder = tempfile::tempdir().unwrap();
    let archive = tar::of_bytes(1 << 20);
    let bytes = fs::read(archive.path()).unwrap();
    let server = Server::start(archive.path(), folder.path(), &["--no-date", "--slots", "1"]);
    server.wait_log("is good");
    let id = Hash(*blake3::hash(&bytes).as_bytes());
    let (length, mut got) = (bytes.len() as u64, vec![0; bytes.len()]);
    let began = Instant::now();
    let mut open = Vec::new();
    for host in 1..=5 {
        // Over the archive's port, and as our agents fetch it.
        let mut old = from([127, 0, 7, host], server.port("rootfs"));
        old.read_exact(&mut got).unwrap();
        assert!(got == bytes);
        let mut agent = from([127, 0, 8, host], server.port("fetch"));
        let request = Request { kind: Kind::Archive, id, offset: 0, length };
        agent.write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut answers = std::io::BufReader::new(agent);
        let mut line = String::new();
        while !line.starts_with("ok") {
            line.clear();
            answers.read_line(&mut line).unwrap();
        }
        answers.read_exact(&mut got).unwrap();
        assert!(got == bytes);
        open.push((old, answers));
    }
    assert!(began.elapsed() < Duration::from_secs(20), "ten in a row, {:?}", began.elapsed());
}
