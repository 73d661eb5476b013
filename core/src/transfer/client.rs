//! The side that asks, as pure steps: one session to get a file, one to put it.

use super::name::Name;
use super::step::{Ask, Body, End, Input, Machine, Step, Value};
use super::wire::{self, Message, Operation, Refusal, Status};
use crate::hash::Hash;

/// Getting a file.
#[derive(Debug)]
pub struct Download {
    name: Name,
    ranges: bool,
    state: Getting,
}

#[derive(Debug, Clone, Copy)]
enum Getting {
    /// Our storage says what is there.
    Creating,
    /// Our storage hashes what is there.
    Hashing(u64),
    /// `D`: the server says how large it is.
    Asked,
    /// `R`: does the server know ranges?
    Greeted(u64, Hash),
    /// `R`: the server says from where.
    Told(u64),
    /// Our storage makes room.
    Reserving { start: u64, size: u64 },
    /// The bytes are on their way.
    Moving { start: u64, size: u64 },
    /// Our storage commits.
    Committing { start: u64, size: u64 },
    /// A last message is on its way, or nothing is.
    Ending(End),
}

impl Download {
    /// Gets `name`. With `ranges`, what the storage kept of an earlier attempt is not fetched again.
    #[must_use]
    pub fn new(name: Name, ranges: bool) -> Self {
        Self { name, ranges, state: Getting::Creating }
    }

    /// Whether an old server may just have been asked something that it does not know:
    /// if the connection fails now, it may work without ranges.
    #[must_use]
    pub fn doubtful(&self) -> bool {
        matches!(self.state, Getting::Greeted(..))
    }
}

impl Machine for Download {
    fn handle<'m>(&'m mut self, input: Input<'_>) -> Step<'m> {
        use Input::{Answer, Broken, Closed, Moved, Received, Sent, Start};
        let (state, step) = match (self.state, input) {
            (Getting::Creating, Start) => {
                let ask = Ask::Create { name: &self.name, keep: self.ranges };
                (Getting::Creating, Step::Ask(ask))
            }
            (Getting::Creating, Answer(Ok(Value::Bytes(have)))) => {
                if have > 0 && self.ranges {
                    (Getting::Hashing(have), Step::Ask(Ask::Hash(have)))
                } else {
                    (Getting::Asked, Step::Send(Message::Request(Operation::Download, &self.name)))
                }
            }
            (Getting::Hashing(have), Answer(Ok(Value::Hash(hash)))) => {
                (Getting::Greeted(have, hash), Step::Send(Message::Request(Operation::Ranges, &self.name)))
            }
            (Getting::Asked, Sent) => (Getting::Asked, Step::Read(9)),
            (Getting::Asked, Received(bytes)) => match (status(bytes), wire::number(bytes, 1)) {
                (Ok(Status::Go), Some(size)) => reserve(0, size),
                (other, _) => no(other),
            },
            (state @ Getting::Greeted(..), Sent) => (state, Step::Read(1)),
            (Getting::Greeted(have, hash), Received(b"R")) => {
                (Getting::Told(have), Step::Send(Message::Have(have, hash)))
            }
            (Getting::Greeted(..), Received(_) | Closed) => get_end(End::NoRanges),
            (state @ Getting::Told(_), Sent) => (state, Step::Read(17)),
            (Getting::Told(have), Received(bytes)) => {
                match (status(bytes), wire::number(bytes, 1), wire::number(bytes, 9)) {
                    (Ok(Status::Go), Some(size), Some(start))
                        if start == 0 || (start == have && start <= size) =>
                    {
                        reserve(start, size)
                    }
                    (Ok(Status::Go), ..) => get_end(End::Strange),
                    (other, ..) => no(other),
                }
            }
            (Getting::Reserving { start, size }, Answer(Ok(Value::Done))) => {
                (Getting::Moving { start, size }, Step::Send(Message::Status(Status::Go)))
            }
            (Getting::Reserving { .. }, Answer(answer)) => {
                let end = match refusal(answer) {
                    Refusal::NoSpace => End::Stopped,
                    other => End::Broken(other),
                };
                (Getting::Ending(end), Step::Send(Message::Status(Status::No)))
            }
            (Getting::Moving { start, size }, Sent) => (self.state, Step::Body(Body::In { start, size })),
            (Getting::Moving { start, size }, Moved) => {
                (Getting::Committing { start, size }, Step::Ask(Ask::Commit))
            }
            (Getting::Committing { start, size }, Answer(Ok(Value::Done))) => {
                get_end(End::Done { start, size })
            }
            (Getting::Ending(end), Sent) => get_end(end),
            (_, Answer(answer)) => get_end(End::Broken(refusal(answer))),
            (_, Broken(no)) => get_end(End::Broken(no)),
            (_, Closed) => get_end(End::Closed),
            (_, Start | Sent | Received(_) | Moved) => get_end(End::Strange),
        };
        self.state = state;
        step
    }
}

