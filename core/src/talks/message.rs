//! What a message says: a call or an answer, the same in both codecs.

use super::arena::Kind;
use super::value::{Items, Value};
use super::write::{Encode, NoRoom, Out, Tuple};

/// Marks a call.
const CALL: &[u8] = b"R";
/// Marks an answer.
const ANSWER: &[u8] = b"A";

/// A message from the peer.
#[derive(Debug, Clone, Copy)]
pub enum Message<'m> {
    /// It calls a function of ours.
    Call(Call<'m>),
    /// It answers.
    Answer {
        /// The number of the call that is answered.
        retcode: u32,
        /// What the function returned, as a tuple of one value mostly.
        values: Items<'m>,
    },
}

/// A call of a function.
#[derive(Debug, Clone, Copy)]
pub struct Call<'m> {
    /// Which function.
    pub opcode: i64,
    /// The number by which the caller finds the answer.
    pub retcode: u32,
    /// The arguments by place.
    pub args: Items<'m>,
    /// The arguments by name: names and values in turn.
    pub keywords: Items<'m>,
}

impl<'m> Message<'m> {
    /// Reads a decoded value; `None` if it is no message of this service.
    #[must_use]
    pub fn parse(value: Value<'m>) -> Option<Self> {
        let mut items = value.tuple()?;
        let length = items.len();
        match (items.next()?.bytes()?, length) {
            (CALL, 5) => {
                let (opcode, retcode) = (items.next()?.int()?, retcode(items.next()?)?);
                let (Value::Tuple(args) | Value::List(args)) = items.next()? else { return None };
                let keywords = match items.next()? {
                    Value::Dict(keywords) => keywords,
                    Value::None => Items::EMPTY,
                    _ => return None,
                };
                Some(Self::Call(Call { opcode, retcode, args, keywords }))
            }
            (ANSWER, 3) => {
                let retcode = retcode(items.next()?)?;
                Some(Self::Answer { retcode, values: items.next()?.tuple()? })
            }
            _ => None,
        }
    }
}

fn retcode(value: Value<'_>) -> Option<u32> {
    u32::try_from(value.int()?).ok()
}

/// A call on its way out.
#[derive(Clone, Copy)]
pub struct CallOut<'a> {
    /// Which function.
    pub opcode: u8,
    /// The number by which the answer is found.
    pub retcode: u32,
    /// The arguments, as a tuple.
    pub args: &'a dyn Encode,
}

impl Encode for CallOut<'_> {
    fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom> {
        out.begin(Kind::Tuple, 5)?;
        out.bytes(CALL)?;
        out.int(self.opcode.into())?;
        out.int(self.retcode.into())?;
        self.args.encode(out)?;
        out.begin(Kind::Dict, 0)?;
        out.end(Kind::Dict, 0)?;
        out.end(Kind::Tuple, 5)
    }
}

/// An answer on its way out, with one value.
#[derive(Clone, Copy)]
pub struct AnswerOut<'a> {
    /// The number of the call.
    pub retcode: u32,
    /// What the function returned.
    pub value: &'a dyn Encode,
}

impl Encode for AnswerOut<'_> {
    fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom> {
        Tuple(&[&ANSWER, &self.retcode, &Tuple(&[&self.value])]).encode(out)
    }
}
