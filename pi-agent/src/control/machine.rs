//! This machine: its clock, its addresses, and what it was told to do.

use std::fmt;

use piman_core::install::drive;
use piman_core::install::{Clock, Date};

/// This machine as the talk sees it.
#[derive(Debug, Default)]
pub struct Machine {
    /// Whether its clock may be set: on a freshly booted Pi, which has none that runs
    /// without power; nowhere else.
    pub sets_clock: bool,
    /// Whether a server has set it in UTC.
    pub has_utc: bool,
    /// Whether piman said that the root filesystem has to go. It goes with the installation
    /// that follows: nothing is erased before it is known what comes in its place.
    pub wiped: bool,
    /// The disk that this was said of.
    pub disk: String,
    /// What was said last of the disk, which is not said again at every try.
    pub said: String,
    /// Whether the server decided for an agent that spoke as an old Pi does, and not for one that greeted it.
    pub old_server: bool,
    /// Why the server has this Pi wait, which is said once.
    pub reason: String,
    /// Whether the last answer had that reason: without one the server is making what is to be installed.
    pub has_reason: bool,
}

impl Machine {
    /// Whose disk it is from now on. An order to wipe is for the disk that there was when it came.
    pub(crate) fn takes(&mut self, disk: String) {
        self.wiped &= self.disk == disk;
        self.disk = disk;
    }

    /// What is said from time to time while the server has this Pi wait.
    #[must_use]
    pub fn reminder(&self, percent: u8) -> String {
        match self.waits_for() {
            None => format!("the server is still not ready ({percent} %)"),
            Some(_) => "the server still has this Pi wait, for the reason above".into(),
        }
    }

    /// Why the server has this Pi wait, if it said so in its last answer.
    #[must_use]
    pub fn waits_for(&self) -> Option<&str> {
        (self.has_reason && !self.reason.is_empty()).then_some(&self.reason)
    }

    /// Sets the clock, if it may be set. No time-out here counts by this clock.
    fn set_time(&self, seconds: u64, nanos: u32) -> bool {
        let Ok(seconds) = i64::try_from(seconds) else { return false };
        if !self.sets_clock {
            return false;
        }
        let now = rustix::time::Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
        match rustix::time::clock_settime(rustix::time::ClockId::Realtime, now) {
            Ok(()) => true,
            Err(e) => {
                log::warn!("the clock cannot be set: {e}");
                false
            }
        }
    }
}

impl drive::Pi for Machine {
    async fn set_date(&mut self, date: Date) -> bool {
        // A server of ours says this too, as it says it to old Pis: in its own zone, and to the second.
        if self.has_utc {
            return self.sets_clock;
        }
        self.set_time(date.seconds_since_1970(), 0)
    }

    async fn set_clock(&mut self, clock: Clock) -> bool {
        if !self.set_time(clock.seconds, clock.nanos) {
            return false;
        }
        if !self.has_utc {
            log::info!(
                "the clock is set to the server's time: {}.{:09} s since 1970, UTC",
                clock.seconds,
                clock.nanos
            );
        }
        self.has_utc = true;
        true
    }

    fn addresses(&mut self, out: &mut impl fmt::Write) {
        addresses(out);
    }

    async fn wipe(&mut self) -> bool {
        self.wiped = true;
        true
    }

    fn waits(&mut self, reason: &[u8]) {
        let reason = String::from_utf8_lossy(reason);
        let reason: String = reason.chars().map(piman_core::text::shown_or_space).collect();
        self.has_reason = true;
        if reason != self.reason {
            log::warn!("the server has this Pi wait: {reason}");
            self.reason = reason;
        }
    }
}

/// The addresses by which this machine reaches others, from the kernel's routing tables.
fn addresses(out: &mut dyn fmt::Write) {
    let table = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let mut seen: Vec<&str> = Vec::new();
    let mut last = "";
    for line in table.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address;
        } else if line.ends_with("host LOCAL") && !last.starts_with("127.") && !seen.contains(&last) {
            // A full formatter only loses the rest of the list.
            let _ = write!(out, "{}{last}", if seen.is_empty() { "" } else { "\n" });
            seen.push(last);
        }
    }
}
