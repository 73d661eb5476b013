//! The side that asks, as pure steps: one session to get a file, one to put it.

use super::name::Name;
use super::step::{Ask, Body, End, Input, Machine, Step, Value, refusal};
use super::wire::{self, Message, Operation, Refusal, Status};
use crate::hash::Hash;

/// Asking whether the server knows ranges, on a connection of its own, in a way that every old server can answer:
/// one that gets the operation `R` may say nothing and never close. It ends with [`End::Ranges`] or
/// [`End::NoRanges`], and has no use for a storage.
#[derive(Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Probe {
    over: bool,
}

impl Machine for Probe {
    fn handle<'m>(&'m mut self, input: Input<'_>) -> Step<'m> {
        match input {
            Input::Start => Step::Send(Message::Probe),
            Input::Sent if self.over => Step::End(End::NoRanges),
            Input::Sent => Step::Read(9),
            Input::Received(bytes) => match (status(bytes), wire::number(bytes, 1)) {
                (Ok(Status::No), Some(wire::RANGES)) => Step::End(End::Ranges),
                // It has a file of that name, and waits for what we think of it.
                (Ok(Status::Go), _) => {
                    self.over = true;
                    Step::Send(Message::Status(Status::No))
                }
                _ => Step::End(End::NoRanges),
            },
            _ => Step::End(End::NoRanges),
        }
    }
}

/// Getting a file.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Download {
    name: Name,
    ranges: bool,
    state: Getting,
    known: Known,
}

/// What a session has learnt so far; beside its state and not in it, which costs a microcontroller
/// a third of the code.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
struct Known {
    /// From which byte the file is sent.
    start: u64,
    /// The size of the file.
    size: u64,
    /// Of the first `start` bytes, on the side that receives.
    hash: Hash,
    /// How it ended.
    end: End,
}

impl Known {
    const NOTHING: Self = Self { start: 0, size: 0, hash: Hash([0; 32]), end: End::ProtocolError };

    fn done(&self) -> End {
        End::Done { start: self.start, size: self.size }
    }
}

#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
enum Getting {
    /// Our storage says what is there.
    Creating,
    /// Our storage hashes what is there.
    Hashing,
    /// `D`: the server says how large it is.
    Asked,
    /// `R`: does the server know ranges?
    Greeted,
    /// `R`: the server says from where.
    Told,
    /// Our storage makes room.
    Reserving,
    /// The bytes are on their way.
    Moving,
    /// Our storage commits.
    Committing,
    /// A last message is on its way, or nothing is.
    Ending,
}

impl Download {
    /// Gets `name`. With `ranges`, what the storage kept of an earlier attempt is not fetched again: only from a
    /// server that knows them, see [`Probe`].
    #[must_use]
    pub fn new(name: Name, ranges: bool) -> Self {
        Self { name, ranges, state: Getting::Creating, known: Known::NOTHING }
    }

    fn reserve(&mut self, start: u64, size: u64) -> (Getting, Step<'static>) {
        (self.known.start, self.known.size) = (start, size);
        (Getting::Reserving, Step::Ask(Ask::Reserve { start, size }))
    }

    fn over(&mut self, end: End) -> (Getting, Step<'static>) {
        self.known.end = end;
        (Getting::Ending, Step::End(end))
    }
}

