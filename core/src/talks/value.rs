//! Plain values, as calls and answers carry them: built in memory of the caller's, read in place.

use core::fmt::{self, Write as _};
use core::str;

/// Where decoded values go: memory of the caller's, used again for each message.
///
/// It is the bound on what a message may cost: one that needs more is refused.
#[derive(Debug)]
pub struct Memory<'m> {
    /// For the values: one each, and one more for each that lies in another.
    pub slots: &'m mut [Slot],
    /// For what is not yet in its place: as many as the longest tuple and a few.
    pub stack: &'m mut [u32],
    /// For what a pickle refers to later; as many as it has strings and containers.
    pub memo: &'m mut [u32],
    /// For texts that must be converted, in bytes.
    pub text: &'m mut [u8],
    /// How deep values may lie in each other.
    pub depth_max: u8,
    /// How many values a message may hold if what it refers to twice is counted twice; 32 bytes of
    /// text count as one more. This stops small messages that unfold to huge ones.
    pub weight_max: u32,
}

/// How deep values may lie in each other, if nobody says otherwise.
pub const DEPTH_MAX: u8 = 64;
/// How many values a message may unfold to, if nobody says otherwise.
pub const WEIGHT_MAX: u32 = 1 << 20;

/// Why bytes are not a message that can be read. Nothing was built then, and nothing is ever run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum DecodeError {
    /// It ends too early.
    Truncated,
    /// It goes on after its end.
    Trailing,
    /// An instruction that no version knows.
    Unknown(u8),
    /// An instruction that only Python itself can follow.
    Unsupported(u8),
    /// Instructions or arguments that make no sense.
    Malformed,
    /// A value that contains itself.
    Recursive,
    /// Deeper than [`Memory::depth_max`].
    TooDeep,
    /// More than [`Memory::weight_max`] when unfolded.
    TooHeavy,
    /// More than the memory holds.
    NoRoom,
    /// An integer that does not fit 64 bits.
    BigInteger,
    /// A text that is not Unicode.
    BadText,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the message ends too early",
            Self::Trailing => "the message goes on after its end",
            Self::Unknown(code) => return write!(f, "the message has an unknown instruction {code:#04x}"),
            Self::Unsupported(code) => {
                return write!(f, "the message has an instruction that is not supported, {code:#04x}");
            }
            Self::Malformed => "the message makes no sense",
            Self::Recursive => "the message has a value that contains itself",
            Self::TooDeep => "the message is nested too deeply",
            Self::TooHeavy => "the message unfolds to too many values",
            Self::NoRoom => "the message has too many values",
            Self::BigInteger => "the message has an integer of more than 64 bits",
            Self::BadText => "the message has a text that is not Unicode",
        })
    }
}

impl core::error::Error for DecodeError {}

/// Memory for one value.
#[derive(Debug, Clone, Copy, Default)]
pub struct Slot(pub(super) Inner);

#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Inner {
    #[default]
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Span),
    Bytes(Span),
    Class {
        module: Id,
        name: Id,
    },
    Group(Group),
    /// Ties a value into a group.
    Link {
        value: Id,
        next: Id,
    },
}

/// The place of a slot.
pub(super) type Id = u32;

/// A part of the message, or of the converted texts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) length: u32,
    pub(super) converted: bool,
}

/// A value that holds others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    pub(super) kind: Kind,
    /// It lies in another, and so must not change any more.
    pub(super) sealed: bool,
    depth: u8,
    pub(super) first: Id,
    last: Id,
    pub(super) count: u32,
    weight: u32,
}

/// What kind of group a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Kind {
    /// Of fixed length.
    Tuple,
    /// Of any length.
    List,
    /// Without order.
    Set,
    /// Keys and values in turn.
    Dict,
    /// An instance of a class: the class, its arguments, its state.
    Object,
}

/// Builds values in a [`Memory`]; both codecs use it.
#[derive(Debug)]
pub(super) struct Arena<'m> {
    message: &'m [u8],
    slots: &'m mut [Slot],
    used: u32,
    text: &'m mut [u8],
    text_used: usize,
    depth_max: u8,
    weight_max: u32,
}

impl<'m> Arena<'m> {
    pub(super) fn new(
        message: &'m [u8],
        slots: &'m mut [Slot],
        text: &'m mut [u8],
        depth_max: u8,
        weight_max: u32,
    ) -> Self {
        Self { message, slots, used: 0, text, text_used: 0, depth_max, weight_max }
    }

