//! A Pi without an operating system, in QEMU, against the real server: `tests/firmware` has its
//! programs, one on smoltcp and one on embassy. Needs qemu-system-arm and a toolchain for thumbv7m-none-eabi, and
//! builds anew what the programs are made of; so it runs only if it is asked for, by `--ignored`.

use std::fs;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use piman::messages::transport::{Hooks, Peer, Plan, Server as Frames, Settings};
use piman_tests::binaries;
use piman_tests::chance::noise;
use piman_tests::running::Running;
use piman_tests::server::Server;
use piman_tests::wait::until;

/// The serial number that the firmware says it has.
const SERIAL: &str = "10000000000000c3";
/// The one that the example on embassy has.
const EMBASSY: &str = "10000000000000e5";
const TARGET: &str = "thumbv7m-none-eabi";
/// For the firmware, from its reset to its end, on a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(90);

fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    // Those of the cargo that runs this test.
    for name in ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTFLAGS", "CARGO_TARGET_DIR", "CARGO_ENCODED_RUSTFLAGS"] {
        cargo.env_remove(name);
    }
    cargo
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("firmware")
}

/// Builds a program of a package for the board.
fn firmware(package: &str, program: &str) -> PathBuf {
    let cross = cargo().args(["+cross", "--version"]).output().is_ok_and(|o| o.status.success());
    let mut build = cargo();
    if cross {
        build.arg("+cross");
    }
    build.args(["build", "--quiet", "--release", "--locked", "--target", TARGET]);
    let output =
        build.args(["-p", package, "--bin", program]).current_dir(sources()).output().expect("cargo runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the firmware does not build:\n{text}");
    sources().join("target").join(TARGET).join("release").join(program)
}

/// What a firmware logged by defmt, as text.
fn decode(firmware: &Path, frames: &[u8]) -> String {
    let mut decode = cargo();
    decode
        .args(["run", "--quiet", "--locked", "-p", "piman-decode", "--"])
        .arg(firmware)
        .current_dir(sources());
    let mut decode =
        Running(decode.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cargo runs"));
    decode.stdin.take().expect("it is piped").write_all(frames).expect("it reads all");
    let text = read_all(decode.stdout.take());
    assert!(decode.wait().expect("it is our child").success(), "the frames cannot be decoded");
    String::from_utf8(text).expect("it is text")
}

fn read_all(from: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.expect("it is piped").read_to_end(&mut bytes).expect("it can be read");
    bytes
}

struct Emulator(Running);

impl Emulator {
    fn start(firmware: &Path, arguments: &[String]) -> Self {
        let semihosting = std::iter::once("enable=on,target=native,arg=pi".to_owned())
            .chain(arguments.iter().map(|a| format!("arg={a}")))
            .collect::<Vec<_>>()
            .join(",");
        let child = Command::new("qemu-system-arm")
            .args(["-machine", "mps2-an385", "-display", "none", "-monitor", "none", "-serial", "none"])
            .args(["-nic", "user,model=lan9118", "-semihosting-config", &semihosting, "-kernel"])
            .arg(firmware)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("qemu-system-arm starts (is it installed?)");
        Self(Running(child))
    }

    /// Waits for its end; what it said, and what it logged by defmt.
    fn output(mut self, meanwhile: impl Fn()) -> (bool, String, Vec<u8>) {
        let (from, frames) = (self.0.stderr.take(), self.0.stdout.take());
        let reader = std::thread::spawn(move || read_all(from));
        let frames = std::thread::spawn(move || read_all(frames));
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.0.try_wait().expect("it is our child") {
                break Some(status);
            }
            if Instant::now() > deadline {
                break None;
            }
            meanwhile();
            std::thread::sleep(Duration::from_millis(50));
        };
        drop(self);
        let text = String::from_utf8(reader.join().expect("the reader ends")).expect("it is text");
        for line in text.lines() {
            println!("firmware: {line}");
        }
        (status.is_some_and(|s| s.success()), text, frames.join().expect("the reader ends"))
    }
}

struct Echo;

impl Hooks for Echo {
    fn message(&mut self, peer: &Peer, message: Vec<u8>) {
        let peer = peer.clone();
        tokio::spawn(async move { peer.send(message).await });
    }
}

fn call(state: &Path, function: &str) -> Output {
    let mut piman = Command::new(binaries::piman());
    piman.arg("call").arg("--state").arg(state).args([SERIAL, function]);
    piman.output().expect("piman runs")
}

/// The line that begins with this word, word by word.
fn words<'a>(text: &'a str, first: &str) -> Vec<&'a str> {
    let line = text.lines().find(|l| l.split(' ').next() == Some(first));
    line.unwrap_or_else(|| panic!("no line `{first}`")).split(' ').collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute, needs qemu-system-arm and a toolchain for thumbv7m-none-eabi; --ignored runs it"]
