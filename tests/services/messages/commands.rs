//! `piman messages listen`, `send` and `chat`, as they are used in scripts.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Output, Stdio};

use super::{DEADLINE, at, hub, messages, start};

/// Runs `send` with this on standard input.
fn send(arguments: &[&str], input: &[u8]) -> Output {
    let mut command = messages(&["send"]);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn what_is_sent_is_what_is_printed() {
    let (server, state) = hub(&["--messages-port", "0"]);
    let at = at(&server, "messages");
    let file = state.path().join("file");
    fs::write(&file, b"\x00\xff").unwrap();
    let path = file.to_str().unwrap();
    let parts = state.path().join("parts");
    let listen = |more: &[&str]| start(&[&["listen", "--count", "6", &at], more].concat());
    let text = listen(&[]);
    let json = listen(&["--json"]);
    let files = listen(&["--output", parts.to_str().unwrap()]);
    let raw = messages(&["listen", "--raw", "--count", "6", &at]).stdout(Stdio::piped()).spawn().unwrap();
    server.wait_log("4 active connections");
    assert!(send(&[&at, "one", "two\nlines", "--file", path], b"").status.success());
    assert!(send(&[&at], b"all of it\n").status.success());
    assert!(send(&[&at, "--lines"], b"caf\xc3\xa9\r\n\n").status.success());
    assert_eq!(text.end(), ["one", "two\\nlines", "\\x00\\xff", "all of it\\n", "caf\u{e9}", ""]);
    let json = json.end();
    assert!(json[1].contains(r#""text":"two\nlines""#) && json[1].contains(r#""size":9"#), "{}", json[1]);
    assert!(json[2].contains(r#""hex":"00ff""#) && json[2].contains(r#""at":"#), "{}", json[2]);
    let names = files.end();
    assert_eq!(names[2], parts.join("000003").to_str().unwrap());
    assert_eq!(fs::read(&names[2]).unwrap(), b"\x00\xff");
    let raw = raw.wait_with_output().unwrap();
    assert_eq!(raw.stdout, b"onetwo\nlines\x00\xffall of it\ncaf\xc3\xa9");
}

#[test]
fn errors_say_what_failed_and_have_codes_of_their_own() {
    let (server, _state) = hub(&["--messages-port", "0"]);
    let at = at(&server, "messages");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_at = silent.local_addr().unwrap().to_string();
    let nobody = format!("127.0.0.1:{}", piman_tests::port::steady());
    for (arguments, code, says) in [
        (vec!["send", &nobody, "x"], 5, "cannot connect to"),
        (vec!["send", "--timeout", "200ms", &silent_at, "x"], 5, "within 0.2 s"),
        (vec!["listen", "--tries", "1", &nobody], 5, "cannot connect to"),
        (vec!["chat", "--tries", "2", &nobody], 5, "cannot connect to"),
        (vec!["send", "--reply", "--timeout", "200ms", &at, "x"], 5, "sent no reply within 0.2 s"),
        (vec!["send", &at, "--file", "/no/such/file"], 1, "opening /no/such/file"),
        (vec!["send", &at, "--json", "x"], 1, "no effect without --reply"),
        (vec!["listen", "::bad"], 5, "cannot connect to [::bad]:9123"),
        (vec!["listen", "pi:port"], 2, "write HOST or HOST:PORT"),
        (vec!["send", "--plugin", "rot13", &at, "x"], 2, "zlib"),
    ] {
        let mut command = messages(&arguments);
        if arguments == ["listen", "::bad"] {
            command.args(["--tries", "1", "--timeout", "5s"]);
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(says), "{arguments:?}: {text}");
    }
}

/// A reader that goes away ends `listen` in order, as it does everywhere.
#[test]
fn listen_ends_with_its_reader_and_with_the_connection() {
    let (mut server, _state) = hub(&["--messages-port", "0"]);
    let at = at(&server, "messages");
    let mut child = messages(&["listen", &at]).stdout(Stdio::piped()).spawn().unwrap();
    let once = start(&["listen", "--once", &at]);
    server.wait_log("2 active connections");
    drop(child.stdout.take());
    assert!(messages(&["send", &at, "x"]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    assert_eq!(once.line(), "x");
    server.terminate();
    assert!(once.end().is_empty());
    assert!(server.ended(DEADLINE).success());
}
