//! The side that has a folder, as pure steps.

use super::name::Name;
use super::step::{Ask, Body, End, Input, Machine, Step, Value, refusal};
use super::wire::{self, Message, Operation, REQUEST_LEN, Refusal, Request, Status};
use crate::hash::Hash;

/// One transfer, seen from the server.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Server {
    /// Of which file; `None` until it is known, and if it is not allowed.
    name: Option<Name>,
    state: State,
}

/// What a client has of a file.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
struct Have {
    bytes: u64,
    hash: Hash,
}

#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
enum State {
    /// Nothing is known yet.
    Request,
    /// `R`: up or down?
    Direction,
    /// `R` down: what does the client have?
    Have,
    /// `R` up: how large is it?
    Want,
    /// Down: the storage looks for the file.
    Opening(Option<Have>),
    /// `R` down: the storage compares.
    Comparing { size: u64, have: Have },
    /// Down: the client decides.
    Offered { start: u64, size: u64 },
    /// Up: the storage looks whether it may be. With `R` the size is known by now.
    Creating(Option<u64>),
    /// `R` up: there is such a file; is it as large?
    Existing { size: u64 },
    /// `R` up: what is its hash?
    Known { size: u64 },
    /// Up: the client says how large it is.
    Accepted,
    /// `R` up: the storage hashes what is there.
    Weighing { have: u64, size: u64 },
    /// Up: the storage makes room.
    Reserving { size: u64, ranges: Option<Have> },
    /// `R` up: the client says from where.
    Shown { have: u64, size: u64 },
    /// `R` up: the client begins elsewhere, the storage makes room again.
    Restarting { size: u64 },
    /// The bytes are on their way.
    Moving { body: Body, ranges: bool },
    /// The storage commits.
    Committing { start: u64, size: u64, ranges: bool },
    /// A last message is on its way.
    Ending(End),
}

impl Default for Server {
    fn default() -> Self {
        Self { name: None, state: State::Request }
    }
}

impl Machine for Server {
    fn handle<'m>(&'m mut self, input: Input<'_>) -> Step<'m> {
        if let (State::Request, Input::Received(bytes)) = (self.state, input) {
            let request = Request::parse(bytes);
            let operation = request.as_ref().map(|r| r.operation);
            self.name = request.and_then(|r| r.name.ok());
            let (state, step) = asked(operation, self.name.as_ref());
            self.state = state;
            return step;
        }
        let (state, step) = turn(self.state, self.name.as_ref(), input);
        self.state = state;
        step
    }
}

