//! What the programs print: each thing once, with a name to it, and nothing that means nothing.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use piman_tests::server::{Server, wait_until};
use piman_tests::{binaries, tar};
use rustix::process::{Pid, Signal, kill_process};

fn text(output: &Output) -> String {
    String::from_utf8([&output.stdout[..], &output.stderr].concat()).unwrap()
}

/// A port of loopback where nobody listens.
fn nobody() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn piman(arguments: &[&str]) -> String {
    text(&Command::new(binaries::piman()).args(arguments).output().unwrap())
}

/// What the agent prints while it installs `disk` from this port.
fn agent(port: u16, disk: &Path, size: &str, more: &[&str]) -> String {
    let mut agent = Command::new(binaries::pi_agent());
    agent.args(["install", "--server", "127.0.0.1", "--serial", "00000000cafe0004", "--size", size]);
    agent.args(["--transfer-port", "0", "--control-port", &port.to_string(), "--disk"]).arg(disk).args(more);
    text(&agent.output().unwrap())
}

/// No line is a bare word of ours, and none is there twice.
#[track_caller]
fn readable(text: &str) {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    for (i, line) in lines.iter().enumerate() {
        assert!(line.contains(' '), "the line `{line}` says nothing to anybody:\n{text}");
        assert!(!lines[..i].contains(line), "the line `{line}` is there twice:\n{text}");
        for part in line.split(": ").filter(|part| part.len() > 12) {
            assert_eq!(line.matches(part).count(), 1, "`{part}` is said twice:\n{text}");
        }
    }
}

#[test]
fn an_absent_server_is_said_once_by_every_program() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("records");
    fs::write(&file, "1\n").unwrap();
    let (file, port) = (file.to_str().unwrap(), nobody().to_string());
    for arguments in [
        &["telemetry", file, "127.0.0.1", "--no-follow", "--tries", "1", "--port", &port][..],
        &["put", file, "127.0.0.1:", "--tries", "1", "--port", &port],
        &["get", "127.0.0.1:name", "--tries", "1", "--port", &port],
    ] {
        let text = piman(arguments);
        readable(&text);
        assert_eq!(text.matches("Connection refused").count(), 1, "{text}");
        assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
    }
    let text = agent(nobody(), &folder.path().join("card"), "256M", &["--retries", "1"]);
    readable(&text);
    assert_eq!(text.matches("Connection refused").count(), 2, "one for each try: {text}");
    assert!(text.contains("try 2 of 2") && text.contains("check that `piman serve` runs there"), "{text}");
    assert_eq!(text.matches("not installed").count(), 1, "{text}");
}

