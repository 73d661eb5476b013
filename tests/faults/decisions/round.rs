//! One round: a Pi with something on its disk, what somebody orders for it, and the moments at which the programs die.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::iter::Sum;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, SystemTime};

use pi_agent::card::inspect::{Card, survey_path};
use piman::state::{Order, Sqlite, State as _};
use piman_core::install::Fingerprint;
use piman_tests::binaries;
use piman_tests::card::{Card as RealCard, Cut, Lie, Medium};
use piman_tests::chance::Random;
use piman_tests::contents::digest;
use piman_tests::first_write::FirstWrite;
use piman_tests::running::Running;
use piman_tests::wait::until;

use super::room::{Content, Room, ended};

/// About how long a Pi takes from its start to the end of an installation.
const WHOLE: u64 = 160_000;
/// When something is written it is before this.
const AT_MOST: Duration = Duration::from_millis(600);
/// How long what is to come to an end may take.
const LONG: Duration = Duration::from_secs(60);

/// What somebody orders, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Orders {
    Nothing,
    /// Before the Pi is switched on.
    Before,
    /// After so many microseconds of it.
    During(u64),
    /// Before; and it is cancelled after so many.
    CancelledDuring(u64),
    /// Before, for what is on another disk.
    ForAnother,
}

/// When the first of the programs dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// Microseconds after the Pi was switched on.
    After(u64),
    /// This long after the first write to its disk.
    FirstWrite(u64),
    /// This long after it was ordered to format.
    Told(u64),
}

/// Who dies first, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Server,
    /// By a power cut.
    ServerCut,
    Pi,
}

#[derive(Debug, Clone)]
pub(super) struct Round {
    number: usize,
    serial: String,
    content: Content,
    orders: Orders,
    moment: Moment,
    first: First,
    /// So many microseconds later the other one dies.
    pause: u64,
    /// Whether the power of the server's machine goes at the end, if it is still there.
    cut_last: bool,
    /// What the Pi's disk loses with its power of what was not flushed; `None`: only the program dies.
    pi_cut: Option<Cut>,
}

/// What came of the rounds.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Power cuts of the server.
    pub(super) cuts: usize,
    /// Power cuts of Pis.
    pub(super) pi_cuts: usize,
    /// Disks that were changed.
    pub(super) erased: usize,
    /// Disks that were not.
    pub(super) kept: usize,
    /// Disks of which the installation was left in the middle.
    pub(super) half_done: usize,
    /// Orders and cancellations that were acknowledged.
    pub(super) acknowledged: usize,
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), |a, b| Self {
            cuts: a.cuts + b.cuts,
            pi_cuts: a.pi_cuts + b.pi_cuts,
            erased: a.erased + b.erased,
            kept: a.kept + b.kept,
            half_done: a.half_done + b.half_done,
            acknowledged: a.acknowledged + b.acknowledged,
        })
    }
}

/// What somebody was told: that it is ordered, that it is cancelled.
#[derive(Debug, Default, Clone, Copy)]
struct Said {
    ordered: bool,
    cancelled: bool,
    /// Cancelled, and nothing had begun.
    in_time: bool,
}

impl Round {
    pub(super) fn new(seed: u64, number: usize) -> Self {
        let mut random = Random::new(seed.wrapping_mul(1_000_003) + number as u64);
        // The first numbers of near seeds are near each other.
        for _ in 0..8 {
            random.below(2);
        }
        let content = [Content::Foreign, Content::Foreign, Content::Ours, Content::Ours, Content::Blank]
            [random.below(5) as usize];
        let orders = match random.below(8) {
            0 => Orders::Nothing,
            1 if content == Content::Foreign => Orders::ForAnother,
            1..4 => Orders::Before,
            4 | 5 => Orders::During(random.below(WHOLE)),
            _ => Orders::CancelledDuring(random.below(WHOLE)),
        };
        let moment = match random.below(4) {
            0 => Moment::FirstWrite(random.below(3000)),
            1 => Moment::Told(random.below(3000)),
            _ => Moment::After(random.below(WHOLE)),
        };
        let first = [First::Server, First::ServerCut, First::ServerCut, First::Pi][random.below(4) as usize];
        let pause = if random.one_in(2) { 0 } else { random.below(40_000) };
        let serial = format!("00000000feed{:04}", number + 1);
        let cut_last = random.one_in(2);
        let cuts = [Cut::None, Cut::Some(random.below(1 << 32)), Cut::Last, Cut::ButFirst];
        let pi_cut = cuts.get(random.below(8) as usize).copied();
        Self { number, serial, content, orders, moment, first, pause, cut_last, pi_cut }
    }

