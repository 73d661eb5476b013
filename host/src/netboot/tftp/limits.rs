//! How much clients can have.

use std::time::Duration;

/// What clients can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Transfers at the same time; others wait.
    pub transfers: usize,
    /// How many may wait; more are told that the server is busy.
    pub waiting: usize,
    /// Transfers of one address at the same time, waiting ones included; and as many requests that the client has
    /// not answered yet.
    pub per_address: usize,
    /// Requests whose clients have not answered yet; the oldest gives way to another one.
    pub greetings: usize,
    /// The largest block. Larger ones than 1468 bytes would travel in fragments.
    pub blksize: u16,
    /// The largest window.
    pub windowsize: u16,
    /// How long one transfer may take.
    pub longest: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            transfers: 256,
            waiting: 1024,
            per_address: 32,
            greetings: 1024,
            blksize: 1468,
            windowsize: 64,
            longest: Duration::from_secs(3600),
        }
    }
}