#[test]
fn an_installation_and_a_boot_read_well_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let archive = tar::of_bytes(300_000);
    let server = Server::start(archive.path(), folder.path(), &[]);
    server.wait_log("is good");
    let (port, disk) = (server.port("control"), folder.path().join("card"));
    let text = agent(port, &disk, "256M", &[]);
    readable(&text);
    assert!(text.contains("installed image"), "{text}");
    let text = agent(port, &disk, "256M", &[]);
    readable(&text);
    assert!(text.contains("the server says boot"), "{text}");
    wait_until("it is noted", || server.piman(&["devices"]).contains("received boot"));
    let devices = server.piman(&["devices"]);
    assert!(!devices.contains(" of "), "nothing is under way any more: {devices}");
    assert!(!server.log().contains("its clock"), "a program sets no clock: {}", server.log());

    let text = agent(port, &folder.path().join("small"), "1M", &[]);
    readable(&text);
    for part in ["small, of 1048576 bytes", "too small: it must have at least"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_name_that_is_refused_is_in_the_log_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let served = folder.path().join("served");
    fs::create_dir(&served).unwrap();
    fs::write(served.join("there"), "x").unwrap();
    let served = served.to_str().unwrap();
    let server = Server::start_services(folder.path(), &["--transfer-dir", served, "--transfer-port", "0"]);
    for (operation, name, want) in [
        (b'D', &b"../etc/passwd"[..], r#""../etc/passwd": refused: the name begins with a dot"#),
        (b'U', b"a/b", r#""a/b": refused: the name has a path separator in it"#),
        (b'D', b"", r#""": refused: the name is empty"#),
        (b'U', b"a\x1b[31mb", r#""a\u{1b}[31mb": refused: the name has a control character in it"#),
        (b'D', b"\xff", "refused: the name is not UTF-8"),
        (b'D', b"absent", r#""absent": refused: there is no such file"#),
        (b'U', b"there", r#""there": refused: the file exists"#),
    ] {
        let mut request = [&[operation], name].concat();
        request.resize(256, 0);
        let mut stream = server.connect("transfer");
        stream.write_all(&request).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
        server.wait_log(want);
    }
    let port = server.port("transfer").to_string();
    let text = piman(&["get", "127.0.0.1:absent", "--tries", "1", "--port", &port]);
    readable(&text);
    assert!(text.contains("getting absent from 127.0.0.1") && text.contains("no such file"), "{text}");
}

#[test]
fn a_missing_archive_is_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let ports = ["--control-port", "0", "--rootfs-port", "0", "--fetch-port", "0"];
    let mut serve = Command::new(binaries::piman());
    serve
        .args(["serve", "--listen", "127.0.0.1", "--rootfs", "/nonexistent.tgz", "--state"])
        .arg(&state)
        .args(ports);
    let output = serve.output().unwrap();
    assert!(!output.status.success());
    readable(&text(&output));
    assert_eq!(text(&output).matches("/nonexistent.tgz").count(), 1, "{}", text(&output));
}

/// A server whose standard error is this; returns it when it listens.
fn logging_to(stderr: Stdio, state: &Path, variables: &[(&str, String)]) -> Child {
    let mut command = Command::new(binaries::piman());
    command.args(["serve", "--listen", "127.0.0.1", "--rpc-port", "0", "--state"]).arg(state);
    command.env_remove("JOURNAL_STREAM").envs(variables.iter().map(|(name, value)| (name, value)));
    let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("rpc 127.0.0.1:"), "{line}");
    child
}

fn stop(child: &mut Child) {
    kill_process(Pid::from_child(child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn log_lines_for_machines_are_objects_and_for_the_journal_have_its_levels() {
    let folder = tempfile::tempdir().unwrap();
    let log = |variables: &[(&str, String)], of: &dyn Fn(&fs::File) -> Option<(&'static str, String)>| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let variables: Vec<_> = variables.iter().cloned().chain(of(file.as_file())).collect();
        stop(&mut logging_to(file.reopen().unwrap().into(), folder.path(), &variables));
        fs::read_to_string(file.path()).unwrap()
    };
    let json = log(&[("PIMAN_LOG_FORMAT", "json".into())], &|_| None);
    let lines: Vec<serde_json::Value> = json.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let warned = lines.iter().find(|l| l["level"] == "warn").expect(&json);
    assert!(warned["message"].as_str().unwrap().contains("--rpc-password-file"), "{json}");
    assert!(lines.iter().all(|l| l["time"].as_str().unwrap().ends_with('Z')), "{json}");

    // What systemd sets for whoever writes to its journal.
    let journal = log(&[], &|file| {
        let meta = file.metadata().unwrap();
        Some(("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino())))
    });
    assert!(journal.lines().all(|l| l.starts_with("<4>") || l.starts_with("<6>")), "{journal}");
    assert!(journal.contains("<4>"), "{journal}");

    let wrong = log(&[("PIMAN_LOG_FORMAT", "xml".into())], &|_| None);
    assert!(wrong.contains("PIMAN_LOG_FORMAT is `xml`: write human or json"), "{wrong}");
}

#[test]
fn a_closed_standard_error_ends_no_server() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = logging_to(Stdio::piped(), folder.path(), &[]);
    drop(child.stderr.take());
    // A line that nobody can read any more, and another server's word that this one lives.
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    let status = || piman(&["status", "--state", folder.path().to_str().unwrap()]);
    assert!(!status().contains("no server answers"), "{}", status());
    stop(&mut child);
}
