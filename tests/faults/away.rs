//! The network is away: nothing is said, nothing comes, and then it is there again.

use std::process::Command;
use std::thread;
use std::time::Duration;

use pi_agent::card::inspect::{self, Card as Found};
use piman::state::{Sqlite, State as _};
use piman_tests::binaries;
use piman_tests::card::{Card, Lie};
use piman_tests::netns::Network;
use piman_tests::wait::until;
use rustix::process::{Pid, Signal, kill_process};

const SERIAL: &str = "00000000cafe0077";
/// Three minutes: far longer than the agent waits until what it told is acknowledged, within what it tries for.
const AWAY: Duration = Duration::from_secs(181);

/// What was not heard is said again as soon as it can be. (What lasts longer than the agent tries is told by the card
/// when the Pi starts next: `install/orders.rs`.)
#[test]
#[cfg_attr(lacks = "fuse", ignore = "needs root and /dev/fuse")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
fn a_pi_that_ends_while_the_network_is_away_says_so_when_it_is_back() {
    let mut network = Network::make();
    let (server, pi) = (network.server.clone(), network.pi.clone());
    network.ip(&pi, "address add 192.168.77.10/24 dev eth0");
    network.serve(&["--dhcp", "proxy"]);
    network.wait("log", "is good");
    let _ = network.piman(&["reinstall", SERIAL]);
    let card = Card::new(vec![0; 200 << 20], Lie::None);
    card.flush_slowly(Duration::from_millis(300));
    let mut agent: Command = network.command(&pi, &binaries::pi_agent().display().to_string());
    agent.args(["install", "--server", "192.168.77.1", "--serial", SERIAL, "--disk"]).arg(card.path());
    agent.args(["--path", "image", "--transfer-port", "0"]);
    network.start(agent, "agent");
    // All has come, and is being written. It stands still until the network is away.
    network.wait("agent", "writing to the card what is still in memory");
    let agent = pid_of_agent(card.path());
    kill_process(agent, Signal::STOP).unwrap();
    let state = Sqlite::command(&network.dir.path().join("state")).unwrap();
    network.ip(&server, "link set port0 down");
    kill_process(agent, Signal::CONT).unwrap();
    let completed = || state.orders().unwrap().iter().any(|order| order.completed_ms.is_some());
    assert!(!completed(), "it was told before");
    thread::sleep(AWAY);
    assert!(!completed(), "there is no network");
    network.ip(&server, "link set port0 up");
    until("the order is completed", completed);
    assert!(matches!(inspect::check(card.path()).unwrap(), Found::Installed(_)));
    network.wait("agent", "installed image");
    let said = network.text("agent");
    assert!(said.contains("the server cannot be told how it ended"), "{said}");
}

/// The process that has this file open to write.
fn pid_of_agent(card: &std::path::Path) -> Pid {
    let has = |pid: &Pid| {
        let fds =
            std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).into_iter().flatten().flatten();
        fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|to| to == card)
    };
    let mut found = None;
    until("the agent has the card", || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|p| p.file_name().to_str()?.parse().ok()).filter_map(Pid::from_raw);
        found = pids.filter(|pid| pid.as_raw_nonzero().get() != std::process::id().cast_signed()).find(has);
        found.is_some()
    });
    found.unwrap()
}