    pub(super) fn add(&mut self, inner: Inner) -> Result<Id, DecodeError> {
        let id = self.used;
        *self.slots.get_mut(id as usize).ok_or(DecodeError::NoRoom)? = Slot(inner);
        // No more than slots, which are counted by u32 where they are made.
        self.used = id.checked_add(1).ok_or(DecodeError::NoRoom)?;
        Ok(id)
    }

    pub(super) fn group(&mut self, kind: Kind) -> Result<Id, DecodeError> {
        let (first, last) = (0, 0);
        self.add(Inner::Group(Group { kind, sealed: false, depth: 1, first, last, count: 0, weight: 1 }))
    }

    pub(super) fn at(&self, id: Id) -> Inner {
        self.slots.get(id as usize).map_or(Inner::None, |s| s.0)
    }

    fn set(&mut self, id: Id, inner: Inner) {
        if let Some(slot) = self.slots.get_mut(id as usize) {
            *slot = Slot(inner);
        }
    }

    /// Puts `value` to the end of `group`. What lies in a group changes no more: so no value ever
    /// contains itself, and depth and weight stay right.
    pub(super) fn append(&mut self, group: Id, value: Id) -> Result<(), DecodeError> {
        let Inner::Group(mut into) = self.at(group) else { return Err(DecodeError::Malformed) };
        if into.sealed || group == value {
            return Err(DecodeError::Recursive);
        }
        let (depth, weight) = match self.at(value) {
            Inner::Group(mut inner) => {
                inner.sealed = true;
                self.set(value, Inner::Group(inner));
                (inner.depth, inner.weight)
            }
            Inner::Str(span) | Inner::Bytes(span) => (0, 1 + span.length / 32),
            Inner::Link { .. } => return Err(DecodeError::Malformed),
            _ => (0, 1),
        };
        into.depth = into.depth.max(depth.saturating_add(1));
        if into.depth > self.depth_max {
            return Err(DecodeError::TooDeep);
        }
        into.weight = into.weight.saturating_add(weight);
        if into.weight > self.weight_max {
            return Err(DecodeError::TooHeavy);
        }
        let link = self.add(Inner::Link { value, next: 0 })?;
        if into.count == 0 {
            into.first = link;
        } else if let Inner::Link { value, .. } = self.at(into.last) {
            self.set(into.last, Inner::Link { value, next: link });
        }
        into.last = link;
        into.count = into.count.saturating_add(1);
        self.set(group, Inner::Group(into));
        Ok(())
    }

    /// The same members as `group` has, as another kind; neither changes any more.
    pub(super) fn recast(&mut self, group: Id, kind: Kind) -> Result<Id, DecodeError> {
        let Inner::Group(mut from) = self.at(group) else { return Err(DecodeError::Malformed) };
        from.sealed = true;
        self.set(group, Inner::Group(from));
        self.add(Inner::Group(Group { kind, ..from }))
    }

    /// A part of the message, which `part` must be.
    pub(super) fn span(&self, part: &[u8]) -> Span {
        let start = (part.as_ptr() as usize).saturating_sub(self.message.as_ptr() as usize);
        Span {
            start: u32::try_from(start).unwrap_or(u32::MAX),
            length: u32::try_from(part.len()).unwrap_or(u32::MAX),
            converted: false,
        }
    }

    /// Converts a text: `each` is called with a function that takes the result byte by byte.
    pub(super) fn convert(
        &mut self,
        each: impl FnOnce(&mut dyn FnMut(u8) -> Result<(), DecodeError>) -> Result<(), DecodeError>,
    ) -> Result<Span, DecodeError> {
        let start = self.text_used;
        let (text, used) = (&mut *self.text, &mut self.text_used);
        each(&mut |byte| {
            *text.get_mut(*used).ok_or(DecodeError::NoRoom)? = byte;
            *used += 1;
            Ok(())
        })?;
        Ok(Span {
            start: u32::try_from(start).unwrap_or(u32::MAX),
            length: u32::try_from(self.text_used - start).unwrap_or(u32::MAX),
            converted: true,
        })
    }

