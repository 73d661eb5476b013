//! Channels, many members, the end of a server and its return.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use piman::messages::transport::{Hooks, Peer, Settings, connect};
use piman_tests::binaries;
use piman_tests::running::Running;
use piman_tests::server::{Server, wait_until};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{DEADLINE, GO, Raw, at, hub, messages, start};

/// Hands on what comes.
struct Forward(mpsc::UnboundedSender<Vec<u8>>);

impl Hooks for Forward {
    fn message(&mut self, _peer: &Peer, message: Vec<u8>) {
        // The test may be over.
        let _ = self.0.send(message);
    }
}

/// 100 members of one channel, all of whom send and receive at the same time: each gets every message of
/// all others, once and in each sender's order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_members() {
    const MEMBERS: usize = 100;
    const EACH: usize = 20;
    let (server, _state) = hub(&["--messages-port", "0"]);
    let at = at(&server, "messages");
    let mut all = Vec::new();
    for _ in 0..MEMBERS {
        let (to, from) = mpsc::unbounded_channel();
        all.push((
            connect(at.clone(), DEADLINE, Settings::default(), None, Forward(to)).await.unwrap(),
            from,
        ));
    }
    server.wait_log("100 active connections");
    let barrier = Arc::new(tokio::sync::Barrier::new(MEMBERS));
    let mut tasks = Vec::new();
    for (me, (peer, mut from)) in all.into_iter().enumerate() {
        let barrier = Arc::clone(&barrier);
        tasks.push(tokio::spawn(async move {
            barrier.wait().await;
            let sends = {
                let peer = peer.clone();
                tokio::spawn(async move {
                    for n in 0..EACH {
                        peer.send(format!("{me} {n}").into_bytes()).await.unwrap();
                    }
                })
            };
            let mut seen = vec![0; MEMBERS];
            for _ in 0..(MEMBERS - 1) * EACH {
                let message =
                    timeout(DEADLINE, from.recv()).await.expect("a message").expect("it is connected");
                let text = String::from_utf8(message).unwrap();
                let (who, n) = text.split_once(' ').unwrap();
                let (who, n): (usize, usize) = (who.parse().unwrap(), n.parse().unwrap());
                assert_eq!(n, seen[who], "the order of member {who}");
                seen[who] += 1;
            }
            sends.await.unwrap();
            assert_eq!(seen[me], 0, "nobody gets what it sent itself");
            assert!(seen.iter().enumerate().all(|(who, n)| who == me || *n == EACH));
            // Nobody leaves before all have everything.
            barrier.wait().await;
            peer.close();
            assert!(from.try_recv().is_err(), "nothing comes twice");
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert!(!server.log().contains("too slowly"), "{}", server.log());
}

#[test]
fn channels_do_not_hear_each_other_and_have_several_addresses() {
    let more =
        ["--messages-port", "0", "--messages-channel", "main=127.0.0.2:0", "--messages-channel", "lab=0"];
    let (server, _state) = hub(&more);
    let join = |ip: &str, name: &str| Raw::join(TcpStream::connect((ip, server.port(name))).unwrap());
    let mut one = join("127.0.0.1", "messages");
    let mut other = join("127.0.0.2", "messages+");
    let mut lab = join("127.0.0.1", "messages/lab");
    server.wait_log("main: 127.0.0.1");
    server.wait_log("2 active connections");
    server.wait_log("lab: 127.0.0.1");
    let mut lab_two = join("127.0.0.1", "messages/lab");
    wait_until("all have joined", || server.log().matches("has joined").count() == 4);
    assert_eq!(one.send(b"to main"), GO);
    assert_eq!(lab.send(b"to lab"), GO);
    assert_eq!((other.text(), lab_two.text()), ("to main".into(), "to lab".into()));
    assert_eq!(other.send(b""), GO);
    assert_eq!(one.text(), "", "an empty message is one, too");
}

/// The hub is killed and comes back: `listen` and a Pi's agent come back to it.
#[test]
fn members_come_back_to_a_hub_that_was_away() {
    let folder = tempfile::tempdir().unwrap();
    let hook = folder.path().join("on-message");
    std::fs::write(
        &hook,
        "#!/bin/sh\nread text\n[ \"$text\" = ping ] && printf 'pong of %s' \"$PIMAN_SERIAL\"\nexit 0\n",
    )
    .unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let port = piman_tests::port::steady().to_string();
    let more = ["--messages-port", &port];
    let state = folder.path().join("state");
    let at = format!("127.0.0.1:{port}");
    let mut agent = Command::new(binaries::pi_agent());
    agent.args(["run", "--serial", "10000000aaaaaaa1", "--messages", &at, "--on-message", "on-message"]);
    let _agent = Running(agent.arg("--hooks").arg(folder.path()).stdout(Stdio::null()).spawn().unwrap());
    // Both are there before the hub is.
    let listen = start(&["listen", &at]);
    for round in 0..2 {
        let mut server = Server::start_services(&state, &more);
        server.wait_log("2 active connections");
        assert!(messages(&["send", &at, &format!("round {round}")]).status().unwrap().success());
        assert_eq!(listen.line(), format!("round {round}"));
        let output = messages(&["send", "--reply", &at, "ping"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "pong of 10000000aaaaaaa1\n");
        // The hook's answer is for the whole channel.
        let mut lines = [listen.line(), listen.line()];
        lines.sort();
        assert_eq!(lines, ["ping", "pong of 10000000aaaaaaa1"]);
        match round {
            0 => server.kill(),
            _ => server.terminate(),
        }
        server.ended(DEADLINE);
    }
}

/// Without a hook the agent logs what comes; of two channels one may be away.
#[test]
fn an_agent_logs_what_comes() {
    let (server, state) = hub(&["--messages-port", "0"]);
    let at = at(&server, "messages");
    let log = state.path().join("log");
    let mut agent = Command::new(binaries::pi_agent());
    agent.args(["run", "--messages", "127.0.0.1:1", "--messages", &at]);
    let _agent = Running(agent.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap());
    server.wait_log("has joined");
    assert!(messages(&["send", &at, "a\nb\u{1b}[2J"]).status().unwrap().success());
    let text = || std::fs::read_to_string(&log).unwrap();
    wait_until("it is logged", || text().contains(&format!("message on {at}: a b [2J")));
    wait_until("the other is tried", || text().contains("127.0.0.1:1: connecting"));
}

/// What waits for a member when the server is told to stop reaches it, however slowly it takes it.
#[test]
fn a_stop_lets_members_take_what_waits_for_them() {
    let (mut server, _state) = hub(&["--messages-port", "0"]);
    let address = at(&server, "messages");
    let mut slow = Raw::join(TcpStream::connect(&address).unwrap());
    let mut sender = Raw::join(TcpStream::connect(&address).unwrap());
    server.wait_log("2 active connections");
    for n in 0..50_u8 {
        assert_eq!(sender.send(&[n; 10_000]), GO);
    }
    // The hub has the last message whole once it has answered for the next.
    assert_eq!(sender.send(b"last"), GO);
    assert_eq!(sender.send(b""), GO);
    let began = Instant::now();
    server.terminate();
    wait_until("it accepts no more", || TcpStream::connect(&address).is_err());
    for n in 0..50_u8 {
        assert_eq!(slow.receive(), [n; 10_000]);
    }
    assert_eq!(slow.text(), "last");
    drop((slow, sender));
    assert!(server.ended(DEADLINE).success());
    assert!(began.elapsed() < Duration::from_secs(30));
    assert!(!server.log().contains("did not take"), "{}", server.log());
}

/// And one that takes nothing holds up the end for a bounded time only.
#[test]
fn a_stop_does_not_wait_for_ever() {
    let (mut server, _state) = hub(&["--messages-port", "0", "--shutdown-timeout", "3s"]);
    let at = at(&server, "messages");
    let _deaf = Raw::join(TcpStream::connect(&at).unwrap());
    let mut sender = Raw::join(TcpStream::connect(&at).unwrap());
    server.wait_log("2 active connections");
    assert_eq!(sender.send(b"one"), GO);
    assert_eq!(sender.send(b"two"), GO);
    server.terminate();
    assert!(server.ended(Duration::from_secs(60)).success());
    assert!(server.log().contains("1 members of message channels did not take"), "{}", server.log());
}
