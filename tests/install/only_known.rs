//! `--only-known`: nobody but the Pis of the device list is served, nothing of others is erased, and each is told and
//! shown with the command that lets it in.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, UdpSocket};
use std::process::{Command, Output};
use std::time::Duration;

use piman::state::{Sqlite, State as _};
use piman_core::hash::Hash;
use piman_core::install::fetch::{Kind, Request};
use piman_core::install::{Found, Hello, Notice, Paths};
use piman_tests::server::{Server, connect_from, wait_until};
use piman_tests::{binaries, port, tar};

const LISTED: &str = "10000000cafe0e01";
const STRANGER: &str = "10000000cafe0e02";
const HERE: [u8; 4] = [127, 0, 0, 1];
const THERE: [u8; 4] = [127, 0, 0, 2];

struct Lab {
    server: Server,
    archive: tempfile::NamedTempFile,
    folder: tempfile::TempDir,
    tftp: u16,
}

impl Lab {
    fn new() -> Self {
        let (archive, folder) = (tar::of_bytes(5000), tempfile::tempdir().unwrap());
        let boot = folder.path().join("boot");
        fs::create_dir_all(boot.join("cafe0e01")).unwrap();
        for file in ["config.txt", "cafe0e01/own.txt"] {
            fs::write(boot.join(file), "content").unwrap();
        }
        let tftp = port::steady();
        Self { server: Self::start(&archive, &folder, tftp), archive, folder, tftp }
    }

    fn start(archive: &tempfile::NamedTempFile, folder: &tempfile::TempDir, tftp: u16) -> Server {
        let (boot, tftp) = (folder.path().join("boot").display().to_string(), tftp.to_string());
        let more = ["--no-images", "--no-date", "--only-known", "--netboot", &boot, "--tftp-port", &tftp];
        let server = Server::start(archive.path(), &folder.path().join("state"), &more);
        server.wait_log("is good");
        server
    }

