//! What a command or a decision has acknowledged is there after a power cut of the server, and with its disk full
//! the command fails instead.
//!
//! The state is on an ext4 on a loop device. The power cut is the filesystem's own: its shutdown without a flush of
//! its log, so that what was not brought to the disk is lost.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use piman::state::{Order, Sqlite, State as _};
use piman_core::install::{Fingerprint, Found, Hello, Notice, Paths};
use piman_tests::binaries;
use piman_tests::disk::{Mounted, run};
use piman_tests::server::{Server, wait_until};
use piman_tests::tar;

/// How often each command is tried.
const ROUNDS: usize = 8;

/// A small ext4 in a file.
struct Disk {
    file: tempfile::NamedTempFile,
    bytes: u64,
}

impl Disk {
    fn new(bytes: u64) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        // Nothing is set aside for root, for whom a disk would never be full.
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-E", "lazy_itable_init=0"]).arg(file.path()));
        Self { file, bytes }
    }

    fn mount(&self) -> Mounted {
        Mounted::new(self.file.path(), 0, self.bytes, "rw")
    }
}

/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`.
const CUT: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

/// Cuts the power of a filesystem. The process is ready before, so that nothing has time to reach the disk by itself.
struct Cutter(std::process::Child);

impl Cutter {
    fn ready(at: &Path) -> Self {
        let code = format!("import sys\nsys.stdin.readline()\n{CUT}");
        let mut python = Command::new("python3");
        let child = python.args(["-c", &code]).arg(at).stdin(std::process::Stdio::piped()).spawn().unwrap();
        Self(child)
    }

    fn cut(mut self) {
        self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

/// A Pi's greeting and report.
fn says(serial: &str, found: Found, print: Option<Fingerprint>) -> String {
    let paths = Paths { stream: true, image: false };
    let hello =
        Hello { serial: Some(serial), revision: 2, found: Some(found), print, paths, ..Hello::default() };
    let report = if found == Found::Ours { "IS_INSTALLED" } else { "IS_UNINSTALLED" };
    format!("{}\n{report}\n", Notice::Hello(hello))
}

/// The word that the Pi is told: `boot`, `format`, or nothing of it.
fn told(port: u16, says: &str) -> std::io::Result<Option<&'static str>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(says.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(["boot", "format"].into_iter().find(|word| text.lines().any(|line| line == *word)))
}

fn piman(state: &Path, arguments: &[&str]) -> Output {
    let mut piman = Command::new(binaries::piman());
    piman.arg(arguments[0]).arg("--state").arg(state).args(&arguments[1..]).output().unwrap()
}

fn order(state: &Path, name: &str) -> Option<Order> {
    Sqlite::command(state).unwrap().orders().unwrap().into_iter().find(|o| o.name == name)
}

fn server(archive: &Path, state: &Path) -> Server {
    let mut strict = Server::strict(archive, state, &["--no-images", "--allow-unfit"]);
    let server = Server::start_by(&mut strict, state);
    server.wait_log("is good");
    server
}

/// Cuts the power each time when this has been acknowledged, and looks whether it is there. `before` prepares; the
/// server is busy with other Pis all the time.
#[track_caller]
fn survives(
    before: impl Fn(&Server, &str),
    acknowledged: impl Fn(&Server, &Path, &str),
    is_there: impl Fn(&Path, &str) -> bool,
) {
    let (archive, disk) = (tar::of_bytes(1000), Disk::new(32 << 20));
    let mut kept = 0;
    for round in 0..ROUNDS {
        let serial = format!("10000000cafe0c{round:02}");
        let mounted = disk.mount();
        let state = mounted.path().join("state");
        let server = server(archive.path(), &state);
        before(&server, &serial);
        let (port, over) = (server.port("control"), AtomicBool::new(false));
        let cutter = Cutter::ready(mounted.path());
        thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0_u32.. {
                    // The server may be killed meanwhile.
                    let busy = told(port, &says(&format!("20000000cafe{n:04x}"), Found::Ours, None));
                    if over.load(Ordering::Relaxed) || busy.is_err() {
                        return;
                    }
                }
            });
            acknowledged(&server, &state, &serial);
            // Written as late as possible, and brought nowhere: it shows that the cut is one.
            fs::write(mounted.path().join("lost"), "x").unwrap();
            cutter.cut();
            over.store(true, Ordering::Relaxed);
        });
        drop(server);
        drop(mounted);
        let mounted = disk.mount();
        assert!(!mounted.path().join("lost").exists(), "the power was not cut");
        kept += usize::from(is_there(&mounted.path().join("state"), &serial));
    }
    assert_eq!(kept, ROUNDS, "acknowledged and lost");
}

#[track_caller]
fn must(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn an_order_and_its_cancellation() {
    survives(
        |_, _| {},
        |_, state, serial| must(&piman(state, &["reinstall", serial])),
        |state, serial| order(state, serial).is_some(),
    );
    survives(
        |server, serial| drop(server.piman(&["reinstall", serial])),
        |_, state, serial| must(&piman(state, &["reinstall", "--cancel", serial])),
        |state, serial| order(state, serial).is_some_and(|o| o.cancelled_ms.is_some()),
    );
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn what_is_decided_for_a_pi_that_waits() {
    let print = Fingerprint::new(0x77);
    survives(
        |server, serial| {
            let says = says(serial, Found::Foreign, print);
            assert_eq!(told(server.port("control"), &says).unwrap(), None);
            wait_until("it is known", || server.piman(&["devices"]).contains(serial));
        },
        |_, state, serial| must(&piman(state, &["install", serial, "--yes"])),
        |state, serial| order(state, serial).is_some_and(|o| o.print == print.map(|p| p.to_string())),
    );
    survives(
        |_, _| {},
        |_, state, serial| must(&piman(state, &["devices", "add", serial])),
        |state, serial| Sqlite::command(state).unwrap().listed().unwrap().iter().any(|pi| pi.name == serial),
    );
    survives(
        |_, _| {},
        |_, state, serial| must(&piman(state, &["policy", "--for", serial, "foreign=install"])),
        |state, serial| {
            Sqlite::command(state)
                .unwrap()
                .rules()
                .unwrap()
                .iter()
                .any(|(for_, _)| for_.to_string() == serial)
        },
    );
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn the_reason_why_a_pi_was_told_to_format() {
    survives(
        |server, serial| drop(server.piman(&["reinstall", serial])),
        |server, _, serial| {
            let told = told(server.port("control"), &says(serial, Found::Ours, None)).unwrap();
            assert_eq!(told, Some("format"));
        },
        |state, serial| {
            let reasons = Sqlite::command(state).unwrap().events(serial).unwrap();
            order(state, serial).is_some_and(|o| o.claimed_ms.is_some())
                && reasons.iter().any(|e| e.kind == "reason" && e.text.contains("piman reinstall"))
        },
    );
}

/// Writes until there is no room.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [1 << 20, 4096, 512] {
        let zeros = vec![0; size];
        while file.write_all(&zeros).is_ok() {}
    }
    // What does not fit is noticed here at the latest.
    let _ = file.sync_all();
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn with_the_disk_full_commands_fail_and_the_server_goes_on() {
    let (archive, disk) = (tar::of_bytes(1000), Disk::new(16 << 20));
    let mounted = disk.mount();
    let (state, filler) = (mounted.path().join("state"), mounted.path().join("filler"));
    let server = server(archive.path(), &state);
    server.piman(&["reinstall", "10000000cafe0d00"]);
    fill(&filler);
    // Some find room in what the database has already; those are recorded.
    let (mut recorded, mut refused) = (Vec::new(), Vec::new());
    for n in 1..2000 {
        let serial = format!("10000000cafe{n:04x}");
        let output = piman(&state, &["reinstall", &serial]);
        if output.status.success() {
            recorded.push(serial);
            continue;
        }
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains("full") && error.contains("nothing was changed"), "{error}");
        refused.push(serial);
        if refused.len() == 3 {
            break;
        }
    }
    assert_eq!(refused.len(), 3, "the disk is not full");
    let refuse = |arguments: &[&str]| {
        let output = piman(&state, arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains("full"), "{arguments:?}: {error}");
        assert!(error.contains("nothing was changed"), "{arguments:?}: {error}");
    };
    refuse(&["reinstall", "--cancel", "10000000cafe0d00"]);
    refuse(&["policy", "foreign=install"]);
    refuse(&["devices", "add", "10000000cafe0d00"]);
    // Pis are answered, and none is erased for what cannot be put on record.
    let port = server.port("control");
    let ask = |serial: &str, found| told(port, &says(serial, found, None)).unwrap();
    for _ in 0..3 {
        assert_eq!(ask("30000000cafe0001", Found::Ours), Some("boot"));
        assert_eq!(ask("10000000cafe0d00", Found::Ours), Some("boot"), "its order cannot be carried out now");
        assert_eq!(ask("30000000cafe0002", Found::Blank), None, "it waits");
        assert_eq!(told(port, "IS_UNINSTALLED\n").unwrap(), None, "it waits");
    }
    // Without a server it is the same.
    drop(server);
    refuse(&["reinstall", "10000000cafe0e00"]);
    refuse(&["policy", "foreign=install"]);
    fs::remove_file(&filler).unwrap();
    let server = self::server(archive.path(), &state);
    let names: Vec<String> =
        Sqlite::command(&state).unwrap().orders().unwrap().into_iter().map(|o| o.name).collect();
    for serial in &recorded {
        assert!(names.contains(serial), "{serial} was acknowledged");
    }
    for serial in refused.iter().map(String::as_str).chain(["10000000cafe0e00"]) {
        assert!(!names.iter().any(|n| n == serial), "{serial} was refused");
    }
    let ask = |serial: &str, found| told(server.port("control"), &says(serial, found, None)).unwrap();
    assert_eq!(ask("10000000cafe0d00", Found::Ours), Some("format"), "the order is still there");
    assert_eq!(ask("30000000cafe0002", Found::Blank), Some("format"));
}
