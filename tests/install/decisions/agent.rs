//! A cell with our agent: a Pi that is switched on, ordered something for, and switched on again.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use pi_agent::card::inspect::{Card, survey_path};
use piman::state::{Device, State as _};
use piman_core::install::Found;
use piman_tests::binaries;
use piman_tests::disk::run;
use piman_tests::first_write::FirstWrite;
use piman_tests::running::Running;
use piman_tests::wait::until;

use super::disks::Disk;
use super::{Cell, Lab, Order, by};

/// What the agent says when the server has it wait.
const WAITS: &str = "the server has this Pi wait: ";
/// How long it may take to an end, on a machine that is busy.
const AT_MOST: Duration = Duration::from_secs(100);

/// What became of a Pi that was switched on.
#[derive(Debug)]
enum End {
    /// It waits, for this reason.
    Waits(String),
    /// The agent ended.
    Exit(Option<i32>),
}

/// What is known of one try.
struct Try {
    end: End,
    /// What was on record when it wrote for the first time; `None`: it did not write.
    reasons: Option<Vec<String>>,
}

/// The Pi of one cell.
struct Pi<'a> {
    lab: &'a Lab,
    cell: &'a Cell,
    serial: String,
}

pub(super) fn cell(lab: &Lab, cell: &Cell) -> String {
    let serial = format!("00000000dec1{:04}", cell.number);
    let pi = Pi { lab, cell, serial };
    let file = lab.card(cell);
    if cell.order == Order::Another {
        let other = Disk::copy_of(&lab.disks.another, &file.with_extension("other"));
        pi.waits_first(&other);
        pi.order(&["install", &pi.serial, "--yes"]);
        drop(other);
        fs::remove_file(file.with_extension("other")).unwrap();
    }
    let disk = lab.disks.with(cell.content, &file);
    match cell.order {
        Order::None | Order::Another => {}
        Order::Reinstall => pi.order(&["reinstall", &pi.serial]),
        Order::Install | Order::Cancelled => {
            pi.policy(&["--for", &pi.serial, &format!("{}=wait", cell.content.found)]);
            pi.waits_first(&disk);
            pi.order(&["install", &pi.serial, "--yes"]);
            pi.policy(&["--for", &pi.serial, "--clear"]);
        }
    }
    if cell.order == Order::Cancelled {
        let said = lab.server.piman(&["reinstall", "--cancel", &pi.serial]);
        assert_eq!(said, format!("{}: the reinstall is cancelled\n", pi.serial));
    }
    pi.final_policy();
    let tried = pi.switch_on(disk.device.path());
    let changed = disk.is_changed();
    // The kernel lets go of the file, which is looked at next.
    drop(disk);
    pi.judge(changed, &file, &tried)
}