    /// All that is said to a Pi that says this and then nothing more.
    fn told(&self, from: [u8; 4], says: &str) -> String {
        let mut stream = connect_from(from, self.server.port("control"));
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(says.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn download(&self, from: [u8; 4]) -> std::io::Result<Vec<u8>> {
        let mut got = Vec::new();
        connect_from(from, self.server.port("rootfs")).read_to_end(&mut got).map(|_| got)
    }

    /// The first line of the answer to a request of a part of the archive.
    fn fetch(&self, from: [u8; 4]) -> String {
        let id = Hash(*blake3::hash(&fs::read(self.archive.path()).unwrap()).as_bytes());
        let request = Request { kind: Kind::Archive, id, offset: 0, length: 10 };
        let mut stream = connect_from(from, self.server.port("fetch"));
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        String::from_utf8_lossy(got.split(|b| *b == b'\n').next().unwrap()).into_owned()
    }

    /// Whether a file comes by TFTP.
    fn tftp(&self, from: [u8; 4], name: &str) -> bool {
        let socket = UdpSocket::bind((std::net::Ipv4Addr::from(from), 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let request = [&[0, 1][..], name.as_bytes(), b"\0octet\0"].concat();
        socket.send_to(&request, ("127.0.0.1", self.tftp)).unwrap();
        let mut buffer = [0; 600];
        let (n, _) = socket.recv_from(&mut buffer).unwrap();
        match &buffer[..n] {
            [0, 3, ..] => true,
            [0, 5, _, 2, text @ ..] => {
                let text = String::from_utf8_lossy(text);
                assert!(text.contains("not in the device list"), "{text}");
                false
            }
            other => panic!("{}", other.escape_ascii()),
        }
    }

    fn piman(&self, arguments: &[&str]) -> Output {
        let mut piman = Command::new(binaries::piman());
        piman.args(arguments).arg("--state").arg(self.folder.path().join("state")).output().unwrap()
    }

    fn reasons(&self, key: &str) -> usize {
        let state = Sqlite::command(&self.folder.path().join("state")).unwrap();
        state.events(key).unwrap().iter().filter(|e| e.kind == "reason").count()
    }
}

fn says(serial: &str, revision: u16, found: Option<Found>) -> String {
    let paths = Paths { stream: true, image: false };
    let hello = Hello { serial: Some(serial), revision, found, paths, ..Hello::default() };
    let report = if found == Some(Found::Ours) { "IS_INSTALLED" } else { "IS_UNINSTALLED" };
    format!("{}\n{report}\n", Notice::Hello(hello))
}

#[track_caller]
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_stranger_is_told_and_not_served() {
    let lab = Lab::new();
    said(&lab.piman(&["devices", "add", LISTED, "--name", "by the window"]));
    // Whatever is ordered for it: who is not known is not served.
    said(&lab.piman(&["reinstall", STRANGER]));
    let command = format!("piman devices add {STRANGER}");
    for found in [Some(Found::Blank), Some(Found::Ours), Some(Found::Foreign), Some(Found::Incomplete)] {
        let text = lab.told(THERE, &says(STRANGER, 2, found));
        assert!(text.contains("PIMAN/1 wait") && text.contains(&command), "{found:?}: {text}");
        assert!(!text.contains("format") && !text.contains("boot\n"), "{found:?}: {text}");
    }
    for revision in [0, 1] {
        let text = lab.told(THERE, &says(STRANGER, revision, None));
        assert!(text.contains("PIMAN/1 wait") && !text.contains("format"), "{revision}: {text}");
    }
    assert!(
        !lab.fetch(THERE).contains("ok") && lab.fetch(THERE).contains("device list"),
        "{}",
        lab.fetch(THERE)
    );
    assert!(lab.download(THERE).map_or(true, |got| got.is_empty()));
    assert_eq!(lab.reasons(STRANGER), 0);
    lab.server.wait_log("is not in the device list");
    let log = lab.server.log();
    let lines = log.lines().filter(|l| l.contains("event=refused") && l.contains(STRANGER)).count();
    assert_eq!(lines, 1, "each is logged once: {log}");
    let pending = || said(&lab.piman(&["devices", "--pending"]));
    wait_until("it is shown", || pending().contains(&command));
    assert!(!pending().contains(&format!("add {LISTED}")), "{}", pending());
    // Who is listed is served beside it, at once.
    assert!(lab.told(HERE, &says(LISTED, 2, Some(Found::Blank))).contains("format\n"));
    assert_eq!(lab.download(HERE).unwrap(), fs::read(lab.archive.path()).unwrap());
    assert!(!lab.fetch(HERE).contains("device list"), "{}", lab.fetch(HERE));
    // And who is let in, with what was ordered for it.
    said(&lab.piman(&["devices", "add", "CAFE0E02"]));
    assert!(lab.told(THERE, &says(STRANGER, 2, Some(Found::Ours))).contains("format\n"));
    assert_eq!(lab.reasons(STRANGER), 1);
    let list = said(&lab.piman(&["devices", "list"]));
    assert!(list.contains("by the window") && list.contains("cafe0e02"), "{list}");
    for name in ["cafe0e02", "by the window"] {
        said(&lab.piman(&["devices", "remove", name]));
    }
    for (from, serial) in [(HERE, LISTED), (THERE, STRANGER)] {
        let text = lab.told(from, &says(serial, 2, Some(Found::Incomplete)));
        assert!(text.contains("PIMAN/1 wait") && !text.contains("format"), "{text}");
        assert!(lab.download(from).map_or(true, |got| got.is_empty()), "{serial}");
    }
}

#[test]
fn old_pis_are_known_by_their_address() {
    let mut lab = Lab::new();
    // It reports a system: it boots that. Without one it gets no answer, and nothing is erased.
    assert_eq!(lab.told(HERE, "IS_INSTALLED\n"), "boot\nEOM\n");
    said(&lab.piman(&["reinstall", "127.0.0.1"]));
    assert_eq!(lab.told(HERE, "IS_INSTALLED\n"), "boot\nEOM\n");
    assert_eq!(lab.told(HERE, "IS_UNINSTALLED\n"), "");
    assert!(lab.download(HERE).map_or(true, |got| got.is_empty()));
    assert_eq!(lab.reasons("127.0.0.1"), 0);
    said(&lab.piman(&["devices", "add", "127.0.0.1"]));
    assert_eq!(lab.told(HERE, "IS_UNINSTALLED\n"), "format\nEOM\n");
    assert_eq!(lab.download(HERE).unwrap(), fs::read(lab.archive.path()).unwrap());
    // The address is no name for a Pi that says another.
    assert!(lab.told(HERE, &says(STRANGER, 2, Some(Found::Blank))).contains("wait"));

    // A download goes on after a restart of the server, before the Pi has said its name again.
    said(&lab.piman(&["devices", "add", LISTED]));
    assert!(lab.told(THERE, &says(LISTED, 2, Some(Found::Blank))).contains("format\n"));
    wait_until("it is known", || said(&lab.piman(&["devices"])).contains("127.0.0.2"));
    lab.server.kill();
    lab.server = Lab::start(&lab.archive, &lab.folder, lab.tftp);
    assert_eq!(lab.download(THERE).unwrap(), fs::read(lab.archive.path()).unwrap());
    assert!(lab.download([127, 0, 0, 3]).map_or(true, |got| got.is_empty()));
    // But nothing is decided for an address that a listed Pi had.
    assert_eq!(lab.told(THERE, "IS_UNINSTALLED\n"), "");
}

#[test]
fn boot_files_only_for_serial_numbers_that_are_listed() {
    let lab = Lab::new();
    said(&lab.piman(&["devices", "add", LISTED]));
    assert!(lab.tftp(HERE, "cafe0e01/own.txt") && lab.tftp(HERE, "config.txt"));
    assert!(!lab.tftp(THERE, "cafe0e02/config.txt"));
    assert!(!lab.tftp(THERE, "config.txt"), "a boot ROM asks without its serial number next");
    lab.server.wait_log("cafe0e02 is not in the device list");
    // Who never said a serial number may be a listed one that has not yet.
    assert!(lab.tftp([127, 0, 0, 3], "config.txt"));
    said(&lab.piman(&["devices", "add", STRANGER]));
    wait_until("the list is read", || lab.tftp(THERE, "cafe0e02/config.txt"));
}

#[test]
fn lists_and_what_is_wrong_in_them() {
    let lab = Lab::new();
    let file = lab.folder.path().join("room.txt");
    let name = file.display().to_string();
    fs::write(&file, "# the room\n10000000CAFE0E05 first row\ncafe0e6\nb8:27:eb:00:00:09\n10.0.0\n").unwrap();
    let output = lab.piman(&["devices", "add", "--from", &name]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("nothing was changed"), "{error}");
    for says in ["room.txt:3: `cafe0e6` is no Pi", "room.txt:5: `10.0.0` is no Pi"] {
        assert!(error.contains(says), "{error}");
    }
    assert!(said(&lab.piman(&["devices", "list"])).contains("is empty"));
    fs::write(&file, "# the room\n10000000CAFE0E05 first row\nb8:27:eb:00:00:09\n\n").unwrap();
    let text = said(&lab.piman(&["devices", "add", "--from", &name]));
    assert!(text.contains("2 Pis are in the device list, 2 of them new"), "{text}");
    let list = said(&lab.piman(&["devices", "list"]));
    assert!(list.contains("10000000cafe0e05") && list.contains("first row"), "{list}");
    for wrong in [&["add", "10000000cafe0g01"][..], &["add", "1000"], &["remove", STRANGER], &["add"]] {
        let output = lab.piman(&[&["devices"], wrong].concat());
        assert!(!output.status.success(), "{wrong:?}");
    }
    assert!(lab.told(HERE, &says("10000000cafe0e05", 2, Some(Found::Blank))).contains("format\n"));
}