impl Machine for Download {
    fn handle<'m>(&'m mut self, input: Input<'_>) -> Step<'m> {
        use Input::{Answer, Closed, Moved, Received, Sent, Start};
        let (state, step) = match (self.state, input) {
            (state @ Getting::Creating, Start) => {
                (state, Step::Ask(Ask::Create { name: &self.name, keep: self.ranges }))
            }
            (Getting::Creating, Answer(Ok(Value::Bytes(have)))) => {
                if have > 0 && self.ranges {
                    self.known.start = have;
                    (Getting::Hashing, Step::Ask(Ask::Hash(have)))
                } else {
                    (Getting::Asked, Step::Send(Message::Request(Operation::Download, &self.name)))
                }
            }
            (Getting::Hashing, Answer(Ok(Value::Hash(hash)))) => {
                self.known.hash = hash;
                (Getting::Greeted, Step::Send(Message::Request(Operation::Ranges, &self.name)))
            }
            (state @ Getting::Asked, Sent) => (state, Step::Read(9)),
            (Getting::Asked, Received(bytes)) => match (status(bytes), wire::number(bytes, 1)) {
                (Ok(Status::Go), Some(size)) => self.reserve(0, size),
                (other, _) => self.over(refused(other)),
            },
            (state @ Getting::Greeted, Sent) => (state, Step::Read(1)),
            (Getting::Greeted, Received(b"R")) => {
                (Getting::Told, Step::Send(Message::Have(self.known.start, self.known.hash)))
            }
            (Getting::Greeted, Received(_) | Closed) => self.over(End::NoRanges),
            (state @ Getting::Told, Sent) => (state, Step::Read(17)),
            (Getting::Told, Received(bytes)) => {
                match (status(bytes), wire::number(bytes, 1), wire::number(bytes, 9)) {
                    (Ok(Status::Go), Some(size), Some(start))
                        if start == 0 || (start == self.known.start && start <= size) =>
                    {
                        self.reserve(start, size)
                    }
                    (other, ..) => self.over(refused(other)),
                }
            }
            (Getting::Reserving, Answer(Ok(Value::Done))) => {
                (Getting::Moving, Step::Send(Message::Status(Status::Go)))
            }
            (Getting::Reserving, Answer(answer)) => {
                self.known.end = match refusal(answer) {
                    Refusal::NoSpace => End::Stopped,
                    other => End::Broken(other),
                };
                (Getting::Ending, Step::Send(Message::Status(Status::No)))
            }
            (state @ Getting::Moving, Sent) => {
                (state, Step::Body(Body::In { start: self.known.start, size: self.known.size }))
            }
            (Getting::Moving, Moved) => (Getting::Committing, Step::Ask(Ask::Commit)),
            (Getting::Committing, Answer(Ok(Value::Done))) => self.over(self.known.done()),
            (Getting::Ending, _) => self.over(self.known.end),
            (_, other) => self.over(unexpected(other)),
        };
        self.state = state;
        step
    }
}

/// Putting a file.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Upload {
    name: Name,
    ranges: bool,
    state: Putting,
    known: Known,
}

#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
enum Putting {
    /// Our storage says how large it is.
    Opening,
    /// `U`: may it be?
    Asked,
    /// `U`: is there room?
    Sized,
    /// `R`: does the server know ranges?
    Greeted,
    /// `R`: the server says what it has.
    Told,
    /// `R`: our storage compares.
    Comparing,
    /// `R`: our storage compares with a complete file there.
    Same,
    /// The bytes are on their way.
    Moving,
    /// The server commits, and says so (`R`) or closes (`U`).
    Waiting,
    /// Nothing follows.
    Ending,
}

impl Upload {
    /// Puts a file under `name`. With `ranges`, what the server kept of an earlier attempt is not sent again:
    /// only to a server that knows them, see [`Probe`].
    #[must_use]
    pub fn new(name: Name, ranges: bool) -> Self {
        Self { name, ranges, state: Putting::Opening, known: Known::NOTHING }
    }

    /// Our file's hash of as many bytes is wanted.
    fn compare(&mut self, state: Putting, bytes: u64, hash: Hash) -> (Putting, Step<'static>) {
        self.known.hash = hash;
        (state, Step::Ask(Ask::Hash(bytes)))
    }

    fn begin(&mut self, start: u64) -> (Putting, Step<'static>) {
        self.known.start = start;
        (Putting::Moving, Step::Send(Message::Size(start)))
    }

    fn body(&self) -> (Putting, Step<'static>) {
        (Putting::Moving, Step::Body(Body::Out { start: self.known.start, size: self.known.size }))
    }

    fn over(&mut self, end: End) -> (Putting, Step<'static>) {
        self.known.end = end;
        (Putting::Ending, Step::End(end))
    }
}

