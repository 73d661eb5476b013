//! Programs in a terminal, where terminals are pipes.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::running::Running;

const DEADLINE: Duration = Duration::from_secs(120);

/// A program in a terminal; killed when dropped.
#[derive(Debug)]
pub struct Terminal {
    /// The program.
    pub child: Running,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Terminal {
    /// Starts it; what it says on standard error is shown.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().expect("it starts");
        let (to, lines) = channel();
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
        Self { input: child.stdin.take(), child: Running(child), lines }
    }

    /// The next line that it prints.
    ///
    /// # Panics
    /// If none comes within two minutes.
    #[must_use]
    #[track_caller]
    pub fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("a line")
    }

    /// Types a line.
    ///
    /// # Panics
    /// If it takes no more.
    #[track_caller]
    pub fn types(&mut self, text: &str) {
        writeln!(self.input.as_mut().expect("its input is open"), "{text}").expect("it reads");
    }

    /// Ctrl-D.
    pub fn ends_input(&mut self) {
        self.input = None;
    }

    /// Ctrl-C.
    ///
    /// # Panics
    /// If it has ended.
    pub fn interrupt(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    }

    /// What is left to be read when it has ended, and how it ended.
    ///
    /// # Panics
    /// If it does not end within two minutes.
    #[track_caller]
    pub fn ended(mut self) -> (Vec<String>, ExitStatus) {
        let began = Instant::now();
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_timeout(DEADLINE.saturating_sub(began.elapsed())) {
                Ok(line) => rest.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end: {rest:?}"),
            }
        }
        (rest, self.child.wait().expect("it can be waited for"))
    }

    /// What is left to be read when it has ended in order.
    ///
    /// # Panics
    /// If it does not end, or with an error.
    #[track_caller]
    pub fn end(self) -> Vec<String> {
        let (rest, status) = self.ended();
        assert!(status.success(), "{status}: {rest:?}");
        rest
    }
}
