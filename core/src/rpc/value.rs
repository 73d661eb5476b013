//! Plain values, as calls and answers carry them, read where they lie.

use core::fmt::{self, Write as _};
use core::str;

use super::arena::{Arena, Group, Id, Inner, Kind, Values};

/// A value that was decoded.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
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
    /// Bytes.
    Bytes(&'m [u8]),
    /// Python's bytes that can be changed.
    ByteArray(&'m [u8]),
    /// A text.
    Str(&'m str),
    /// A tuple.
    Tuple(Items<'m>),
    /// A list.
    List(Items<'m>),
    /// A set.
    Set(Items<'m>),
    /// Python's set that can be a key.
    FrozenSet(Items<'m>),
    /// A dictionary: keys and values in turn, see [`Items::pairs`].
    Dict(Items<'m>),
    /// The name of a class or a function, which is not looked up.
    Class(Class<'m>),
    /// What an instance of a class was to be made of: the class, the arguments, the state. It is not
    /// made.
    Object(Items<'m>),
}

impl<'m> Arena<'m> {
    /// What was built.
    pub(super) fn done(self, root: Id) -> Value<'m> {
        self.into_view().value(root)
    }
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

    /// The bytes, if it is such, of either kind.
    #[must_use]
    pub fn bytes(self) -> Option<&'m [u8]> {
        if let Self::Bytes(b) | Self::ByteArray(b) = self { Some(b) } else { None }
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
            Self::Tuple(mut items)
            | Self::List(mut items)
            | Self::Set(mut items)
            | Self::FrozenSet(mut items)
            | Self::Dict(mut items) => {
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
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
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

impl<'m> Values<'m> {
    pub(super) fn value(self, id: Id) -> Value<'m> {
        match self.at(id) {
            Inner::None | Inner::Link { .. } => Value::None,
            Inner::Bool(b) => Value::Bool(b),
            Inner::Int(i) => Value::Int(i),
            Inner::Float(x) => Value::Float(x),
            // Checked when it was decoded.
            Inner::Str(span) => Value::Str(str::from_utf8(self.bytes(span)).unwrap_or_default()),
            Inner::Bytes(span) => Value::Bytes(self.bytes(span)),
            Inner::ByteArray(span) => Value::ByteArray(self.bytes(span)),
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
                    Kind::FrozenSet => Value::FrozenSet(items),
                    Kind::Dict => Value::Dict(items),
                    Kind::Object => Value::Object(items),
                }
            }
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

/// The members, one after another.
#[cfg(feature = "defmt")]
impl defmt::Format for Items<'_> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "[");
        for (i, value) in self.enumerate() {
            defmt::write!(f, "{=str}{}", if i > 0 { ", " } else { "" }, value);
        }
        defmt::write!(f, "]");
    }
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
        let Inner::Link { value, next } = values.at(self.next) else {
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
            Self::ByteArray(b) => write!(f, "bytearray(b'{}')", b.escape_ascii()),
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
            Self::FrozenSet(items) if items.len() == 0 => f.write_str("frozenset()"),
            Self::FrozenSet(items) => {
                f.write_str("frozenset({")?;
                list(f, items)?;
                f.write_str("})")
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