    pub(super) fn run(&self, room: &mut Room, tally: &mut Tally) {
        println!("{self:?}");
        let (file, before) = room.disk(self.content, &self.serial);
        // A disk that can lose its power is one that writes down what reaches it.
        let card = self.pi_cut.map(|cut| (RealCard::new(fs::read(&file).unwrap(), Lie::None), cut));
        let disk = card.as_ref().map_or_else(|| file.clone(), |(card, _)| card.path().to_owned());
        room.start();
        let mut said = self.order_before(room, &disk);
        let written = FirstWrite::watch(&disk, SystemTime::now);
        let mut pi = Running(room.agent(&disk, &self.serial).spawn().unwrap());
        let late = self.order_late(room);
        self.wait(room, &written);
        let cut = self.kill(room, &mut pi);
        if let Some(late) = late {
            late.join().unwrap().add_to(&mut said);
        }
        let written = written.end();
        if let Some((card, cut)) = card {
            let medium = Medium::new(fs::read(&file).unwrap());
            let after = File::options().read(true).write(true).open(&file).unwrap();
            medium.cut(&card.take_events(), cut, &after);
            tally.pi_cuts += 1;
        }
        let disk = file;
        if cut {
            room.power_on();
        }
        let changed = digest(&disk) != before;
        assert!(!changed || written.is_some(), "{self:?}: who else writes to it?");
        let state = room.open();
        self.check(&state, &said, written);
        drop(state);
        tally.cuts += usize::from(cut);
        tally.erased += usize::from(changed);
        tally.kept += usize::from(!changed);
        tally.acknowledged += usize::from(said.ordered) + usize::from(said.cancelled);
        let half_done = changed && !matches!(survey_path(&disk).unwrap().card, Card::Installed(_));
        tally.half_done += usize::from(half_done);
        if changed || self.number.is_multiple_of(4) {
            self.switch_on_again(room, &disk, before, changed);
        }
        fs::remove_file(disk).unwrap();
    }

    /// What has to be known or ordered before the Pi is switched on.
    fn order_before(&self, room: &Room, disk: &Path) -> Said {
        let mut said = Said::default();
        if self.content == Content::Foreign && !matches!(self.orders, Orders::Nothing | Orders::ForAnother) {
            // Somebody has to have seen what it is.
            let pi = Running(room.agent(disk, &self.serial).spawn().unwrap());
            let state = room.open();
            let waits = |d: &piman::state::Device| d.key == self.serial && d.waits.is_some();
            until("it waits", || state.devices().unwrap().iter().any(waits));
            drop(pi);
        }
        match self.orders {
            Orders::Before | Orders::CancelledDuring(_) => {
                said = command(&self.order(), &room.state());
                assert!(said.ordered, "{self:?}");
            }
            Orders::ForAnother => {
                room.open().order(&self.serial, "test", Fingerprint::new(0xaa)).unwrap();
            }
            Orders::Nothing | Orders::During(_) => {}
        }
        said
    }

    fn order(&self) -> Vec<String> {
        let words: &[&str] =
            if self.content == Content::Foreign { &["install", "--yes"] } else { &["reinstall"] };
        words.iter().map(|w| (*w).to_owned()).chain([self.serial.clone()]).collect()
    }

    /// What somebody orders or cancels beside the Pi.
    fn order_late(&self, room: &Room) -> Option<thread::JoinHandle<Said>> {
        let (after, words) = match self.orders {
            Orders::During(after) => (after, self.order()),
            Orders::CancelledDuring(after) => {
                (after, ["reinstall", "--cancel", &self.serial].map(String::from).to_vec())
            }
            _ => return None,
        };
        let (state, is_off) = (room.state(), Arc::clone(&room.is_off));
        Some(thread::spawn(move || {
            thread::sleep(Duration::from_micros(after));
            let said = command(&words, &state);
            // It runs on the server's machine: what it says when that has no power nobody reads.
            if is_off.load(Ordering::SeqCst) { Said::default() } else { said }
        }))
    }

    fn wait(&self, room: &Room, written: &FirstWrite<SystemTime>) {
        match self.moment {
            Moment::After(micros) => thread::sleep(Duration::from_micros(micros)),
            Moment::FirstWrite(micros) => {
                if written.wait(AT_MOST) {
                    thread::sleep(Duration::from_micros(micros));
                }
            }
            Moment::Told(micros) => {
                let until = std::time::Instant::now() + AT_MOST;
                let told = |line: &str| line.contains("told to format") && line.contains(&self.serial);
                while !room.server().log().lines().any(told) && std::time::Instant::now() < until {
                    thread::sleep(Duration::from_micros(300));
                }
                thread::sleep(Duration::from_micros(micros));
            }
        }
    }

