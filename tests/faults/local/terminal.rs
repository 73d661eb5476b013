//! What a peer says, on the operator's terminal.

use super::*;

/// Escape sequences, C1, DEL, the direction of writing, spaces of no width; no end of line, which ends a report.
const HOSTILE: &str =
    "x\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{85}\r\u{8}\u{7f}\u{202e}\u{2066}\u{200b}\u{feff}y";
const SERIAL: &str = "10000000abcdef01";

/// Fails if a terminal would find anything to obey in it.
fn harmless(what: &str, bytes: &[u8]) {
    let text = std::str::from_utf8(bytes).unwrap_or_else(|e| panic!("{what}: {e}"));
    let bad: Vec<char> =
        text.chars().filter(|c| !piman_core::text::is_shown(*c) && !matches!(c, '\n' | '\t')).collect();
    assert!(bad.is_empty(), "{what}: {bad:?} in {text:?}");
}

#[test]
fn nothing_that_a_pi_says_steers_a_terminal() {
    let folder = open_folder();
    let (archive, state) = (tar::of_bytes(1000), folder.path().join("state"));
    let server = Server::start(archive.path(), &state, &["--no-date", "--log-level", "trace"]);
    server.wait_log("is good");
    let mut pi = TcpStream::connect(("127.0.0.1", server.port("control"))).unwrap();
    let lines = format!(
        "PIMAN/1 hello serial={SERIAL} found=foreign model={HOSTILE}\nPIMAN/1 disk text={HOSTILE}\n{HOSTILE}\n\
         PIMAN/1 failed stage=disk text={HOSTILE}\nIS_INSTALLED\n"
    );
    pi.write_all(lines.as_bytes()).unwrap();
    let _ = pi.read(&mut [0; 64]);
    let mut raw = TcpStream::connect(("127.0.0.1", server.port("control"))).unwrap();
    raw.write_all(b"\x1b[2J\xff\xfe\x9b31m\nIS_INSTALLED\n").unwrap();
    let _ = raw.read(&mut [0; 64]);
    harmless("the log", server.log().as_bytes());
    let state = state.to_str().unwrap();
    for command in [
        &["devices"][..],
        &["devices", "--json"],
        &["devices", "--history"],
        &["devices", "--pending"],
        &["device", "127.0.0.1"],
        &["device", "--json", "127.0.0.1"],
        &["reinstall", "--list"],
        &["reinstall", HOSTILE],
        &["device", HOSTILE],
        &["policy", HOSTILE],
        &["install", HOSTILE],
        &["personalise", HOSTILE],
    ] {
        let output = Command::new(binaries::piman()).args(command).args(["--state", state]).output().unwrap();
        harmless(&format!("{command:?}"), &output.stdout);
        harmless(&format!("{command:?}"), &output.stderr);
    }
}

#[test]
fn what_a_server_answers_steers_no_terminal_of_its_clients() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(format!("{HOSTILE}\n").repeat(100).as_bytes());
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "1\n").unwrap();
    let file = file.to_str().unwrap();
    for command in [
        &["get", "--port", &port, "--tries", "1", "--timeout", "2s", "127.0.0.1:name", file][..],
        &["get", "--json", "--port", &port, "--tries", "1", "--timeout", "2s", "127.0.0.1:name", file],
        &["put", "--port", &port, "--tries", "1", "--timeout", "2s", file, "127.0.0.1:name"],
        &["call", "--timeout", "2s", "--server", &format!("127.0.0.1:{port}"), "status"],
        &["call", "--json", "--timeout", "2s", "--server", &format!("127.0.0.1:{port}"), "status"],
    ] {
        let output = Command::new("timeout").arg("60").arg(binaries::piman()).args(command).output().unwrap();
        harmless(&format!("{command:?}"), &output.stdout);
        harmless(&format!("{command:?}"), &output.stderr);
    }
}