impl Pi<'_> {
    fn policy(&self, arguments: &[&str]) {
        self.lab.server.piman(&[&["policy"], arguments].concat());
    }

    fn order(&self, arguments: &[&str]) {
        let said = self.lab.server.piman(arguments);
        assert!(said.contains("is ordered"), "{said}");
    }

    /// The policy of the cell: for the Pi, or for its group. Where it is the default nobody sets it.
    fn final_policy(&self) {
        let rule = format!("{}={}", self.cell.content.found, self.cell.action);
        if self.cell.is_default() {
        } else if self.cell.number.is_multiple_of(2) {
            self.policy(&["--for", &self.serial, &rule]);
        } else {
            let group = format!("g{}", self.cell.number);
            let mut join = Command::new(binaries::piman());
            join.args(["group", "join", "--state"]).arg(self.lab.folder.path().join("state"));
            run(join.args([&group, &self.serial]));
            self.policy(&["--group", &group, &rule]);
        }
    }

    fn device(&self) -> Device {
        let devices = self.lab.state.devices().unwrap();
        devices.into_iter().find(|d| d.key == self.serial).unwrap_or_default()
    }

    /// It is switched on so that the server knows what is on its disk, and off again.
    fn waits_first(&self, disk: &Disk) {
        let tried = self.switch_on(disk.device.path());
        assert!(matches!(tried.end, End::Waits(_)), "{:?}", tried.end);
        assert!(tried.reasons.is_none() && !disk.is_changed(), "it wrote while it had to wait");
    }

    /// Switches it on until it waits or is done, and off again.
    fn switch_on(&self, device: &Path) -> Try {
        let (state, serial) = (Arc::clone(&self.lab.state), self.serial.clone());
        let watch = FirstWrite::watch(device, move || Lab::reasons(&state, &serial));
        let mut agent = self.lab.server.agent(device, &self.serial);
        // As process 1 it may erase a device that holds something; that says nothing of whose it is.
        agent.args(["--yes", "--retries", "0", "--transfer-port", "0", "--layout"]).arg(&self.lab.layout);
        agent.args(["--path", if self.cell.number.is_multiple_of(2) { "image" } else { "archive" }]);
        let mut agent = Running(agent.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
        let lines = BufReader::new(agent.stderr.take().unwrap()).lines();
        let (to, from) = mpsc::channel();
        let name = self.serial.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                println!("{name}: {line}");
                if let Some((_, reason)) = line.split_once(WAITS) {
                    let _ = to.send(reason.to_owned());
                }
            }
        });
        // Its end is the end of its lines, too.
        let end = match from.recv_timeout(AT_MOST) {
            Ok(reason) => End::Waits(reason),
            Err(mpsc::RecvTimeoutError::Disconnected) => End::Exit(agent.wait().unwrap().code()),
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("{}: it neither waits nor ends", self.serial),
        };
        if let End::Waits(reason) = &end {
            until("the wait is on record", || self.device().waits.as_ref() == Some(reason));
        }
        drop(agent);
        Try { end, reasons: watch.end() }
    }

    /// What happened, in a few words.
    fn judge(&self, changed: bool, file: &Path, tried: &Try) -> String {
        let on_record = Lab::reasons(&self.lab.state, &self.serial);
        let found = self.cell.content.found;
        assert!(!changed || tried.reasons.is_some(), "who else writes to it?");
        if let Some(reasons) = &tried.reasons {
            assert_eq!((reasons.len(), reasons), (1, &on_record), "on record before anything was erased");
            assert!(reasons[0].contains(&format!("on the disk: {found}")), "{reasons:?}");
        }
        match (&tried.end, changed) {
            (End::Exit(Some(0)), true) => {
                let reason = &on_record[0];
                self.installed(file, reason);
                format!("installs: {}", by(reason))
            }
            (end, true) => panic!("{end:?}, and something was written"),
            (End::Waits(reason), false) => {
                assert_eq!(on_record, [] as [&str; 0]);
                assert!(self.device().disk.is_some_and(|disk| !disk.is_empty()));
                if reason.contains("the order is for another content") {
                    "waits: not ordered"
                } else {
                    "waits"
                }
                .into()
            }
            (End::Exit(Some(0)), false) => {
                assert_eq!(on_record, [] as [&str; 0]);
                let told = || self.lab.state.events(&self.serial).unwrap().iter().any(|e| e.kind == "boot");
                until("that it boots is on record", told);
                let alert = self.device().last_error.is_some_and(|e| e.contains("damaged installation"));
                assert_eq!(alert, found == Found::Damaged, "what is damaged is said");
                if alert { "boots, alert" } else { "boots" }.into()
            }
            // It tried the disk, and gave back what it took from it.
            (End::Exit(Some(1)), false) if tried.reasons.is_some() => {
                let told = || self.device().last_error.is_some_and(|e| e.contains("Input/output error"));
                until("the server knows why it failed", told);
                format!("fails: {}", by(&on_record[0]))
            }
            (end, false) => panic!("{end:?}, and nothing was written"),
        }
    }

    /// It is installed as the reason says, and the server knows it.
    fn installed(&self, file: &Path, reason: &str) {
        let found = survey_path(file).unwrap();
        let Card::Installed(proof) = &found.card else { panic!("{found}") };
        assert_eq!(proof.image, self.lab.root.id);
        let number = proof.installation.unwrap().to_string();
        assert!(reason.contains(&number), "{number}: {reason}");
        until("it is installed", || self.device().stage.as_deref() == Some("installed"));
        let orders = self.lab.state.orders().unwrap().into_iter().find(|order| order.name == self.serial);
        if by(reason) == "order" {
            let id = format!("order {} for {} by piman ", orders.unwrap().id, self.serial);
            assert!(reason.contains(&id), "{id}: {reason}");
            let completed = || {
                let orders = self.lab.state.orders().unwrap();
                orders.iter().any(|o| o.name == self.serial && o.completed_ms.is_some())
            };
            until("the order is completed", completed);
        }
        // All that is in it is looked at for some.
        if self.cell.number % 16 < 2 {
            self.lab.root.assert_on(file);
        }
    }
}
