//! One side of an open talk: what to do about each message, with bounds on what is under way.

use super::calls::{Calls, Place};
use super::message::{Call, Head, Message};
use super::value::{Items, Value};

/// What is to be done about a message.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use]
pub enum Step<'m> {
    /// Run the function and send its answer, then say [`Session::answered`].
    Run(Call<'m>),
    /// Send an error as the answer: too many calls of the peer are under way.
    Busy {
        /// The number of the call.
        retcode: u32,
    },
    /// The call in this place is answered; it waits no more.
    Answered {
        /// Which call.
        place: usize,
        /// What was returned; a fault in it is the error of the function.
        values: Items<'m>,
    },
    /// A call that cannot be read or makes no sense: send an error as the answer.
    Unreadable {
        /// The number of the call.
        retcode: u32,
    },
    /// The call in this place has an answer that cannot be read or makes no sense; it waits no more.
    Spoilt {
        /// Which call.
        place: usize,
        /// What it carries, if that much could be read; a [fault](Value::fault) in it is the error of the
        /// function.
        value: Option<Value<'m>>,
    },
    /// An answer that nobody waits for: too late, twice, or never asked for. Drop it.
    Late,
    /// No message of this service: close the connection.
    Broken,
}

/// One side of a talk after the login.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Session<P> {
    /// Our calls that are under way.
    pub calls: Calls<P>,
    answering: u32,
    answering_max: u32,
}

impl<P: AsMut<[Place]>> Session<P> {
    /// Places for our own calls, and how many calls of the peer may be under way.
    #[must_use]
    pub fn new(places: P, answering_max: u32) -> Self {
        Self { calls: Calls::new(places), answering: 0, answering_max }
    }

    /// A message has come.
    pub fn handle<'m>(&mut self, message: Value<'m>) -> Step<'m> {
        match Message::parse(message) {
            Some(Message::Call(Call { retcode, .. })) if self.answering >= self.answering_max => {
                Step::Busy { retcode }
            }
            Some(Message::Call(call)) => {
                self.answering += 1;
                Step::Run(call)
            }
            Some(Message::Answer { retcode, values }) => match self.calls.end(retcode) {
                Some(place) => Step::Answered { place, values },
                None => Step::Late,
            },
            None => message.tuple().and_then(Head::of).map_or(Step::Broken, |head| self.unreadable(head)),
        }
    }

    /// A message has come that could not be decoded; this is what was found out about it.
    pub fn unreadable<'m>(&mut self, head: Head<'m>) -> Step<'m> {
        match head {
            Head::Call { retcode } => Step::Unreadable { retcode },
            Head::Answer { retcode, value } => match self.calls.end(retcode) {
                Some(place) => Step::Spoilt { place, value },
                None => Step::Late,
            },
        }
    }

    /// The answer to a call of the peer is on its way.
    pub fn answered(&mut self) {
        self.answering = self.answering.saturating_sub(1);
    }
}
