//! How far the content of an archive is written, for what packs it behind that.

use std::sync::{Condvar, Mutex, PoisonError};

use crate::sys::lock::lock;

/// Entries of the archive that are written.
#[derive(Debug, Default)]
pub(super) struct Front {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    entries: u64,
    gave_up: bool,
}

impl Front {
    /// So many entries are written.
    pub(super) fn reach(&self, entries: u64) {
        lock(&self.state).entries = entries;
        self.moved.notify_all();
    }

    /// No more will be written.
    pub(super) fn give_up(&self) {
        lock(&self.state).gave_up = true;
        self.moved.notify_all();
    }

    /// Waits until so many entries are written; false if they will not be.
    pub(super) fn wait(&self, entries: u64) -> bool {
        let mut state = lock(&self.state);
        while state.entries < entries && !state.gave_up {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.entries >= entries
    }
}
