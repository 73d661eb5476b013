//! Who a Pi is: a serial number is a claim, and the key that was shown with it first decides.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use embedded_io_adapters::std::FromStd;
use piman_core::blocking::{Blocking, run};
use piman_core::hash::Hash;
use piman_core::install::drive::{self, Pi};
use piman_core::install::trust::{DeviceKey, Floor, Nonce, PiTrust};
use piman_core::install::{Can, Date, Decision, Found, Hello, Notice, Paths, Report, Start};
use piman_core::line::LINE_MAX;
use piman_tests::server::{Server, connect_from, wait_until};
use piman_tests::{binaries, tar};

const SERIAL: &str = "10000000cafe00a1";
const MAC: &str = "b8:27:eb:00:00:a1";

/// A Pi that hears what it is told.
#[derive(Default)]
struct Ears {
    reason: String,
}

impl Pi for Ears {
    async fn set_date(&mut self, _: Date) -> bool {
        true
    }
    fn addresses(&mut self, _: &mut impl std::fmt::Write) {}
    async fn wipe(&mut self) -> bool {
        true
    }
    fn waits(&mut self, reason: &[u8]) {
        self.reason = String::from_utf8_lossy(reason).into_owned();
    }
}

/// Somebody who says who it is.
#[derive(Clone, Copy)]
struct Somebody {
    serial: Option<&'static str>,
    mac: Option<&'static str>,
    key: Option<u8>,
    /// Whether it says that an installation leaves its key alone.
    kept: bool,
    host: u8,
    installed: bool,
}

const REAL: Somebody =
    Somebody { serial: Some(SERIAL), mac: Some(MAC), key: Some(1), kept: true, host: 2, installed: false };

/// A talk up to the decision.
struct Talk {
    io: Blocking<FromStd<TcpStream>>,
    trust: PiTrust,
    decision: Decision,
    reason: String,
}

impl Talk {
    fn notify(&mut self, notice: Notice<'_>) {
        run(drive::report_trusted(&mut self.io, &Report::Ours(notice), &mut self.trust)).unwrap();
    }
}

impl Somebody {
    fn hello(&self) -> Hello<'_> {
        Hello {
            serial: self.serial,
            mac: self.mac,
            paths: Paths { stream: true, image: false },
            can: Can { answer: true, grow: true, ..Can::default() },
            found: Some(if self.installed { Found::Ours } else { Found::Blank }),
            card: self.installed.then_some(Hash([3; 32])),
            ..Hello::default()
        }
    }

    fn trust(&self) -> PiTrust {
        static NEXT: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);
        let nonce = Nonce([NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed); 16]);
        let key = self.key.map(|n| (DeviceKey::new([n; 32]).unwrap(), self.kept));
        PiTrust::new(nonce, key, None, Floor::default())
    }

    fn asks(&self, server: &Server) -> Talk {
        let stream = connect_from([127, 0, 0, self.host], server.port("control"));
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut io = Blocking(FromStd::new(stream));
        let (mut trust, mut ears) = (self.trust(), Ears::default());
        let start = Start { hello: Some(self.hello()), disk: None, installed: self.installed };
        let mut buf = [0; LINE_MAX];
        let asked = run(drive::run_trusted(&mut io, &mut buf, &start, &mut ears, &mut trust));
        Talk { io, trust, decision: asked.unwrap(), reason: ears.reason }
    }
}

struct Lab {
    server: Server,
    _folder: tempfile::TempDir,
    _archive: tempfile::NamedTempFile,
}

impl Lab {
    fn new(more: &[&str]) -> Self {
        let (folder, archive) = (tempfile::tempdir().unwrap(), tar::of_bytes(100_000));
        let more = [&["--no-images", "--identity", "keep"], more].concat();
        let server = Server::start(archive.path(), &folder.path().join("state"), &more);
        server.wait_log("is good");
        Self { server, _folder: folder, _archive: archive }
    }

