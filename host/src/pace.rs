//! The slowest pace of a transfer that is put up with.

use std::io::{self, ErrorKind};
use std::time::Duration;

/// Bytes a second: a tenth of what the slowest serial line moves.
pub const SLOWEST: u64 = 12;

/// Whether bytes keep moving. A peer that moves one now and then is never silent, and would hold its
/// place for ever.
#[derive(Debug)]
pub struct Pace {
    slowest: u64,
    span: Duration,
    took: Duration,
    moved: u64,
}

impl Pace {
    /// In each `span` of waiting for the peer so many bytes a second must move.
    #[must_use]
    pub fn new(slowest: u64, span: Duration) -> Self {
        Self { slowest, span, took: Duration::ZERO, moved: 0 }
    }

    /// The peer was waited for so long, and then so many bytes moved.
    ///
    /// # Errors
    /// `TimedOut` if that was too little for too long.
    pub fn note(&mut self, took: Duration, moved: u64) -> io::Result<()> {
        self.took += took;
        self.moved = self.moved.saturating_add(moved);
        if self.took < self.span {
            return Ok(());
        }
        if (self.moved as f64) < self.slowest as f64 * self.took.as_secs_f64() {
            let (moved, took) = (self.moved, self.took.as_secs_f64());
            let text = format!("the peer is too slow: {moved} bytes in {took:.0} s");
            return Err(io::Error::new(ErrorKind::TimedOut, text));
        }
        (self.took, self.moved) = (Duration::ZERO, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_now_and_then_is_not_enough() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(10, 5 * second);
        for _ in 0..4 {
            pace.note(second, 1).unwrap();
        }
        assert_eq!(pace.note(second, 1).unwrap_err().kind(), ErrorKind::TimedOut);
        let mut pace = Pace::new(10, 5 * second);
        for round in 0..100 {
            // All of it at the end of each span does as well.
            pace.note(second, if round % 5 == 4 { 50 } else { 0 }).unwrap();
        }
        let mut pace = Pace::new(10, 5 * second);
        pace.note(Duration::ZERO, u64::MAX).unwrap();
        pace.note(Duration::ZERO, u64::MAX).unwrap();
    }
}
