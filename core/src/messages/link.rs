//! One side of a frames talk, without a stream: bytes in, steps out.

use super::{GO, SIZE_FIRST_MAX, SIZE_MAX, TOO_LARGE};

/// Which side of the connection this is; it decides who goes first when both start at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Role {
    /// It connected: lets the other go first.
    Client,
    /// It listened: goes first.
    Server,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use]
pub enum Step<'i> {
    /// The input is used up: read more.
    Read,
    /// The peer greeted: messages may be sent.
    Greeted,
    /// The peer refused the connection with this code; close it.
    Refused(u8),
    /// Send this byte to the peer, then go on.
    Answer(u8),
    /// A part of a message from the peer.
    Piece(Piece<'i>),
    /// Write the body of the message that was started, and count it with [`Link::sent`].
    Granted,
    /// The peer does not want the message that was started; the code says why.
    Rejected(u8),
    /// The peer said what the protocol does not allow; close the connection.
    Broken,
}

/// A part of a message from the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Piece<'i> {
    /// The size of the whole message, in bytes.
    pub size: u32,
    /// Where in the message this part begins, in bytes.
    pub offset: u32,
    /// The part; empty only in a message of size 0.
    pub bytes: &'i [u8],
}

impl Piece<'_> {
    /// Whether the message ends here.
    #[must_use]
    pub fn is_last(&self) -> bool {
        u64::from(self.offset) + self.bytes.len() as u64 >= u64::from(self.size)
    }
}

/// Why a message cannot be started at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum NotNow {
    /// The greeting, another message of ours or one of the peer's is under way.
    Busy,
    /// The message is larger than [`SIZE_MAX`].
    TooLarge,
}

impl core::fmt::Display for NotNow {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Busy => "another message is under way",
            Self::TooLarge => "the message is larger than the protocol allows",
        })
    }
}

impl core::error::Error for NotNow {}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
enum Input {
    Greeting,
    /// Waiting for a size; so many bytes of it are here.
    Size([u8; 4], u8),
    /// The peer's size is here, our answer is kept back until our own message is through.
    Held(u32),
    Body {
        size: u32,
        done: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
enum Output {
    Idle,
    /// The size is sent, the answer is not here.
    Waiting(u32),
    /// So many bytes of the body are still to be written.
    Body(u32),
}

const NO_SIZE: Input = Input::Size([0; 4], 0);

/// One side of a frames talk.
///
/// Send [`GO`], give what is read to [`handle`](Self::handle), do as it says.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Link {
    role: Role,
    limit: u32,
    input: Input,
    output: Output,
    /// The peer answers our size before it sends another of its own.
    owes: bool,
    /// We refused a message and nothing has come since: see [`Link::must_keep_quiet`].
    wary: bool,
}

impl Link {
    /// A side that takes messages of up to `limit` bytes.
    #[must_use]
    pub fn new(role: Role, limit: u32) -> Self {
        Self {
            role,
            limit: limit.min(SIZE_MAX),
            input: Input::Greeting,
            output: Output::Idle,
            owes: false,
            wary: false,
        }
    }

    /// Starts a message of `size` bytes. Send what is returned; [`Step::Granted`] or
    /// [`Step::Rejected`] follows.
    ///
    /// # Errors
    /// [`NotNow`]: a mistake of the caller, the talk goes on.
    pub fn start(&mut self, size: u64) -> Result<[u8; 4], NotNow> {
        let size = u32::try_from(size).ok().filter(|s| *s <= SIZE_MAX).ok_or(NotNow::TooLarge)?;
        if self.output != Output::Idle || self.input != NO_SIZE {
            return Err(NotNow::Busy);
        }
        self.output = Output::Waiting(size);
        Ok(size.to_be_bytes())
    }

    /// Counts `n` more written bytes of the body; returns how many are left.
    pub fn sent(&mut self, n: u32) -> u32 {
        let Output::Body(left) = self.output else { return 0 };
        let left = left.saturating_sub(n);
        self.output = if left == 0 { Output::Idle } else { Output::Body(left) };
        left
    }

    /// Whether the talk may end here: nothing is under way in either direction.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.output == Output::Idle && self.input == NO_SIZE
    }

