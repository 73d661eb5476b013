//! One transfer as a machine without clock or socket: replies in, blocks to send out.
//!
//! Blocks are counted in 64 bits here and wrap to 0 on the wire only, so files have no limit.
//! What goes wrong with others (RFC 1350 and 7440 leave it to the reader) is decided so:
//!
//! - An acknowledgement of the last acknowledged block never makes a lone block be sent again
//!   ("sorcerer's apprentice"): only a time-out does. With windows it says that the
//!   first block of the window was lost, and is believed, unless we sent something twice
//!   lately and it may be an echo of that.
//! - One of a block inside the window says that the next one was lost: go on from there.
//! - One of anything else is from another time and is ignored.

use std::time::Duration;

use super::packet::Reply;

/// Until the first acknowledgement says how long they take.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The shortest and longest wait, where the client did not ask for one.
const WAIT_MIN: Duration = Duration::from_millis(250);
const WAIT_MAX: Duration = Duration::from_secs(8);
/// How long a client may say nothing that helps.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// After how many time-outs of the first block the way is suspected.
const LOST_MIN: u32 = 2;
/// How many times its own time-out it may be silent, if that is longer.
const SILENT_TIMEOUTS: u32 = 5;

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Bytes in a block.
    pub blksize: u16,
    /// Blocks before an acknowledgement.
    pub windowsize: u16,
    /// The client's wish for the time until a retransmission.
    pub timeout: Option<Duration>,
    /// The length of the file.
    pub length: u64,
    /// Whether options are acknowledged first.
    pub options: bool,
    /// How long it may take in all.
    pub longest: Duration,
}

/// What is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Send {
    /// The acknowledgement of the options.
    Options,
    /// So many blocks from this one on, the first of a file being 1.
    Blocks {
        /// The first.
        first: u64,
        /// How many, at least one.
        count: u16,
    },
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The client has everything.
    Complete,
    /// The client sent an error of this code. Boot ROMs do it when they only wanted the size.
    Stopped(u16),
    /// The client is silent.
    Silent,
    /// It took too long in all.
    TooLong,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Complete => write!(f, "complete"),
            Self::Stopped(code) => write!(f, "the client stopped with error {code}"),
            Self::Silent => write!(f, "the client is silent"),
            Self::TooLong => write!(f, "it took too long in all"),
        }
    }
}

/// A transfer. Times are counted from whenever the caller likes.
#[derive(Debug)]
pub struct Transfer {
    terms: Terms,
    last: u64,
    state: State,
    begun: Duration,
    progress: Duration,
    deadline: Duration,
    /// Time-outs in a row.
    silent: u32,
    /// The smoothed time from sending to its acknowledgement.
    round_trip: Option<Duration>,
    /// A block whose acknowledgement is timed, and when it was sent.
    timed: Option<(u64, Duration)>,
    sent_twice: u64,
    /// The client has said something that fits.
    answered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The options are not acknowledged; `due`: they are to be sent.
    Options {
        due: bool,
    },
    Blocks {
        /// The client has everything up to this block.
        acked: u64,
        /// The next to be sent.
        next: u64,
        /// The highest that was ever sent.
        sent: u64,
        /// Until this block is acknowledged, repeated acknowledgements may be echoes.
        echoes: u64,
    },
    Over(Outcome),
}

impl Transfer {
    /// Begins.
    #[must_use]
    pub fn new(terms: Terms, now: Duration) -> Self {
        let terms = Terms { blksize: terms.blksize.max(8), windowsize: terms.windowsize.max(1), ..terms };
        let state = match terms.options {
            true => State::Options { due: true },
            false => State::Blocks { acked: 0, next: 1, sent: 0, echoes: 0 },
        };
        let mut transfer = Self {
            // The last block is shorter than the others, and may be empty.
            last: terms.length / u64::from(terms.blksize) + 1,
            terms,
            state,
            begun: now,
            progress: now,
            deadline: now,
            silent: 0,
            round_trip: None,
            timed: None,
            sent_twice: 0,
            answered: false,
        };
        transfer.deadline = now + transfer.wait();
        transfer
    }

    /// Where a block is in the file, and its length.
    #[must_use]
    pub fn place(&self, block: u64) -> (u64, u16) {
        let size = u64::from(self.terms.blksize);
        let offset = block.saturating_sub(1).saturating_mul(size);
        let length = self.terms.length.saturating_sub(offset).min(size);
        (offset, u16::try_from(length).unwrap_or(self.terms.blksize))
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        match self.state {
            State::Over(outcome) => Some(outcome),
            State::Options { .. } | State::Blocks { .. } => None,
        }
    }

