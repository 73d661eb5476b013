//! The programs: `piman serve` with files and records, `piman get`, `put` and `stream`; killed and
//! started again.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use piman_tests::binaries::{pi_agent, piman};
use piman_tests::chance::noise;
use piman_tests::port::steady;
use piman_tests::proxy::{Faults, Tampering, stammer_slowly};
use piman_tests::running::Running;
use piman_tests::server::Server;
use piman_tests::tar::Tar;
use piman_tests::wait::until;

/// A folder for everything, and servers in it.
struct Lab {
    dir: tempfile::TempDir,
    archive: tempfile::NamedTempFile,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["files", "records", "here"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let archive = Tar::new().push(b"hello", b'0', b"", b"x").packed();
        Self { dir, archive }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A server on these ports, 0 for any.
    fn serve(&self, transfer: u16, stream: u16) -> Server {
        let (files, records) = (self.path("files"), self.path("records"));
        let (transfer, stream) = (transfer.to_string(), stream.to_string());
        let more = ["--no-images", "--transfer-dir", files.to_str().unwrap(), "--transfer-port", &transfer];
        let most = ["--telemetry-dir", records.to_str().unwrap(), "--telemetry-port", &stream];
        Server::start(self.archive.path(), &self.path("state"), &[&more[..], &most].concat())
    }

    fn piman(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(piman());
        command.args(arguments).current_dir(self.path("here"));
        command
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } = self.piman(arguments).output().unwrap();
        (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn get_and_put() {
    let lab = Lab::new();
    let server = lab.serve(0, 0);
    let port = server.port("transfer").to_string();
    let bytes = noise(1_000_000, 1);
    fs::write(lab.path("files/a b"), &bytes).unwrap();
    let (code, out, err) = lab.run(&["get", "127.0.0.1:a b", "--port", &port]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(fs::read(lab.path("here/a b")).unwrap() == bytes);
    assert!(out.starts_with("a b: 976.56 KiB in "), "{out}");
    // Nothing is replaced unless that is asked for.
    let (code, _, err) = lab.run(&["get", "127.0.0.1:a b", "--port", &port]);
    assert!(code == 1 && err.contains("--force"), "{err}");
    let (code, out, _) = lab.run(&["get", "127.0.0.1:a b", "--force", "--json", "--port", &port]);
    assert!(code == 0 && out.contains("\"moved\":1000000"), "{out}");
    let (code, _, err) = lab.run(&["get", "127.0.0.1:missing", "--port", &port]);
    assert!(code == 3 && err.contains("no such file"), "{err}");
    let (code, out, _) = lab.run(&["get", "127.0.0.1:missing", "--json", "--port", &port]);
    assert!(code == 3 && out.contains("\"code\":3"), "{out}");
    let (code, _, err) = lab.run(&["get", "127.0.0.1:../x", "--port", &port]);
    assert!(code == 1 && err.contains("dot"), "{err}");
    let (code, _, err) = lab.run(&["get", "127.0.0.1:x", "--port", "1", "--tries", "1"]);
    assert!(code == 5 && err.contains("connection failed"), "{err}");
    let (code, _, err) = lab.run(&["get", "nowhere", "--port", &port]);
    assert!(code == 1 && err.contains("HOST:NAME"), "{err}");

    let (code, _, err) = lab.run(&["put", "a b", "127.0.0.1:", "--port", &port]);
    assert_eq!(code, 0, "the server has exactly this file: {err}");
    let (code, _, err) = lab.run(&["put", "a b", "127.0.0.1:c", "--port", &port]);
    assert_eq!(code, 0, "{err}");
    assert!(fs::read(lab.path("files/c")).unwrap() == bytes);
    fs::write(lab.path("here/c"), b"other").unwrap();
    let (code, _, err) = lab.run(&["put", "c", "127.0.0.1:", "--port", &port]);
    assert!(code == 3 && err.contains("refuses"), "{err}");
    let (code, _, err) = lab.run(&["put", ".", "127.0.0.1:x", "--port", &port]);
    assert!(code == 1 && err.contains("plain file"), "{err}");
    // Another service answers there.
    let control = server.port("control").to_string();
    let (code, ..) = lab.run(&["get", "127.0.0.1:x", "--port", &control, "--tries", "1", "--timeout", "1s"]);
    assert_eq!(code, 5);
    assert_eq!(entries(&lab.path("here")), ["a b", "c"]);
    assert_eq!(entries(&lab.path("files")), [".piman-uploads", "a b", "c"]);
    assert_eq!(entries(&lab.path("files/.piman-uploads")), [""; 0]);
}

#[test]
fn an_upload_survives_a_server_that_is_killed_again_and_again() {
    let lab = Lab::new();
    let mut server = lab.serve(steady(), 0);
    let transfer = server.port("transfer");
    let bytes = noise(30_000_000, 2);
    fs::write(lab.path("here/big"), &bytes).unwrap();
    // Slowly enough to be in the middle.
    let proxy = stammer_slowly(([127, 0, 0, 1], transfer).into(), 7).port().to_string();
    let mut put = Running(
        lab.piman(&["put", "big", "127.0.0.1:", "--json", "--tries", "100", "--port", &proxy])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let have = || {
        let parts = lab.path("files/.piman-uploads");
        let sizes = fs::read_dir(parts).unwrap().flatten().filter_map(|e| e.metadata().ok()).map(|m| m.len());
        sizes.sum::<u64>()
    };
    for round in 1..4 {
        until("more to be there", || have() > round * 5_000_000);
        // SIGKILL.
        drop(server);
        assert!(!lab.path("files/big").exists());
        server = lab.serve(transfer, 0);
    }
    until("the end", || put.0.try_wait().unwrap().is_some());
    assert!(put.0.wait().unwrap().success());
    let mut out = String::new();
    std::io::Read::read_to_string(&mut put.0.stdout.take().unwrap(), &mut out).unwrap();
    assert!(fs::read(lab.path("files/big")).unwrap() == bytes);
    assert_eq!(have(), 0);
    let moved: u64 =
        out.split("\"moved\":").nth(1).unwrap().split([',', '}']).next().unwrap().parse().unwrap();
    // What was in sockets and in the proxy is sent again, and no more.
    assert!(moved < 55_000_000, "{out}");
    assert!(!out.contains("\"resumed_at\":0,"), "{out}");
    drop(server);
}

#[test]
fn clients_that_are_killed_go_on_where_they_were() {
    let lab = Lab::new();
    let server = lab.serve(0, 0);
    let bytes = noise(20_000_000, 3);
    fs::write(lab.path("files/big"), &bytes).unwrap();
    // Each of the first two gets so much and waits for more.
    let faults = Faults { holds: vec![5_000_000, 10_000_000], ..Faults::default() };
    let any = ([127, 0, 0, 1], 0).into();
    let proxy = Tampering::new(any, ([127, 0, 0, 1], server.port("transfer")).into(), faults);
    let proxy = proxy.address().port().to_string();
    let part = || entries(&lab.path("here")).into_iter().find(|n| n.ends_with(".part"));
    let size = || part().and_then(|p| fs::metadata(lab.path("here").join(p)).ok()).map_or(0, |m| m.len());
    let get = ["get", "127.0.0.1:big", "--port", &proxy];
    for round in 1..3 {
        let mut running = Running(lab.piman(&get).stderr(Stdio::null()).spawn().unwrap());
        until("all of it to be there", || size() > round * 5_000_000 - 1000);
        assert!(running.0.try_wait().unwrap().is_none());
        drop(running);
        assert!(!lab.path("here/big").exists());
    }
    let have = size();
    let (code, out, err) = lab.run(&[&get[..], &["--json"]].concat());
    assert_eq!(code, 0, "{err}");
    assert!(out.contains(&format!("\"resumed_at\":{have}")), "{have}: {out}");
    assert!(fs::read(lab.path("here/big")).unwrap() == bytes);
    assert_eq!(entries(&lab.path("here")), ["big"]);
}

#[test]
fn a_growing_file_is_streamed_whatever_dies() {
    let lab = Lab::new();
    let mut server = lab.serve(0, steady());
    let port = server.port("telemetry");
    let file = lab.path("here/f.csv");
    let append = |from: usize, to: usize| {
        let mut f = OpenOptions::new().append(true).create(true).open(&file).unwrap();
        for n in from..to {
            writeln!(f, "{n},temperature,{}", n * 7).unwrap();
        }
    };
    let text = port.to_string();
    let arguments = ["telemetry", "f.csv", "127.0.0.1", "--position", "p", "--port", &text];
    let start = || Running(lab.piman(&arguments).stderr(Stdio::null()).spawn().unwrap());
    let kept = || fs::read_to_string(lab.path("records/127.0.0.1.csv")).unwrap_or_default();
    let has = |n: usize| until("the record", || kept().ends_with(&format!("\n{n},temperature,{}\n", n * 7)));
    append(0, 1000);
    let mut client = start();
    has(999);
    append(1000, 2000);
    has(1999);
    // The server is killed and comes back.
    drop(server);
    append(2000, 3000);
    server = lab.serve(0, port);
    has(2999);
    // The client is killed and comes back.
    drop(client);
    append(3000, 4000);
    client = start();
    has(3999);
    // The file is rotated, its last record is whole by that.
    append(4000, 4100);
    write!(OpenOptions::new().append(true).open(&file).unwrap(), "4100,temperature,28700").unwrap();
    fs::rename(&file, lab.path("here/f.csv.1")).unwrap();
    append(4101, 4200);
    has(4199);
    // In the middle of everything.
    for round in 0..5 {
        append(4200 + round * 3000, 4200 + (round + 1) * 3000);
        until("the middle", || kept().lines().count() > 4200 + round * 3000 + 500);
        if round % 2 == 0 {
            drop(client);
            client = start();
        } else {
            drop(server);
            server = lab.serve(0, port);
        }
        has(4200 + (round + 1) * 3000 - 1);
    }
    // All there and in order; twice at most what was under way when something was killed.
    let mut next = 0;
    let mut twice = 0;
    for line in kept().lines() {
        let number: usize = line.split(',').next().unwrap().parse().unwrap();
        assert_eq!(line, format!("{number},temperature,{}", number * 7));
        if number == next {
            next += 1;
        } else {
            assert_eq!(number + 1, next, "{line}");
            twice += 1;
        }
    }
    assert_eq!(next, 4200 + 15_000);
    assert!(twice <= 7, "{twice} records are there twice");
    drop((client, server));
}

#[test]
fn standard_input_is_streamed_to_its_end() {
    let lab = Lab::new();
    let server = lab.serve(0, 0);
    let port = server.port("telemetry").to_string();
    let mut client = lab
        .piman(&["telemetry", "-", "127.0.0.1", "--port", &port])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    client.stdin.take().unwrap().write_all(b"1\n2\n3").unwrap();
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"3 records\n");
    assert_eq!(fs::read_to_string(lab.path("records/127.0.0.1.csv")).unwrap(), "1\n2\n3\n");
    fs::write(lab.path("here/g"), "4\n").unwrap();
    let (code, ..) = lab.run(&["telemetry", "g", "127.0.0.1", "--no-follow", "--port", "1", "--tries", "1"]);
    assert_eq!(code, 5);
}

#[test]
fn a_server_lets_transfers_finish_when_it_is_told_to_stop() {
    let lab = Lab::new();
    let mut server = lab.serve(steady(), 0);
    let bytes = noise(10_000_000, 5);
    fs::write(lab.path("here/big"), &bytes).unwrap();
    let proxy = stammer_slowly(([127, 0, 0, 1], server.port("transfer")).into(), 11).port().to_string();
    let mut put = Running(
        lab.piman(&["put", "big", "127.0.0.1:", "--port", &proxy])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    until("it began", || !entries(&lab.path("files/.piman-uploads")).is_empty());
    server.terminate();
    assert!(server.ended(Duration::from_secs(120)).success());
    assert!(put.0.wait().unwrap().success());
    assert!(fs::read(lab.path("files/big")).unwrap() == bytes);
}

#[test]
fn what_a_server_cannot_use_is_said() {
    let lab = Lab::new();
    let archive = lab.archive.path().to_str().unwrap();
    let serve = |more: &[&str]| {
        let state = lab.path("state");
        let ports = ["--control-port", "0", "--rootfs-port", "0", "--fetch-port", "0"];
        let first = [
            "serve",
            "--listen",
            "127.0.0.1",
            "--allow-unfit",
            "--rootfs",
            archive,
            "--state",
            state.to_str().unwrap(),
        ];
        let (code, _, err) = lab.run(&[&first[..], &ports, more].concat());
        assert_eq!(code, 1);
        err
    };
    let err = serve(&["--transfer-dir", "missing"]);
    assert!(err.contains("--transfer-dir") && err.contains("mkdir"), "{err}");
    let err = serve(&["--telemetry-dir", archive]);
    assert!(err.contains("--telemetry-dir") && err.contains("mkdir"), "{err}");
    let err = serve(&["--telemetry-port", "7"]);
    assert!(err.contains("--telemetry-dir"), "{err}");
    let err = serve(&["--transfer-dir", ".", "--telemetry-dir", ".", "--telemetry-port", "50001"]);
    assert!(err.contains("port of its own"), "{err}");
}

#[test]
fn a_server_without_a_root_filesystem_has_the_other_services() {
    let lab = Lab::new();
    let (files, records) = (lab.path("files"), lab.path("records"));
    let (files, records) = (files.to_str().unwrap(), records.to_str().unwrap());
    let more = ["--transfer-dir", files, "--transfer-port", "0", "--telemetry-dir", records];
    let more = [&more[..], &["--telemetry-port", "0", "--rpc-port", "0"]].concat();
    let mut server = Server::start_services(&lab.path("state"), &more);
    fs::write(lab.path("here/f"), "1,2\n").unwrap();
    let port = server.port("transfer").to_string();
    assert_eq!(lab.run(&["put", "f", "127.0.0.1:", "--port", &port]).0, 0);
    assert_eq!(fs::read(lab.path("files/f")).unwrap(), b"1,2\n");
    let port = server.port("telemetry").to_string();
    assert_eq!(lab.run(&["telemetry", "f", "127.0.0.1", "--no-follow", "--port", &port]).0, 0);
    assert_eq!(fs::read(lab.path("records/127.0.0.1.csv")).unwrap(), b"1,2\n");
    assert!(server.piman(&["status"]).starts_with("DEVICE"));
    server.terminate();
    assert!(server.ended(Duration::from_secs(120)).success());
    for (arguments, word) in [
        (&["serve", "--state", "s"][..], "--rootfs"),
        (&["serve", "--state", "s", "--rpc-port", "0", "--fetch-port", "0"], "--fetch-port"),
        (&["serve", "--state", "s", "--rpc-port", "0", "--slots", "1"], "--slots"),
    ] {
        let (code, _, err) = lab.run(arguments);
        assert!(code == 1 && err.contains(word), "{arguments:?}: {err}");
    }
}

#[test]
fn the_log_of_an_installation_comes_up() {
    let lab = Lab::new();
    let files = lab.path("files");
    let more = ["--transfer-dir", files.to_str().unwrap(), "--transfer-port", "0"];
    let server = Server::start(lab.archive.path(), &lab.path("state"), &more);
    let port = server.port("transfer").to_string();
    let logs = || entries(&lab.path("files")).into_iter().filter(|n| n.ends_with(".log")).collect::<Vec<_>>();
    // It finishes; the image is made by the server.
    let disk = lab.path("disk");
    let mut agent = server.agent(&disk, "cafe0001");
    let output =
        agent.args(["--size", "700M", "--transfer-port", &port, "--path", "image"]).output().unwrap();
    let name = logs().pop().unwrap_or_else(|| panic!("{output:?}"));
    assert!(name.starts_with("cafe0001-"), "{name}");
    let text = fs::read_to_string(lab.path("files").join(&name)).unwrap();
    assert!(!text.is_empty() && text.lines().all(|l| l.starts_with('[')), "{text}");
    // It fails.
    let mut agent = server.agent(lab.path("small"), "cafe0002");
    let output = agent.args(["--size", "1M", "--transfer-port", &port]).output().unwrap();
    assert!(!output.status.success());
    let name = logs().into_iter().find(|n| n.starts_with("cafe0002-")).unwrap();
    let text = fs::read_to_string(lab.path("files").join(&name)).unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    let why = told.lines().last().unwrap().strip_prefix("pi-agent: ").unwrap().to_owned();
    assert!(text.contains(&why), "{why:?} in {text}");
    // A server without the service is no failure.
    let mut agent = server.agent(lab.path("small"), "cafe0003");
    let output = agent.args(["--size", "1M", "--transfer-port", "1"]).output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains(&why));
}

#[test]
fn a_pi_streams_its_figures() {
    let lab = Lab::new();
    let server = lab.serve(0, 0);
    let port = server.port("telemetry").to_string();
    let arguments = ["metrics", "--server", "127.0.0.1", "--telemetry-port", &port, "--interval", "0.05"];
    let mut agent = Command::new(pi_agent());
    assert!(agent.args(arguments).args(["--count", "3"]).status().unwrap().success());
    let kept = fs::read_to_string(lab.path("records/127.0.0.1.csv")).unwrap();
    let lines: Vec<_> = kept.lines().collect();
    assert_eq!((lines.len(), lines[0]), (4, pi_agent::telemetry::metrics::HEADER));
    assert!(lines.iter().all(|l| l.split(',').count() == 8), "{kept}");
}
