//! A whole pickle into plain values: the machine, without the parts that run anything.

mod calls;

use super::opcode::{Argument, STOP, argument};
use super::text;
use crate::rpc::arena::{Arena, DecodeError, Id, Inner, Kind, Memory};
use crate::rpc::message::Head;
use crate::rpc::value::Value;

/// On the stack, where a group begins.
const MARK: u32 = u32::MAX;
/// In the memo, where nothing was put.
const ABSENT: u32 = u32::MAX;

/// Reads one whole message, from its first byte to its STOP, in a time in proportion to its length.
///
/// # Errors
/// [`DecodeError`]: the message cannot be read; what follows it in the stream can.
pub fn decode<'m>(message: &'m [u8], memory: Memory<'m>) -> Result<Value<'m>, DecodeError> {
    if u32::try_from(message.len()).is_err() {
        return Err(DecodeError::NoRoom);
    }
    let mut machine = Machine::new(message, memory);
    let mut rest = message;
    loop {
        let (opcode, after) = rest.split_first().ok_or(DecodeError::Truncated)?;
        rest = after;
        let argument = take(*opcode, &mut rest)?;
        if *opcode == STOP {
            break;
        }
        machine.step(*opcode, argument)?;
    }
    if !rest.is_empty() {
        return Err(DecodeError::Trailing);
    }
    let root = machine.pop()?;
    if machine.height > 0 {
        return Err(DecodeError::Malformed);
    }
    Ok(machine.arena.done(root))
}

/// Finds out which call a message belongs to that [`decode`] refuses, or of which only the beginning is
/// there. What is no plain value counts as nothing here; it goes as far as it can, and what it has by then is
/// the answer.
#[must_use]
pub fn head<'m>(message: &'m [u8], memory: Memory<'m>) -> Option<Head<'m>> {
    u32::try_from(message.len()).ok()?;
    let mut machine = Machine::new(message, memory);
    let mut rest = message;
    while let Some((opcode, after)) = rest.split_first() {
        rest = after;
        let Ok(argument) = take(*opcode, &mut rest) else { break };
        if *opcode == STOP {
            break;
        }
        match machine.step(*opcode, argument) {
            Ok(()) => {}
            // One value on the stack that could not be read: what follows can.
            Err(DecodeError::BigInteger | DecodeError::BadText) if machine.put(Inner::None).is_ok() => {}
            Err(_) => break,
        }
    }
    machine.head()
}

/// What follows an instruction; of two lines the second is the other part.
fn take<'m>(opcode: u8, rest: &mut &'m [u8]) -> Result<(&'m [u8], &'m [u8]), DecodeError> {
    let mut bytes = |n: usize| {
        let (taken, after) = rest.split_at_checked(n).ok_or(DecodeError::Truncated)?;
        *rest = after;
        Ok(taken)
    };
    match argument(opcode).ok_or(DecodeError::Unknown(opcode))? {
        Argument::None => Ok((&[], &[])),
        Argument::Fixed(n) => Ok((bytes(n.into())?, &[])),
        Argument::Counted(n) => {
            let length = little_endian(bytes(n.into())?);
            Ok((bytes(usize::try_from(length).map_err(|_| DecodeError::Truncated)?)?, &[]))
        }
        Argument::Lines(n) => {
            let first = line(rest)?;
            Ok((first, if n == 2 { line(rest)? } else { &[] }))
        }
    }
}

fn line<'m>(rest: &mut &'m [u8]) -> Result<&'m [u8], DecodeError> {
    let at = rest.iter().position(|b| *b == b'\n').ok_or(DecodeError::Truncated)?;
    let (line, after) = rest.split_at_checked(at).ok_or(DecodeError::Truncated)?;
    *rest = after.get(1..).unwrap_or_default();
    Ok(line)
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

struct Machine<'m> {
    arena: Arena<'m>,
    stack: &'m mut [u32],
    height: usize,
    memo: &'m mut [u32],
    memorized: u32,
}

impl<'m> Machine<'m> {
    fn new(message: &'m [u8], memory: Memory<'m>) -> Self {
        let Memory { slots, stack, memo, text, depth_max, weight_max } = memory;
        memo.fill(ABSENT);
        let arena = Arena::new(message, slots, text, depth_max, weight_max);
        Self { arena, stack, height: 0, memo, memorized: 0 }
    }

