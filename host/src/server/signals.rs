//! What the service manager and the operator say by signals: stop (SIGTERM, SIGINT), reload (SIGHUP).

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals of a server, noted from [`Server::signals`](super::Server::signals) on: none is lost until somebody waits for it.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
pub(super) enum Asked {
    Stop,
    Reload,
}

impl Signals {
    /// Listens; from here on no signal has its default effect in this process.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn listen(runtime: &Runtime) -> anyhow::Result<Self> {
        let _here = runtime.enter();
        let [terminate, interrupt, hangup] =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()]
                .map(|kind| signal(kind).context("listening for signals"));
        Ok(Self { terminate: terminate?, interrupt: interrupt?, hangup: hangup? })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    /// Waits until somebody asks to stop, whatever else is asked for.
    pub(super) async fn stop(&mut self) {
        while !matches!(self.next().await, Asked::Stop) {}
    }
}

/// Until a server runs and can read its configuration again, SIGHUP would end it.
pub(super) fn outlive_hangups() -> anyhow::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build().context("listening for SIGHUP")?;
    let _here = runtime.enter();
    // What listens once keeps the signal from its default for good.
    signal(SignalKind::hangup()).map(drop).context("listening for SIGHUP")
}
