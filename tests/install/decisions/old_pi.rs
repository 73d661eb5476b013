//! A cell with an old Pi: its shell script, with the disk and the server as it had them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use piman::state::{Device, Sqlite, State as _};
use piman_tests::contents::admin;
use piman_tests::running::Running;
use piman_tests::server::{Server, connect_from};
use piman_tests::wait::until;

use super::disks::Disk;
use super::{Cell, Lab, Order, by};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/install/decisions/old_pi.sh");
const AT_MOST: Duration = Duration::from_secs(100);

/// The Pi of one cell; all that is known of it is its address.
struct Pi<'a> {
    lab: &'a Lab,
    cell: &'a Cell,
    server: &'a Server,
    state: &'a Sqlite,
    address: [u8; 4],
    name: String,
}

pub(super) fn cell(lab: &Lab, cell: &Cell, server: &Server, state: &Sqlite) -> String {
    let address = [127, 1, (cell.number / 200) as u8, (cell.number % 200) as u8 + 1];
    let name = address.map(|n| n.to_string()).join(".");
    let pi = Pi { lab, cell, server, state, address, name };
    let disk = lab.disks.with(cell.content, &lab.card(cell));
    match cell.order {
        Order::None => {}
        Order::Reinstall | Order::Cancelled => pi.order(&["reinstall", &pi.name]),
        Order::Install => {
            // The server must have seen it.
            pi.script(&disk, "").wait().unwrap();
            until("it is known", || pi.device().is_some());
            pi.order(&["install", &pi.name, "--yes"]);
        }
        Order::Another => pi.another_had_the_address(),
    }
    if cell.order == Order::Cancelled {
        let said = server.piman(&["reinstall", "--cancel", &pi.name]);
        assert_eq!(said, format!("{}: the reinstall is cancelled\n", pi.name));
    }
    if cell.action != "-" {
        server.piman(&["policy", "--for", &pi.name, &format!("{}={}", cell.content.found, cell.action)]);
    }
    pi.switch_on(&disk)
}

impl Pi<'_> {
    fn order(&self, arguments: &[&str]) {
        let said = self.server.piman(arguments);
        assert!(said.contains("is ordered"), "{said}");
    }

    fn device(&self) -> Option<Device> {
        self.state.devices().unwrap().into_iter().find(|d| d.key == self.name)
    }

    /// One of ours, which was told to wait; who ordered something for this address meant that one.
    fn another_had_the_address(&self) {
        let serial = format!("00000000dec2{:04}", self.cell.number);
        let mut stream = connect_from(self.address, self.server.port("control"));
        let said = format!(
            "PIMAN/1 hello serial={serial} mac=- model=- agent=1 disk=1 root=1 card=- paths=stream rev=2 \
             found=foreign print=00000000000000aa\nIS_UNINSTALLED\n"
        );
        stream.write_all(said.as_bytes()).unwrap();
        let waits = |d: &Device| d.key == serial && d.waits.is_some();
        until("it waits", || self.state.devices().unwrap().iter().any(waits));
        self.order(&["install", &self.name, "--yes"]);
    }

    fn script(&self, disk: &Disk, looks: &str) -> Running {
        let folder = self.lab.folder.path().join(format!("old-{}{looks}", self.cell.number));
        std::fs::create_dir(&folder).unwrap();
        let mut script: Command = admin("unshare");
        // What it has mounted goes with it, and so does the program that it talks by.
        script.args(["--mount", "--pid", "--kill-child", "sh", SCRIPT]).env("ADDRESS", &self.name);
        script.env("CONTROL", self.server.port("control").to_string());
        script.env("ROOTFS", self.server.port("rootfs").to_string());
        script.env("DISK", disk.device.path()).env("T", folder).env("LOOKS", looks);
        Running(script.stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Switches it on, and says what happened.
    fn switch_on(&self, disk: &Disk) -> String {
        let mut script = self.script(disk, "yes");
        let lines = BufReader::new(script.stdout.take().unwrap()).lines();
        let (to, from) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(to.send(line))));
        assert_eq!(from.recv_timeout(AT_MOST).as_deref(), Ok("reported"));
        // Without an answer it says nothing more: then the server's record has to say that it waits.
        let waits = || self.device().and_then(|device| device.waits);
        let mut did = None;
        until("it is decided", || {
            let line = from.try_recv();
            assert_ne!(line, Err(mpsc::TryRecvError::Disconnected), "the script has failed");
            did = line.ok();
            did.is_some() || waits().is_some()
        });
        if did.is_some() {
            assert!(script.wait().unwrap().success());
        } else {
            assert_eq!(from.recv_timeout(Duration::from_millis(50)), Err(mpsc::RecvTimeoutError::Timeout));
        }
        drop(script);
        let reasons = Lab::reasons(self.state, &self.name);
        match (did.as_deref(), disk.is_changed()) {
            (Some("formatted"), true) => {
                let [reason] = &reasons[..] else { panic!("{reasons:?}") };
                assert!(reason.ends_with("on the disk: not reported"), "{reason}");
                until("it is installed", || self.device().unwrap().stage.as_deref() == Some("installed"));
                format!("installs: {}", by(reason))
            }
            (Some("booted"), false) => {
                assert_eq!(reasons, [] as [&str; 0]);
                until("it boots", || self.device().unwrap().stage.as_deref() == Some("booted"));
                "boots".into()
            }
            (None, false) => {
                assert_eq!(reasons, [] as [&str; 0]);
                "waits".into()
            }
            other => panic!("{other:?}"),
        }
    }
}
