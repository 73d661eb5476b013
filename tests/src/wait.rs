//! Waiting for what must happen.

use std::thread;
use std::time::{Duration, Instant};

/// Waits until `done` says so.
///
/// # Panics
/// If it has not within 30 s; `what` says what did not happen.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        thread::sleep(Duration::from_millis(5));
    }
}
