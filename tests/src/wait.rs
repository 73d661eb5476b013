//! Waiting for what must happen.

use std::thread;
use std::time::{Duration, Instant};

/// Waits until `done` says so.
///
/// # Panics
/// If it has not within two minutes; `what` says what did not happen.
#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        thread::sleep(Duration::from_millis(10));
    }
}