    /// Whether a 0 has come that is a refusal if nothing follows it: then
    /// [`quiet`](Self::quiet) after [`QUIET_MS`](super::QUIET_MS).
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        matches!((self.output, self.input), (Output::Waiting(_), Input::Size([0, ..], 1)))
    }

    /// Whether to wait for twice [`QUIET_MS`](super::QUIET_MS) before the next start, so that the
    /// peer does not take our size for a part of our last answer.
    #[must_use]
    pub fn must_keep_quiet(&self) -> bool {
        self.wary
    }

    /// Says that this was done.
    pub fn kept_quiet(&mut self) {
        self.wary = false;
    }

    /// Says that for [`QUIET_MS`](super::QUIET_MS) nothing came.
    pub fn quiet(&mut self) -> Step<'static> {
        if !self.is_in_doubt() {
            return Step::Read;
        }
        self.input = NO_SIZE;
        self.output = Output::Idle;
        Step::Rejected(TOO_LARGE)
    }

    /// Takes what it needs from the front of `input` and says what to do. Call it again until
    /// it says [`Step::Read`], also after the last byte of a body was written.
    pub fn handle<'i>(&mut self, input: &mut &'i [u8]) -> Step<'i> {
        loop {
            match self.input {
                Input::Greeting => {
                    let Some(byte) = take(input) else { return Step::Read };
                    if byte != GO {
                        return Step::Refused(byte);
                    }
                    self.input = NO_SIZE;
                    return Step::Greeted;
                }
                Input::Held(size) => match self.output {
                    Output::Idle => return self.answer(size),
                    Output::Waiting(_) => match take(input) {
                        Some(byte) => return self.answered(byte),
                        None => return Step::Read,
                    },
                    // The peer waits for our answer: it has nothing to say.
                    Output::Body(_) if input.is_empty() => return Step::Read,
                    Output::Body(_) => return Step::Broken,
                },
                Input::Size(bytes, have) => {
                    let Some(byte) = take(input) else { return Step::Read };
                    self.wary = false;
                    if have == 0 {
                        let waiting = matches!(self.output, Output::Waiting(_));
                        if waiting && (self.owes || byte > SIZE_FIRST_MAX) {
                            return self.answered(byte);
                        }
                        if byte > SIZE_FIRST_MAX {
                            return Step::Broken;
                        }
                    }
                    if let Some(step) = self.size_byte(bytes, have, byte) {
                        return step;
                    }
                }
                Input::Body { size, done } => {
                    let rest = size - done;
                    if rest > 0 && input.is_empty() {
                        return Step::Read;
                    }
                    let (bytes, after) = input.split_at_checked(rest as usize).unwrap_or((*input, &[]));
                    *input = after;
                    // No more than the u32 in `rest`.
                    let done_now = done + bytes.len() as u32;
                    self.input =
                        if done_now == size { NO_SIZE } else { Input::Body { size, done: done_now } };
                    return Step::Piece(Piece { size, offset: done, bytes });
                }
            }
        }
    }

    /// One more byte of a size of which `have` are in `bytes`.
    fn size_byte(&mut self, mut bytes: [u8; 4], have: u8, byte: u8) -> Option<Step<'static>> {
        if let Some(place) = bytes.get_mut(usize::from(have)) {
            *place = byte;
        }
        if have < 3 {
            self.input = Input::Size(bytes, have + 1);
            return None;
        }
        let size = u32::from_be_bytes(bytes);
        match (self.output, self.role) {
            (Output::Idle, _) => {
                self.wary = size > self.limit;
                Some(self.answer(size))
            }
            (Output::Waiting(_), Role::Client) => {
                self.owes = true;
                Some(self.answer(size))
            }
            (Output::Waiting(_), Role::Server) | (Output::Body(_), _) => {
                self.input = Input::Held(size);
                None
            }
        }
    }

    /// Answers the peer's size.
    fn answer(&mut self, size: u32) -> Step<'static> {
        if size > self.limit {
            self.input = NO_SIZE;
            return Step::Answer(TOO_LARGE);
        }
        self.input = Input::Body { size, done: 0 };
        Step::Answer(GO)
    }

    /// The peer answered our size.
    fn answered(&mut self, byte: u8) -> Step<'static> {
        self.owes = false;
        match self.output {
            Output::Waiting(size) if byte == GO => {
                self.output = if size == 0 { Output::Idle } else { Output::Body(size) };
                Step::Granted
            }
            _ => {
                self.output = Output::Idle;
                Step::Rejected(byte)
            }
        }
    }
}

