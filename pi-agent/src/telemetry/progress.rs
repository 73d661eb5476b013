//! How far an installation is: counters that the work adds to and displays read.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use piman_core::install::Stage;

/// Counters of one installation. Cheap to add to from any thread; a reader may see a
/// stage with the bytes of its neighbour for a moment, which only a display does.
#[derive(Debug, Default)]
pub struct Progress {
    /// Index into [`Stage::ALL`].
    stage: AtomicU8,
    done: AtomicU64,
    total: AtomicU64,
    /// Why the server has this Pi wait.
    waits_for: Mutex<String>,
}

/// What the counters said at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// What is being done.
    pub stage: Stage,
    /// Bytes done in this stage.
    pub done: u64,
    /// Bytes to do in this stage; 0 if unknown.
    pub total: u64,
}

impl Snapshot {
    /// Whether nothing is counted.
    #[must_use]
    pub const fn is_bare(&self) -> bool {
        self.done == 0 && self.total == 0
    }
}

impl Progress {
    /// Counters at the first stage.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a stage of `total` bytes (0 if unknown).
    pub fn begin(&self, stage: Stage, total: u64) {
        let index = Stage::ALL.iter().position(|s| *s == stage).unwrap_or(0);
        self.done.store(0, Relaxed);
        self.total.store(total, Relaxed);
        self.stage.store(u8::try_from(index).unwrap_or(0), Relaxed);
    }

    /// It is known better how many bytes there are to do in this stage.
    pub fn set_total(&self, total: u64) {
        self.total.store(total, Relaxed);
    }

    /// The server has this Pi wait: for this reason, or until what it makes, so many per cent of it now, is there.
    pub fn wait(&self, percent: u8, reason: Option<&str>) {
        reason
            .unwrap_or_default()
            .clone_into(&mut self.waits_for.lock().unwrap_or_else(PoisonError::into_inner));
        self.begin(Stage::Prepare, if reason.is_some() { 0 } else { 100 });
        if reason.is_none() {
            self.add(percent.min(100).into());
        }
    }

    /// Why the server has this Pi wait; empty: it is making what is to be installed.
    #[must_use]
    pub fn waits_for(&self) -> String {
        self.waits_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds bytes done in this stage.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
    }

    /// What the counters say now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let index = usize::from(self.stage.load(Relaxed));
        Snapshot {
            stage: Stage::ALL.get(index).copied().unwrap_or(Stage::Disk),
            done: self.done.load(Relaxed),
            total: self.total.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_begins_at_nothing() {
        let progress = Progress::new();
        assert_eq!(progress.snapshot(), Snapshot { stage: Stage::Disk, done: 0, total: 0 });
        for stage in Stage::ALL {
            progress.begin(stage, 10);
            progress.add(3);
            progress.add(4);
            assert_eq!(progress.snapshot(), Snapshot { stage, done: 7, total: 10 });
        }
    }
}