    /// Says whether the server's machine lost its power; what runs afterwards is nothing, or the server.
    fn kill(&self, room: &mut Room, pi: &mut Running) -> bool {
        let pause = || thread::sleep(Duration::from_micros(self.pause));
        match self.first {
            First::Server => room.kill_server(),
            First::ServerCut => room.cut_server(),
            First::Pi => {
                let _ = pi.kill();
            }
        }
        pause();
        let _ = pi.kill();
        let _ = pi.wait();
        match (self.first, self.cut_last) {
            (First::ServerCut, _) => true,
            (First::Pi, true) => {
                room.cut_server();
                true
            }
            _ => false,
        }
    }

    /// What is on record against what was done.
    fn check(&self, state: &Sqlite, said: &Said, written: Option<SystemTime>) {
        let events = state.events(&self.serial).unwrap();
        let reasons: Vec<_> = events.iter().filter(|e| e.kind == "reason").collect();
        let order = state.orders().unwrap().into_iter().find(|order| order.name == self.serial);
        if let Some(written) = written {
            let [reason, ..] = &reasons[..] else { panic!("{self:?}: it wrote, and nothing says why") };
            let written = written.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
            assert!(u128::from(reason.at_ms) <= written, "{self:?}: {} is after {written}", reason.text);
            let by_order = reason.text.contains(": order ");
            match (self.content, by_order) {
                (Content::Blank, false) => {
                    assert!(reason.text.contains("policy blank=install"), "{reason:?}")
                }
                (_, true) => self.check_order(order.as_ref(), &reason.text),
                (_, false) => panic!("{self:?}: {}", reason.text),
            }
            assert!(!said.in_time || !by_order, "{self:?}: it was said to be cancelled in time");
        }
        // What was acknowledged is there.
        assert!(!said.ordered || order.is_some(), "{self:?}: the order is lost");
        let cancelled = order.as_ref().is_some_and(|order| order.cancelled_ms.is_some());
        assert!(!said.cancelled || cancelled, "{self:?}: the cancellation is lost");
        let never =
            matches!(self.orders, Orders::Nothing | Orders::ForAnother) && self.content != Content::Blank;
        assert!(!never || written.is_none() && reasons.is_empty(), "{self:?}: {reasons:?}");
    }

    fn check_order(&self, order: Option<&Order>, reason: &str) {
        let order = order.unwrap_or_else(|| panic!("{self:?}: there is no order for: {reason}"));
        assert!(order.claimed_ms.is_some_and(|at| at >= order.ordered_ms), "{self:?}: {order:?}");
        assert_eq!(order.claimed_by.as_deref(), Some(&*self.serial));
        let named = order.print.as_ref().is_some_and(|print| reason.contains(&**print));
        assert_eq!(named, self.content == Content::Foreign, "{self:?}: {order:?}, {reason}");
    }

    /// Everything runs again: what was begun is ended, and what was not ordered is not begun.
    fn switch_on_again(&self, room: &mut Room, disk: &Path, before: blake3::Hash, changed: bool) {
        room.start();
        let order = room.open().orders().unwrap().into_iter().find(|order| order.name == self.serial);
        let open = order.is_some_and(|o| o.completed_ms.is_none() && o.cancelled_ms.is_none());
        let waits =
            !changed && self.content == Content::Foreign && (!open || self.orders == Orders::ForAnother);
        let mut agent = room.agent(disk, &self.serial);
        if waits {
            let mut pi = Running(agent.stderr(Stdio::piped()).spawn().unwrap());
            let mut lines = BufReader::new(pi.stderr.take().unwrap()).lines().map_while(Result::ok);
            assert!(lines.any(|line| line.contains("has this Pi wait: ")), "{self:?}: it does not wait");
            drop(pi);
            assert_eq!(digest(disk), before, "{self:?}");
            return;
        }
        let mut pi = Running(agent.spawn().unwrap());
        assert!(ended(&mut pi, LONG), "{self:?}: it does not come to an end");
        let found = survey_path(disk).unwrap().card;
        assert!(matches!(found, Card::Installed(_)), "{self:?}: {found}");
        let state = room.open();
        until("what was ordered is completed", || {
            let orders = state.orders().unwrap();
            orders
                .iter()
                .all(|o| o.name != self.serial || o.completed_ms.is_some() || o.cancelled_ms.is_some())
        });
    }
}

impl Said {
    fn add_to(self, said: &mut Self) {
        said.ordered |= self.ordered;
        said.cancelled |= self.cancelled;
        said.in_time |= self.in_time;
    }
}

/// Runs a command of piman on this state; what it says counts if it says that it was done.
fn command(words: &[String], state: &Path) -> Said {
    let mut piman = Command::new(binaries::piman());
    let output = piman.arg(&words[0]).arg("--state").arg(state).args(&words[1..]).output().unwrap();
    if !output.status.success() {
        return Said::default();
    }
    let cancels = words.iter().any(|word| word == "--cancel");
    let text = String::from_utf8(output.stdout).unwrap();
    Said { ordered: !cancels, cancelled: cancels, in_time: cancels && text.contains("is cancelled") }
}
