//! What was read of a stream and has not been used yet, in the caller's buffer.

/// A buffer that is read into at its end and taken from at its front.
#[derive(Debug)]
pub(crate) struct Window<'b> {
    buf: &'b mut [u8],
    start: usize,
    end: usize,
    /// Up to here it was looked at: nothing is looked at twice.
    seen: usize,
}

/// How full it is.
#[cfg(feature = "defmt")]
impl defmt::Format for Window<'_> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "{} of {} bytes", self.end.saturating_sub(self.start), self.buf.len())
    }
}

impl<'b> Window<'b> {
    pub(crate) fn new(buf: &'b mut [u8]) -> Self {
        Self { buf, start: 0, end: 0, seen: 0 }
    }

    /// Where to read the next bytes to; empty only if it is full.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        if self.start > 0 {
            to_front(self.buf, self.start, self.end);
            self.end = self.end.saturating_sub(self.start);
            self.seen = self.seen.saturating_sub(self.start);
            self.start = 0;
        }
        self.buf.get_mut(self.end..).unwrap_or_default()
    }

    /// The first `n` bytes of `spare` are filled; more than there were count as all.
    pub(crate) fn filled(&mut self, n: usize) {
        self.end = self.end.saturating_add(n).min(self.buf.len());
    }

    /// What was not looked at yet.
    pub(crate) fn fresh(&self) -> &[u8] {
        self.buf.get(self.seen..self.end).unwrap_or_default()
    }

    /// All of it was looked at.
    pub(crate) fn look(&mut self) {
        self.seen = self.end;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn is_full(&self) -> bool {
        self.end - self.start == self.buf.len()
    }

    /// Takes what was looked at and the first `n` bytes of what was not.
    pub(crate) fn take(&mut self, n: usize) -> &[u8] {
        let from = self.start;
        self.start = self.seen.saturating_add(n).min(self.end);
        self.seen = self.start;
        self.buf.get(from..self.start).unwrap_or_default()
    }

    /// Takes everything.
    pub(crate) fn take_all(&mut self) -> &[u8] {
        let (from, to) = (self.start, self.end);
        (self.start, self.end, self.seen) = (0, 0, 0);
        self.buf.get(from..to).unwrap_or_default()
    }
}

/// Moves the bytes from `start` to `end` to the front; where there are none, nothing.
pub(crate) fn to_front(buf: &mut [u8], start: usize, end: usize) {
    let Some(used) = buf.get_mut(..end) else { return };
    if start <= used.len() {
        used.copy_within(start.., 0);
    }
}
