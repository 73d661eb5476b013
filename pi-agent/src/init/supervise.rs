//! Process 1 as a supervisor: everything that can fail runs in a child, so that a panic,
//! a hang or the kernel's out-of-memory killer ends the child and never process 1.

use std::fmt;
use std::io::{self, PipeReader, Read};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use super::console::Console;
use piman_core::hosted::backoff::Backoff;

/// The child's exit code when the root filesystem is mounted and can be booted.
pub const READY: u8 = 0;
/// The child's exit code for a failure that may pass by itself: network, server.
pub const PASSING: u8 = 10;
/// The child's exit code for a failure that needs somebody: card, archive, command line.
pub const PERMANENT: u8 = 20;

/// The longest line of the child's that is passed on whole, in bytes.
const LINE_MAX: usize = 4096;

/// How often process 1 looks at its child when that says nothing.
const LOOK: Duration = Duration::from_millis(250);

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exited with this code.
    Exit(i32),
    /// A signal ended it: a panic (6), a crash (11), the out-of-memory killer (9).
    Signal(i32),
    /// It said nothing for so long that it was killed.
    Silent,
    /// It said nothing, was killed, and still did not end: its disk does not answer.
    Stuck,
    /// It could not be started or waited for.
    NotStarted(Errno),
}

impl End {
    /// Whether the same is to be expected again: then it is tried less often.
    #[must_use]
    pub const fn is_permanent(self) -> bool {
        matches!(self, Self::Exit(code) if code == PERMANENT as i32)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exit(code) if code == i32::from(READY) => f.write_str("ready"),
            Self::Exit(code) if code == i32::from(PASSING) => f.write_str("failed, which may pass"),
            Self::Exit(code) if code == i32::from(PERMANENT) => {
                f.write_str("failed, and needs somebody: see the lines above")
            }
            Self::Exit(code) => write!(f, "ended with the unknown exit code {code}"),
            Self::Signal(6) => f.write_str("crashed (signal 6: an error in the agent)"),
            Self::Signal(9) => f.write_str("was killed (signal 9: out of memory?)"),
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
            Self::Silent => f.write_str("hung and was killed"),
            Self::Stuck => f.write_str("hangs and cannot be killed: the disk does not answer"),
            Self::NotStarted(e) => write!(f, "could not be started: {e}"),
        }
    }
}

/// Starts children until one is ready.
#[derive(Debug)]
pub struct Supervisor {
    /// Waits after failures that may pass.
    pub passing: Backoff,
    /// Waits after failures that need somebody.
    pub permanent: Backoff,
    /// How long a child may be silent.
    pub patience: Duration,
    /// How long a killed child may take to end.
    pub grace: Duration,
    /// Whether orphans are ours to reap: this is process 1.
    pub reaps: bool,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self {
            passing: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
            permanent: Backoff::new(Duration::from_secs(30), Duration::from_secs(600)),
            // A card under a gigabyte of cached writes is silent for minutes.
            patience: Duration::from_secs(900),
            grace: Duration::from_secs(300),
            reaps: rustix::process::getpid().is_init(),
        }
    }
}

impl Supervisor {
    /// Runs one child to its end, passing its lines on to the console.
    pub fn run(&self, command: &mut Command, console: &mut Console) -> End {
        match self.start(command) {
            Ok((pid, pipe)) => self.supervise(pid, pipe, console),
            Err(e) => End::NotStarted(Errno::from_io_error(&e).unwrap_or(Errno::IO)),
        }
    }

    /// How long to wait after `end`.
    pub fn wait_after(&mut self, end: End) -> Duration {
        if end.is_permanent() {
            self.passing.reset();
            self.permanent.wait()
        } else {
            self.permanent.reset();
            self.passing.wait()
        }
    }

