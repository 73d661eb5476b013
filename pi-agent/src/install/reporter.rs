//! Reports to piman while the work goes on; a lost connection never stops the work.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::ensure;
use piman_core::hash::Hash;
use piman_core::install::{Hello, Installation, Milestone, Notice, Report};

use super::Plan;
use crate::control::{ControlConnection, Peer};
use crate::failure::Failure;
use crate::telemetry::progress::Progress;
use piman_core::hosted::backoff::Backoff;
use piman_core::hosted::causes::in_one_line;

/// How often the counters are reported.
const PERIOD: Duration = Duration::from_secs(1);
/// How often it is looked whether another stage has begun, which is reported at once.
const LOOK: Duration = Duration::from_millis(100);

/// The longest pause between two tries.
const TELL_PAUSE: Duration = Duration::from_secs(8);
/// How long the server's machine may take to acknowledge what it was told.
const DELIVERY: Duration = Duration::from_secs(10);

/// The control connection after the decision.
pub(super) struct Reporter<'a> {
    talk: Arc<Mutex<Option<ControlConnection>>>,
    peer: Peer,
    plan: &'a Plan,
    hello: Hello<'a>,
    ticker: Option<(Sender<()>, JoinHandle<()>)>,
}

impl<'a> Reporter<'a> {
    /// Reports the counters on `talk` from now on.
    pub(super) fn new(
        talk: ControlConnection,
        plan: &'a Plan,
        hello: Hello<'a>,
        progress: &Arc<Progress>,
    ) -> Self {
        let peer = talk.peer();
        let talk = Arc::new(Mutex::new(Some(talk)));
        let (stop, stopped) = channel::<()>();
        let (shared, progress) = (Arc::clone(&talk), Arc::clone(progress));
        let tick = move || {
            let mut last = progress.snapshot();
            let mut said = Instant::now();
            while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let now = progress.snapshot();
                if now == last || (now.stage == last.stage && said.elapsed() < PERIOD) {
                    continue;
                }
                (last, said) = (now, Instant::now());
                let mut talk = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let notice = Notice::Progress { stage: now.stage, done: now.done, total: now.total };
                if talk.as_mut().is_some_and(|t| t.notify(notice).is_err()) {
                    log::warn!("the control connection is lost; the installation goes on");
                    *talk = None;
                }
            }
        };
        let ticker = match thread::Builder::new().name("reports".to_owned()).spawn(tick) {
            Ok(thread) => Some((stop, thread)),
            Err(e) => {
                log::warn!("the server does not see how far the installation is: starting a thread: {e}");
                None
            }
        };
        Self { talk, peer, plan, hello, ticker }
    }

    /// Mounts between the reports that say so.
    pub(super) fn mounting<T>(&self, mount: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        self.report(Report::Milestone(Milestone::Mounting));
        let mounted = mount()?;
        self.report(Report::Milestone(Milestone::FinishedMounting));
        Ok(mounted)
    }

    /// Says that the proof is on the card, on a new connection where the old one is gone; whether the server was told.
    pub(super) fn installed(mut self, id: Hash, installation: Option<Installation>) -> bool {
        self.stop();
        self.tell(&|talk| {
            talk.notify(Notice::Committed { id, installation })?;
            talk.report(Report::Formatted)
        })
    }

    /// Says that what was to be done to the installed system is done; whether the server was told.
    pub(super) fn personalised(&self, id: Hash, installation: Option<Installation>) -> bool {
        self.tell(&|talk| talk.notify(Notice::Committed { id, installation }))
    }

    /// Says what went wrong.
    pub(super) fn failed(mut self, failure: &Failure) {
        self.stop();
        self.tell_failed(failure);
    }

    /// Says what went wrong with something without which the work goes on.
    pub(super) fn tell_failed(&self, failure: &Failure) {
        let text = in_one_line(failure.error.as_ref());
        // One that was not told sees it when the Pi asks again.
        let _ = self.tell(&|talk| talk.notify(Notice::Failed { stage: failure.stage, text: &text }));
    }

    fn report(&self, report: Report<'_>) {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        if talk.as_mut().is_some_and(|t| t.report(report).is_err()) {
            *talk = None;
        }
    }

    /// Whether the server was told, in the time that the plan has for it.
    fn tell(&self, message: &dyn Fn(&mut ControlConnection) -> anyhow::Result<()>) -> bool {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let mut backoff = Backoff::new(Duration::from_secs(1), TELL_PAUSE);
        let began = Instant::now();
        loop {
            let told = match talk.take() {
                Some(old) => Ok(old),
                None => {
                    let trust = self.plan.trust();
                    ControlConnection::resume(&self.plan.server, self.hello, self.peer, &trust)
                }
            };
            let told = told.and_then(|mut open| {
                message(&mut open)?;
                ensure!(open.is_delivered(DELIVERY), "it does not acknowledge what it is told");
                Ok(open)
            });
            let e = match told {
                Ok(open) => {
                    *talk = Some(open);
                    return true;
                }
                Err(e) => e,
            };
            let left = self.plan.tell_time.saturating_sub(began.elapsed());
            if left.is_zero() {
                log::warn!("the server cannot be told how it ended: {e:#}");
                return false;
            }
            log::warn!("the server cannot be told how it ended: {e:#}; trying for {} s more", left.as_secs());
            thread::sleep(backoff.wait().min(left));
        }
    }

    fn stop(&mut self) {
        if let Some((stop, thread)) = self.ticker.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

impl Drop for Reporter<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}