fn turn<'m>(state: State, name: Option<&'m Name>, input: Input<'_>) -> (State, Step<'m>) {
    use Input::{Answer, Broken, Closed, Moved, Received, Sent, Start};
    match (state, input) {
        (State::Request, Start) => (State::Request, Step::Read(REQUEST_LEN)),

        (State::Direction, Sent) => (state, Step::Read(1)),
        (State::Direction, Received(b"D")) => (State::Have, Step::Read(40)),
        (State::Direction, Received(b"U")) => (State::Want, Step::Read(8)),
        (State::Have, Received(bytes)) => match (name, wire::number(bytes, 0), wire::hash(bytes, 8)) {
            (Some(name), Some(bytes), Some(hash)) => {
                (State::Opening(Some(Have { bytes, hash })), Step::Ask(Ask::Open(name)))
            }
            _ => last(Message::From(Status::No, 0, 0), End::Refused(Refusal::Refused)),
        },
        (State::Want, Received(bytes)) => match (name, wire::number(bytes, 0)) {
            (Some(name), Some(size)) => {
                (State::Creating(Some(size)), Step::Ask(Ask::Create { name, keep: true }))
            }
            _ => no_partial(Refusal::Refused),
        },

        (State::Opening(None), Answer(Ok(Value::Bytes(size)))) => offer(None, 0, size),
        (State::Opening(Some(have)), Answer(Ok(Value::Bytes(size)))) => {
            if have.bytes == 0 || have.bytes > size {
                offer(Some(()), 0, size)
            } else {
                (State::Comparing { size, have }, Step::Ask(Ask::Hash(have.bytes)))
            }
        }
        (State::Comparing { size, have }, Answer(Ok(Value::Hash(hash)))) => {
            offer(Some(()), if hash == have.hash { have.bytes } else { 0 }, size)
        }
        (State::Opening(None), Answer(no)) => {
            let no = refusal(no);
            last(Message::Offer(Status::old(no), 0), End::Refused(no))
        }
        (State::Opening(Some(_)) | State::Comparing { .. }, Answer(no)) => {
            let no = refusal(no);
            last(Message::From(Status::refusal(no), 0, 0), End::Refused(no))
        }
        (state @ State::Offered { .. }, Sent) => (state, Step::Read(1)),
        (State::Offered { start, size }, Received(b"T")) => {
            let body = Body::Out { start, size };
            (State::Moving { body, ranges: false }, Step::Body(body))
        }
        (State::Offered { .. }, Received(b"F")) => end(End::Stopped),

        (State::Creating(None), Answer(Ok(Value::Bytes(_)))) => {
            (State::Accepted, Step::Send(Message::Status(Status::Go)))
        }
        (State::Creating(None), Answer(no)) => {
            let no = refusal(no);
            last(Message::Status(Status::old(no)), End::Refused(no))
        }
        (State::Accepted, Sent) => (State::Accepted, Step::Read(8)),
        (State::Accepted, Received(bytes)) => match wire::number(bytes, 0) {
            Some(size) => {
                (State::Reserving { size, ranges: None }, Step::Ask(Ask::Reserve { start: 0, size }))
            }
            None => end(End::ProtocolError),
        },
        (State::Creating(Some(size)), Answer(Ok(Value::Bytes(have)))) => {
            // More than there will be is of another file.
            if have == 0 || have > size {
                reserve(Have { bytes: 0, hash: Hash::default() }, size)
            } else {
                (State::Weighing { have, size }, Step::Ask(Ask::Hash(have)))
            }
        }
        (State::Creating(Some(size)), Answer(Err(Refusal::Exists))) => match name {
            Some(name) => (State::Existing { size }, Step::Ask(Ask::Open(name))),
            None => end(End::ProtocolError),
        },
        (State::Existing { size }, Answer(Ok(Value::Bytes(there)))) if there == size => {
            (State::Known { size }, Step::Ask(Ask::Hash(size)))
        }
        (State::Existing { .. }, Answer(_)) => no_partial(Refusal::Exists),
        (State::Known { size }, Answer(Ok(Value::Hash(hash)))) => {
            last(Message::Partial(Status::No, size, hash), End::Refused(Refusal::Exists))
        }
        (State::Weighing { have, size }, Answer(Ok(Value::Hash(hash)))) => {
            reserve(Have { bytes: have, hash }, size)
        }
        (State::Creating(Some(_)) | State::Known { .. } | State::Weighing { .. }, Answer(no)) => {
            no_partial(refusal(no))
        }
        (State::Reserving { size, ranges: None }, Answer(Ok(Value::Done))) => {
            let body = Body::In { start: 0, size };
            (State::Moving { body, ranges: false }, Step::Send(Message::Status(Status::Go)))
        }
        (State::Reserving { ranges: None, .. }, Answer(no)) => {
            last(Message::Status(Status::No), End::Refused(refusal(no)))
        }
        (State::Reserving { size, ranges: Some(have) }, Answer(Ok(Value::Done))) => {
            let message = Message::Partial(Status::Go, have.bytes, have.hash);
            (State::Shown { have: have.bytes, size }, Step::Send(message))
        }
        (State::Reserving { ranges: Some(_), .. }, Answer(no)) => no_partial(refusal(no)),
        (state @ State::Shown { .. }, Sent) => (state, Step::Read(8)),
        (State::Shown { have, size }, Received(bytes)) => match wire::number(bytes, 0) {
            Some(start) if start == have => receive(start, size),
            Some(0) => (State::Restarting { size }, Step::Ask(Ask::Reserve { start: 0, size })),
            _ => end(End::ProtocolError),
        },
        (State::Restarting { size }, Answer(Ok(Value::Done))) => receive(0, size),
        (State::Restarting { .. }, Answer(no)) => {
            let no = refusal(no);
            last(Message::Status(Status::refusal(no)), End::Refused(no))
        }

        (State::Moving { body: body @ Body::In { .. }, ranges }, Sent) => {
            (State::Moving { body, ranges }, Step::Body(body))
        }
        (State::Moving { body: Body::Out { start, size }, .. }, Moved) => end(End::Done { start, size }),
        (State::Moving { body: Body::In { start, size }, ranges }, Moved) => {
            (State::Committing { start, size, ranges }, Step::Ask(Ask::Commit))
        }
        (State::Moving { body: Body::In { .. }, ranges: true }, Broken(no)) => {
            last(Message::Status(Status::refusal(no)), End::Broken(no))
        }
        (State::Moving { .. }, Broken(no)) => end(End::Broken(no)),
        (State::Committing { start, size, ranges }, Answer(answer)) => {
            let (status, over) = match answer {
                Ok(Value::Done) => (Status::Go, End::Done { start, size }),
                no => (Status::refusal(refusal(no)), End::Broken(refusal(no))),
            };
            if ranges { last(Message::Status(status), over) } else { end(over) }
        }
        (State::Ending(over), Sent) => end(over),
        (_, Closed) => end(End::Closed),
        // A peer's byte that means nothing here, or a driver that mixes up its answers.
        (_, Start | Sent | Received(_) | Answer(_) | Moved | Broken(_)) => end(End::ProtocolError),
    }
}