    /// Which call the message on the stack belongs to, as far as it has been built.
    fn head(self) -> Option<Head<'m>> {
        let Self { arena, stack, height, .. } = self;
        let values = arena.into_view();
        let stack = stack.get(..height)?;
        if let [whole] = *stack
            && whole != MARK
        {
            return Head::of(values.value(whole).tuple()?);
        }
        // Its parts lie above its mark, or at the bottom where a short tuple has none. Those of an answer
        // follow: the type of an error and the instance, without the traceback that was too much.
        let parts = stack.iter().filter(|id| **id != MARK).map(|id| values.value(*id));
        let head = Head::of(parts.clone())?;
        let mut error = parts.skip(2);
        let Head::Answer { retcode, .. } = head else { return Some(head) };
        // A class alone may be what bytes or a set are being made by.
        let value = match (error.next(), error.next()) {
            (Some(Value::Class(class)), Some(instance)) => {
                Some(instance).filter(|v| v.fault().is_some_and(|fault| fault.class == class))
            }
            _ => None,
        };
        Some(Head::Answer { retcode, value })
    }

    fn step(&mut self, opcode: u8, (argument, second): (&'m [u8], &'m [u8])) -> Result<(), DecodeError> {
        match opcode {
            b'(' => self.push(MARK),
            b'0' => self.drop_top(),
            b'1' => {
                self.height = self.members()?.start.saturating_sub(1);
                Ok(())
            }
            b'2' => {
                let top = self.top()?;
                self.push(top)
            }
            b'N' => self.put(Inner::None),
            0x88 => self.put(Inner::Bool(true)),
            0x89 => self.put(Inner::Bool(false)),
            b'I' => self.put(text::integer(argument, true)?),
            b'L' => self.put(text::integer(argument, false)?),
            // At most four bytes, of which only the four may be negative.
            b'J' => self.put(Inner::Int(i64::from(little_endian(argument) as u32 as i32))),
            b'K' | b'M' => self.put(Inner::Int(little_endian(argument) as i64)),
            0x8A | 0x8B => self.put(text::long(argument)?),
            b'F' => self.put(Inner::Float(text::float(argument)?)),
            b'G' => {
                let bytes = argument.try_into().map_err(|_| DecodeError::Truncated)?;
                self.put(Inner::Float(f64::from_be_bytes(bytes)))
            }
            b'X' | 0x8C | 0x8D => {
                text::str(argument)?;
                self.put(Inner::Str(self.arena.span(argument)))
            }
            b'V' => {
                let span = self.arena.convert(|put| text::raw_unicode(argument, put))?;
                self.put(Inner::Str(span))
            }
            b'B' | b'C' | 0x8E => self.put(Inner::Bytes(self.arena.span(argument))),
            0x96 => self.put(Inner::ByteArray(self.arena.span(argument))),
            // What Python 2 calls a string: a text if it can be one.
            b'T' | b'U' if text::str(argument).is_ok() => self.put(Inner::Str(self.arena.span(argument))),
            b'T' | b'U' => self.put(Inner::Bytes(self.arena.span(argument))),
            b'S' => {
                let span = self.arena.convert(|put| text::quoted(argument, put))?;
                let id = self.arena.add(Inner::Bytes(span))?;
                let is_text = self.arena.view().value(id).bytes().is_some_and(|b| text::str(b).is_ok());
                if is_text { self.put(Inner::Str(span)) } else { self.push(id) }
            }
            b')' => self.put_group(Kind::Tuple),
            b']' => self.put_group(Kind::List),
            b'}' => self.put_group(Kind::Dict),
            0x8F => self.put_group(Kind::Set),
            b't' => self.close(Kind::Tuple),
            b'l' => self.close(Kind::List),
            b'd' => self.close(Kind::Dict),
            0x91 => self.close(Kind::FrozenSet),
            0x85..=0x87 => {
                let from =
                    self.height.checked_sub(usize::from(opcode - 0x84)).ok_or(DecodeError::Malformed)?;
                self.gather(Kind::Tuple, from, from)
            }
            b'a' => self.append_top(Kind::List, 1),
            b's' => self.append_top(Kind::Dict, 2),
            b'e' => self.append_marked(Kind::List),
            b'u' => self.append_marked(Kind::Dict),
            0x90 => self.append_marked(Kind::Set),
            b'p' => self.memorize(text::index(argument)?),
            b'q' | b'r' => self.memorize(little_endian(argument) as u32),
            0x94 => self.memorize(self.memorized),
            b'g' => self.recall(text::index(argument)?),
            b'h' | b'j' => self.recall(little_endian(argument) as u32),
            // The version and the frames only help to read; what is newer has unknown instructions.
            0x80 if argument.first().is_some_and(|v| *v <= 5) => Ok(()),
            0x80 => Err(DecodeError::Unsupported(opcode)),
            0x95 => Ok(()),
            b'c' => {
                let class = self.class(argument, second)?;
                self.push(class)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                for id in [name, module] {
                    if !matches!(self.arena.at(id), Inner::Str(_)) {
                        return Err(DecodeError::Malformed);
                    }
                }
                self.put(Inner::Class { module, name })
            }
            b'R' | 0x81 => {
                let (args, class) = (self.pop()?, self.pop()?);
                self.call(class, args)
            }
            0x92 => {
                let (_keywords, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(class, args)
            }
            b'i' => {
                let class = self.class(argument, second)?;
                self.close(Kind::Tuple)?;
                let args = self.pop()?;
                self.call(class, args)
            }
            b'o' => {
                let members = self.members()?;
                let class = self.stack_at(members.start)?;
                let args = self.arena.group(Kind::Tuple)?;
                self.append_all(args, members.start + 1..members.end)?;
                // The mark goes too.
                self.height = members.start.saturating_sub(1);
                self.call(class, args)
            }
            b'b' => {
                let (state, object) = (self.pop()?, self.top()?);
                match self.arena.at(object) {
                    Inner::Group(group) if group.kind == Kind::Object => self.arena.append(object, state),
                    _ => Err(DecodeError::Malformed),
                }
            }
            // Persistent references, the extension registry, buffers from elsewhere.
            _ => Err(DecodeError::Unsupported(opcode)),
        }
    }

    fn push(&mut self, id: u32) -> Result<(), DecodeError> {
        *self.stack.get_mut(self.height).ok_or(DecodeError::NoRoom)? = id;
        self.height += 1;
        Ok(())
    }

    fn put(&mut self, inner: Inner) -> Result<(), DecodeError> {
        let id = self.arena.add(inner)?;
        self.push(id)
    }

    fn put_group(&mut self, kind: Kind) -> Result<(), DecodeError> {
        let id = self.arena.group(kind)?;
        self.push(id)
    }

    fn stack_at(&self, at: usize) -> Result<u32, DecodeError> {
        let id = self.stack.get(..self.height).and_then(|s| s.get(at)).copied();
        id.filter(|id| *id != MARK).ok_or(DecodeError::Malformed)
    }

    fn top(&self) -> Result<u32, DecodeError> {
        self.stack_at(self.height.checked_sub(1).ok_or(DecodeError::Malformed)?)
    }

    fn pop(&mut self) -> Result<u32, DecodeError> {
        let id = self.top()?;
        self.height -= 1;
        Ok(id)
    }

    /// Drops a value or a mark.
    fn drop_top(&mut self) -> Result<(), DecodeError> {
        self.height = self.height.checked_sub(1).ok_or(DecodeError::Malformed)?;
        Ok(())
    }

    /// Where in the stack that lies which is above the last mark.
    fn members(&self) -> Result<core::ops::Range<usize>, DecodeError> {
        let stack = self.stack.get(..self.height).unwrap_or_default();
        let mark = stack.iter().rposition(|id| *id == MARK).ok_or(DecodeError::Malformed)?;
        Ok(mark + 1..self.height)
    }

    /// Makes a group of what lies above the last mark.
    fn close(&mut self, kind: Kind) -> Result<(), DecodeError> {
        let members = self.members()?;
        if kind == Kind::Dict && members.len() % 2 != 0 {
            return Err(DecodeError::Malformed);
        }
        let mark = members.start.saturating_sub(1);
        self.gather(kind, members.start, mark)
    }

    /// Makes a group of what lies at `from` and above, and puts it at `to`.
    fn gather(&mut self, kind: Kind, from: usize, to: usize) -> Result<(), DecodeError> {
        let group = self.arena.group(kind)?;
        for at in from..self.height {
            let member = self.stack_at(at)?;
            self.arena.append(group, member)?;
        }
        self.height = to;
        self.push(group)
    }

    /// Appends what lies above the last mark to the group under it.
    fn append_marked(&mut self, kind: Kind) -> Result<(), DecodeError> {
        let members = self.members()?;
        if kind == Kind::Dict && members.len() % 2 != 0 {
            return Err(DecodeError::Malformed);
        }
        let group = self.container(kind, members.start.checked_sub(2))?;
        self.append_all(group, members)
    }

    /// What lies at `at`, if it is a group to which members of a `kind` can be added. An object may be of a class
    /// made from any kind.
    fn container(&self, kind: Kind, at: Option<usize>) -> Result<Id, DecodeError> {
        let id = self.stack_at(at.ok_or(DecodeError::Malformed)?)?;
        match self.arena.at(id) {
            Inner::Group(group) if group.kind == kind || group.kind == Kind::Object => Ok(id),
            _ => Err(DecodeError::Malformed),
        }
    }

    /// Appends what lies at `members` to `group` and takes it and its mark off the stack.
    fn append_all(&mut self, group: Id, members: core::ops::Range<usize>) -> Result<(), DecodeError> {
        let mark = members.start.saturating_sub(1);
        for at in members {
            let member = self.stack_at(at)?;
            self.arena.append(group, member)?;
        }
        self.height = mark;
        Ok(())
    }

    /// Appends the `n` values on top to the group under them.
    fn append_top(&mut self, kind: Kind, n: usize) -> Result<(), DecodeError> {
        let from = self.height.checked_sub(n).ok_or(DecodeError::Malformed)?;
        let group = self.container(kind, from.checked_sub(1))?;
        for at in from..self.height {
            let member = self.stack_at(at)?;
            self.arena.append(group, member)?;
        }
        self.height = from;
        Ok(())
    }

    fn memorize(&mut self, index: u32) -> Result<(), DecodeError> {
        let top = self.top()?;
        let place = self.memo.get_mut(index as usize).ok_or(DecodeError::NoRoom)?;
        if *place == ABSENT {
            self.memorized += 1;
        }
        *place = top;
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), DecodeError> {
        let id = self.memo.get(index as usize).copied().filter(|id| *id != ABSENT);
        self.push(id.ok_or(DecodeError::Malformed)?)
    }
}

#[cfg(test)]
mod tests;
