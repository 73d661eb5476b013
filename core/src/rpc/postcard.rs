//! The codec between our own peers: values as postcard, one or several after another per frame.
//!
//! In terms of serde a value is an enum with the variants `None`, `Bool(bool)`, `Int(i64)`, `Float(f64)`,
//! `Bytes(&[u8])`, `Str(&str)`, `Tuple(Vec)`, `List(Vec)`, `Set(Vec)`, `Dict(Vec)` (keys and values in
//! turn), `Error(class, message)`, `Class(module, name)`, `Object(Vec)` (its class, its arguments and
//! its state, as an old peer sent them), `ByteArray(&[u8])` and `FrozenSet(Vec)`, in this order. It is written and read value by value, since there
//! is no allocator to build the enum with.

use core::str;

use super::arena::{Arena, DecodeError, Id, Inner, Kind, Memory};
use super::message::Head;
use super::value::{Class, Value};
use super::write::{Buffer, NoRoom, Out};

const NONE: u8 = 0;
const BOOL: u8 = 1;
const INT: u8 = 2;
const FLOAT: u8 = 3;
const BYTES: u8 = 4;
const STR: u8 = 5;
const TUPLE: u8 = 6;
const LIST: u8 = 7;
const SET: u8 = 8;
const DICT: u8 = 9;
const ERROR: u8 = 10;
const CLASS: u8 = 11;
const OBJECT: u8 = 12;
const BYTE_ARRAY: u8 = 13;
const FROZEN_SET: u8 = 14;

/// What is made of several values.
const GROUPS: [(u8, Kind); 6] = [
    (TUPLE, Kind::Tuple),
    (LIST, Kind::List),
    (SET, Kind::Set),
    (DICT, Kind::Dict),
    (OBJECT, Kind::Object),
    (FROZEN_SET, Kind::FrozenSet),
];

/// Reads one whole message, in a time in proportion to its length.
///
/// # Errors
/// [`DecodeError`]: the peer's fault; the next frame can be read.
pub fn decode<'m>(message: &'m [u8], memory: Memory<'m>) -> Result<Value<'m>, DecodeError> {
    let (value, used) = decode_first(message, memory)?;
    if used == message.len() { Ok(value) } else { Err(DecodeError::Trailing) }
}

/// Reads the first of several messages in one frame; returns it and its length in bytes.
///
/// # Errors
/// [`DecodeError`]: nothing of what follows can be read either.
pub fn decode_first<'m>(message: &'m [u8], memory: Memory<'m>) -> Result<(Value<'m>, usize), DecodeError> {
    let Memory { slots, text, depth_max, weight_max, .. } = memory;
    if u32::try_from(message.len()).is_err() {
        return Err(DecodeError::NoRoom);
    }
    let mut reader =
        Reader { arena: Arena::new(message, slots, text, depth_max, weight_max), rest: Rest(message) };
    let root = reader.value(depth_max)?;
    let used = message.len() - reader.rest.0.len();
    Ok((reader.arena.done(root), used))
}

/// Passes over the first of several messages that [`decode_first`] refuses: its length in bytes and the call
/// that it belongs to, if that can be told. `None` if it cannot be told where it ends: then nothing that
/// follows in the frame can be read.
#[must_use]
pub fn skip(message: &[u8]) -> Option<(usize, Option<Head<'_>>)> {
    let mut rest = Rest(message);
    let head = head(message);
    // Values that are still to come; counted, since they may lie in each other deeper than a stack is.
    let mut left = 1_u64;
    while left > 0 {
        left -= 1;
        match rest.byte().ok()? {
            NONE => {}
            BOOL => drop(rest.take(1).ok()?),
            INT => drop(rest.number().ok()?),
            FLOAT => drop(rest.take(8).ok()?),
            // Texts that are not Unicode have an end, too.
            BYTES | BYTE_ARRAY | STR => drop(rest.counted().ok()?),
            ERROR | CLASS => drop((rest.counted().ok()?, rest.counted().ok()?)),
            TUPLE | LIST | SET | FROZEN_SET | DICT | OBJECT => {
                left = left.saturating_add(rest.count().ok()?.into())
            }
            _ => return None,
        }
    }
    Some((message.len() - rest.0.len(), head))
}

