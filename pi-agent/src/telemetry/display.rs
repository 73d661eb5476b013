//! Progress for people: one line that changes on a terminal, plain lines elsewhere.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use piman_core::install::Stage;

use crate::telemetry::progress::{Progress, Snapshot};

/// How much of the reason of a wait a line shows, in characters.
const REASON_SHOWN: usize = 54;

/// Shows counters until it is dropped.
#[derive(Debug)]
pub struct Display {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Display {
    /// Shows `progress` on standard error: live on a terminal, else a line per stage and
    /// one every 5 s.
    #[must_use]
    pub fn start(progress: Arc<Progress>) -> Self {
        let (stop, stopped) = channel();
        let live = io::stderr().is_terminal();
        let pause = if live { Duration::from_millis(200) } else { Duration::from_millis(500) };
        let show = move || {
            let mut view = View::new(live);
            loop {
                let last = stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout);
                view.show(progress.snapshot(), &progress.waits_for(), last);
                if last {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("display".to_owned()).spawn(show);
        let thread = thread.inspect_err(|e| log::warn!("no progress is shown: starting a thread: {e}")).ok();
        Self { stop: Some(stop), thread }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct View {
    live: bool,
    last: Option<Snapshot>,
    since: Instant,
    printed: Instant,
}

impl View {
    fn new(live: bool) -> Self {
        Self { live, last: None, since: Instant::now(), printed: Instant::now() }
    }

    fn show(&mut self, now: Snapshot, waits_for: &str, end: bool) {
        let new_stage = self.last.is_none_or(|l| l.stage != now.stage || l.done > now.done);
        if new_stage {
            if self.live && self.last.is_some() {
                let _ = writeln!(io::stderr());
            }
            self.since = Instant::now();
        }
        let changed = self.last != Some(now);
        self.last = Some(now);
        let text = line(&now, waits_for, self.since.elapsed());
        let mut err = io::stderr();
        // Nothing is to be done where even standard error is gone.
        let _ = if self.live {
            write!(err, "\r\x1b[K{text}").and_then(|()| if end { writeln!(err) } else { err.flush() })
        } else if now.is_bare() && matches!(now.stage, Stage::Disk | Stage::Commit | Stage::Boot) {
            // A moment, and whatever comes of it is said by itself.
            Ok(())
        } else if new_stage || (changed && (end || self.printed.elapsed() > Duration::from_secs(5))) {
            self.printed = Instant::now();
            writeln!(err, "{text}")
        } else {
            Ok(())
        };
    }
}

/// `transfer    312.0 MiB of 651.2 MiB  48 %  84.1 MiB/s  4 s left`
fn line(now: &Snapshot, waits_for: &str, elapsed: Duration) -> String {
    let mut text = format!("{:<11}", now.stage.word());
    if now.stage == Stage::Prepare && !waits_for.is_empty() {
        // All of it was logged; a longer line could not be written over.
        let shown: String = waits_for.chars().take(REASON_SHOWN).collect();
        let more = if shown.len() < waits_for.len() { "..." } else { "" };
        return format!("{text} waiting: {shown}{more}");
    }
    if now.stage == Stage::Prepare {
        return format!("{text} the server is making the image: {} %", now.done);
    }
    if now.is_bare() {
        return format!("{text} {}", doing(now.stage));
    }
    // Writing to a String cannot fail.
    let _ = write!(text, " {}", size(now.done));
    if now.total > 0 {
        let percent = u128::from(now.done) * 100 / u128::from(now.total);
        let _ = write!(text, " of {}  {percent} %", size(now.total));
    }
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.5 {
        let rate = now.done as f64 / seconds;
        let _ = write!(text, "  {}/s", size(rate as u64));
        if now.total > now.done && rate > 1.0 {
            let left = (now.total - now.done) as f64 / rate;
            let _ = write!(text, "  {left:.0} s left");
        }
    }
    text
}

/// What is done in a stage of which nothing is counted.
const fn doing(stage: Stage) -> &'static str {
    match stage {
        Stage::Disk => "looking at the card",
        Stage::Prepare => "waiting for the server",
        Stage::Partition => "writing the partition table",
        Stage::Filesystem => "making the filesystem",
        Stage::Transfer => "waiting for the first bytes",
        Stage::Personalise => "making the card this Pi's own",
        Stage::Sync => "writing to the card what is still in memory",
        Stage::Commit => "writing the proof of the installation",
        Stage::Mount => "mounting the root filesystem",
        Stage::Boot => "starting the system",
    }
}

/// A number of bytes for people: `0 B`, `1.0 KiB`, `651.2 MiB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut name = "B";
    for unit in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        name = unit;
    }
    if name == "B" { format!("{bytes} B") } else { format!("{value:.1} {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (683 << 20, "683.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_wait_says_what_for() {
        let shown = |percent, reason| {
            let progress = Progress::new();
            progress.wait(percent, reason);
            line(&progress.snapshot(), &progress.waits_for(), Duration::ZERO)
        };
        assert_eq!(shown(7, None), "prepare     the server is making the image: 7 %");
        assert_eq!(shown(0, Some("its group is needed")), "prepare     waiting: its group is needed");
        let long = shown(0, Some(&"x".repeat(100)));
        assert!(long.len() < 80 && long.ends_with("xx..."), "{long}");
        // The next one may have none.
        let progress = Progress::new();
        progress.wait(0, Some("a"));
        progress.wait(3, None);
        assert_eq!((progress.waits_for(), progress.snapshot().done), (String::new(), 3));
    }

    #[test]
    fn a_line_says_how_long_it_takes() {
        let now = Snapshot { stage: Stage::Transfer, done: 10 << 20, total: 40 << 20 };
        let text = line(&now, "", Duration::from_secs(10));
        assert_eq!(text, "transfer    10.0 MiB of 40.0 MiB  25 %  1.0 MiB/s  30 s left");
        let none = Snapshot { stage: Stage::Commit, done: 0, total: 0 };
        assert_eq!(
            line(&none, "", Duration::from_secs(10)),
            "commit      writing the proof of the installation"
        );
    }
}
