//! Slow receivers, too many connections, messages that are too large.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use piman_tests::server::{connect_from, wait_until};

use super::{DEADLINE, GO, Raw, at, hub, messages};

/// A member that reads nothing: the others get everything without delay, memory stays bounded, and it is
/// disconnected with a line in the log.
#[test]
fn a_slow_receiver_holds_up_nobody() {
    const COUNT: u32 = 3000;
    let (server, _state) = hub(&["--messages-port", "0"]);
    let at = at(&server, "messages");
    let mut deaf = Raw::join(TcpStream::connect(&at).unwrap());
    let mut sender = Raw::join(TcpStream::connect(&at).unwrap());
    let mut reader = Raw::join(TcpStream::connect(&at).unwrap());
    server.wait_log("3 active connections");
    let before = server.memory_kb("VmRSS");
    let began = Instant::now();
    // 300 MB in all.
    let reading = std::thread::spawn(move || {
        for n in 0..COUNT {
            let message = reader.receive();
            assert_eq!((message.len(), &message[..4]), (100_000, &n.to_be_bytes()[..]));
        }
    });
    let mut message = vec![0; 100_000];
    for n in 0..COUNT {
        message[..4].copy_from_slice(&n.to_be_bytes());
        assert_eq!(sender.send(&message), GO);
    }
    reading.join().unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert!(server.log().contains("reads too slowly"), "{}", server.log());
    server.wait_log("has left: this side cut the connection, 2 active connections");
    // It sees that it is over: the size of the first message, and then the end or a reset.
    let mut rest = Vec::new();
    let _ = deaf.0.read_to_end(&mut rest);
    assert!(rest.len() <= 4, "{}", rest.len());
    let grown = server.memory_kb("VmHWM").saturating_sub(before);
    assert!(grown < 64 << 10, "the server has grown by {grown} kB");
    println!("{COUNT} messages of 100 kB past a deaf member in {took:?}, memory +{grown} kB at most");
}

/// All members together may begin more than the server would ever hold: it holds a bounded part of it.
#[test]
fn unfinished_messages_of_all_members_are_bounded() {
    const EACH: usize = 60 << 20;
    let (server, _state) = hub(&["--messages-port", "0", "--messages-limit-kib", "65536"]);
    let before = server.memory_kb("VmRSS");
    let mut members: Vec<Raw> =
        (0..8).map(|_| Raw::join(TcpStream::connect(at(&server, "messages")).unwrap())).collect();
    for member in &mut members {
        member.0.set_write_timeout(Some(DEADLINE)).unwrap();
        member.0.write_all(&u32::try_from(EACH).unwrap().to_be_bytes()).unwrap();
        assert_eq!(member.byte(), GO);
        // All but the end.
        member.0.write_all(&vec![1; EACH - 1]).unwrap();
    }
    let grown = server.memory_kb("VmHWM").saturating_sub(before) >> 10;
    // 256 MB are held at most; a buffer that grows is up to twice as large while it is copied.
    assert!(grown < 400, "the server has grown by {grown} MB for {} MB", (8 * EACH) >> 20);
    for member in &mut members {
        // Nobody reads the whole messages of those who are lucky.
        member.0.write_all(&[1]).unwrap();
    }
    server.wait_log("is dropped: all connections together hold too much");
}

#[test]
fn whoever_is_too_many_gets_0xfe() {
    let more = ["--messages-port", "0", "--connections", "3", "--connections-per-address", "2"];
    let (server, _state) = hub(&more);
    let port = server.port("messages");
    let one = Raw::join(connect_from([127, 0, 0, 1], port));
    let two = Raw::join(connect_from([127, 0, 0, 1], port));
    // The address has two.
    assert_eq!(Raw::silent(connect_from([127, 0, 0, 1], port)).byte(), 0xFE);
    server.wait_log("2 connections are open from this address");
    let output = messages(&["send", &at(&server, "messages"), "x"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("too many connections; try later"), "{text}");
    drop(two);
    server.wait_log("has left");
    // Other addresses may come, until there are three in all.
    let _others = [2, 3].map(|host| Raw::join(connect_from([127, 0, 0, host], port)));
    assert_eq!(Raw::silent(connect_from([127, 0, 0, 4], port)).byte(), 0xFE);
    drop(one);
    wait_until("there is room again", || Raw::silent(connect_from([127, 0, 0, 4], port)).byte() == GO);
}

/// The limits hold for all channels together.
#[test]
fn channels_share_the_limit() {
    let more = ["--messages-channel", "a=0", "--messages-channel", "b=0", "--connections", "1"];
    let (server, _state) = hub(&more);
    let _one = Raw::join(TcpStream::connect(at(&server, "messages/a")).unwrap());
    assert_eq!(Raw::silent(TcpStream::connect(at(&server, "messages/b")).unwrap()).byte(), 0xFE);
}

#[test]
fn a_message_that_is_too_large_is_refused_and_the_connection_lives_on() {
    let (server, state) = hub(&["--messages-port", "0", "--messages-limit-kib", "1"]);
    let at = at(&server, "messages");
    let mut sender = Raw::join(TcpStream::connect(&at).unwrap());
    let mut reader = Raw::join(TcpStream::connect(&at).unwrap());
    server.wait_log("2 active connections");
    for too_large in [1025, 70_000] {
        assert_eq!(sender.send(&vec![1; too_large]), 0);
    }
    assert_eq!(sender.send(&[2; 1024]), GO);
    assert_eq!(reader.receive(), [2; 1024]);
    let file = state.path().join("large");
    std::fs::write(&file, vec![3; 1025]).unwrap();
    let output = messages(&["send", &at, "fits", "--file", file.to_str().unwrap()]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("large (1025 bytes)") && text.contains("0 means too large"), "{text}");
    assert_eq!(reader.text(), "fits");
}

/// Whoever connects and says nothing is not a member, and does not stay.
#[test]
fn a_connection_that_does_not_greet_ends() {
    let (server, _state) = hub(&["--messages-port", "0", "--stall-timeout", "1s"]);
    let mut stream = TcpStream::connect(at(&server, "messages")).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, [GO], "its greeting and the end");
    server.wait_log("did not greet within 1 s");
    assert!(!server.log().contains("has joined"));
}

#[test]
fn ports_that_cannot_be_are_errors_that_say_what_to_do() {
    let (server, state) = hub(&["--messages-port", "0"]);
    let taken = server.port("messages").to_string();
    let channel = format!("lab={taken}");
    for (more, names) in [
        (vec!["--messages-port", taken.as_str()], "choose another port with --messages-port"),
        (vec!["--messages-channel", &channel], "choose another port with --messages-channel"),
        (vec!["--messages-chat", "talk"], "write NAME=PORT"),
        (vec!["--messages-port", "7001", "--messages-chat", "talk=7001"], "needs a port of its own"),
        (vec!["--messages-queue", "9"], "no effect without --messages-port"),
    ] {
        let mut command = std::process::Command::new(piman_tests::binaries::piman());
        command
            .args(["serve", "--listen", "127.0.0.1", "--state"])
            .arg(state.path().join("other"))
            .args(&more);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(names), "{more:?}: {text}");
        // The doctor finds the same.
        let mut command = std::process::Command::new(piman_tests::binaries::piman());
        command
            .args(["doctor", "--listen", "127.0.0.1", "--state"])
            .arg(state.path().join("other"))
            .args(&more);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(names), "{more:?}: {text}");
    }
}