/// The call that a message belongs to, by its first parts, which are small in every message that makes sense:
/// the rest of it may be missing.
#[must_use]
pub fn head(message: &[u8]) -> Option<Head<'_>> {
    let mut rest = Rest(message);
    let tag = rest.byte().ok()?;
    let _count = rest.count().ok().filter(|_| tag == TUPLE)?;
    let parts = core::iter::from_fn(|| {
        Some(match rest.byte().ok()? {
            BYTES => Value::Bytes(rest.counted().ok()?),
            INT => Value::Int(rest.int().ok()?),
            STR => {
                rest.counted().ok()?;
                Value::None
            }
            _ => return None,
        })
    });
    Head::of(parts)
}

/// What was not read yet. All numbers are read by one function: one for each type, as serde would have them,
/// is more flash than a microcontroller should spend.
struct Rest<'m>(&'m [u8]);

impl<'m> Rest<'m> {
    fn take(&mut self, length: usize) -> Result<&'m [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        let (byte, rest) = self.0.split_first().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(*byte)
    }

    fn number(&mut self) -> Result<u64, DecodeError> {
        let (number, rest) = postcard::take_from_bytes(self.0).map_err(|e| match e {
            postcard::Error::DeserializeUnexpectedEnd => DecodeError::Truncated,
            _ => DecodeError::Malformed,
        })?;
        self.0 = rest;
        Ok(number)
    }

    /// A whole number: small negative ones are short, too.
    fn int(&mut self) -> Result<i64, DecodeError> {
        let number = self.number()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// How many members a group has.
    fn count(&mut self) -> Result<u32, DecodeError> {
        self.number()?.try_into().map_err(|_| DecodeError::Malformed)
    }

    /// A length, and as many bytes.
    fn counted(&mut self) -> Result<&'m [u8], DecodeError> {
        let length = self.number()?;
        self.take(usize::try_from(length).map_err(|_| DecodeError::Truncated)?)
    }
}

struct Reader<'m> {
    arena: Arena<'m>,
    rest: Rest<'m>,
}

impl<'m> Reader<'m> {
    fn str(&mut self) -> Result<Id, DecodeError> {
        let text = self.rest.counted()?;
        str::from_utf8(text).map_err(|_| DecodeError::BadText)?;
        self.arena.add(Inner::Str(self.arena.span(text)))
    }

    /// One value; `depth` more may lie in each other.
    fn value(&mut self, depth: u8) -> Result<Id, DecodeError> {
        let tag = self.rest.byte()?;
        let Some((_, kind)) = GROUPS.into_iter().find(|(group, _)| *group == tag) else {
            return self.single(tag);
        };
        let depth = depth.checked_sub(1).ok_or(DecodeError::TooDeep)?;
        let count = self.rest.count()?;
        if kind == Kind::Dict && !count.is_multiple_of(2) {
            return Err(DecodeError::Malformed);
        }
        let group = self.arena.group(kind)?;
        for _ in 0..count {
            let member = self.value(depth)?;
            self.arena.append(group, member)?;
        }
        Ok(group)
    }

    /// A value that is no group.
    fn single(&mut self, tag: u8) -> Result<Id, DecodeError> {
        let inner = match tag {
            NONE => Inner::None,
            BOOL => match self.rest.byte()? {
                value @ 0..=1 => Inner::Bool(value == 1),
                _ => return Err(DecodeError::Malformed),
            },
            INT => Inner::Int(self.rest.int()?),
            FLOAT => {
                let bytes = self.rest.take(8)?.try_into().map_err(|_| DecodeError::Truncated)?;
                Inner::Float(f64::from_le_bytes(bytes))
            }
            BYTES | BYTE_ARRAY => {
                let span = self.arena.span(self.rest.counted()?);
                if tag == BYTES { Inner::Bytes(span) } else { Inner::ByteArray(span) }
            }
            STR => return self.str(),
            ERROR => return self.error(),
            CLASS => Inner::Class { module: self.str()?, name: self.str()? },
            other => return Err(DecodeError::Unknown(other)),
        };
        self.arena.add(inner)
    }

    fn error(&mut self) -> Result<Id, DecodeError> {
        let name = self.str()?;
        let message = self.str()?;
        let module = self.arena.add(Inner::Str(self.arena.span(&[])))?;
        let class = self.arena.add(Inner::Class { module, name })?;
        let (object, args) = (self.arena.group(Kind::Object)?, self.arena.group(Kind::Tuple)?);
        self.arena.append(args, message)?;
        self.arena.append(object, class)?;
        self.arena.append(object, args)?;
        Ok(object)
    }
}

/// Writes one value into a buffer of the caller's.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Writer<'b> {
    out: Buffer<'b>,
}

impl<'b> Writer<'b> {
    /// A message at the front of `buf`.
    #[must_use]
    pub fn new(buf: &'b mut [u8]) -> Self {
        Self { out: Buffer::new(buf) }
    }