    /// A command beside the server: whether it did it, and what it said.
    fn piman(&self, words: &[&str]) -> (bool, String) {
        let mut command = Command::new(binaries::piman());
        let out = command.args(words).arg("--state").arg(self.server.state()).output().unwrap();
        (out.status.success(), String::from_utf8([out.stdout, out.stderr].concat()).unwrap())
    }

    #[track_caller]
    fn done(&self, words: &[&str]) -> String {
        let (done, text) = self.piman(words);
        assert!(done, "{words:?}: {text}");
        text
    }

    /// The record of a Pi, once it says this.
    #[track_caller]
    fn record(&self, name: &str, what: &str) -> String {
        wait_until(&format!("{what} is on its record"), || self.piman(&["device", name]).1.contains(what));
        self.done(&["device", name])
    }
}

fn formats(talk: &Talk) -> bool {
    matches!(talk.decision, Decision::Format(Some(_)))
}

#[track_caller]
fn waits(talk: &Talk, why: &str) {
    assert!(matches!(talk.decision, Decision::Wait { .. }), "{:?}", talk.decision);
    assert!(talk.reason.contains(why), "{}", talk.reason);
}

#[test]
fn a_name_belongs_to_the_key_that_was_shown_with_it_first() {
    let lab = Lab::new(&[]);
    let installed = Somebody { installed: true, ..REAL };
    assert_eq!(installed.asks(&lab.server).decision, Decision::Boot);
    let before = lab.record(SERIAL, "127.0.0.2");
    lab.done(&["reinstall", SERIAL]);

    // Somebody else with this name, from another address and from the same.
    let other = Somebody { key: Some(2), host: 9, installed: true, ..REAL };
    for (who, why) in [
        (other, "has another one"),
        (Somebody { host: 2, ..other }, "has another one"),
        (Somebody { key: None, ..other }, "shows none"),
        (Somebody { installed: false, ..other }, "has another one"),
        (Somebody { serial: Some("10000000CAFE00A1"), ..other }, "has another one"),
    ] {
        waits(&who.asks(&lab.server), why);
    }
    let orders = lab.done(&["reinstall", "--list"]);
    assert!(orders.contains("waits") && !orders.contains("begun"), "{orders}");
    wait_until("it is pending", || {
        lab.done(&["devices", "--pending"]).contains(&format!("piman devices approve {SERIAL}"))
    });
    let after = lab.done(&["device", SERIAL]);
    let facts = |text: &str| text.lines().take(8).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(facts(&before), facts(&after), "nothing of it changed");

    // The Pi itself gets what was ordered.
    assert!(formats(&installed.asks(&lab.server)));
}

#[test]
fn the_operator_decides_which_key_is_the_pis() {
    let lab = Lab::new(&[]);
    let installed = Somebody { installed: true, ..REAL };
    assert_eq!(installed.asks(&lab.server).decision, Decision::Boot);
    let (done, text) = lab.piman(&["devices", "approve", SERIAL]);
    assert!(!done && text.contains("nobody waits"), "{text}");

    let renewed = Somebody { key: Some(2), ..installed };
    waits(&renewed.asks(&lab.server), &format!("piman devices approve {SERIAL}"));
    wait_until("it is pending", || {
        lab.done(&["devices", "--pending"]).contains(&format!("piman devices approve {SERIAL}"))
    });
    // Two of them: one has to be named.
    waits(&Somebody { key: Some(3), ..installed }.asks(&lab.server), "has another one");
    wait_until("both are pending", || !lab.piman(&["devices", "approve", SERIAL]).0);
    let (_, text) = lab.piman(&["devices", "approve", SERIAL]);
    assert!(text.contains("choose one with --key") && text.contains("nothing was changed"), "{text}");
    let key = DeviceKey::new([2; 32]).unwrap().public().to_string();
    let (done, text) = lab.piman(&["devices", "approve", SERIAL, "--key", &key[..4]]);
    assert!(!done, "{text}");
    lab.done(&["devices", "approve", SERIAL, "--key", &key[..12]]);
    assert_eq!(renewed.asks(&lab.server).decision, Decision::Boot);
    waits(&installed.asks(&lab.server), "has another one");

    lab.done(&["devices", "forget", SERIAL]);
    assert!(!lab.piman(&["devices", "forget", SERIAL]).0);
    assert_eq!(installed.asks(&lab.server).decision, Decision::Boot, "the next one is taken for it");
    waits(&renewed.asks(&lab.server), "has another one");
}

