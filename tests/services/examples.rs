//! The programs of `host/examples`, as a newcomer starts them: terminals are pipes here.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use piman_tests::binaries::example;
use piman_tests::running::Running;

const DEADLINE: Duration = Duration::from_secs(120);

/// A program in a terminal.
struct Terminal {
    child: Running,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Terminal {
    fn start(name: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(example(name));
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap();
        let (to, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
        Self { input: child.stdin.take(), child: Running(child), lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("a line")
    }

    fn types(&mut self, text: &str) {
        writeln!(self.input.as_mut().unwrap(), "{text}").unwrap();
    }

    /// What is left to be read when it has ended in order.
    fn end(mut self) -> Vec<String> {
        let began = Instant::now();
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_timeout(DEADLINE.saturating_sub(began.elapsed())) {
                Ok(line) => rest.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end: {rest:?}"),
            }
        }
        assert!(self.child.wait().unwrap().success());
        rest
    }

    /// Ctrl-C.
    fn interrupt(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    }
}

/// `... on ADDRESS; Ctrl-C ...`
fn address(line: &str) -> String {
    line.split_once(" on ").and_then(|(_, rest)| rest.split_once(';')).expect(line).0.to_owned()
}

#[test]
fn echo() {
    let server = Terminal::start("frames_echo_server", &["127.0.0.1:0", "127.0.0.1:0"]);
    let addresses = [address(&server.line()), address(&server.line())];
    for at in &addresses {
        let client = Terminal::start("frames_echo_client", &[at, "one", "", "\u{e9}\u{20ac}"]);
        assert_eq!(client.end(), ["one", "", "\u{e9}\u{20ac}"]);
        assert!(server.line().ends_with("is here"));
        assert!(server.line().ends_with("is gone"));
    }
    server.interrupt();
    assert_eq!(server.end(), ["stopped, 0 connections were cut"]);
}

#[test]
fn chat() {
    let server = Terminal::start("frames_chat", &["serve", "127.0.0.1:0"]);
    let at = address(&server.line());
    let mut ann = Terminal::start("frames_chat", &["join", &at, "Ann"]);
    assert_eq!(server.line(), "Ann is here");
    let mut bob = Terminal::start("frames_chat", &["join", &at, "Bob"]);
    assert_eq!((server.line(), ann.line()), ("Bob is here".into(), "Bob is here".into()));
    let mut cy = Terminal::start("frames_chat", &["join", &at, "Cy"]);
    for all in [&server, &ann, &bob] {
        assert_eq!(all.line(), "Cy is here");
    }
    ann.types("hello");
    for other in [&server, &bob, &cy] {
        assert_eq!(other.line(), "Ann: hello");
    }
    cy.types("\u{1b}[2Jand you");
    for other in [&server, &ann, &bob] {
        assert_eq!(other.line(), "Cy: [2Jand you", "no control characters");
    }
    // Ctrl-D.
    bob.input = None;
    assert_eq!(bob.end(), [""; 0]);
    for other in [&server, &ann, &cy] {
        assert_eq!(other.line(), "Bob is gone");
    }
    server.interrupt();
    // Who is still there is told, and ends with an error.
    for mut left in [ann, cy] {
        let began = Instant::now();
        while left.child.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < DEADLINE, "it stays in a chat that is closed");
            thread::sleep(Duration::from_millis(20));
        }
    }
    server.end();
}