    /// Its length in bytes.
    #[must_use]
    pub fn finish(self) -> usize {
        self.out.len()
    }

    /// A whole number, seven bits a byte, the lowest first.
    fn number(&mut self, mut value: u64) -> Result<(), NoRoom> {
        while value > 0x7F {
            self.out.put(&[value as u8 | 0x80])?;
            value >>= 7;
        }
        self.out.put(&[value as u8])
    }

    /// A tag and a count.
    fn tag(&mut self, tag: u8, count: usize) -> Result<(), NoRoom> {
        self.out.put(&[tag])?;
        self.count(count)
    }

    fn count(&mut self, count: usize) -> Result<(), NoRoom> {
        self.number(u32::try_from(count).map_err(|_| NoRoom)?.into())
    }

    /// A tag, a length, and as many bytes.
    fn counted(&mut self, tag: u8, bytes: &[u8]) -> Result<(), NoRoom> {
        self.tag(tag, bytes.len())?;
        self.out.put(bytes)
    }

    /// A tag and two texts.
    fn pair(&mut self, tag: u8, first: &str, second: &str) -> Result<(), NoRoom> {
        self.counted(tag, first.as_bytes())?;
        self.count(second.len())?;
        self.out.put(second.as_bytes())
    }
}

impl Out for Writer<'_> {
    fn none(&mut self) -> Result<(), NoRoom> {
        self.out.put(&[NONE])
    }

    fn bool(&mut self, value: bool) -> Result<(), NoRoom> {
        self.out.put(&[BOOL, value.into()])
    }

    fn int(&mut self, value: i64) -> Result<(), NoRoom> {
        self.out.put(&[INT])?;
        // Zigzag: small negative numbers are short, too.
        self.number(((value << 1) ^ (value >> 63)) as u64)
    }

    fn float(&mut self, value: f64) -> Result<(), NoRoom> {
        self.out.put(&[FLOAT])?;
        self.out.put(&value.to_le_bytes())
    }

    fn bytes(&mut self, value: &[u8]) -> Result<(), NoRoom> {
        self.counted(BYTES, value)
    }

    fn byte_array(&mut self, value: &[u8]) -> Result<(), NoRoom> {
        self.counted(BYTE_ARRAY, value)
    }

    fn str(&mut self, value: &str) -> Result<(), NoRoom> {
        self.counted(STR, value.as_bytes())
    }

    fn begin(&mut self, kind: Kind, count: usize) -> Result<(), NoRoom> {
        let tag = GROUPS.into_iter().find(|(_, group)| *group == kind).map_or(TUPLE, |(tag, _)| tag);
        self.tag(tag, count)
    }

    fn end(&mut self, _kind: Kind, _count: usize) -> Result<(), NoRoom> {
        Ok(())
    }

    fn error(&mut self, class: &str, message: &str) -> Result<(), NoRoom> {
        self.pair(ERROR, class, message)
    }

    fn class(&mut self, class: Class<'_>) -> Result<(), NoRoom> {
        self.pair(CLASS, class.module, class.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Serialize;

    use crate::rpc::{DEPTH_MAX, Encode, Slot, Tuple, WEIGHT_MAX};
    use std::string::ToString;
    use std::vec;
    use std::vec::Vec;

    fn memory<'m>(slots: &'m mut [Slot], text: &'m mut [u8]) -> Memory<'m> {
        let (depth_max, weight_max) = (DEPTH_MAX, WEIGHT_MAX);
        Memory { slots, stack: &mut [], memo: &mut [], text, depth_max, weight_max }
    }

    fn read(message: &[u8]) -> Result<std::string::String, DecodeError> {
        let mut slots = vec![Slot::default(); 200];
        decode(message, memory(&mut slots, &mut [])).map(|v| v.to_string())
    }

    fn write(value: &dyn Encode) -> Vec<u8> {
        let mut buf = vec![0; 300];
        let mut out = Writer::new(&mut buf);
        value.encode(&mut out).unwrap();
        let n = out.finish();
        buf.truncate(n);
        buf
    }

    /// The enum of the head of this file, as serde would derive it.
    #[derive(Serialize)]
    enum Model<'a> {
        None,
        Bool(bool),
        Int(i64),
        Float(f64),
        Bytes(&'a [u8]),
        Str(&'a str),
        Tuple(Vec<Self>),
        List(Vec<Self>),
        Set(Vec<Self>),
        Dict(Vec<Self>),
        Error(&'a str, &'a str),
        Class(&'a str, &'a str),
        Object(Vec<Self>),
        ByteArray(&'a [u8]),
        FrozenSet(Vec<Self>),
    }

    #[test]
    fn it_is_what_serde_would_write() {
        use Model as M;
        let model = M::Tuple(vec![
            M::Bytes(b"R"),
            M::Int(-3),
            M::Int(i64::MAX),
            M::Dict(vec![M::Str("k\u{e9}"), M::None]),
            M::List(vec![M::Bool(true), M::Float(-0.5), M::Set(vec![M::Int(300)])]),
            M::Error("ValueError", "not so"),
            M::FrozenSet(vec![M::ByteArray(b"a"), M::FrozenSet(vec![])]),
        ]);
        let mut buf = [0; 200];
        let bytes = postcard::to_slice(&model, &mut buf).unwrap();
        let text = "(b'R', -3, 9223372036854775807, {'k\u{e9}': None}, [True, -0.5, {300}], <ValueError: not so>, \
             frozenset({bytearray(b'a'), frozenset()}))";
        assert_eq!(read(bytes).as_deref(), Ok(text));
        let mut slots = vec![Slot::default(); 200];
        let value = decode(bytes, memory(&mut slots, &mut [])).unwrap();
        assert_eq!(write(&value), bytes);
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end]), Err(DecodeError::Truncated));
        }
    }

    #[test]
    fn whole_numbers_are_read_as_serde_writes_them() {
        let mut samples: Vec<i64> = (0..63).flat_map(|bit| [1 << bit, -(1 << bit), (1 << bit) - 1]).collect();
        samples.extend([i64::MIN, i64::MAX]);
        for n in samples {
            let mut buf = [0; 20];
            let bytes = postcard::to_slice(&Model::Int(n), &mut buf).unwrap();
            assert_eq!(read(bytes), Ok(n.to_string()));
            assert_eq!(write(&n), bytes);
            let (length, head) = skip(bytes).unwrap();
            assert!(length == bytes.len() && head.is_none(), "{n}");
        }
    }

    #[test]
    fn objects_go_through_as_notes() {
        use Model as M;
        let parts = vec![M::Class("geometry", "Pose"), M::Tuple(vec![M::Int(1)]), M::Dict(vec![])];
        let mut buf = [0; 100];
        let bytes = postcard::to_slice(&M::Object(parts), &mut buf).unwrap();
        assert_eq!(read(bytes).as_deref(), Ok("<geometry.Pose: 1>"));
        let mut written = [0; 100];
        let mut out = Writer::new(&mut written);
        out.begin(Kind::Object, 3).unwrap();
        out.class(Class { module: "geometry", name: "Pose" }).unwrap();
        Tuple(&[&1_i64]).encode(&mut out).unwrap();
        crate::rpc::Dict(&[]).encode(&mut out).unwrap();
        let n = out.finish();
        assert_eq!(&written[..n], bytes);
        assert_eq!(read(&[CLASS, 1, b'm', 1, b'C']).as_deref(), Ok("<class m.C>"));
    }

    #[test]
    fn hostile_messages_are_refused() {
        assert_eq!(read(&[15]), Err(DecodeError::Unknown(15)));
        assert_eq!(read(&[NONE, NONE]), Err(DecodeError::Trailing));
        assert_eq!(read(&[DICT, 1, NONE]), Err(DecodeError::Malformed));
        assert_eq!(read(&[STR, 2, 0xC3, 0x28]), Err(DecodeError::BadText));
        assert_eq!(read(&[BYTES, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]), Err(DecodeError::Truncated));
        assert_eq!(read(&[LIST, 0x80, 0x80, 0x80, 0x80, 0x10]), Err(DecodeError::Malformed));
        assert_eq!(read(&[BOOL, 2]), Err(DecodeError::Malformed));
        assert_eq!(read(&[FLOAT, 0, 0, 0, 0, 0, 0, 0]), Err(DecodeError::Truncated));
        // More than 64 bits.
        let wide = [&[INT][..], &[0xFF; 9], &[0x02]].concat();
        assert_eq!(read(&wide), Err(DecodeError::Malformed));
        assert_eq!(read(&[LIST, 1].repeat(100)), Err(DecodeError::TooDeep));
        let wide = [&[LIST, 0xC8, 0x01][..], &[NONE; 200]].concat();
        assert_eq!(read(&wide), Err(DecodeError::NoRoom));
        assert_eq!(write(&Tuple(&[&1_i64])), [TUPLE, 1, INT, 2]);
    }
}
