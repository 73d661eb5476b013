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
            (_, Reply::Error(code, _)) => self.state = State::Over(Outcome::Stopped(code)),
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
mod tests {
    use super::*;

    fn terms(length: u64, windowsize: u16) -> Terms {
        Terms {
            blksize: 512,
            windowsize,
            timeout: None,
            length,
            options: false,
            longest: Duration::from_secs(3600),
        }
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// All that is sent at this time, as (first, count) of blocks; (0, 0) are options.
    #[track_caller]
    fn sends(t: &mut Transfer, at: u64, expected: &[(u64, u16)]) {
        let mut sent = Vec::new();
        while let Some(send) = t.poll_transmit(ms(at)) {
            sent.push(match send {
                Send::Options => (0, 0),
                Send::Blocks { first, count } => (first, count),
            });
        }
        assert_eq!(sent, expected, "at {at} ms");
    }

    fn ack(t: &mut Transfer, at: u64, block: u16) {
        t.handle(Reply::Ack(block), ms(at));
    }

    fn timeout(t: &mut Transfer, at: u64) {
        t.handle_timeout(ms(at));
    }

    #[test]
    fn lockstep() {
        let mut t = Transfer::new(terms(1024, 1), ms(0));
        sends(&mut t, 0, &[(1, 1)]);
        ack(&mut t, 1, 1);
        sends(&mut t, 1, &[(2, 1)]);
        ack(&mut t, 2, 2);
        sends(&mut t, 2, &[(3, 1)]);
        assert_eq!(t.place(3), (1024, 0), "a full last block is followed by an empty one");
        assert_eq!(t.outcome(), None);
        ack(&mut t, 3, 3);
        assert_eq!((t.outcome(), t.poll_timeout()), (Some(Outcome::Complete), None));
        sends(&mut t, 4, &[]);
    }

    #[test]
    fn an_empty_file_is_one_empty_block() {
        let mut t = Transfer::new(terms(0, 4), ms(0));
        sends(&mut t, 0, &[(1, 1)]);
        ack(&mut t, 1, 1);
        assert_eq!(t.outcome(), Some(Outcome::Complete));
    }

    #[test]
    fn retransmission_backs_off_until_the_client_is_given_up() {
        let mut t = Transfer::new(terms(9999, 1), ms(0));
        sends(&mut t, 0, &[(1, 1)]);
        let mut times = Vec::new();
        while let Some(at) = t.poll_timeout() {
            let at = u64::try_from(at.as_millis()).unwrap();
            timeout(&mut t, at - 1);
            sends(&mut t, at - 1, &[]);
            timeout(&mut t, at);
            if t.outcome().is_none() {
                times.push(at);
                sends(&mut t, at, &[(1, 1)]);
            }
        }
        assert_eq!(times, [1000, 3000, 7000, 15_000, 23_000]);
        assert_eq!((t.outcome(), t.sent_twice()), (Some(Outcome::Silent), 5));
    }

    #[test]
    fn the_wait_follows_the_round_trip_and_the_clients_wish() {
        let mut t = Transfer::new(terms(9999, 1), ms(0));
        sends(&mut t, 0, &[(1, 1)]);
        ack(&mut t, 1, 1);
        sends(&mut t, 1, &[(2, 1)]);
        assert_eq!(t.poll_timeout(), Some(ms(251)));
        timeout(&mut t, 251);
        sends(&mut t, 251, &[(2, 1)]);
        assert_eq!(t.poll_timeout(), Some(ms(751)), "twice as long");

        let wish = Terms { timeout: Some(Duration::from_secs(3)), ..terms(9999, 1) };
        let mut t = Transfer::new(wish, ms(0));
        for at in [0, 3000, 6000, 9000] {
            timeout(&mut t, at);
            sends(&mut t, at, &[(1, 1)]);
            assert_eq!(t.poll_timeout(), Some(ms(at + 3000)));
        }
    }

    #[test]
    fn a_repeated_acknowledgement_does_not_double_the_traffic() {
        let mut t = Transfer::new(terms(9999, 1), ms(0));
        sends(&mut t, 0, &[(1, 1)]);
        timeout(&mut t, 1000);
        sends(&mut t, 1000, &[(1, 1)]);
        ack(&mut t, 1001, 1);
        sends(&mut t, 1001, &[(2, 1)]);
        // The client answers the block that it got twice.
        ack(&mut t, 1002, 1);
        sends(&mut t, 1002, &[]);
        ack(&mut t, 1003, 2);
        sends(&mut t, 1003, &[(3, 1)]);
    }

    #[test]
    fn options_are_repeated_and_acknowledged() {
        let mut t = Transfer::new(Terms { options: true, ..terms(10, 1) }, ms(0));
        sends(&mut t, 0, &[(0, 0)]);
        ack(&mut t, 1, 1);
        sends(&mut t, 1, &[]);
        timeout(&mut t, 1000);
        sends(&mut t, 1000, &[(0, 0)]);
        ack(&mut t, 1001, 0);
        sends(&mut t, 1001, &[(1, 1)]);
        ack(&mut t, 1002, 0);
        sends(&mut t, 1002, &[]);
        ack(&mut t, 1003, 1);
        assert_eq!(t.outcome(), Some(Outcome::Complete));
    }

    #[test]
    fn windows_and_a_lost_block_inside() {
        let mut t = Transfer::new(terms(512 * 9 + 1, 4), ms(0));
        sends(&mut t, 0, &[(1, 4)]);
        ack(&mut t, 1, 4);
        sends(&mut t, 1, &[(5, 4)]);
        // Block 7 is lost: the client acknowledges 6.
        ack(&mut t, 2, 6);
        sends(&mut t, 2, &[(7, 4)]);
        assert_eq!(t.sent_twice(), 2);
        ack(&mut t, 3, 10);
        assert_eq!(t.outcome(), Some(Outcome::Complete));
    }

    #[test]
    fn the_first_block_of_a_window_is_lost() {
        let mut t = Transfer::new(terms(512 * 20, 4), ms(0));
        sends(&mut t, 0, &[(1, 4)]);
        ack(&mut t, 1, 4);
        sends(&mut t, 1, &[(5, 4)]);
        // 5 is lost; the client says so for each of 6, 7 and 8.
        for at in 2..5 {
            ack(&mut t, at, 4);
        }
        sends(&mut t, 5, &[(5, 4)]);
        ack(&mut t, 6, 4);
        sends(&mut t, 6, &[]);
        ack(&mut t, 7, 8);
        sends(&mut t, 7, &[(9, 4)]);
        ack(&mut t, 8, 8);
        sends(&mut t, 8, &[]);
        ack(&mut t, 9, 12);
        sends(&mut t, 9, &[(13, 4)]);
        // Nothing was sent twice for a whole window: this is a loss again.
        ack(&mut t, 10, 12);
        sends(&mut t, 10, &[(13, 4)]);
    }

    #[test]
    fn a_late_acknowledgement_after_a_timeout_is_taken() {
        let mut t = Transfer::new(terms(512 * 20, 4), ms(0));
        sends(&mut t, 0, &[(1, 4)]);
        timeout(&mut t, 1000);
        ack(&mut t, 1001, 4);
        sends(&mut t, 1001, &[(5, 4)]);
        ack(&mut t, 1002, 60_000);
        ack(&mut t, 1002, 9);
        sends(&mut t, 1002, &[]);
        t.handle(Reply::Other, ms(1003));
        assert_eq!(t.outcome(), None);
    }

    #[test]
    fn block_numbers_wrap_to_0() {
        for windowsize in [1u16, 7, 64] {
            let blocks: u64 = 200_000;
            let mut t = Transfer::new(terms(blocks * 512 - 1, windowsize), ms(0));
            let mut next = 1u64;
            while t.outcome().is_none() {
                let Some(Send::Blocks { first, count }) = t.poll_transmit(ms(next)) else { panic!("stuck") };
                assert_eq!(first, next);
                next += u64::from(count);
                ack(&mut t, next, (next - 1) as u16);
            }
            assert_eq!((t.outcome(), next - 1, t.sent_twice()), (Some(Outcome::Complete), blocks, 0));
        }
    }

    #[test]
    fn the_client_stops_or_takes_too_long() {
        let mut t = Transfer::new(Terms { options: true, ..terms(10, 1) }, ms(0));
        sends(&mut t, 0, &[(0, 0)]);
        t.handle(Reply::Error(8, b"only asking"), ms(1));
        assert_eq!(t.outcome(), Some(Outcome::Stopped(8)));

        let mut t = Transfer::new(Terms { longest: ms(5000), ..terms(1 << 30, 1) }, ms(0));
        for (n, at) in (0..4999).step_by(100).enumerate() {
            while t.poll_transmit(ms(at)).is_some() {}
            ack(&mut t, at, u16::try_from(n + 1).unwrap());
            assert_eq!(t.outcome(), None);
        }
        timeout(&mut t, 5000);
        assert_eq!(t.outcome(), Some(Outcome::TooLong), "it was not silent, but slow");
    }
}