impl Machine for Upload {
    fn handle<'m>(&'m mut self, input: Input<'_>) -> Step<'m> {
        use Input::{Answer, Closed, Moved, Received, Sent, Start};
        let size = self.known.size;
        let (state, step) = match (self.state, input) {
            (state @ Putting::Opening, Start) => (state, Step::Ask(Ask::Open(&self.name))),
            (Putting::Opening, Answer(Ok(Value::Bytes(size)))) => {
                self.known.size = size;
                let (state, operation) = if self.ranges {
                    (Putting::Greeted, Operation::Ranges)
                } else {
                    (Putting::Asked, Operation::Upload)
                };
                (state, Step::Send(Message::Request(operation, &self.name)))
            }
            (state @ (Putting::Asked | Putting::Sized | Putting::Greeted), Sent) => (state, Step::Read(1)),
            (Putting::Asked, Received(b"T")) => (Putting::Sized, Step::Send(Message::Size(size))),
            (Putting::Sized, Received(b"T")) => self.body(),
            (Putting::Sized, Received(b"F")) => self.over(End::Refused(Refusal::NoSpace)),
            (Putting::Greeted, Received(b"R")) => (Putting::Told, Step::Send(Message::Want(size))),
            (Putting::Greeted, Received(_) | Closed) => self.over(End::NoRanges),
            (state @ Putting::Told, Sent) => (state, Step::Read(41)),
            (Putting::Told, Received(bytes)) => {
                match (status(bytes), wire::number(bytes, 1), wire::hash(bytes, 9)) {
                    (Ok(Status::Go), Some(have), Some(_)) if have == 0 || have > size => self.begin(0),
                    (Ok(Status::Go), Some(have), Some(hash)) => {
                        self.known.start = have;
                        self.compare(Putting::Comparing, have, hash)
                    }
                    // All zeros: the server has nothing to compare with.
                    (Ok(Status::No), Some(there), Some(hash)) if there == size && hash != Hash::default() => {
                        self.compare(Putting::Same, size, hash)
                    }
                    (other, ..) => self.over(refused(other)),
                }
            }
            (Putting::Comparing, Answer(Ok(Value::Hash(ours)))) => {
                self.begin(if ours == self.known.hash { self.known.start } else { 0 })
            }
            (Putting::Same, Answer(Ok(Value::Hash(ours)))) => self.over(if ours == self.known.hash {
                End::Already { size }
            } else {
                End::Refused(Refusal::Exists)
            }),
            (Putting::Moving, Sent) => self.body(),
            (Putting::Moving, Moved) => (Putting::Waiting, Step::Read(1)),
            (Putting::Waiting, Received(b"T")) if self.ranges => self.over(self.known.done()),
            (Putting::Waiting, Closed) if !self.ranges => self.over(self.known.done()),
            (Putting::Asked | Putting::Sized, Received(bytes)) => self.over(refused(status(bytes))),
            (Putting::Waiting, Received(bytes)) if self.ranges => self.over(refused(status(bytes))),
            (Putting::Ending, _) => self.over(self.known.end),
            (_, other) => self.over(unexpected(other)),
        };
        self.state = state;
        step
    }
}

/// What it means that something came for which there is no step.
fn unexpected(input: Input<'_>) -> End {
    match input {
        Input::Answer(answer) => End::Broken(refusal(answer)),
        Input::Broken(no) => End::Broken(no),
        Input::Closed => End::Closed,
        Input::Start | Input::Sent | Input::Received(_) | Input::Moved => End::ProtocolError,
    }
}

/// The status at the head of a message; an unknown byte is how it ends.
fn status(bytes: &[u8]) -> Result<Status, End> {
    bytes.first().and_then(|b| Status::parse(*b)).ok_or(End::ProtocolError)
}

/// What it means if it is not the yes that was hoped for.
fn refused(status: Result<Status, End>) -> End {
    match status {
        Ok(Status::No) => End::Refused(Refusal::Refused),
        Ok(Status::Error) => End::Refused(Refusal::Failed),
        Ok(Status::Space) => End::Refused(Refusal::NoSpace),
        Ok(Status::Go | Status::Ranges) => End::ProtocolError,
        Err(end) => end,
    }
}
