//! Values on their way out: what can be written, and what both codecs write it with.

use core::fmt;

use super::arena::Kind;
use super::value::{Class, Items, Value};

/// The message does not fit the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct NoRoom;

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the message is larger than the buffer")
    }
}

impl core::error::Error for NoRoom {}

/// Takes values, one after another, in the form of one codec.
///
/// # Errors
/// All of them: [`NoRoom`]; what was written until then is worth nothing.
#[expect(clippy::missing_errors_doc, reason = "said once, above")]
pub trait Out {
    /// Nothing.
    fn none(&mut self) -> Result<(), NoRoom>;
    /// Yes or no.
    fn bool(&mut self, value: bool) -> Result<(), NoRoom>;
    /// A whole number.
    fn int(&mut self, value: i64) -> Result<(), NoRoom>;
    /// A number.
    fn float(&mut self, value: f64) -> Result<(), NoRoom>;
    /// Bytes.
    fn bytes(&mut self, value: &[u8]) -> Result<(), NoRoom>;
    /// Python's bytes that can be changed.
    fn byte_array(&mut self, value: &[u8]) -> Result<(), NoRoom>;
    /// A text.
    fn str(&mut self, value: &str) -> Result<(), NoRoom>;
    /// A group of `count` members; they follow, then [`end`](Self::end). A dictionary has keys and values
    /// in turn and counts both. The first member of an object is its class.
    fn begin(&mut self, kind: Kind, count: usize) -> Result<(), NoRoom>;
    /// The end of the group that was begun last, of this kind and count.
    fn end(&mut self, kind: Kind, count: usize) -> Result<(), NoRoom>;
    /// What the called function reports instead of a value.
    fn error(&mut self, class: &str, message: &str) -> Result<(), NoRoom>;
    /// The name of a class, for a reader that looks nothing up.
    fn class(&mut self, class: Class<'_>) -> Result<(), NoRoom>;
}

/// What can be written as a value.
pub trait Encode {
    /// Writes itself as one value.
    ///
    /// # Errors
    /// [`NoRoom`].
    fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom>;
}

impl<T: Encode + ?Sized> Encode for &T {
    fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom> {
        (**self).encode(out)
    }
}

impl<T: Encode> Encode for Option<T> {
    fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom> {
        match self {
            Some(value) => value.encode(out),
            None => out.none(),
        }
    }
}

macro_rules! scalars {
    ($($type:ty: $value:ident => $call:ident($argument:expr),)*) => {
        $(impl Encode for $type {
            fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom> {
                let $value = self;
                out.$call($argument)
            }
        })*
    };
}

scalars! {
    bool: v => bool(*v),
    u8: v => int(i64::from(*v)),
    u32: v => int(i64::from(*v)),
    i64: v => int(*v),
    f64: v => float(*v),
    str: v => str(v),
    [u8]: v => bytes(v),
}

/// Values of several kinds as a tuple.
#[derive(Clone, Copy)]
pub struct Tuple<'a>(pub &'a [&'a dyn Encode]);

/// The values can be encoded, and no more.
#[cfg(feature = "defmt")]
impl defmt::Format for Tuple<'_> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Tuple({} values)", self.0.len())
    }
}

impl Encode for Tuple<'_> {
    fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom> {
        out.begin(Kind::Tuple, self.0.len())?;
        self.0.iter().try_for_each(|value| value.encode(out))?;
        out.end(Kind::Tuple, self.0.len())
    }
}

/// Keys and values as a dictionary.
#[derive(Clone, Copy)]
pub struct Dict<'a>(pub &'a [(&'a str, &'a dyn Encode)]);

/// The values can be encoded, and no more.
#[cfg(feature = "defmt")]
impl defmt::Format for Dict<'_> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Dict({} values)", self.0.len())
    }
}

impl Encode for Dict<'_> {
    fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom> {
        out.begin(Kind::Dict, 2 * self.0.len())?;
        for (key, value) in self.0 {
            out.str(key)?;
            value.encode(out)?;
        }
        out.end(Kind::Dict, 2 * self.0.len())
    }
}

/// An error of the called function, in place of a value.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Failure<'a> {
    /// Its class; Python's names of exceptions are understood best.
    pub class: &'a str,
    /// What happened, for people.
    pub message: &'a str,
}

impl Encode for Failure<'_> {
    fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom> {
        out.error(self.class, self.message)
    }
}

/// A value that came goes out again as it is; a class or an object goes out as an error.
impl Encode for Value<'_> {
    fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom> {
        let group = |out: &mut dyn Out, kind, items: Items<'_>| {
            let count = items.len();
            out.begin(kind, count)?;
            for value in items {
                value.encode(out)?;
            }
            out.end(kind, count)
        };
        match *self {
            Self::None => out.none(),
            Self::Bool(b) => out.bool(b),
            Self::Int(i) => out.int(i),
            Self::Float(x) => out.float(x),
            Self::Bytes(b) => out.bytes(b),
            Self::ByteArray(b) => out.byte_array(b),
            Self::Str(s) => out.str(s),
            Self::Tuple(items) => group(out, Kind::Tuple, items),
            Self::List(items) => group(out, Kind::List, items),
            Self::Set(items) => group(out, Kind::Set, items),
            Self::FrozenSet(items) => group(out, Kind::FrozenSet, items),
            Self::Dict(items) => group(out, Kind::Dict, items),
            Self::Class(class) => out.error(class.name, ""),
            Self::Object(_) => {
                let Some(mut fault) = self.fault() else { return out.none() };
                let message = fault.args.find_map(Value::str).unwrap_or("");
                out.error(fault.class.name, message)
            }
        }
    }
}

/// Bytes into a buffer of the caller's.
#[derive(Debug)]
pub(super) struct Buffer<'b> {
    bytes: &'b mut [u8],
    used: usize,
}

impl<'b> Buffer<'b> {
    pub(super) fn new(bytes: &'b mut [u8]) -> Self {
        Self { bytes, used: 0 }
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(), NoRoom> {
        let end = self.used.checked_add(bytes.len()).ok_or(NoRoom)?;
        let place = self.bytes.get_mut(self.used..end).ok_or(NoRoom)?;
        // `copy_from_slice` has a panic in it that a linker cannot tell away.
        place.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        self.used = end;
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.used
    }
}