    /// A text as bytes of Latin-1, as old pickles carry bytes.
    pub(super) fn latin1(&mut self, span: Span) -> Result<Span, DecodeError> {
        let start = self.text_used;
        let (end, length) = (span.start as usize + span.length as usize, span.length as usize);
        // Byte by byte, since source and target may lie in the same memory.
        let mut at = span.start as usize;
        if length > 0 && end <= at {
            return Err(DecodeError::Malformed);
        }
        while at < end {
            let source = if span.converted { &*self.text } else { self.message };
            let byte = match (source.get(at), source.get(at + 1)) {
                (Some(b @ 0..0x80), _) => *b,
                (Some(a @ (0xC2 | 0xC3)), Some(b)) => {
                    at += 1;
                    (a << 6) | (b & 0x3F)
                }
                _ => return Err(DecodeError::BadText),
            };
            at += 1;
            *self.text.get_mut(self.text_used).ok_or(DecodeError::NoRoom)? = byte;
            self.text_used += 1;
        }
        Ok(Span {
            start: u32::try_from(start).unwrap_or(u32::MAX),
            length: u32::try_from(self.text_used - start).unwrap_or(u32::MAX),
            converted: true,
        })
    }

    /// What is built so far, to look at.
    pub(super) fn view(&self) -> Values<'_> {
        Values { message: self.message, slots: self.slots, text: self.text }
    }

    /// What was built.
    pub(super) fn done(self, root: Id) -> Value<'m> {
        Values { message: self.message, slots: self.slots, text: self.text }.value(root)
    }
}

/// Where the parts of a value lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Values<'m> {
    message: &'m [u8],
    slots: &'m [Slot],
    text: &'m [u8],
}

impl<'m> Values<'m> {
    fn bytes(self, span: Span) -> &'m [u8] {
        let source = if span.converted { self.text } else { self.message };
        let start = span.start as usize;
        source.get(start..start.saturating_add(span.length as usize)).unwrap_or_default()
    }

    pub(super) fn value(self, id: Id) -> Value<'m> {
        match self.slots.get(id as usize).map_or(Inner::None, |s| s.0) {
            Inner::None | Inner::Link { .. } => Value::None,
            Inner::Bool(b) => Value::Bool(b),
            Inner::Int(i) => Value::Int(i),
            Inner::Float(x) => Value::Float(x),
            // Checked when it was decoded.
            Inner::Str(span) => Value::Str(str::from_utf8(self.bytes(span)).unwrap_or_default()),
            Inner::Bytes(span) => Value::Bytes(self.bytes(span)),
            Inner::Class { module, name } => {
                let text = |id| match self.value(id) {
                    Value::Str(s) => s,
                    _ => "",
                };
                Value::Class(Class { module: text(module), name: text(name) })
            }
            Inner::Group(Group { kind, first, count, .. }) => {
                let items = Items { values: Some(self), next: first, left: count };
                match kind {
                    Kind::Tuple => Value::Tuple(items),
                    Kind::List => Value::List(items),
                    Kind::Set => Value::Set(items),
                    Kind::Dict => Value::Dict(items),
                    Kind::Object => Value::Object(items),
                }
            }
        }
    }
}

