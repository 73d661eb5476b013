//! Messages that come, whole in memory, within what all connections together may hold.

use std::collections::VecDeque;
use std::future::{Future, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use piman_core::messages::{MessageSink, Piece};

/// How many bytes of messages that are not handed over yet all connections together may hold.
#[derive(Debug)]
pub struct Budget {
    left: AtomicUsize,
}

impl Budget {
    /// A budget of so many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(bytes) })
    }

    fn take(&self, bytes: usize) -> bool {
        let less = |left: usize| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    fn give(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The messages of one connection that have come and are not handed over.
#[derive(Debug)]
pub(super) struct Incoming {
    whole: VecDeque<Vec<u8>>,
    part: Vec<u8>,
    /// The rest of this message is read and forgotten.
    skips: bool,
    /// Who sends them, for the log.
    peer: String,
    budget: Option<Arc<Budget>>,
    /// What was taken out of the budget.
    held: usize,
}

impl Incoming {
    /// None yet of this peer.
    pub(super) fn new(peer: String, budget: Option<Arc<Budget>>) -> Self {
        Self { whole: VecDeque::new(), part: Vec::new(), skips: false, peer, budget, held: 0 }
    }

    /// The next that is complete.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        let message = self.whole.pop_front()?;
        self.give(message.len());
        Some(message)
    }

    /// Whether one is complete.
    pub(super) fn has_whole(&self) -> bool {
        !self.whole.is_empty()
    }

    fn give(&mut self, bytes: usize) {
        if let Some(budget) = &self.budget {
            budget.give(bytes);
            self.held = self.held.saturating_sub(bytes);
        }
    }

    fn may_hold(&mut self, bytes: usize) -> bool {
        let Some(budget) = &self.budget else { return true };
        let may = budget.take(bytes);
        if may {
            self.held += bytes;
        }
        may
    }
}

impl MessageSink for Incoming {
    fn piece(&mut self, piece: Piece<'_>) -> impl Future<Output = ()> {
        if !self.skips && !self.may_hold(piece.bytes.len()) {
            self.skips = true;
            // At once: the connection may end before the message does.
            tracing::warn!(
                "{}: a message of {} bytes is dropped: all connections together hold too much of messages that are not \
                 complete",
                self.peer,
                piece.size
            );
            let part = std::mem::take(&mut self.part);
            self.give(part.len());
        }
        if !self.skips {
            // Memory grows with what has come, and not with what was announced.
            self.part.extend_from_slice(piece.bytes);
        }
        if piece.is_last() {
            let part = std::mem::take(&mut self.part);
            if !std::mem::take(&mut self.skips) {
                self.whole.push_back(part);
            }
        }
        ready(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.give(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(incoming: &mut Incoming, size: u32, offset: u32, bytes: &[u8]) {
        // It never waits.
        drop(incoming.piece(Piece { size, offset, bytes }));
    }

    #[test]
    fn all_connections_share_one_budget() {
        let budget = Budget::new(10);
        let left = || budget.left.load(Ordering::Relaxed);
        let mut one = Incoming::new("a peer".into(), Some(Arc::clone(&budget)));
        let mut other = Incoming::new("a peer".into(), Some(Arc::clone(&budget)));
        piece(&mut one, 8, 0, b"1234");
        piece(&mut other, 7, 0, b"12345");
        assert_eq!(left(), 1);
        // Too much for both: this one is dropped, and its memory is free again.
        piece(&mut other, 7, 5, b"67");
        assert_eq!((left(), other.next()), (6, None));
        piece(&mut one, 8, 4, b"5678");
        assert_eq!(one.next().unwrap(), b"12345678");
        assert_eq!(left(), 10);
        // The next message is taken as if nothing had been.
        piece(&mut other, 2, 0, b"ab");
        assert_eq!((other.next(), left()), (Some(b"ab".to_vec()), 10));
        drop(other);
        assert_eq!(left(), 10);
    }
}
