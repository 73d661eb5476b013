//! The live display of a demonstration: each stage with its time, the bytes, the rate and
//! what is left.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use pi_agent::telemetry::progress::{Progress, Snapshot};
use piman_core::install::Stage;

const PERIOD: Duration = Duration::from_millis(50);

/// A display that runs until it is ended.
pub(super) struct Show {
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Show {
    /// Shows `progress`: live on a terminal, else a line when a stage has ended.
    pub(super) fn start(progress: Arc<Progress>) -> Self {
        let (stop, stopped) = channel();
        let show = move || {
            let mut view = View::new();
            while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                view.update(progress.snapshot());
            }
            view.update(progress.snapshot());
            view.finish_stage();
        };
        // Only a display, which a system without threads to give does not get.
        Self { stop, thread: thread::Builder::new().spawn(show).ok() }
    }

    /// Shows the last stage's end.
    pub(super) fn end(self) {
        drop(self.stop);
        let _ = self.thread.map(JoinHandle::join);
    }
}

/// Bytes for people.
pub(super) fn size(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

struct View {
    bar: ProgressBar,
    last: Option<(Snapshot, Instant)>,
}

impl View {
    fn new() -> Self {
        let target = if io::stdout().is_terminal() {
            ProgressDrawTarget::stdout()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self { bar: ProgressBar::with_draw_target(None, target), last: None }
    }

    fn update(&mut self, now: Snapshot) {
        if self.last.is_none_or(|(last, _)| last.stage != now.stage) {
            self.finish_stage();
            self.begin_stage(now);
        }
        if let Some((last, _)) = &mut self.last {
            *last = now;
        }
        if now.total > 0 {
            self.bar.set_length(now.total);
        }
        self.bar.set_position(now.done);
    }

    fn begin_stage(&mut self, now: Snapshot) {
        let template = match now.stage {
            Stage::Prepare => "{msg:11} {bar:32} {pos} % {elapsed}",
            _ if now.total > 0 => "{msg:11} {bar:32} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
            _ => "{msg:11} {spinner} {elapsed}",
        };
        // Only a template of ours that is wrong fails here; then the default one shows.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar.reset();
        self.bar.set_style(style.progress_chars("━╸─"));
        self.bar.set_message(now.stage.word());
        self.bar.enable_steady_tick(Duration::from_millis(100));
        self.last = Some((now, Instant::now()));
    }

    /// Leaves a line behind for the stage that has ended.
    fn finish_stage(&mut self) {
        let Some((last, began)) = self.last.take() else { return };
        let seconds = began.elapsed().as_secs_f64();
        let mut line = format!("{:<11} {seconds:.1} s", last.stage.word());
        if last.done > 0 && last.stage != Stage::Prepare {
            let rate = last.done as f64 / seconds.max(0.001);
            line.push_str(&format!(", {}, {}/s", size(last.done), size(rate as u64)));
        }
        self.bar.disable_steady_tick();
        // The installation goes on if nobody reads any more.
        let _ = self.bar.suspend(|| crate::text::human::print(&(line + "\n")));
    }
}
