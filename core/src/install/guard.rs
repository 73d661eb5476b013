//! What a Pi demands of its server's lines, and how it marks its own: nothing, or what
//! `trust` says (feature `trust`). A driver is compiled for each, so that one without it costs nothing.

use super::agent::Start;
use crate::text::Piece;

/// What the Pi's side holds of a line on its way, in bytes: most lines leave in one write.
pub(super) const PIECE: usize = 128;

/// The bytes of a mark.
pub(super) const MARK_BYTES: usize = 16;

/// What becomes of a line that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// It counts.
    Take,
    /// It does not.
    #[cfg_attr(not(feature = "trust"), expect(dead_code, reason = "then every line counts"))]
    Skip,
    /// It ends an order that is not to be carried out.
    #[cfg_attr(not(feature = "trust"), expect(dead_code, reason = "then every order is taken"))]
    Refuse,
}

/// The lines of one connection.
pub(super) trait Guard {
    /// Whether it has a line to say before the greeting.
    const SPEAKS: bool = false;

    /// The greeting begins.
    fn greet(&mut self, _start: &Start<'_>) {}

    /// Writes its line, without its end.
    fn write_line(&self, _to: &mut Piece<PIECE>) {}

    /// The Pi reports this.
    fn reported(&mut self, _word: &'static str) {}

    /// Takes a line from the server.
    fn hear(&mut self, _line: &[u8]) -> Heard {
        Heard::Take
    }

    /// The mark of the next line, which `words` writes.
    fn mark(&mut self, _words: &mut impl FnMut(&mut Piece<PIECE>)) -> Option<[u8; MARK_BYTES]> {
        None
    }

    /// Writes the line that carries the mark, without its end.
    fn write_mark(_to: &mut Piece<PIECE>, _mark: &[u8; MARK_BYTES]) {}
}

/// Every line counts, and no line is marked.
pub(super) struct Open;

impl Guard for Open {}