fn asked(operation: Option<Operation>, name: Option<&Name>) -> (State, Step<'_>) {
    match (operation, name) {
        (None, _) => last(Message::Status(Status::Error), End::ProtocolError),
        (Some(Operation::Download), Some(name)) => (State::Opening(None), Step::Ask(Ask::Open(name))),
        (Some(Operation::Upload), Some(name)) => {
            (State::Creating(None), Step::Ask(Ask::Create { name, keep: false }))
        }
        (Some(Operation::Ranges), _) => (State::Direction, Step::Send(Message::Status(Status::Ranges))),
        (Some(Operation::Probe), _) => last(Message::Offer(Status::No, wire::RANGES), End::Ranges),
        (Some(Operation::Download), None) => {
            last(Message::Offer(Status::No, 0), End::Refused(Refusal::Refused))
        }
        (Some(Operation::Upload), None) => last(Message::Status(Status::No), End::Refused(Refusal::Refused)),
    }
}

fn offer(ranges: Option<()>, start: u64, size: u64) -> (State, Step<'static>) {
    let message = match ranges {
        Some(()) => Message::From(Status::Go, size, start),
        None => Message::Offer(Status::Go, size),
    };
    (State::Offered { start, size }, Step::Send(message))
}

fn reserve(have: Have, size: u64) -> (State, Step<'static>) {
    let ask = Ask::Reserve { start: have.bytes, size };
    (State::Reserving { size, ranges: Some(have) }, Step::Ask(ask))
}

fn receive(start: u64, size: u64) -> (State, Step<'static>) {
    let body = Body::In { start, size };
    (State::Moving { body, ranges: true }, Step::Body(body))
}

fn no_partial(no: Refusal) -> (State, Step<'static>) {
    last(Message::Partial(Status::refusal(no), 0, Hash::default()), End::Refused(no))
}

fn last(message: Message<'static>, over: End) -> (State, Step<'static>) {
    (State::Ending(over), Step::Send(message))
}

fn end(over: End) -> (State, Step<'static>) {
    (State::Ending(over), Step::End(over))
}