    /// Sleeps, and reaps meanwhile.
    pub fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            self.reap();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_secs(1)));
        }
    }

    fn start(&self, command: &mut Command) -> io::Result<(Pid, PipeReader)> {
        use std::os::unix::process::CommandExt;
        let (reader, writer) = io::pipe()?;
        command.stdin(std::process::Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        // A group of its own, so that what it starts is killed with it.
        let child = command.process_group(0).spawn();
        // The command holds the pipe's other end until it gets new streams.
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let pid = i32::try_from(child?.id()).ok().and_then(Pid::from_raw);
        Ok((pid.ok_or(Errno::CHILD)?, reader))
    }

    fn supervise(&self, pid: Pid, mut pipe: PipeReader, console: &mut Console) -> End {
        let mut lines = Lines::default();
        let mut open = true;
        let mut heard = Instant::now();
        let mut killed = None::<Instant>;
        loop {
            if open && readable(&pipe, LOOK) {
                open = lines.read(&mut pipe, console);
                heard = Instant::now();
                continue;
            }
            if let Some(end) = self.ended(pid) {
                // What its own children still write is not waited for.
                while open && readable(&pipe, Duration::ZERO) {
                    open = lines.read(&mut pipe, console);
                }
                lines.flush(console);
                return if killed.is_some() { End::Silent } else { end };
            }
            match killed {
                None if heard.elapsed() >= self.patience => {
                    let seconds = self.patience.as_secs();
                    console
                        .write_line(format_args!("no sign of life for {seconds} s: killing process {pid}"));
                    let _ = rustix::process::kill_process_group(pid, Signal::KILL);
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                    killed = Some(Instant::now());
                }
                Some(at) if at.elapsed() >= self.grace => return End::Stuck,
                _ => {}
            }
            if !open {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn ended(&self, pid: Pid) -> Option<End> {
        match rustix::process::waitpid(Some(pid), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => Some(end_of(status)),
            Ok(None) | Err(Errno::INTR) => None,
            Err(e) => Some(End::NotStarted(e)),
        }
    }

    /// Process 1 inherits every orphan and must take its exit status. Only when no child of
    /// our own runs: its status would be taken too.
    fn reap(&self) {
        while self.reaps && matches!(rustix::process::wait(WaitOptions::NOHANG), Ok(Some(_))) {}
    }
}

fn end_of(status: WaitStatus) -> End {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => End::Exit(code),
        (None, Some(signal)) => End::Signal(signal),
        (None, None) => End::Exit(-1),
    }
}

/// Whether there is something to read, or the end.
fn readable(pipe: &PipeReader, wait: Duration) -> bool {
    let mut fds = [PollFd::new(pipe, PollFlags::IN)];
    let wait = Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
    matches!(rustix::event::poll(&mut fds, Some(&wait)), Ok(n) if n > 0)
}

/// Cuts the child's output into lines; lines without an end are cut at [`LINE_MAX`].
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// Reads once; returns whether there can be more.
    fn read(&mut self, pipe: &mut PipeReader, console: &mut Console) -> bool {
        let mut buf = [0; LINE_MAX];
        let n = match pipe.read(&mut buf) {
            Ok(n) => n,
            Err(e) => return e.kind() == io::ErrorKind::Interrupted,
        };
        for &byte in buf.get(..n).unwrap_or_default() {
            if byte == b'\n' || self.0.len() >= LINE_MAX {
                self.flush(console);
            }
            if byte != b'\n' {
                self.0.push(byte);
            }
        }
        n > 0
    }

    fn flush(&mut self, console: &mut Console) {
        if !self.0.trim_ascii().is_empty() {
            console.write_line(String::from_utf8_lossy(&self.0));
        }
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::console::tests::Kept;
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn supervisor() -> Supervisor {
        // Other tests of this program have children too.
        Supervisor { reaps: false, patience: Duration::from_secs(60), ..Supervisor::default() }
    }

    fn run(script: &str, supervisor: &Supervisor) -> (End, String) {
        let kept = Kept::default();
        let end = supervisor.run(&mut sh(script), &mut Console::to(Box::new(kept.clone())));
        (end, kept.text())
    }

    #[test]
    fn ends_are_told_apart() {
        for (script, want) in [
            ("exit 0", End::Exit(0)),
            ("exit 10", End::Exit(10)),
            ("exit 20", End::Exit(20)),
            ("kill -ABRT $$", End::Signal(6)),
            ("kill -KILL $$", End::Signal(9)),
        ] {
            assert_eq!(run(script, &supervisor()).0, want, "{script}");
        }
        let end =
            supervisor().run(&mut Command::new("/no/such/program"), &mut Console::to(Box::new(io::sink())));
        assert_eq!(end, End::NotStarted(Errno::NOENT));
    }

    #[test]
    fn both_streams_come_out_as_lines() {
        let (end, text) =
            run("echo one; echo two >&2; printf 'three\\n\\n  \\nfour'; exit 10", &supervisor());
        assert_eq!(end, End::Exit(10));
        let said: Vec<_> = text.lines().filter_map(|l| l.split_ascii_whitespace().nth(2)).collect();
        assert_eq!(said, ["one", "two", "three", "four"], "{text}");
    }

    #[test]
    fn noise_without_a_newline_is_bounded() {
        let (end, text) = run("head -c 100000 /dev/zero | tr '\\0' x", &supervisor());
        assert_eq!(end, End::Exit(0));
        assert!(text.lines().all(|l| l.len() < LINE_MAX + 40));
        assert_eq!(text.bytes().filter(|b| *b == b'x').count(), 100_000);
    }

    #[test]
    fn a_silent_child_is_killed_with_what_it_started() {
        let supervisor = Supervisor { patience: Duration::from_millis(300), ..supervisor() };
        let (end, text) = run("echo $$; sleep 1000 & sleep 1000", &supervisor);
        assert_eq!(end, End::Silent);
        assert!(text.contains("no sign of life"), "{text}");
        let group =
            text.split_ascii_whitespace().nth(2).and_then(|p| Pid::from_raw(p.parse().unwrap())).unwrap();
        // The orphan is a zombie until its new parent has taken it.
        let until = Instant::now() + Duration::from_secs(30);
        while rustix::process::test_kill_process_group(group).is_ok() && Instant::now() < until {
            let stat = std::fs::read_dir("/proc")
                .unwrap()
                .flatten()
                .filter_map(|e| std::fs::read_to_string(e.path().join("stat")).ok());
            let mut of_group = stat.filter_map(|s| {
                let fields: Vec<_> = s.rsplit_once(')')?.1.split_ascii_whitespace().collect();
                (fields[2] == group.as_raw_nonzero().to_string()).then(|| fields[0].to_owned())
            });
            if of_group.all(|state| state == "Z") {
                return;
            }
        }
        assert!(rustix::process::test_kill_process_group(group).is_err());
    }

    #[test]
    fn an_orphan_that_keeps_the_pipe_is_not_waited_for() {
        let (end, text) = run("sleep 1000 & echo $!; exit 10", &supervisor());
        assert_eq!(end, End::Exit(10));
        let orphan =
            text.split_ascii_whitespace().nth(2).and_then(|p| Pid::from_raw(p.parse().unwrap())).unwrap();
        rustix::process::kill_process(orphan, Signal::KILL).unwrap();
    }

    #[test]
    fn a_child_that_closes_its_streams_is_still_waited_for() {
        assert_eq!(run("exec >&- 2>&-; sleep 0.2; exit 20", &supervisor()).0, End::Exit(20));
    }

    #[test]
    fn what_needs_somebody_is_tried_less_often() {
        let mut supervisor = supervisor();
        assert!(supervisor.wait_after(End::Exit(10)) <= Duration::from_secs(1));
        assert!(supervisor.wait_after(End::Signal(6)) > Duration::from_secs(0));
        let slow = supervisor.wait_after(End::Exit(20));
        assert!(slow >= Duration::from_secs(15) && slow <= Duration::from_secs(30));
        assert!(supervisor.wait_after(End::Exit(10)) <= Duration::from_secs(1), "it began again");
    }

    #[test]
    fn every_end_has_words() {
        let ends = [0, 10, 20, 101].map(End::Exit).into_iter().chain([6, 9, 11].map(End::Signal));
        let others = [End::Silent, End::Stuck, End::NotStarted(Errno::NOMEM)];
        let words: std::collections::HashSet<_> = ends.chain(others).map(|e| e.to_string()).collect();
        assert_eq!(words.len(), 10);
    }
}
