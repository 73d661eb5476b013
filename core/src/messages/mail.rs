//! Whole messages, put together in memory that grows.

use alloc::vec::Vec;

use super::drive::MessageSink;
use super::link::Piece;

/// The messages that came in the course of one step.
#[derive(Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct MessageBuffer {
    /// Those that are complete, in their order.
    pub whole: Vec<Vec<u8>>,
    part: Vec<u8>,
}

impl MessageSink for MessageBuffer {
    fn piece(&mut self, piece: Piece<'_>) -> impl Future<Output = ()> {
        // Memory grows with what has come, and not with what was announced.
        self.part.extend_from_slice(piece.bytes);
        if piece.is_last() {
            self.whole.push(core::mem::take(&mut self.part));
        }
        core::future::ready(())
    }
}
