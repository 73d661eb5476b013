//! The time for our own peers: UTC, finer than a second.

use super::number;
use crate::text::{self, Sink, ToText};

/// A moment in UTC. An old Pi gets the server's local time instead ([`Date`](crate::install::Date)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Clock {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: u64,
    /// Nanoseconds since the last of these seconds.
    pub nanos: u32,
}

impl Clock {
    /// `None` if there is no time in the line, or one that cannot be.
    pub(crate) fn parse(fields: &[u8]) -> Option<Self> {
        let nanos = number(fields, "nanos").filter(|n| *n < 1_000_000_000)?;
        Some(Self { seconds: number(fields, "seconds")?, nanos })
    }
}

impl ToText for Clock {
    fn write_text(&self, to: &mut impl Sink) {
        to.text(" seconds=");
        text::number(to, self.seconds, 0);
        to.text(" nanos=");
        text::number(to, self.nanos.into(), 0)
    }
}
