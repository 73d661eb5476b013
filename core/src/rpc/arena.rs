//! Where decoded values lie: memory of the caller's, built up by both codecs.

use core::fmt;

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

/// Its size: what lies in it is a value, which says more.
#[cfg(feature = "defmt")]
impl defmt::Format for Memory<'_> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Memory({} slots)", self.slots.len())
    }
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
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Slot(pub(super) Inner);

#[derive(Debug, Clone, Copy, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub(super) enum Inner {
    #[default]
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Span),
    Bytes(Span),
    ByteArray(Span),
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
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) length: u32,
    pub(super) converted: bool,
}

/// A value that holds others.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
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
    /// Without order, and never changed.
    FrozenSet,
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
            Inner::Str(span) | Inner::Bytes(span) | Inner::ByteArray(span) => (0, 1 + span.length / 32),
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

    /// All that was built.
    pub(super) fn into_view(self) -> Values<'m> {
        Values { message: self.message, slots: self.slots, text: self.text }
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
    pub(super) fn bytes(self, span: Span) -> &'m [u8] {
        let source = if span.converted { self.text } else { self.message };
        let start = span.start as usize;
        source.get(start..start.saturating_add(span.length as usize)).unwrap_or_default()
    }

    pub(super) fn at(self, id: Id) -> Inner {
        self.slots.get(id as usize).map_or(Inner::None, |s| s.0)
    }
}