/// A value that was decoded.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Value<'m> {
    /// Nothing.
    None,
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// Bytes, also those of a bytearray.
    Bytes(&'m [u8]),
    /// A text.
    Str(&'m str),
    /// A tuple.
    Tuple(Items<'m>),
    /// A list.
    List(Items<'m>),
    /// A set or a frozen one.
    Set(Items<'m>),
    /// A dictionary: keys and values in turn, see [`Items::pairs`].
    Dict(Items<'m>),
    /// The name of a class or a function, which is not looked up.
    Class(Class<'m>),
    /// What an instance of a class was to be made of: the class, the arguments, the state. It is not
    /// made.
    Object(Items<'m>),
}

/// The name of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Class<'m> {
    /// The module it is in.
    pub module: &'m str,
    /// Its name in the module.
    pub name: &'m str,
}

impl<'m> Value<'m> {
    /// The members, if it is a tuple.
    #[must_use]
    pub fn tuple(self) -> Option<Items<'m>> {
        if let Self::Tuple(items) = self { Some(items) } else { None }
    }

    /// The number, if it is a whole one.
    #[must_use]
    pub fn int(self) -> Option<i64> {
        if let Self::Int(i) = self { Some(i) } else { None }
    }

    /// The text, if it is one.
    #[must_use]
    pub fn str(self) -> Option<&'m str> {
        if let Self::Str(s) = self { Some(s) } else { None }
    }

    /// The bytes, if it is such.
    #[must_use]
    pub fn bytes(self) -> Option<&'m [u8]> {
        if let Self::Bytes(b) = self { Some(b) } else { None }
    }

    /// If it is, or has in it, an instance of a class: what the peer reports as an error.
    #[must_use]
    pub fn fault(self) -> Option<Fault<'m>> {
        match self {
            Self::Class(class) => Some(Fault { class, args: Items::EMPTY }),
            Self::Object(mut parts) => {
                let class = match parts.next() {
                    Some(Value::Class(class)) => class,
                    _ => Class { module: "", name: "object" },
                };
                let args = parts.next().and_then(Value::tuple).unwrap_or(Items::EMPTY);
                Some(Fault { class, args })
            }
            Self::Tuple(mut items) | Self::List(mut items) | Self::Set(mut items) | Self::Dict(mut items) => {
                // The type, the instance and the traceback of an exception: the instance says most.
                let mut later = items;
                match (items.len(), later.next(), later.next()) {
                    (3, Some(Value::Class(_)), Some(instance @ Value::Object(_))) => instance.fault(),
                    _ => items.find_map(Value::fault),
                }
            }
            _ => None,
        }
    }
}

/// What a peer reports as an error: an instance of a class, an exception mostly.
#[derive(Debug, Clone, Copy)]
pub struct Fault<'m> {
    /// Of which class.
    pub class: Class<'m>,
    /// The arguments it was to be made with.
    pub args: Items<'m>,
}

/// `ValueError: the message`, as Python writes it.
impl fmt::Display for Fault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.class.module {
            "" | "builtins" | "__builtin__" | "exceptions" => {}
            module => write!(f, "{module}.")?,
        }
        f.write_str(self.class.name)?;
        let mut args = self.args;
        match (args.len(), args.next()) {
            (0, _) | (_, None) => Ok(()),
            (1, Some(Value::Str(text))) => write!(f, ": {text}"),
            (1, Some(value)) => write!(f, ": {value}"),
            _ => write!(f, ": {}", Value::Tuple(self.args)),
        }
    }
}

/// The members of a group, in order.
#[derive(Debug, Clone, Copy)]
pub struct Items<'m> {
    values: Option<Values<'m>>,
    next: Id,
    left: u32,
}

impl<'m> Items<'m> {
    /// No members.
    pub const EMPTY: Items<'static> = Items { values: None, next: 0, left: 0 };

    /// The members two by two, as keys and values of a dictionary.
    pub fn pairs(mut self) -> impl Iterator<Item = (Value<'m>, Value<'m>)> {
        core::iter::from_fn(move || Some((self.next()?, self.next()?)))
    }
}

impl<'m> Iterator for Items<'m> {
    type Item = Value<'m>;

    fn next(&mut self) -> Option<Value<'m>> {
        let values = self.values?;
        self.left = self.left.checked_sub(1)?;
        let Some(Slot(Inner::Link { value, next })) = values.slots.get(self.next as usize).copied() else {
            self.left = 0;
            return None;
        };
        self.next = next;
        Some(values.value(value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for Items<'_> {}

/// As Python's `repr` writes it, nearly.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, items: &Items<'_>| {
            items.enumerate().try_for_each(|(i, v)| write!(f, "{}{v}", if i > 0 { ", " } else { "" }))
        };
        match self {
            Self::None => f.write_str("None"),
            Self::Bool(b) => f.write_str(if *b { "True" } else { "False" }),
            Self::Int(i) => write!(f, "{i}"),
            Self::Float(x) => write!(f, "{x:?}"),
            Self::Str(s) => write!(f, "'{}'", s.escape_debug()),
            Self::Bytes(b) => write!(f, "b'{}'", b.escape_ascii()),
            Self::Tuple(items) => {
                f.write_char('(')?;
                list(f, items)?;
                f.write_str(if items.len() == 1 { ",)" } else { ")" })
            }
            Self::List(items) => {
                f.write_char('[')?;
                list(f, items)?;
                f.write_char(']')
            }
            Self::Set(items) if items.len() == 0 => f.write_str("set()"),
            Self::Set(items) => {
                f.write_char('{')?;
                list(f, items)?;
                f.write_char('}')
            }
            Self::Dict(items) => {
                f.write_char('{')?;
                for (i, (key, value)) in items.pairs().enumerate() {
                    write!(f, "{}{key}: {value}", if i > 0 { ", " } else { "" })?;
                }
                f.write_char('}')
            }
            Self::Class(class) => write!(f, "<class {}.{}>", class.module, class.name),
            Self::Object(_) => match self.fault() {
                Some(fault) => write!(f, "<{fault}>"),
                None => f.write_str("<object>"),
            },
        }
    }
}
