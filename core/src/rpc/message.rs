//! What a message says: a call or an answer, the same in both codecs.

use super::value::{Items, Value};
use super::write::{Dict, Encode, NoRoom, Out, Tuple};

/// Marks a call.
const CALL: &[u8] = b"R";
/// Marks an answer.
const ANSWER: &[u8] = b"A";

/// What is wrong with a call that was read but makes no sense, for its caller.
pub const NO_CALL: &str = "the call is malformed: an opcode is an integer, arguments are a tuple, arguments by name are a dictionary";

/// A message from the peer.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
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
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
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

/// Which call a message belongs to that cannot be read to its end or makes no sense: enough to tell the
/// caller why, instead of letting it wait.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Head<'m> {
    /// A call of the peer.
    Call {
        /// The number by which the peer finds the answer.
        retcode: u32,
    },
    /// The answer to a call of ours.
    Answer {
        /// The number of our call.
        retcode: u32,
        /// What it carries, if that much can be read: a [fault](Value::fault) in it is the error that it
        /// reports. The traceback of that may be what cannot be read.
        value: Option<Value<'m>>,
    },
}

impl<'m> Head<'m> {
    /// The head of a message that [`Message::parse`] does not take, by its parts as far as they are known.
    pub fn of(mut items: impl Iterator<Item = Value<'m>>) -> Option<Self> {
        match items.next()?.bytes()? {
            CALL => {
                let _opcode = items.next()?;
                Some(Self::Call { retcode: retcode(items.next()?)? })
            }
            ANSWER => {
                let retcode = retcode(items.next()?)?;
                Some(Self::Answer { retcode, value: items.next() })
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

/// The arguments can be encoded, and no more.
#[cfg(feature = "defmt")]
impl defmt::Format for CallOut<'_> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "CallOut {{ opcode: {}, retcode: {} }}", self.opcode, self.retcode)
    }
}

impl Encode for CallOut<'_> {
    fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom> {
        NamedCallOut { call: *self, keywords: &Dict(&[]) }.encode(out)
    }
}

/// A call on its way out that has arguments by name, too.
#[derive(Clone, Copy)]
pub struct NamedCallOut<'a> {
    /// The call with its arguments by place.
    pub call: CallOut<'a>,
    /// The arguments by name, as a dictionary.
    pub keywords: &'a dyn Encode,
}

#[cfg(feature = "defmt")]
impl defmt::Format for NamedCallOut<'_> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Named{}", self.call)
    }
}

impl Encode for NamedCallOut<'_> {
    fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom> {
        let CallOut { opcode, retcode, args } = self.call;
        Tuple(&[&CALL, &opcode, &retcode, &args, &self.keywords]).encode(out)
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

/// The value can be encoded, and no more.
#[cfg(feature = "defmt")]
impl defmt::Format for AnswerOut<'_> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "AnswerOut {{ retcode: {} }}", self.retcode)
    }
}

impl Encode for AnswerOut<'_> {
    fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom> {
        Tuple(&[&ANSWER, &self.retcode, &Tuple(&[&self.value])]).encode(out)
    }
}