fn reserve(start: u64, size: u64) -> (Getting, Step<'static>) {
    (Getting::Reserving { start, size }, Step::Ask(Ask::Reserve { start, size }))
}

fn no(status: Result<Status, End>) -> (Getting, Step<'static>) {
    get_end(refused(status))
}

fn get_end(end: End) -> (Getting, Step<'static>) {
    (Getting::Ending(end), Step::End(end))
}

/// Putting a file.
#[derive(Debug)]
pub struct Upload {
    name: Name,
    ranges: bool,
    state: Putting,
}

#[derive(Debug, Clone, Copy)]
enum Putting {
    /// Our storage says how large it is.
    Opening,
    /// `U`: may it be?
    Asked { size: u64 },
    /// `U`: is there room?
    Sized { size: u64 },
    /// `R`: does the server know ranges?
    Greeted { size: u64 },
    /// `R`: the server says what it has.
    Told { size: u64 },
    /// `R`: our storage compares.
    Comparing { have: u64, size: u64, hash: Hash },
    /// `R`: our storage compares with a complete file there.
    Same { size: u64, hash: Hash },
    /// The bytes are on their way.
    Moving { start: u64, size: u64 },
    /// The server commits, and says so (`R`) or closes (`U`).
    Waiting { start: u64, size: u64 },
    /// Nothing follows.
    Ending(End),
}

impl Upload {
    /// Puts a file under `name`. With `ranges`, what the server kept of an earlier attempt
    /// is not sent again.
    #[must_use]
    pub fn new(name: Name, ranges: bool) -> Self {
        Self { name, ranges, state: Putting::Opening }
    }

    /// Whether an old server may just have been asked something that it does not know:
    /// if the connection fails now, it may work without ranges.
    #[must_use]
    pub fn doubtful(&self) -> bool {
        matches!(self.state, Putting::Greeted { .. })
    }
}

