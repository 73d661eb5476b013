//! The programs of `host/examples`, as a newcomer starts them: terminals are pipes here.

use std::process::Command;

use piman_tests::binaries::{example, piman};
use piman_tests::terminal::Terminal;

/// `... on ADDRESS; Ctrl-C ...`
fn address(line: &str) -> String {
    line.split_once(" on ").and_then(|(_, rest)| rest.split_once(';')).expect(line).0.to_owned()
}

#[test]
fn echo() {
    let mut command = Command::new(example("frames_echo_server"));
    let server = Terminal::start(command.args(["127.0.0.1:0", "127.0.0.1:0"]));
    let addresses = [address(&server.line()), address(&server.line())];
    for at in &addresses {
        let mut command = Command::new(piman());
        command.args(["messages", "send", "--reply", at, "one", "", "\u{e9}\u{20ac}"]);
        assert_eq!(Terminal::start(&mut command).end(), ["one", "", "\u{e9}\u{20ac}"]);
        assert!(server.line().ends_with("is here"));
        assert!(server.line().ends_with("is gone"));
    }
    server.interrupt();
    assert_eq!(server.end(), ["stopped, 0 connections were cut"]);
}
