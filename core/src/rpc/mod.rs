//! The rpc service: each side calls functions of the other, many at once, answered in any order.
//!
//! | file | what lives there |
//! |---|---|
//! | `value` | what calls and answers carry: plain values |
//! | `arena` | where decoded values lie: memory of the caller's |
//! | `write` | values on their way out, [`Encode`] |
//! | `message` | a call or an answer, the same in both codecs |
//! | `calls` | calls that are under way: numbers, matching, time-outs |
//! | `session` | one side of an open talk, [`Session`] |
//! | [`auth`] | who may call |
//! | `drive` | the login of small clients over messages, which protects nothing after it (feature `postcard`) |
//! | `protocol` | which protocol a client speaks, [`Protocol`] |
//! | `function` | opcodes, names, bindings |
//! | `secure` | the protected login of our own peers, and what follows it (feature `rpc-secure`) |
//! | [`pickle`] | the codec of the old peers |
//! | `postcard` | the codec between our own peers, over frames (feature `postcard`) |
//!
//! On the port our own peers begin with 0xFB, the first byte of a protected login, or without that feature with the
//! greeting of messages, 0xFF. No pickle begins with either: so a server knows from the first byte who is there. A client cannot ask an old server in that way: it
//! would wait for ever for the rest of a pickle. [`auth::EITHER`] is what such a client says.

mod arena;
pub mod auth;
mod calls;
#[cfg(feature = "postcard")]
mod drive;
mod function;
mod message;
pub mod pickle;
#[cfg(feature = "postcard")]
pub mod postcard;
mod protocol;
#[cfg(feature = "rpc-secure")]
pub mod secure;
mod session;
mod value;
mod write;

pub use arena::{DEPTH_MAX, DecodeError, Kind, Memory, Slot, WEIGHT_MAX};
pub use calls::{CALLS_MAX, Calls, Place, TooMany};
#[cfg(feature = "postcard")]
pub use drive::{LoginError, login};
pub use function::{
    BindError, Bindings, FUNCTIONS, Function, ID, IDENTIFY, IDENTITY, LOG, REBOOT, REINSTALL, RUN, STATUS,
};
pub use message::{AnswerOut, Call, CallOut, Head, Message, NO_CALL, NamedCallOut};
pub use protocol::{Protocol, UnknownProtocol};
pub use session::{Session, Step};
pub use value::{Class, Fault, Items, Value};
pub use write::{Dict, Encode, Failure, NoRoom, Out, Tuple};

/// Where the service listens, unless told otherwise.
pub const PORT: u16 = 25565;

/// How values become messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Codec {
    /// Python's pickle, one after another in the stream.
    Pickle,
    /// postcard, one per frame.
    #[cfg(feature = "postcard")]
    Postcard,
}

impl Codec {
    /// Reads one whole message.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode<'m>(self, message: &'m [u8], memory: Memory<'m>) -> Result<Value<'m>, DecodeError> {
        match self {
            Self::Pickle => pickle::decode(message, memory),
            #[cfg(feature = "postcard")]
            Self::Postcard => postcard::decode(message, memory),
        }
    }

    /// Writes one whole message to the front of `buf`; returns its length in bytes.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn encode(self, value: &dyn Encode, buf: &mut [u8]) -> Result<usize, NoRoom> {
        match self {
            Self::Pickle => {
                let mut out = pickle::Pickler::new(buf)?;
                value.encode(&mut out)?;
                out.finish()
            }
            #[cfg(feature = "postcard")]
            Self::Postcard => {
                let mut out = postcard::Writer::new(buf);
                value.encode(&mut out)?;
                Ok(out.finish())
            }
        }
    }
}