async fn a_pi_without_an_operating_system_uses_all_services() {
    let firmware = firmware("piman-firmware", "pi");
    let folder = tempfile::tempdir().unwrap();
    let (folder, state) = (folder.path(), folder.path().join("state"));
    for name in ["root", "files", "records"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    fs::write(folder.join("root/noise"), noise(6 << 20, 1)).unwrap();
    fs::write(folder.join("files/file.bin"), noise(300_001, 2)).unwrap();
    fs::write(folder.join("password"), "open sesame\n").unwrap();
    let tar = Command::new("tar").args(["-czf", "rootfs.tgz", "root"]).current_dir(folder).status().unwrap();
    assert!(tar.success());
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (files, records, password) = (path("files"), path("records"), path("password"));
    let server = Server::start(
        &folder.join("rootfs.tgz"),
        &state,
        &[
            ["--transfer-dir", &files, "--transfer-port", "0", "--telemetry-dir", &records],
            ["--telemetry-port", "0", "--rpc-port", "0", "--rpc-password-file", &password],
        ]
        .concat(),
    );
    server.wait_log("is good");
    let settings = Settings { limit: 1 << 20, ..Settings::default() };
    let addresses = vec!["127.0.0.1:0".parse().unwrap()];
    let frames =
        Frames::start(Plan { addresses, connections: 2, settings, plugins: None, hooks: || Echo }).unwrap();

    // In the emulator's network this machine's loopback is 10.0.2.2.
    let port = |name: &str| format!("{name}={}", server.port(name));
    let arguments = [
        "10.0.2.2".to_owned(),
        port("control"),
        port("rootfs"),
        port("transfer"),
        format!("frames={}", frames.addresses()[0].port()),
        port("rpc"),
        port("telemetry"),
    ];
    let emulator = Emulator::start(&firmware, &arguments);
    let called = std::sync::atomic::AtomicBool::new(false);
    let (ended_well, text, _) = tokio::task::block_in_place(|| {
        emulator.output(|| {
            // As soon as it can be called it is, once: then it goes on.
            let called_before = called.load(std::sync::atomic::Ordering::Relaxed);
            if !called_before && server.log().contains(&format!("is {SERIAL}")) {
                let answer = call(&state, "status");
                let text = String::from_utf8_lossy(&answer.stdout);
                assert!(answer.status.success() && text.contains("uptime_ms"), "{answer:?}");
                called.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        })
    });
    assert!(ended_well, "the firmware failed");
    assert!(called.into_inner(), "it was never called");

    // The root filesystem: what was hashed is what the server has, and what it noted as installed.
    let archive = fs::read(folder.join("rootfs.tgz")).unwrap();
    let id = blake3::hash(&archive).to_hex();
    let rootfs = words(&text, "rootfs");
    assert_eq!(rootfs[1..3], [id.as_str(), &archive.len().to_string()]);
    let devices = || server.piman(&["devices", "--json"]);
    until("it is listed", || devices().contains(SERIAL) && devices().contains(id.as_str()));
    let device = server.piman(&["device", SERIAL]);
    assert!(device.contains("mps2-an385"), "{device}");

    let file = blake3::hash(&fs::read(folder.join("files/file.bin")).unwrap()).to_hex();
    assert_eq!(words(&text, "file"), ["file", file.as_str(), "300001"]);
    assert_eq!(words(&text, "frames"), ["frames", "ok"]);
    assert_eq!(words(&text, "answer"), ["answer", "piman0"]);
    let mut kept = String::new();
    for entry in fs::read_dir(&records).unwrap() {
        kept += &fs::read_to_string(entry.unwrap().path()).unwrap();
    }
    let want: String = (0..1000_u32).map(|i| format!("{i},{},{SERIAL}\n", i * i)).collect();
    assert!(kept == want, "{} bytes of records were kept, and not {}", kept.len(), want.len());

    let ms: u32 = rootfs[4].parse().unwrap();
    let rate = archive.len() as f64 / 1e3 / f64::from(ms.max(1));
    println!("figure: firmware download {rate:.2} MB/s, hashed on the way");
    println!("figure: firmware records {} in {} ms", words(&text, "records")[1], words(&text, "records")[2]);
    assert_eq!(frames.stop(DEADLINE).await, 0);
}

/// The example for embassy asks the real server, and what core's types say by defmt is what was decided.
#[test]
#[ignore = "takes a minute, needs qemu-system-arm and a toolchain for thumbv7m-none-eabi; --ignored runs it"]
fn the_example_on_embassy_asks_what_to_do_and_logs_it_by_defmt() {
    let firmware = firmware("piman-embassy", "embassy");
    let folder = tempfile::tempdir().unwrap();
    let (archive, state) = (folder.path().join("rootfs.tgz"), folder.path().join("state"));
    fs::create_dir(folder.path().join("root")).unwrap();
    fs::write(folder.path().join("root/noise"), noise(100_000, 3)).unwrap();
    let tar =
        Command::new("tar").args(["-czf", "rootfs.tgz", "root"]).current_dir(folder.path()).status().unwrap();
    assert!(tar.success());
    let server = Server::start(&archive, &state, &[]);
    server.wait_log("is good");

    // In the emulator's network this machine's loopback is 10.0.2.2.
    let arguments = ["10.0.2.2".to_owned(), server.port("control").to_string()];
    let (ended_well, text, frames) = Emulator::start(&firmware, &arguments).output(|| {});
    let logged = decode(&firmware, &frames);
    for line in logged.lines() {
        println!("embassy: {line}");
    }
    assert!(ended_well, "the firmware failed: {text}");
    let decision = logged.lines().find(|l| l.starts_with("INFO decision: ")).expect("it logs the decision");
    let archive = fs::read(&archive).unwrap();
    assert!(decision.starts_with("INFO decision: Format(Some(Offer {"), "{decision}");
    for part in [format!("id: {}", blake3::hash(&archive)), format!("bytes: {}", archive.len())] {
        assert!(decision.contains(&part), "`{part}` is not in: {decision}");
    }
    assert!(
        logged.lines().any(|l| l.starts_with("INFO configured: ") && l.contains("10.0.2.15")),
        "{logged}"
    );
    until("it is listed", || server.piman(&["devices", "--json"]).contains(EMBASSY));
}
