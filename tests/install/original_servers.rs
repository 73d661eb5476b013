//! Our programs against servers as they were written years ago, in Python as they were: what they read at once,
//! when they read it, and what they do when it is not what they compare it with.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pi_agent::card::inspect;
use pi_agent::control::{Machine, Server};
use pi_agent::identity::Identity;
use pi_agent::install::{Choice, Consent, Keep, Outcome, Plan, TELL_TIME, attempt};
use pi_agent::telemetry::progress::Progress;
use piman_core::install::layout::Layout;
use piman_tests::{binaries, tar};

/// A program in Python that says its ports first and then what it read, a line each.
struct Python {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    ports: Vec<u16>,
}

impl Python {
    fn start(program: &str, arguments: &[&str]) -> Self {
        // Built now, if at all: what a test measures begins when its server runs.
        let _ = binaries::piman();
        let mut python = Command::new("python3");
        python.args(["-u", "-c", program]).args(arguments).stdout(Stdio::piped());
        let mut child = python.spawn().expect("python3 starts");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ports = lines.next().unwrap().unwrap().split(' ').map(|p| p.parse().unwrap()).collect();
        Self { child, lines, ports }
    }

    /// All that it says until it says this.
    fn until(&mut self, last: &str) -> Vec<String> {
        let mut all = Vec::new();
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            let end = line == last;
            all.push(line);
            if end {
                return all;
            }
        }
        panic!("it never read {last}: {all:?}");
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The control server that compares all that one `recv` returns with the reports. A late one has its thread start
/// when the report is there: whatever came before is read with it.
const CONTROL: &str = r#"
import socket, sys, threading, time
late, date, archive = "late" in sys.argv[1], "date" in sys.argv[1], sys.argv[2]

def listen():
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    s.bind(("127.0.0.1", 0))
    s.listen(5)
    return s

control, rootfs = listen(), listen()
print(control.getsockname()[1], rootfs.getsockname()[1], flush=True)

def files():
    while True:
        conn, _ = rootfs.accept()
        with open(archive, "rb") as f:
            conn.sendall(f.read())
        conn.close()

def client(conn):
    if date:
        conn.send(b"busybox date -s 202611210324.07\nEOM\n")
    if late:
        while True:
            there = conn.recv(4096, socket.MSG_PEEK)
            if b"IS_" in there or not there:
                break
            time.sleep(0.001)
    while True:
        data = conn.recv(1024).decode("utf-8")
        print(repr(data), flush=True)
        if "strict" in sys.argv[1] and data.startswith("PIMAN"):
            conn.close()
            return
        if data == "IS_UNINSTALLED\n":
            conn.send(b"format\n")
            conn.send(b"EOM\n")
        elif data == "IS_INSTALLED\n":
            conn.send(b"boot\n" + b"EOM\n")
        elif data == "IS_FORMATTED\n" or not data:
            conn.close()
            return

threading.Thread(target=files, daemon=True).start()
while True:
    conn, _ = control.accept()
    threading.Thread(target=client, args=(conn,), daemon=True).start()
"#;

fn plan(python: &Python, disk: &Path) -> Plan {
    Plan {
        server: Server {
            host: "127.0.0.1".into(),
            control_port: python.ports[0],
            rootfs_port: python.ports[1],
        },
        disk: disk.to_owned().into(),
        size: Some(256 << 20),
        layout: Layout::default(),
        discard: false,
        keep: Keep::default(),
        choice: Choice::Auto,
        yes: false,
        erase: Consent::default(),
        trust_unmarked: false,
        reinstall: false,
        identity: Identity { serial: Some("00000000cafe0003".into()), ..Identity::default() },
        key: None,
        device: None,
        boot_from: None,
        service: None,
        tell_time: TELL_TIME,
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn a_server_that_compares_what_one_read_returns_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    let archive = tar::of_bytes(100_000);
    for (i, habits) in ["prompt", "prompt date", "late", "late date"].into_iter().enumerate() {
        let mut python = Python::start(CONTROL, &[habits, archive.path().to_str().unwrap()]);
        let disk = folder.path().join(format!("card{i}.img"));
        let plan = plan(&python, &disk);
        let (mut machine, progress) = (Machine::default(), Arc::new(Progress::new()));
        let began = Instant::now();
        let outcome = attempt(&plan, &mut machine, &progress).unwrap_or_else(|e| panic!("{habits}: {e}"));
        assert!(matches!(outcome, Outcome::Installed { .. }), "{habits}: {outcome:?}");
        println!("{habits}: installed in {:.1} s", began.elapsed().as_secs_f64());
        assert!(began.elapsed() < Duration::from_secs(40), "{habits}: {:?}", began.elapsed());
        // What it tells of the end reaches the server alone, too.
        let read = python.until(r"'IS_FORMATTED\n'");
        assert!(read.contains(&r"'IS_UNINSTALLED\n'".to_owned()), "{habits}: {read:?}");
        assert!(!read.iter().any(|piece| piece.contains("committed")), "{habits}: {read:?}");
        let late = habits.contains("late");
        assert_eq!(machine.old_server, late, "{habits}");
        assert_eq!(
            read.iter().any(|p| p.contains("PIMAN/1 hello") && p.contains("IS_")),
            late,
            "{habits}: {read:?}"
        );
        assert!(inspect::check(&disk).unwrap().is_installed(false));

        // It boots, and does not greet again a server that was seen not to answer.
        let began = Instant::now();
        let outcome = attempt(&plan, &mut machine, &progress).unwrap();
        assert!(matches!(outcome, Outcome::Boot { .. }), "{habits}: {outcome:?}");
        assert!(began.elapsed() < Duration::from_secs(8), "{habits}: {:?}", began.elapsed());
        let read = python.until(r"'IS_INSTALLED\n'");
        assert_eq!(read.iter().any(|p| p.contains("PIMAN/1")), !late, "{habits}: {read:?}");
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn a_server_that_closes_at_what_it_does_not_know_is_asked_without_a_greeting() {
    let folder = tempfile::tempdir().unwrap();
    let archive = tar::of_bytes(100_000);
    let python = Python::start(CONTROL, &["strict", archive.path().to_str().unwrap()]);
    let plan = plan(&python, &folder.path().join("card.img"));
    let (mut machine, progress) = (Machine::default(), Arc::new(Progress::new()));
    let outcome = attempt(&plan, &mut machine, &progress).unwrap();
    assert!(matches!(outcome, Outcome::Installed { .. }), "{outcome:?}");
    assert!(machine.old_server);
    assert!(matches!(attempt(&plan, &mut machine, &progress).unwrap(), Outcome::Boot { .. }));
}

/// The tutorial's telemetry servers: the streaming one greets and then reads for ever, the one-shot one reads once
/// before it greets. What each says after a piece, and how many bytes it reads at once, are arguments.
const TELEMETRY: &str = r#"
import socket, sys
kind, answer, size = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
s.bind(("127.0.0.1", 0))
s.listen(5)
print(s.getsockname()[1], flush=True)
while True:
    conn, addr = s.accept()
    if kind == "oneshot":
        data = conn.recv(size)
        print(repr(data.decode()), flush=True)
        conn.send(b"Connection established")
        conn.send(answer)
        conn.close()
        continue
    if kind in ("streaming", "greets and quits"):
        conn.send(b"Connection established")
    try:
        while True:
            data = conn.recv(size)
            if not data:
                break
            print(repr(data.decode()), flush=True)
            conn.send(answer)
            if kind in ("quits", "greets and quits"):
                break
    except ConnectionError as e:
        print("broken", e, flush=True)
    conn.close()
"#;

/// `piman telemetry` of these records; its whole output.
fn stream(port: u16, records: &str, more: &[&str]) -> Output {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), records).unwrap();
    let mut piman = Command::new(binaries::piman());
    piman.arg("telemetry").arg(file.path()).args(["127.0.0.1", "--no-follow", "--port", &port.to_string()]);
    piman.args(more).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8([&output.stdout[..], &output.stderr].concat()).unwrap()
}

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn telemetry_servers_that_greet_first_last_or_never() {
    let records = "1,2\n3,4\n5,6\n";
    for (kind, answer) in [
        ("streaming", "data received"),
        ("streaming", "data processed"),
        ("oneshot", "data received"),
        ("oneshot", "data processed"),
        ("never", "data received"),
        ("greets and quits", "data received"),
        ("quits", "data processed"),
    ] {
        let mut python = Python::start(TELEMETRY, &[kind, answer, "1024"]);
        let began = Instant::now();
        let output = stream(python.ports[0], records, &["--tries", "3", "--timeout", "20s"]);
        assert!(output.status.success(), "{kind}, {answer}: {}", text(&output));
        assert!(text(&output).contains("3 records"), "{}", text(&output));
        println!("{kind}, {answer}: {:.1} s", began.elapsed().as_secs_f64());
        // Each once, in order, and nothing is complained of but what is so.
        let read = python.until(r"'5,6\n'");
        assert_eq!(read, [r"'1,2\n'", r"'3,4\n'", r"'5,6\n'"], "{kind}, {answer}");
    }
}

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn the_pis_figures_reach_a_server_that_takes_one_record_a_connection() {
    for kind in ["oneshot", "streaming", "never"] {
        let mut python = Python::start(TELEMETRY, &[kind, "data received", "1024"]);
        let mut agent = Command::new(binaries::pi_agent());
        agent.args(["metrics", "--server", "127.0.0.1", "--telemetry-port", &python.ports[0].to_string()]);
        let output = agent.args(["--interval", "0.5", "--count", "2"]).output().unwrap();
        assert!(output.status.success(), "{kind}: {}", text(&output));
        assert_eq!(text(&output), "", "{kind}");
        let first = python.lines.next().unwrap().unwrap();
        assert!(first.starts_with("'time_s,") && first.matches(r"\n").count() == 2, "{kind}: {first}");
        let second = python.lines.next().unwrap().unwrap();
        assert_eq!(second.starts_with("'time_s,"), kind == "oneshot", "{kind}: {second}");
    }
}

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn a_server_that_does_not_acknowledge_is_described_as_it_is() {
    for (kind, answer, want) in [
        ("streaming", "", "did not acknowledge a record within 2 s. Its disk"),
        ("streaming", "data rec", r#"did not acknowledge a record within 2 s; it said only "data rec""#),
        (
            "oneshot",
            "",
            r#"closed the connection and did not acknowledge the record; it said only "Connection established""#,
        ),
        ("oneshot", "data rec", r#"it said only "Connection establisheddata rec""#),
        ("quits", "data rec", r#"did not acknowledge the record; it said only "data rec""#),
    ] {
        let python = Python::start(TELEMETRY, &[kind, answer, "1024"]);
        let output = stream(python.ports[0], "1,2\n", &["--tries", "1", "--timeout", "2s"]);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(5), "{kind}, {answer}: {text}");
        assert_eq!(text.matches(want).count(), 1, "{kind}, {answer}: {text}");
        assert_eq!(text.matches("acknowledge").count(), 1, "{kind}, {answer}: {text}");
        assert!(text.contains(&format!("sending a record to 127.0.0.1 port {}", python.ports[0])), "{text}");
    }
}

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn a_server_that_reads_half_a_record_at_once_loses_none() {
    for answer in ["data received", "data processed"] {
        let mut python = Python::start(TELEMETRY, &["streaming", answer, "5"]);
        let records: String = (100..140).map(|n| format!("{n},{n}\n")).collect();
        let began = Instant::now();
        let output = stream(python.ports[0], &records, &["--tries", "1", "--timeout", "20s"]);
        assert!(output.status.success(), "{answer}: {}", text(&output));
        assert!(began.elapsed() < Duration::from_secs(15), "{answer}: {:?}", began.elapsed());
        let mut read = String::new();
        while read.len() < records.len() {
            let line = python.lines.next().unwrap().unwrap();
            assert!(!line.starts_with("broken"), "{line} after {read}");
            read += &line.trim_matches('\'').replace(r"\n", "\n");
        }
        assert_eq!(read, records, "{answer}");
    }
}
