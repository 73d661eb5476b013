//! The disk of the state is full: nothing is acknowledged, and nothing is erased, for which there is no room on record.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use piman::state::State as _;
use piman_tests::binaries;
use piman_tests::contents::digest;
use piman_tests::running::Running;
use piman_tests::wait::until;

use super::room::{Content, Room, ended};

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_full_disk_orders_and_erases_nothing() {
    let room = Room::new(true);
    let [ours, blank] = ["00000000f1110001", "00000000f1110002"];
    let (card, before) = room.disk(Content::Ours, ours);
    let (empty, nothing) = room.disk(Content::Blank, blank);
    room.server().piman(&["reinstall", ours]);
    room.fill();
    // What is said to be ordered is; what there is no room for is not said to be.
    let mut reinstall = Command::new(binaries::piman());
    reinstall.args(["reinstall", "--state"]).arg(room.state()).args(["00000000f1110003"]);
    let output = reinstall.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("full") && said.contains("nothing was changed"),
        "{said}"
    );
    assert_eq!(room.open().orders().unwrap().len(), 1);
    // The order is there, but not that it has begun: what is installed boots.
    let mut pi = Running(room.agent(&card, ours).spawn().unwrap());
    assert!(ended(&mut pi, Duration::from_secs(60)));
    assert_eq!(digest(&card), before, "it was erased");
    // What cannot be booted waits, and is told why.
    let mut pi = Running(room.agent(&empty, blank).stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(pi.stderr.take().unwrap()).lines().map_while(Result::ok);
    let waits = lines.find(|line| line.contains("has this Pi wait: ")).unwrap();
    // Its number among the Pis is recorded first.
    let what = "nothing is installed: reading or writing what is its own: ";
    assert!(waits.contains(what) && waits.contains("full"), "{waits}");
    assert_eq!(digest(&empty), nothing, "it was erased");
    drop(pi);
    // There is room again.
    room.free();
    for (card, serial) in [(&card, ours), (&empty, blank)] {
        let mut pi = Running(room.agent(card, serial).spawn().unwrap());
        assert!(ended(&mut pi, Duration::from_secs(60)), "{serial}");
        let reason = |e: &piman::state::DeviceEvent| e.kind == "reason";
        assert!(room.open().events(serial).unwrap().iter().any(reason), "{serial}");
    }
    until("the order is completed", || {
        room.open().orders().unwrap().iter().all(|o| o.completed_ms.is_some())
    });
}