fn take(input: &mut &[u8]) -> Option<u8> {
    let (first, rest) = input.split_first()?;
    *input = rest;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeted(role: Role) -> Link {
        let mut link = Link::new(role, 100);
        assert_eq!(link.handle(&mut &[GO][..]), Step::Greeted);
        link
    }

    /// Gives all of `input` and wants exactly these steps before `Read`.
    fn steps(link: &mut Link, mut input: &[u8], want: &[Step<'_>]) {
        for step in want {
            assert_eq!(link.handle(&mut input), *step, "{link:?}");
        }
        assert_eq!(link.handle(&mut input), Step::Read, "{link:?}");
        assert!(input.is_empty());
    }

    fn piece(size: u32, offset: u32, bytes: &[u8]) -> Step<'_> {
        Step::Piece(Piece { size, offset, bytes })
    }

    #[test]
    fn another_first_byte_refuses() {
        for code in 0..GO {
            let mut input = &[code, 0, 0, 0][..];
            assert_eq!(Link::new(Role::Client, 9).handle(&mut input), Step::Refused(code));
        }
    }

    #[test]
    fn messages_come_in_pieces_and_sizes_at_the_limit_pass() {
        let mut link = greeted(Role::Server);
        steps(&mut link, &[0, 0, 0, 3, 1], &[Step::Answer(GO), piece(3, 0, &[1])]);
        assert!(!link.is_idle());
        steps(&mut link, &[2, 3, 0, 0, 0, 0], &[piece(3, 1, &[2, 3]), Step::Answer(GO), piece(0, 0, &[])]);
        steps(&mut link, &[0, 0, 0, 101], &[Step::Answer(TOO_LARGE)]);
        assert!(link.must_keep_quiet());
        steps(&mut link, &[0, 0, 0, 100], &[Step::Answer(GO)]);
        assert!(!link.must_keep_quiet());
    }

    #[test]
    fn a_message_is_granted_counted_and_over() {
        let mut link = greeted(Role::Client);
        assert_eq!(link.start(5), Ok([0, 0, 0, 5]));
        assert_eq!(link.start(5), Err(NotNow::Busy));
        steps(&mut link, &[GO], &[Step::Granted]);
        assert_eq!((link.sent(2), link.sent(3)), (3, 0));
        assert!(link.is_idle());
        assert_eq!(link.start(u64::from(SIZE_MAX) + 1), Err(NotNow::TooLarge));
        assert_eq!(link.start(SIZE_MAX.into()), Ok([0xF0, 0xFF, 0xFF, 0xFF]));
    }

    #[test]
    fn a_lone_zero_is_a_refusal_once_it_is_quiet() {
        for role in [Role::Client, Role::Server] {
            let mut link = greeted(role);
            assert_eq!(link.quiet(), Step::Read);
            let _ = link.start(5);
            steps(&mut link, &[0], &[]);
            assert!(link.is_in_doubt());
            assert_eq!(link.quiet(), Step::Rejected(TOO_LARGE));
            assert!(link.is_idle());
            let _ = link.start(5);
            steps(&mut link, &[0xF7], &[Step::Rejected(0xF7)]);
        }
    }

    #[test]
    fn at_the_same_moment_the_client_takes_first() {
        let mut link = greeted(Role::Client);
        let _ = link.start(2);
        steps(&mut link, &[0, 0, 0, 1, 7], &[Step::Answer(GO), piece(1, 0, &[7])]);
        // Now a 0 can only be the answer.
        steps(&mut link, &[0], &[Step::Rejected(0)]);
        assert!(link.is_idle());
    }

    #[test]
    fn at_the_same_moment_the_server_keeps_its_answer_back() {
        let mut link = greeted(Role::Server);
        let _ = link.start(2);
        steps(&mut link, &[0, 0, 0, 1], &[]);
        steps(&mut link, &[GO], &[Step::Granted]);
        assert_eq!(link.handle(&mut &[1][..]), Step::Broken);
        assert_eq!(link.sent(2), 0);
        steps(&mut link, &[], &[Step::Answer(GO)]);
        steps(&mut link, &[7], &[piece(1, 0, &[7])]);
        let _ = link.start(2);
        steps(&mut link, &[0, 0, 0, 1, 0], &[Step::Rejected(0), Step::Answer(GO)]);
    }

    #[test]
    fn a_size_that_cannot_be_is_broken() {
        for byte in SIZE_FIRST_MAX + 1..=GO {
            assert_eq!(greeted(Role::Server).handle(&mut &[byte][..]), Step::Broken);
        }
    }
}
