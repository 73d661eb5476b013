//! Values of calls and answers that own what they hold.

use std::fmt;

use piman_core::talks::{Encode, Kind, NoRoom, Out, Value};
use serde_json::Value as Json;

/// A value, as [`piman_core::talks::Value`] but on its own.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "as in the core")]
pub enum Data {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Bytes(Vec<u8>),
    Str(String),
    Tuple(Vec<Self>),
    List(Vec<Self>),
    Set(Vec<Self>),
    Dict(Vec<(Self, Self)>),
    /// An error of the peer, in the midst of other values too.
    Fault(String),
}

impl From<Value<'_>> for Data {
    fn from(value: Value<'_>) -> Self {
        match value {
            Value::Bool(b) => Self::Bool(b),
            Value::Int(i) => Self::Int(i),
            Value::Float(x) => Self::Float(x),
            Value::Bytes(b) => Self::Bytes(b.into()),
            Value::Str(s) => Self::Str(s.into()),
            Value::Tuple(items) => Self::Tuple(items.map(Self::from).collect()),
            Value::List(items) => Self::List(items.map(Self::from).collect()),
            Value::Set(items) => Self::Set(items.map(Self::from).collect()),
            Value::Dict(items) => Self::Dict(items.pairs().map(|(k, v)| (k.into(), v.into())).collect()),
            Value::Class(_) | Value::Object(_) => {
                Self::Fault(value.fault().map_or_else(String::new, |f| f.to_string()))
            }
            _ => Self::None,
        }
    }
}

impl Encode for Data {
    fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom> {
        let group = |out: &mut dyn Out, kind, members: &[Self]| {
            out.begin(kind, members.len())?;
            members.iter().try_for_each(|m| m.encode(out))?;
            out.end(kind, members.len())
        };
        match self {
            Self::None => out.none(),
            Self::Bool(b) => out.bool(*b),
            Self::Int(i) => out.int(*i),
            Self::Float(x) => out.float(*x),
            Self::Bytes(b) => out.bytes(b),
            Self::Str(s) => out.str(s),
            Self::Tuple(members) => group(out, Kind::Tuple, members),
            Self::List(members) => group(out, Kind::List, members),
            Self::Set(members) => group(out, Kind::Set, members),
            Self::Dict(pairs) => {
                out.begin(Kind::Dict, 2 * pairs.len())?;
                for (key, value) in pairs {
                    key.encode(out)?;
                    value.encode(out)?;
                }
                out.end(Kind::Dict, 2 * pairs.len())
            }
            Self::Fault(text) => {
                let (class, message) = text.split_once(": ").unwrap_or(("RuntimeError", text));
                out.error(class, message)
            }
        }
    }
}

impl From<&str> for Data {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl From<String> for Data {
    fn from(text: String) -> Self {
        Self::Str(text)
    }
}

impl From<i64> for Data {
    fn from(n: i64) -> Self {
        Self::Int(n)
    }
}

impl From<bool> for Data {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}

impl Data {
    /// A dictionary with texts as keys.
    #[must_use]
    pub fn dict<const N: usize>(pairs: [(&str, Self); N]) -> Self {
        Self::Dict(pairs.into_iter().map(|(k, v)| (k.into(), v)).collect())
    }

    /// What a dictionary has under this key.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<&Self> {
        let Self::Dict(pairs) = self else { return None };
        // The later one wins, as in Python.
        pairs.iter().rev().find(|(k, _)| k.str() == Some(key)).map(|(_, v)| v)
    }

    /// The text, if it is one.
    #[must_use]
    pub fn str(&self) -> Option<&str> {
        if let Self::Str(s) = self { Some(s) } else { None }
    }

    /// The number, if it is a whole one.
    #[must_use]
    pub fn int(&self) -> Option<i64> {
        if let Self::Int(i) = self { Some(*i) } else { None }
    }

    /// The number, if it is one.
    #[must_use]
    pub fn float(&self) -> Option<f64> {
        match self {
            Self::Int(i) => Some(*i as f64),
            Self::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// The members of a tuple or a list.
    #[must_use]
    pub fn members(&self) -> Option<&[Self]> {
        match self {
            Self::Tuple(members) | Self::List(members) => Some(members),
            _ => None,
        }
    }

    /// An argument as it is typed: JSON if it is such, otherwise a text.
    #[must_use]
    pub fn typed(text: &str) -> Self {
        serde_json::from_str::<Json>(text).map_or_else(|_| text.into(), |json| Self::from_json(&json))
    }

    fn from_json(json: &Json) -> Self {
        match json {
            Json::Null => Self::None,
            Json::Bool(b) => Self::Bool(*b),
            Json::Number(n) => {
                n.as_i64().map_or_else(|| Self::Float(n.as_f64().unwrap_or(f64::NAN)), Self::Int)
            }
            Json::String(s) => Self::Str(s.clone()),
            Json::Array(members) => Self::List(members.iter().map(Self::from_json).collect()),
            Json::Object(map) => {
                Self::Dict(map.iter().map(|(k, v)| (Self::Str(k.clone()), Self::from_json(v))).collect())
            }
        }
    }

    /// As JSON: bytes as text if they are such and else in hexadecimal, keys as texts.
    #[must_use]
    pub fn to_json(&self) -> Json {
        match self {
            Self::None => Json::Null,
            Self::Bool(b) => Json::Bool(*b),
            Self::Int(i) => Json::from(*i),
            Self::Float(x) => Json::from(*x),
            Self::Bytes(b) => Json::String(
                std::str::from_utf8(b)
                    .map_or_else(|_| b.iter().map(|b| format!("{b:02x}")).collect(), String::from),
            ),
            Self::Str(s) => Json::String(s.clone()),
            Self::Tuple(members) | Self::List(members) | Self::Set(members) => {
                Json::Array(members.iter().map(Self::to_json).collect())
            }
            Self::Dict(pairs) => {
                Json::Object(pairs.iter().map(|(k, v)| (k.to_string(), v.to_json())).collect())
            }
            Self::Fault(text) => Json::String(text.clone()),
        }
    }
}

/// For people: texts as they are, everything else as JSON.
impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Str(text) | Self::Fault(text) => f.write_str(text),
            other => write!(f, "{}", other.to_json()),
        }
    }
}
