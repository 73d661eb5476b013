//! Our agent against servers that are years old, re-enacted byte by byte: what it says, what
//! it does, and what it leaves on the disk.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pi_agent::card::inspect::{self, Card};
use pi_agent::control::{Machine, Server};
use pi_agent::failure::{Cause, Failure};
use pi_agent::identity::Identity;
use pi_agent::install::{Choice, Consent, Keep, Outcome, Plan, TELL_TIME, attempt, run};
use pi_agent::telemetry::progress::Progress;
use piman_core::hash::Hash;
use piman_core::install::layout::Layout;
use piman_core::install::receipt::Way;

const SIZE: u64 = 256 << 20;

/// An old server: it sends its lines and never reads what it does not know.
#[derive(Clone)]
struct Old {
    /// What it sends at connect.
    greeting: &'static str,
    /// What it answers to `IS_UNINSTALLED`.
    uninstalled: &'static str,
    /// What it answers to `IS_INSTALLED`.
    installed: &'static str,
    /// Writes one byte at a time.
    stammers: bool,
    /// What port 4444 sends.
    archive: Arc<Vec<u8>>,
}

impl Old {
    fn with(archive: &Arc<Vec<u8>>) -> Self {
        Self {
            greeting: "",
            uninstalled: "format\nEOM\n",
            installed: "boot\nEOM\n",
            stammers: false,
            archive: Arc::clone(archive),
        }
    }

    /// Serves one control connection; gives the lines that it heard. The rootfs port
    /// serves as long as the test lives.
    fn start(self) -> (Server, JoinHandle<Vec<String>>) {
        let control = TcpListener::bind("127.0.0.1:0").unwrap();
        let rootfs = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            host: "127.0.0.1".into(),
            control_port: control.local_addr().unwrap().port(),
            rootfs_port: rootfs.local_addr().unwrap().port(),
        };
        let archive = Arc::clone(&self.archive);
        thread::spawn(move || {
            for stream in rootfs.incoming() {
                let mut stream = stream.unwrap();
                // An early end is the Pi's business. A byte from the Pi would be a fault.
                let _ = stream.write_all(&archive);
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut sent = Vec::new();
                let _ = stream.read_to_end(&mut sent);
                assert!(sent.is_empty(), "the agent sent {sent:?} on the rootfs port");
            }
        });
        let heard = thread::spawn(move || {
            let (stream, _) = control.accept().unwrap();
            self.control(stream)
        });
        (server, heard)
    }

    fn write_line(&self, mut stream: &TcpStream, text: &str) {
        if self.stammers {
            text.bytes().for_each(|b| stream.write_all(&[b]).unwrap());
        } else {
            stream.write_all(text.as_bytes()).unwrap();
        }
    }

    fn control(&self, stream: TcpStream) -> Vec<String> {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.set_nodelay(true).unwrap();
        self.write_line(&stream, self.greeting);
        let mut heard = Vec::new();
        for line in BufReader::new(&stream).lines() {
            let line = line.unwrap();
            match line.as_str() {
                "IS_UNINSTALLED" => self.write_line(&stream, self.uninstalled),
                "IS_INSTALLED" => self.write_line(&stream, self.installed),
                _ => {}
            }
            let end = line == "IS_FORMATTED";
            heard.push(line);
            if end {
                break;
            }
        }
        heard
    }
}

fn archive(folder: &Path) -> Arc<Vec<u8>> {
    let script = "mkdir -p r/bin r/etc r/dev && echo one > r/etc/hostname && ln r/etc/hostname r/etc/again \
                  && ln -s bin r/sbin && cp /bin/true r/bin/ && tar -C r -czf r.tgz .";
    let status = Command::new("sh").args(["-c", script]).current_dir(folder).status().unwrap();
    assert!(status.success());
    Arc::new(fs::read(folder.join("r.tgz")).unwrap())
}

