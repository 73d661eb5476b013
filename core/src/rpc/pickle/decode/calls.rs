//! Classes and what is made by calling them: plain values by the few that are known, an object by any other.

use super::{Machine, text};
use crate::rpc::arena::{DecodeError, Id, Inner, Kind};
use crate::rpc::value::Value;

impl<'m> Machine<'m> {
    pub(super) fn class(&mut self, module: &'m [u8], name: &'m [u8]) -> Result<Id, DecodeError> {
        let mut part = |bytes: &'m [u8]| {
            text::str(bytes)?;
            let span = self.arena.span(bytes);
            self.arena.add(Inner::Str(span))
        };
        let (module, name) = (part(module)?, part(name)?);
        self.arena.add(Inner::Class { module, name })
    }

    /// Notes a call: the few that make plain values are those values, all others are an object.
    pub(super) fn call(&mut self, class: Id, args: Id) -> Result<(), DecodeError> {
        let value = match self.plain(class, args)? {
            Some(value) => value,
            None => {
                let object = self.arena.group(Kind::Object)?;
                // An object made by copyreg: its class is the first argument.
                let view = self.arena.view();
                let inner = match (view.value(class), view.value(args)) {
                    (Value::Class(c), Value::Tuple(_)) if c.name == "_reconstructor" => self.first(args),
                    _ => None,
                };
                self.arena.append(object, inner.unwrap_or(class))?;
                if inner.is_none() {
                    self.arena.append(object, args)?;
                }
                object
            }
        };
        self.push(value)
    }

    fn first(&self, group: Id) -> Option<Id> {
        let Inner::Group(group) = self.arena.at(group) else { return None };
        let Inner::Link { value, .. } = self.arena.at(group.first) else { return None };
        (group.count > 0).then_some(value)
    }

    /// The calls that older protocols use for sets and bytes.
    fn plain(&mut self, class: Id, args: Id) -> Result<Option<Id>, DecodeError> {
        let view = self.arena.view();
        let (Value::Class(class), Value::Tuple(mut items)) = (view.value(class), view.value(args)) else {
            return Ok(None);
        };
        let builtin = is_one_of(class.module, &["builtins", "__builtin__"]);
        let Some(maker) = MAKERS.iter().find(|(name, _)| *name == class.name).map(|(_, maker)| *maker) else {
            return Ok(None);
        };
        let codec = maker == Maker::Encode && class.module == "_codecs";
        let (first, second, last) = (items.next(), items.next(), items.next().is_none());
        if !builtin && !codec {
            return Ok(None);
        }
        let made = match (first, second) {
            (None, _) => match maker {
                Maker::Group(kind) => return self.arena.group(kind).map(Some),
                Maker::Bytes => Inner::Bytes(self.arena.span(&[])),
                Maker::ByteArray => Inner::ByteArray(self.arena.span(&[])),
                Maker::Encode => return Ok(None),
            },
            (Some(Value::List(_) | Value::Tuple(_) | Value::Set(_) | Value::FrozenSet(_)), None) => {
                let (Maker::Group(kind), Some(list)) = (maker, self.first(args)) else { return Ok(None) };
                return self.arena.recast(list, kind).map(Some);
            }
            (Some(Value::Bytes(_)), None) => match (maker, self.first(args).map(|id| self.arena.at(id))) {
                (Maker::Bytes, _) => return Ok(self.first(args)),
                (Maker::ByteArray, Some(Inner::Bytes(span))) => Inner::ByteArray(span),
                _ => return Ok(None),
            },
            (Some(Value::Str(_)), Some(Value::Str(codec)))
                if last && is_one_of(codec, &["latin1", "latin-1"]) =>
            {
                let Some(Inner::Str(text)) = self.first(args).map(|id| self.arena.at(id)) else {
                    return Ok(None);
                };
                match maker {
                    Maker::Encode => Inner::Bytes(self.arena.latin1(text)?),
                    Maker::ByteArray => Inner::ByteArray(self.arena.latin1(text)?),
                    Maker::Group(_) | Maker::Bytes => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        self.arena.add(made).map(Some)
    }
}

/// What a call makes that is a plain value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Maker {
    Group(Kind),
    Bytes,
    ByteArray,
    /// Bytes out of a text.
    Encode,
}

/// By the name of the class; compared in a loop, since the compiler writes out each comparison elsewhere.
const MAKERS: &[(&str, Maker)] = &[
    ("set", Maker::Group(Kind::Set)),
    ("frozenset", Maker::Group(Kind::FrozenSet)),
    ("bytes", Maker::Bytes),
    ("bytearray", Maker::ByteArray),
    ("encode", Maker::Encode),
];

fn is_one_of(text: &str, words: &[&str]) -> bool {
    words.contains(&text)
}
