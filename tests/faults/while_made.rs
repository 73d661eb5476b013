//! A server that ends while it makes an image that a Pi installs already.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::sync::atomic::AtomicBool;

use pi_agent::card::inspect;
use piman::images::ext4::{self, compare};
use piman_core::install::layout::SECTOR;
use piman_tests::lab::{self, LAYOUT};
use piman_tests::running::Running;
use piman_tests::server::{Server, wait_until};
use piman_tests::{port, tar};

#[test]
fn a_server_that_is_killed_meanwhile_makes_it_again() {
    let folder = lab::memory();
    let folder = folder.path();
    let (archive, state) = (tar::slow(folder), folder.join("state"));
    let ports = port::several::<3>().map(|port| port.to_string());
    let fixed = ["--control-port", &ports[0], "--rootfs-port", &ports[1], "--fetch-port", &ports[2]];
    let server = Server::start(&archive, &state, &fixed);
    server.wait_log("is good");
    let (card, layout, log) = (folder.join("card.img"), folder.join("layout"), folder.join("log"));
    File::create(&card).unwrap().set_len(4 << 30).unwrap();
    fs::write(&layout, "label-id: 0x12345678\n1 : start=2048, size=4096\n2 : start=8192\n").unwrap();
    let mut agent = server.agent(&card, "00000000cafe3001");
    agent.args(["--path", "image", "--transfer-port", "0", "--retries", "50", "--layout"]).arg(&layout);
    let agent = agent.stdout(Stdio::null()).stderr(File::create(&log).unwrap()).spawn().unwrap();
    let mut agent = Running(agent);
    let written = || fs::metadata(&card).unwrap().blocks() * 512;
    wait_until("chunks come while the others are made", || written() > 16 << 20);
    assert!(!server.log().contains("is ready"), "{}", server.log());
    // Dropping it is SIGKILL.
    drop(server);
    assert!(!inspect::check(&card).unwrap().is_installed(false), "nothing half counts as a system");
    let server = Server::start(&archive, &state, &fixed);
    wait_until("the agent ends", || agent.try_wait().unwrap().is_some());
    assert!(agent.wait().unwrap().success(), "{}", fs::read_to_string(&log).unwrap());
    assert!(inspect::check(&card).unwrap().is_installed(false));
    let (progress, stop) = (ext4::Progress::new(), AtomicBool::new(false));
    let (card, archive) = (File::open(&card).unwrap(), File::open(&archive).unwrap());
    let found = compare(&card, LAYOUT.root_start * SECTOR, &archive, &progress, &stop).unwrap();
    assert_eq!((found.differences, found.told), (0, vec![]));
    // Nothing of the first attempt is left.
    server.wait_log("is ready");
    assert_eq!(fs::read_dir(state.join("images")).unwrap().count(), 2);
}