fn plan(server: Server, disk: PathBuf, choice: Choice) -> Plan {
    Plan {
        server,
        disk: disk.into(),
        size: Some(SIZE),
        layout: Layout::default(),
        discard: false,
        keep: Keep::default(),
        choice,
        yes: false,
        erase: Consent::default(),
        trust_unmarked: false,
        reinstall: false,
        identity: Identity { serial: Some("00000000cafe0001".into()), ..Identity::default() },
        key: None,
        device: None,
        boot_from: None,
        service: None,
        tell_time: TELL_TIME,
    }
}

fn once(plan: &Plan) -> Result<Outcome, Failure> {
    attempt(plan, &mut Machine::default(), &Arc::new(Progress::new()))
}

/// The reports that an old server understands.
fn reports(heard: &[String]) -> Vec<&str> {
    heard.iter().map(String::as_str).filter(|l| !l.starts_with("PIMAN/")).collect()
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn old_servers_of_every_habit_install_it() {
    let folder = tempfile::tempdir().unwrap();
    let archive = archive(folder.path());
    let image = Hash(*blake3::hash(&archive).as_bytes());
    let date = "busybox date -s 202611210324.07\nEOM\n";
    for (i, (greeting, order, stammers)) in [
        ("", "format\nEOM\n", false),
        (date, "format\nEOM\n", false),
        ("", "format\r\nEOM\r\n", true),
        (date, "\nformat\n\nEOM\nip\nEOM\n", true),
    ]
    .into_iter()
    .enumerate()
    {
        let disk = folder.path().join(format!("card{i}.img"));
        let old = Old { greeting, uninstalled: order, stammers, ..Old::with(&archive) };
        let (server, heard) = old.start();
        let outcome = once(&plan(server, disk.clone(), Choice::Auto)).unwrap();
        let Outcome::Installed { image: id, way: Way::Archive, .. } = outcome else { panic!("{outcome:?}") };
        assert_eq!(id, image);
        let heard = heard.join().unwrap();
        let (date, rest): (Vec<_>, Vec<_>) = reports(&heard).into_iter().partition(|r| r.ends_with("DATE"));
        assert_eq!(rest, ["IS_UNINSTALLED", "RECEIVED_FORMAT", "IS_FORMATTED"], "server {i}");
        // A program does not set the clock of the machine it runs on.
        assert_eq!(date, if greeting.is_empty() { &[][..] } else { &["RECEIVED_DATE"] }, "server {i}");
        let Card::Installed(proof) = inspect::check(&disk).unwrap() else { panic!("no proof") };
        assert_eq!((proof.image, proof.path), (image, Way::Archive));
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn what_is_installed_is_booted_and_no_byte_changes() {
    let folder = tempfile::tempdir().unwrap();
    let archive = archive(folder.path());
    let disk = folder.path().join("card.img");
    let (server, _) = Old::with(&archive).start();
    once(&plan(server, disk.clone(), Choice::Auto)).unwrap();
    let before = blake3::hash(&fs::read(&disk).unwrap());
    let (server, heard) = Old::with(&archive).start();
    let outcome = once(&plan(server, disk.clone(), Choice::Auto)).unwrap();
    assert!(matches!(outcome, Outcome::Boot { card: Card::Installed(_), .. }), "{outcome:?}");
    assert_eq!(reports(&heard.join().unwrap()), ["IS_INSTALLED", "RECEIVED_BOOT"]);
    assert_eq!(blake3::hash(&fs::read(&disk).unwrap()), before);

    // The order to reinstall, as an old server gives it: wipe first, then format.
    let old = Old { installed: "reinstall\nEOM\n", ..Old::with(&archive) };
    let (server, heard) = old.start();
    once(&plan(server, disk, Choice::Auto)).unwrap();
    let want = ["IS_INSTALLED", "RECEIVED_REINSTALL", "IS_UNINSTALLED", "RECEIVED_FORMAT", "IS_FORMATTED"];
    assert_eq!(reports(&heard.join().unwrap()), want);
}

#[test]
fn a_command_that_is_none_is_answered_and_never_run() {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let order: &'static str = format!("touch {}\nEOM\nip\nEOM\nboot\nEOM\n", witness.display()).leak();
    let old = Old { uninstalled: order, ..Old::with(&Arc::default()) };
    let (server, heard) = old.start();
    let failure = once(&plan(server, folder.path().join("card.img"), Choice::Auto)).unwrap_err();
    assert!(failure.to_string().contains("the server says boot, but"), "{failure}");
    let heard = heard.join().unwrap();
    assert!(heard.contains(&format!("Sorry don't know how to do touch {}", witness.display())), "{heard:?}");
    assert!(!witness.exists());
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_server_with_nothing_to_send_costs_no_data() {
    let folder = tempfile::tempdir().unwrap();
    let good = archive(folder.path());
    let disk = folder.path().join("card.img");
    let (server, _) = Old::with(&good).start();
    once(&plan(server, disk.clone(), Choice::Auto)).unwrap();
    let before = blake3::hash(&fs::read(&disk).unwrap());
    for (archive, word) in
        [(Vec::new(), "no archive to send"), (b"<html>404</html>".to_vec(), "neither gzip nor zstd")]
    {
        let old = Old { installed: "format\nEOM\n", ..Old::with(&Arc::new(archive)) };
        let (server, heard) = old.start();
        let failure = once(&plan(server, disk.clone(), Choice::Auto)).unwrap_err();
        assert_eq!(failure.cause, Cause::Network);
        assert!(failure.to_string().contains(word), "{failure}");
        assert_eq!(blake3::hash(&fs::read(&disk).unwrap()), before, "{word}: the card was touched");
        let heard = heard.join().unwrap();
        assert!(heard.last().unwrap().starts_with("PIMAN/1 failed stage=disk text="), "{heard:?}");
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn an_archive_cut_short_is_never_taken_for_installed() {
    let folder = tempfile::tempdir().unwrap();
    let good = archive(folder.path());
    for cut in [20, good.len() / 2, good.len() - 1] {
        let disk = folder.path().join(format!("card{cut}.img"));
        let (server, heard) = Old::with(&Arc::new(good[..cut].to_vec())).start();
        let failure = once(&plan(server, disk.clone(), Choice::Auto)).unwrap_err();
        assert_eq!(failure.cause, Cause::Network, "{failure}");
        let card = inspect::check(&disk).unwrap();
        assert!(!card.is_installed(false), "{card}");
        assert!(!reports(&heard.join().unwrap()).contains(&"IS_FORMATTED"));
    }
}

#[test]
fn a_lost_server_is_tried_again_and_a_refusal_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = nobody.local_addr().unwrap().port();
    let visits = thread::spawn(move || {
        // Two visitors are turned away, and then nobody is there any more.
        (0..2).for_each(|_| drop(nobody.accept().unwrap()));
    });
    let server = Server { host: "127.0.0.1".into(), control_port: port, rootfs_port: port };
    let plan = plan(server, folder.path().join("card.img"), Choice::Auto);
    let failure = run(&plan, 1, &mut Machine::default(), &Arc::new(Progress::new())).unwrap_err();
    assert_eq!(failure.cause, Cause::Network);
    visits.join().unwrap();

    // A disk that does not do is reported, and not tried again.
    let (server, heard) = Old::with(&Arc::default()).start();
    let small = Plan { server, disk: folder.path().join("small.img").into(), size: Some(1 << 20), ..plan };
    let failure = run(&small, 1000, &mut Machine::default(), &Arc::new(Progress::new())).unwrap_err();
    assert_eq!(failure.cause, Cause::TooSmall);
    assert!(failure.to_string().contains("too small: it must have at least"), "{failure}");
    let heard = heard.join().unwrap();
    assert!(heard[1].starts_with("PIMAN/1 failed stage=disk") && heard[1].contains("too small"), "{heard:?}");
}
