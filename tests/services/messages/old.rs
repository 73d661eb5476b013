//! Programs made with the old library, at our hub and at our commands. They are Python, as they were.

use std::fs;
use std::process::Command;

use piman_tests::terminal::Terminal;

use super::{at, hub, messages, start};

/// The library and its programs, re-enacted.
const LIBRARY: &str = include_str!("old_library.py");

/// One of its programs.
fn old(arguments: &[&str]) -> Terminal {
    Terminal::start(Command::new("python3").args(["-c", LIBRARY]).args(arguments))
}

fn split(at: &str) -> [&str; 2] {
    let (host, port) = at.split_once(':').unwrap();
    [host, port]
}

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn the_old_chat_at_our_hub() {
    let (server, _state) = hub(&["--messages-chat", "talk=0"]);
    let at = at(&server, "messages/talk");
    let [host, port] = split(&at);
    let mut one = old(&["chat", host, port]);
    assert_eq!(one.line(), "[piman] you are guest-1 (1 active connection)");
    let mut two = old(&["chat", host, port]);
    assert_eq!(two.line(), "[piman] you are guest-2 (2 active connections)");
    assert_eq!(one.line(), "[guest-2] **joined the chat (2 active connections)");
    let mut ann = start(&["chat", "--name", "Ann", &at]);
    assert_eq!(ann.line(), "[piman] you are guest-3 (3 active connections)");
    for other in [&one, &two] {
        assert_eq!(other.line(), "[guest-3] **joined the chat (3 active connections)");
        assert_eq!(other.line(), "[guest-3] **is now called Ann");
    }
    one.types("hello \u{e9}");
    assert_eq!((two.line(), ann.line()), ("[guest-1] hello \u{e9}".into(), "[guest-1] hello \u{e9}".into()));
    ann.types("hello yourself");
    for other in [&one, &two] {
        assert_eq!(other.line(), "[Ann] hello yourself");
    }
    // Who asks is answered, and nobody else.
    for asks in [&mut two, &mut ann] {
        asks.types("/who");
        assert_eq!(asks.line(), "[piman] 3 active connections: guest-1, guest-2, Ann");
    }
    two.types("/name Ann");
    assert_eq!(two.line(), "[piman] the name Ann is taken");
    two.types("\u{1b}[2Jb\u{202e}ye");
    for other in [&one, &ann] {
        assert_eq!(other.line(), "[guest-2]  [2Jb ye", "nothing that changes a terminal or a line");
    }
    two.types("quit");
    assert!(two.end().is_empty());
    for other in [&one, &ann] {
        // The old client ends at once: its last line may be lost with it.
        let line = other.line();
        let line = if line == "[guest-2] quit" { other.line() } else { line };
        assert_eq!(line, "[guest-2] **left the chat (2 active connections)");
    }
    ann.ends_input();
    assert!(ann.end().is_empty());
    assert_eq!(one.line(), "[Ann] **left the chat (1 active connection)");
}