#[test]
fn a_key_that_an_installation_erases_is_not_pinned() {
    let lab = Lab::new(&[]);
    for key in [1, 2] {
        let new = Somebody { key: Some(key), kept: false, ..REAL };
        assert!(formats(&new.asks(&lab.server)), "{key}");
    }
    assert!(!lab.done(&["devices", "--pending"]).contains("approve"));
}

#[test]
fn names_are_what_they_are() {
    let lab = Lab::new(&[]);
    let installed = Somebody { installed: true, ..REAL };
    assert_eq!(installed.asks(&lab.server).decision, Decision::Boot);
    lab.record(SERIAL, MAC);
    lab.done(&["reinstall", MAC]);
    // Another serial number with this hardware address gets nothing that is meant for it.
    let with_mac = Somebody { serial: Some("10000000cafe00b2"), key: Some(5), host: 5, ..installed };
    assert_eq!(with_mac.asks(&lab.server).decision, Decision::Boot);
    let record = lab.record("10000000cafe00b2", "here");
    assert!(!record.contains(MAC), "{record}");
    // The address of another Pi, a word, or half a number is no serial number.
    for (host, serial) in [(6, "127.0.0.2"), (7, "../../etc/passwd"), (8, "cafe"), (10, "b8:27:eb:00:00:a1")]
    {
        let odd = Somebody { serial: Some(serial), mac: Some("b8:27:eb"), key: None, host, ..installed };
        assert_eq!(odd.asks(&lab.server).decision, Decision::Boot);
        lab.record(&format!("127.0.0.{host}"), "reports a system");
        assert!(!lab.done(&["devices"]).contains("passwd"));
    }
    assert!(formats(&installed.asks(&lab.server)));
}

#[test]
fn what_was_not_given_is_not_installed() {
    let lab = Lab::new(&[]);
    let mut talk = REAL.asks(&lab.server);
    let Decision::Format(Some(offer)) = talk.decision else { panic!("{:?}", talk.decision) };
    let installation = offer.more.installation;
    let another = piman_core::install::Installation(installation.unwrap().0 ^ 1);
    for (id, installation) in [(Hash([9; 32]), installation), (offer.id, Some(another))] {
        talk.notify(Notice::Committed { id, installation });
        let record = lab.record(SERIAL, &format!("says that it has installed image {id:.12}"));
        assert!(!record.contains("installed: image"), "{record}");
    }
    // Nor is anything that nobody vouches for.
    let stream = connect_from([127, 0, 0, 9], lab.server.port("control"));
    std::io::Write::write_all(&mut &stream, b"noise\n").unwrap();
    talk.notify(Notice::Committed { id: offer.id, installation });
    lab.record(SERIAL, "installed: image");
}

#[test]
fn a_line_that_nobody_vouches_for_counts_for_nothing() {
    use std::io::Write as _;
    let lab = Lab::new(&[]);
    let mut talk = REAL.asks(&lab.server);
    let Decision::Format(Some(offer)) = talk.decision else { panic!("{:?}", talk.decision) };
    // Somebody in the middle of the connection.
    let Blocking(io) = &mut talk.io;
    let forged = Notice::Committed { id: offer.id, installation: offer.more.installation };
    let lines = format!("{forged}\nPIMAN/1 vouched mac={}\n{forged}\nIS_FORMATTED\n", "00".repeat(16));
    io.inner_mut().write_all(lines.as_bytes()).unwrap();
    lab.server.wait_log("a line on a control connection is not from whom it says");
    let record = lab.done(&["device", SERIAL]);
    assert!(!record.contains("installed: image"), "{record}");
}