    /// Whether the client has answered what it was sent first.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.answered
    }

    /// How many bytes the client has acknowledged.
    #[must_use]
    pub fn acked_bytes(&self) -> u64 {
        match self.state {
            State::Options { .. } => 0,
            State::Blocks { acked, .. } => {
                acked.saturating_mul(self.terms.blksize.into()).min(self.terms.length)
            }
            State::Over(_) => self.terms.length,
        }
    }

    /// Goes on after a pause that was not the client's.
    pub fn resume(&mut self, now: Duration) {
        self.advanced(now);
    }

    /// Whether every block was sent at least once.
    #[must_use]
    pub fn all_sent(&self) -> bool {
        matches!(self.state, State::Blocks { sent, .. } if sent >= self.last)
    }

    /// Whether the client has answered the options, and the first block is lost again and again: it may be too
    /// large for the way.
    #[must_use]
    pub fn first_is_lost(&self) -> bool {
        let unanswered = matches!(self.state, State::Blocks { acked: 0, sent: 1.., .. });
        self.terms.options && unanswered && self.silent >= LOST_MIN
    }

    /// What is not acknowledged is sent again, now.
    pub fn again(&mut self) {
        if let State::Blocks { acked, sent, .. } = self.state {
            self.rewind(acked, sent);
        }
    }

    /// How many blocks were sent more than once.
    #[must_use]
    pub fn sent_twice(&self) -> u64 {
        self.sent_twice
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.outcome().is_none().then(|| self.deadline.min(self.begun + self.terms.longest))
    }

    fn wait(&self) -> Duration {
        if let Some(wish) = self.terms.timeout {
            return wish;
        }
        let first = self.round_trip.map_or(FIRST_WAIT, |t| (t * 8).clamp(WAIT_MIN, FIRST_WAIT * 2));
        (first * (1 << self.silent.min(8))).min(WAIT_MAX)
    }

    /// What the client said.
    pub fn handle(&mut self, reply: Reply<'_>, now: Duration) {
        match (self.state, reply) {
            (State::Over(_), _) | (_, Reply::Other) => {}
            (_, Reply::Error(code, _)) => {
                self.answered = true;
                self.state = State::Over(Outcome::Stopped(code));
            }
            (State::Options { .. }, Reply::Ack(0)) => {
                self.advanced(now);
                self.state = State::Blocks { acked: 0, next: 1, sent: 0, echoes: 0 };
            }
            (State::Options { .. }, Reply::Ack(_)) => {}
            (State::Blocks { acked, next, sent, echoes }, Reply::Ack(block)) => {
                // The window is far smaller than 65536 blocks, so the 16 bits say which is meant.
                let ahead = u64::from(block.wrapping_sub(acked as u16));
                if ahead > sent - acked {
                    return;
                }
                if ahead == 0 {
                    if self.terms.windowsize > 1 && sent > acked && acked >= echoes {
                        self.rewind(acked, sent);
                    }
                    return;
                }
                let acked = acked + ahead;
                if let Some((timed, at)) = self.timed.take_if(|(timed, _)| *timed <= acked) {
                    // Only an acknowledgement of the timed block itself measures anything.
                    if timed == acked {
                        let took = now.saturating_sub(at);
                        self.round_trip = Some(self.round_trip.map_or(took, |old| (old * 7 + took) / 8));
                    }
                }
                self.advanced(now);
                if acked >= self.last {
                    self.state = State::Over(Outcome::Complete);
                } else if acked < sent && next > acked + 1 {
                    // The next one was lost, unless this is late and we are past it already.
                    self.state = State::Blocks { acked, next, sent, echoes };
                    self.rewind(acked, sent);
                } else {
                    self.state = State::Blocks { acked, next: next.max(acked + 1), sent, echoes };
                }
            }
        }
    }

    fn advanced(&mut self, now: Duration) {
        self.answered = true;
        self.progress = now;
        self.silent = 0;
        self.deadline = now + self.wait();
    }

    /// Everything after `acked` is sent again; what was sent until now may have echoes.
    fn rewind(&mut self, acked: u64, sent: u64) {
        let echoes = sent + u64::from(self.terms.windowsize);
        self.timed = None;
        self.state = State::Blocks { acked, next: acked + 1, sent, echoes };
    }

    /// The deadline has come: what is not acknowledged will be sent again, or it is over.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return;
        }
        let patience = self.terms.timeout.map_or(SILENCE_MAX, |t| (t * SILENT_TIMEOUTS).max(SILENCE_MAX));
        if now >= self.begun + self.terms.longest {
            self.state = State::Over(Outcome::TooLong);
            return;
        }
        if now >= self.progress + patience {
            self.state = State::Over(Outcome::Silent);
            return;
        }
        self.silent += 1;
        self.deadline = now + self.wait();
        match self.state {
            State::Options { .. } => self.state = State::Options { due: true },
            State::Blocks { acked, sent, .. } => self.rewind(acked, sent),
            State::Over(_) => {}
        }
    }

    /// What is to be sent now; ask again until there is nothing.
    pub fn poll_transmit(&mut self, now: Duration) -> Option<Send> {
        match self.state {
            State::Options { due: true } => {
                self.state = State::Options { due: false };
                self.deadline = now + self.wait();
                Some(Send::Options)
            }
            State::Options { due: false } | State::Over(_) => None,
            State::Blocks { acked, next, sent, echoes } => {
                let end = (acked + u64::from(self.terms.windowsize)).min(self.last);
                let count = u16::try_from((end + 1).saturating_sub(next)).ok().filter(|n| *n > 0)?;
                self.sent_twice += (sent + 1).saturating_sub(next).min(u64::from(count));
                if next > sent && self.timed.is_none() {
                    self.timed = Some((end, now));
                }
                self.state = State::Blocks { acked, next: end + 1, sent: sent.max(end), echoes };
                self.deadline = now + self.wait();
                Some(Send::Blocks { first: next, count })
            }
        }
    }
}

#[cfg(test)]
mod tests;