/// Bursts from all sides: no old peer meets a size of ours where it waits for an answer, as long as it has
/// begun first, and all goes through.
#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn old_peers_that_send_many_lines_at_once() {
    let (server, _state) = hub(&["--messages-port", "0"]);
    let at = at(&server, "messages");
    let [host, port] = split(&at);
    let mut old = old(&["chat", host, port]);
    server.wait_log("1 active connection");
    let mut new = start(&["chat", &at]);
    server.wait_log("2 active connections");
    for round in 0..20 {
        for n in 0..50 {
            old.types(&format!("{round} {n}"));
        }
        for n in 0..50 {
            assert_eq!(new.line(), format!("{round} {n}"));
        }
        new.types(&format!("seen {round}"));
        assert_eq!(old.line(), format!("seen {round}"));
    }
    old.types("quit");
}

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn our_commands_at_the_old_chat_server() {
    let server = old(&["chat-server"]);
    let at = format!("127.0.0.1:{}", server.line());
    let [host, port] = split(&at);
    let mut old = old(&["chat", host, port]);
    assert_eq!(server.line(), "[INFO] New connection 1");
    // The name is for chats of piman: here it would be a line for all.
    let mut chat = start(&["chat", "--name", "Ann", &at]);
    assert_eq!(server.line(), "[INFO] New connection 2");
    assert_eq!(old.line(), "[2] **joined the chat");
    let listen = start(&["listen", "--once", &at]);
    assert_eq!(server.line(), "[INFO] New connection 3");
    assert_eq!((old.line(), chat.line()), ("[3] **joined the chat".into(), "[3] **joined the chat".into()));
    old.types("hello");
    assert_eq!((chat.line(), listen.line()), ("[1] hello".into(), "[1] hello".into()));
    chat.types("hello yourself");
    assert_eq!((old.line(), listen.line()), ("[2] hello yourself".into(), "[2] hello yourself".into()));
    assert!(messages(&["send", &at, "from a script"]).status().unwrap().success());
    for other in [&chat, &listen] {
        let line = other.line();
        assert_eq!(line, "[4] **joined the chat");
        // The old server forgets what a member said that has left by the next pass of its loop.
        let line = other.line();
        let line = if line == "[4] from a script" { other.line() } else { line };
        assert_eq!(line, "[4] **left the chat");
    }
    chat.ends_input();
    assert!(chat.end().is_empty());
    drop(server);
    // It is closed, or reset, by the end of the program.
    let (_, status) = listen.ended();
    assert!(matches!(status.code(), Some(0 | 5)), "{status}");
}

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn the_old_echo_server_and_our_send() {
    let server = old(&["echo-server"]);
    let at = format!("127.0.0.1:{}", server.line());
    let output = messages(&["send", "--reply", &at, "one", "two"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Echo back: one\nEcho back: two\n");
    assert!(output.status.success());
    // It closes without a reply.
    let output = messages(&["send", "--reply", &at, "QUIT"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.contains("before a reply to message 1"), "{text}");
}

/// The library's file transfer: both programs are members of one channel, and nobody has changed them but
/// for the address.
#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn the_old_file_transfer_through_our_hub() {
    let (server, state) = hub(&["--messages-port", "0"]);
    let at = at(&server, "messages");
    let [host, port] = split(&at);
    let path = |name: &str| state.path().join(name).to_str().unwrap().to_owned();
    for (size, name) in [(1_300_001, "large"), (524_288, "chunk"), (1, "one")] {
        let bytes: Vec<u8> = (0..size).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        fs::write(path(name), &bytes).unwrap();
        for operation in ["upload", "download"] {
            let member = old(&["file-member", host, port]);
            assert_eq!(member.line(), "ready");
            server.wait_log("has joined");
            piman_tests::wait::until("the other is there", || {
                let log = server.log();
                log.matches("has joined").count() == log.matches("has left").count() + 1
            });
            let copy = path(&format!("{name}.{operation}"));
            let client = old(&["file-client", host, port, operation, &path(name), &copy]);
            assert_eq!(client.end(), [format!("{operation}ed {size} ok")]);
            drop(member);
            assert!(fs::read(copy).unwrap() == bytes, "{operation} of {size} bytes");
            piman_tests::wait::until("both are gone", || {
                let log = server.log();
                log.matches("has joined").count() == log.matches("has left").count()
            });
        }
    }
}

/// Our commands speak with the library's file server itself.
#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn the_old_file_server_and_our_send() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let server = old(&["file-server"]);
    let at = format!("127.0.0.1:{}", server.line());
    let bytes: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
    fs::write(path("file"), &bytes).unwrap();
    let request = format!(
        r#"{{"op": "upload", "msg": {{"source": "file", "destination": "{}", "source_size": {}}}}}"#,
        path("copy"),
        bytes.len()
    );
    let output = messages(&["send", "--reply", &at, &request, "--file", &path("file")]).output();
    let output = output.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{\"status\": \"ok\"}\n{\"status\": \"ok\"}\n");
    assert!(fs::read(path("copy")).unwrap() == bytes);
    let request =
        format!(r#"{{"op": "download", "msg": {{"source": "{}", "destination": "here"}}}}"#, path("file"));
    let parts = path("parts");
    let ok = "{\"status\": \"ok\"}";
    let output = messages(&["send", "--reply", "--output", &parts, &at, &request, ok]).output();
    assert!(output.unwrap().status.success());
    assert!(fs::read(format!("{parts}/000002")).unwrap() == bytes);
}

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn plugins_on_both_sides_in_reverse_order() {
    let (server, _state) = hub(&["--messages-port", "0"]);
    let at = at(&server, "messages");
    let [host, port] = split(&at);
    let mut old = old(&["chat-with-plugins", host, port]);
    server.wait_log("1 active connection");
    let mut new = start(&["chat", "--plugin", "zlib", "--plugin", "crc32", &at]);
    server.wait_log("2 active connections");
    for text in ["hello", "", &"long ".repeat(500)] {
        old.types(text);
        assert_eq!(new.line(), text);
        new.types(text);
        assert_eq!(old.line(), text);
    }
    // What comes from somebody without the plugins is dropped, and the rest goes on.
    let listen = start(&["listen", "--plugin", "crc32", &at]);
    server.wait_log("3 active connections");
    assert!(messages(&["send", "--plugin", "crc32", &at, "for one of them"]).status().unwrap().success());
    assert_eq!(listen.line(), "for one of them");
    // The old one dies of it, as it always did: an exception of a plugin ends its thread.
    drop(old);
    assert!(
        messages(&["send", "--plugin", "zlib", "--plugin", "crc32", &at, "again"])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(new.line(), "again");
}