impl Machine for Upload {
    fn handle<'m>(&'m mut self, input: Input<'_>) -> Step<'m> {
        use Input::{Answer, Broken, Closed, Moved, Received, Sent, Start};
        let (state, step) = match (self.state, input) {
            (Putting::Opening, Start) => (Putting::Opening, Step::Ask(Ask::Open(&self.name))),
            (Putting::Opening, Answer(Ok(Value::Bytes(size)))) => {
                let (state, operation) = if self.ranges {
                    (Putting::Greeted { size }, Operation::Ranges)
                } else {
                    (Putting::Asked { size }, Operation::Upload)
                };
                (state, Step::Send(Message::Request(operation, &self.name)))
            }
            (state @ (Putting::Asked { .. } | Putting::Sized { .. } | Putting::Greeted { .. }), Sent) => {
                (state, Step::Read(1))
            }
            (Putting::Asked { size }, Received(b"T")) => {
                (Putting::Sized { size }, Step::Send(Message::Size(size)))
            }
            (Putting::Sized { size }, Received(b"T")) => {
                (Putting::Moving { start: 0, size }, Step::Body(Body::Out { start: 0, size }))
            }
            (Putting::Sized { .. }, Received(b"F")) => put_end(End::Refused(Refusal::NoSpace)),
            (Putting::Asked { .. } | Putting::Sized { .. }, Received(bytes)) => {
                put_end(refused(status(bytes)))
            }

            (Putting::Greeted { size }, Received(b"R")) => {
                (Putting::Told { size }, Step::Send(Message::Want(size)))
            }
            (Putting::Greeted { .. }, Received(_) | Closed) => put_end(End::NoRanges),
            (state @ Putting::Told { .. }, Sent) => (state, Step::Read(41)),
            (Putting::Told { size }, Received(bytes)) => {
                match (status(bytes), wire::number(bytes, 1), wire::hash(bytes, 9)) {
                    (Ok(Status::Go), Some(have), Some(_)) if have == 0 || have > size => begin(0, size),
                    (Ok(Status::Go), Some(have), Some(hash)) => {
                        (Putting::Comparing { have, size, hash }, Step::Ask(Ask::Hash(have)))
                    }
                    // All zeros: the server has nothing to compare with.
                    (Ok(Status::No), Some(there), Some(hash)) if there == size && hash != Hash::default() => {
                        (Putting::Same { size, hash }, Step::Ask(Ask::Hash(size)))
                    }
                    (other, ..) => put_end(refused(other)),
                }
            }
            (Putting::Comparing { have, size, hash }, Answer(Ok(Value::Hash(ours)))) => {
                begin(if ours == hash { have } else { 0 }, size)
            }
            (Putting::Same { size, hash }, Answer(Ok(Value::Hash(ours)))) => {
                put_end(if ours == hash { End::Already { size } } else { End::Refused(Refusal::Exists) })
            }

            (Putting::Moving { start, size }, Sent) => (self.state, Step::Body(Body::Out { start, size })),
            (Putting::Moving { start, size }, Moved) => (Putting::Waiting { start, size }, Step::Read(1)),
            (Putting::Waiting { start, size }, Received(b"T")) if self.ranges => {
                put_end(End::Done { start, size })
            }
            (Putting::Waiting { start, size }, Closed) if !self.ranges => put_end(End::Done { start, size }),
            (Putting::Waiting { .. }, Received(bytes)) if self.ranges => put_end(refused(status(bytes))),

            (Putting::Ending(end), _) => put_end(end),
            (_, Answer(answer)) => put_end(End::Broken(refusal(answer))),
            (_, Broken(no)) => put_end(End::Broken(no)),
            (_, Closed) => put_end(End::Closed),
            (_, Start | Sent | Received(_) | Moved) => put_end(End::Strange),
        };
        self.state = state;
        step
    }
}

fn begin(start: u64, size: u64) -> (Putting, Step<'static>) {
    (Putting::Moving { start, size }, Step::Send(Message::Size(start)))
}

fn put_end(end: End) -> (Putting, Step<'static>) {
    (Putting::Ending(end), Step::End(end))
}

/// The status at the head of a message; an unknown byte is how it ends.
fn status(bytes: &[u8]) -> Result<Status, End> {
    bytes.first().and_then(|b| Status::parse(*b)).ok_or(End::Strange)
}

/// What it means if it is not the yes that was hoped for.
fn refused(status: Result<Status, End>) -> End {
    match status {
        Ok(Status::No) => End::Refused(Refusal::Refused),
        Ok(Status::Error) => End::Refused(Refusal::Failed),
        Ok(Status::Space) => End::Refused(Refusal::NoSpace),
        Ok(Status::Go | Status::Ranges) => End::Strange,
        Err(end) => end,
    }
}

/// An answer that is none to the question is the driver's mistake, told as a failure.
fn refusal(answer: Result<Value, Refusal>) -> Refusal {
    answer.err().unwrap_or(Refusal::Failed)
}
