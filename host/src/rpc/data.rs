//! Values of calls and answers that own what they hold.

use std::fmt::{self, Write as _};

use anyhow::{Context as _, bail};
use piman_core::rpc::{Class, Encode, Kind, NoRoom, Out, Value};
use serde_json::{Map, Value as Json, json};

/// A value, as [`piman_core::rpc::Value`] but on its own.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "as in the core")]
pub enum Data {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Bytes(Vec<u8>),
    ByteArray(Vec<u8>),
    Str(String),
    Tuple(Vec<Self>),
    List(Vec<Self>),
    Set(Vec<Self>),
    FrozenSet(Vec<Self>),
    Dict(Vec<(Self, Self)>),
    /// The name of a class or a function: its module and its name in it.
    Class(String, String),
    /// An instance of a class that is not built: the class, the arguments that it was to be made with, its
    /// state, its members; as far as the peer sent them.
    Object(Vec<Self>),
}

impl From<Value<'_>> for Data {
    fn from(value: Value<'_>) -> Self {
        match value {
            Value::Bool(b) => Self::Bool(b),
            Value::Int(i) => Self::Int(i),
            Value::Float(x) => Self::Float(x),
            Value::Bytes(b) => Self::Bytes(b.into()),
            Value::ByteArray(b) => Self::ByteArray(b.into()),
            Value::Str(s) => Self::Str(s.into()),
            Value::Tuple(items) => Self::Tuple(items.map(Self::from).collect()),
            Value::List(items) => Self::List(items.map(Self::from).collect()),
            Value::Set(items) => Self::Set(items.map(Self::from).collect()),
            Value::FrozenSet(items) => Self::FrozenSet(items.map(Self::from).collect()),
            Value::Dict(items) => Self::Dict(items.pairs().map(|(k, v)| (k.into(), v.into())).collect()),
            Value::Class(class) => Self::Class(class.module.into(), class.name.into()),
            Value::Object(parts) => Self::Object(parts.map(Self::from).collect()),
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
            Self::ByteArray(b) => out.byte_array(b),
            Self::Str(s) => out.str(s),
            Self::Tuple(members) => group(out, Kind::Tuple, members),
            Self::List(members) => group(out, Kind::List, members),
            Self::Set(members) => group(out, Kind::Set, members),
            Self::FrozenSet(members) => group(out, Kind::FrozenSet, members),
            Self::Dict(pairs) => {
                out.begin(Kind::Dict, 2 * pairs.len())?;
                for (key, value) in pairs {
                    key.encode(out)?;
                    value.encode(out)?;
                }
                out.end(Kind::Dict, 2 * pairs.len())
            }
            Self::Class(module, name) => out.class(Class { module, name }),
            Self::Object(parts) => group(out, Kind::Object, parts),
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

    /// An argument as it is typed: JSON if it is such, otherwise a text. What JSON has no word for is written
    /// as [`to_json`](Self::to_json) writes it.
    ///
    /// # Errors
    /// If it is a number that no peer could get exactly, or an object that begins as one of those and goes on otherwise.
    pub fn typed(text: &str) -> anyhow::Result<Self> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && text.parse::<i64>().is_err() {
            bail!("{text} does not fit an integer of 64 bits; as a text it is written '\"{text}\"'");
        }
        match serde_json::from_str::<Json>(text) {
            Ok(json) => Self::from_json(&json).with_context(|| format!("the argument {text}")),
            Err(_) => Ok(text.into()),
        }
    }

    fn from_json(json: &Json) -> anyhow::Result<Self> {
        let all = |members: &[Json]| members.iter().map(Self::from_json).collect::<anyhow::Result<Vec<_>>>();
        Ok(match json {
            Json::Null => Self::None,
            Json::Bool(b) => Self::Bool(*b),
            Json::Number(n) => match (n.as_i64(), n.as_f64()) {
                (Some(i), _) => Self::Int(i),
                (None, _) if n.is_u64() => bail!("{n} does not fit an integer of 64 bits"),
                (None, x) => Self::Float(x.context("no number")?),
            },
            Json::String(s) => Self::Str(s.clone()),
            Json::Array(members) => Self::List(all(members)?),
            Json::Object(map) => {
                let mut entries = map.iter();
                match (entries.next(), entries.next()) {
                    (Some((tag, inner)), None) if tag.starts_with('$') => Self::from_tagged(tag, inner, all)?,
                    _ => {
                        let pairs = map.iter().map(|(k, v)| Ok((Self::Str(k.clone()), Self::from_json(v)?)));
                        Self::Dict(pairs.collect::<anyhow::Result<_>>()?)
                    }
                }
            }
        })
    }

    fn from_tagged(
        tag: &str,
        inner: &Json,
        all: impl Fn(&[Json]) -> anyhow::Result<Vec<Self>>,
    ) -> anyhow::Result<Self> {
        Ok(match (tag, inner) {
            ("$bytes" | "$bytearray", Json::String(hex)) => {
                let byte = |pair: &[u8]| {
                    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
                    match pair {
                        [high, low] => Some(digit(high)? << 4 | digit(low)?),
                        _ => None,
                    }
                };
                let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(byte).collect();
                let bytes =
                    bytes.with_context(|| format!("`{hex}` is no even number of hexadecimal digits"))?;
                if tag == "$bytes" { Self::Bytes(bytes) } else { Self::ByteArray(bytes) }
            }
            ("$float", Json::String(name)) => match name.as_str() {
                "inf" => Self::Float(f64::INFINITY),
                "-inf" => Self::Float(f64::NEG_INFINITY),
                "nan" => Self::Float(f64::NAN),
                other => bail!("`{other}` is not inf, -inf or nan"),
            },
            ("$tuple", Json::Array(members)) => Self::Tuple(all(members)?),
            ("$set", Json::Array(members)) => Self::Set(all(members)?),
            ("$frozenset", Json::Array(members)) => Self::FrozenSet(all(members)?),
            ("$dict", Json::Array(pairs)) => {
                let pair = |pair: &Json| match pair.as_array().map(Vec::as_slice) {
                    Some([key, value]) => Ok((Self::from_json(key)?, Self::from_json(value)?)),
                    _ => bail!("{pair} is no pair of a key and a value"),
                };
                Self::Dict(pairs.iter().map(pair).collect::<anyhow::Result<_>>()?)
            }
            _ => bail!(
                "`{tag}` is not known: there are $bytes, $bytearray (hexadecimal digits), $float (inf, -inf, nan), $tuple, $set, \
                 $frozenset (lists) and $dict (a list of pairs); a dictionary with such a key is written {{\"$dict\": [[\"{tag}\", ...]]}}"
            ),
        })
    }

    /// As JSON, from which everything can be had again. What JSON has no word for is an object with one key:
    /// `{"$bytes": "00ff"}`, `{"$bytearray": "00ff"}`, `{"$float": "inf"}`, `{"$tuple": []}`, `{"$set": []}`,
    /// `{"$frozenset": []}`, `{"$class": "module.Name"}`,
    /// `{"$object": [class, arguments, state]}`, and `{"$dict": [[key, value]]}` for a dictionary with keys that
    /// are no texts or begin with `$`.
    #[must_use]
    pub fn to_json(&self) -> Json {
        let all = |members: &[Self]| Json::Array(members.iter().map(Self::to_json).collect());
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        match self {
            Self::None => Json::Null,
            Self::Bool(b) => Json::Bool(*b),
            Self::Int(i) => Json::from(*i),
            Self::Float(x) if x.is_nan() => json!({ "$float": "nan" }),
            Self::Float(x) if x.is_infinite() => json!({ "$float": if *x > 0.0 { "inf" } else { "-inf" } }),
            Self::Float(x) => Json::from(*x),
            Self::Bytes(b) => json!({ "$bytes": hex(b) }),
            Self::ByteArray(b) => json!({ "$bytearray": hex(b) }),
            Self::Str(s) => Json::String(s.clone()),
            Self::List(members) => all(members),
            Self::Tuple(members) => json!({ "$tuple": all(members) }),
            Self::Set(members) => json!({ "$set": all(members) }),
            Self::FrozenSet(members) => json!({ "$frozenset": all(members) }),
            Self::Dict(pairs) => {
                let named = pairs.iter().map(|(k, v)| {
                    let key = k.str().filter(|key| !key.starts_with('$'))?;
                    Some((key.to_owned(), v.to_json()))
                });
                match named.collect::<Option<Map<_, _>>>() {
                    // A key that was there twice would be lost.
                    Some(map) if map.len() == pairs.len() => Json::Object(map),
                    _ => {
                        let pairs = pairs.iter().map(|(k, v)| json!([k.to_json(), v.to_json()]));
                        json!({ "$dict": pairs.collect::<Vec<_>>() })
                    }
                }
            }
            Self::Class(module, name) => json!({ "$class": format!("{module}.{name}") }),
            Self::Object(parts) => json!({ "$object": all(parts) }),
        }
    }

    /// A value within another, as Python writes it; nothing in it moves a terminal's cursor.
    fn repr(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, open: &str, members: &[Self], close: &str| {
            f.write_str(open)?;
            for (i, member) in members.iter().enumerate() {
                f.write_str(if i > 0 { ", " } else { "" })?;
                member.repr(f)?;
            }
            f.write_str(close)
        };
        match self {
            Self::None => f.write_str("None"),
            Self::Bool(b) => f.write_str(if *b { "True" } else { "False" }),
            Self::Int(i) => write!(f, "{i}"),
            Self::Float(x) if x.is_nan() => f.write_str("nan"),
            // `inf`, `1.0`, `1e300`.
            Self::Float(x) => write!(f, "{x:?}"),
            Self::Bytes(b) => write!(f, "b'{}'", b.escape_ascii()),
            Self::ByteArray(b) => write!(f, "bytearray(b'{}')", b.escape_ascii()),
            Self::Str(s) => write!(f, "'{}'", s.escape_debug()),
            Self::Tuple(members) => list(f, "(", members, if members.len() == 1 { ",)" } else { ")" }),
            Self::List(members) => list(f, "[", members, "]"),
            Self::Set(members) if members.is_empty() => f.write_str("set()"),
            Self::Set(members) => list(f, "{", members, "}"),
            Self::FrozenSet(members) if members.is_empty() => f.write_str("frozenset()"),
            Self::FrozenSet(members) => list(f, "frozenset({", members, "})"),
            Self::Dict(pairs) => {
                f.write_char('{')?;
                for (i, (key, value)) in pairs.iter().enumerate() {
                    f.write_str(if i > 0 { ", " } else { "" })?;
                    key.repr(f)?;
                    f.write_str(": ")?;
                    value.repr(f)?;
                }
                f.write_char('}')
            }
            Self::Class(module, name) => {
                write!(f, "<class {}.{}>", module.escape_debug(), name.escape_debug())
            }
            Self::Object(parts) => {
                f.write_char('<')?;
                for (i, part) in parts.iter().enumerate() {
                    match part {
                        // Named as in an import, without the module that everybody has.
                        Self::Class(module, name) if i == 0 => match module.as_str() {
                            "builtins" | "__builtin__" => write!(f, "{}", name.escape_debug())?,
                            _ => write!(f, "{}.{}", module.escape_debug(), name.escape_debug())?,
                        },
                        // Most objects are made without arguments and get a state.
                        Self::Tuple(members) if i == 1 && members.is_empty() && parts.len() > 2 => {}
                        Self::Tuple(members) if i == 1 => list(f, "(", members, ")")?,
                        _ => {
                            f.write_str(if i > 0 { " " } else { "" })?;
                            part.repr(f)?;
                        }
                    }
                }
                f.write_char('>')
            }
        }
    }
}

/// For people: a text as it is, everything else as Python writes it.
impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Str(text) = self else { return self.repr(f) };
        // A peer's text is read on a terminal, which obeys control characters.
        for c in text.chars() {
            match c {
                '\n' | '\t' => f.write_char(c)?,
                c if c.is_control() => write!(f, "{}", c.escape_debug())?,
                c if !piman_core::text::is_shown(c) => write!(f, "{}", c.escape_unicode())?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_what_it_is_and_json_loses_nothing() {
        let class = |name: &str| Data::Class("geometry".into(), name.into());
        let all = [
            (Data::None, "None", "null"),
            (true.into(), "True", "true"),
            (Data::Float(f64::INFINITY), "inf", r#"{"$float":"inf"}"#),
            (Data::Float(f64::NEG_INFINITY), "-inf", r#"{"$float":"-inf"}"#),
            (Data::Float(-0.0), "-0.0", "-0.0"),
            (Data::Float(1.0), "1.0", "1.0"),
            (1.into(), "1", "1"),
            (Data::Bytes(b"ab\0\xff".to_vec()), r"b'ab\x00\xff'", r#"{"$bytes":"616200ff"}"#),
            ("a\u{1b}[1m\nb".into(), "a\\u{1b}[1m\nb", r#""a\u001b[1m\nb""#),
            (Data::List(vec!["it's".into()]), r"['it\'s']", r#"["it's"]"#),
            (Data::Tuple(vec![1.into()]), "(1,)", r#"{"$tuple":[1]}"#),
            (Data::ByteArray(b"a".to_vec()), "bytearray(b'a')", r#"{"$bytearray":"61"}"#),
            (Data::Set(vec![]), "set()", r#"{"$set":[]}"#),
            (Data::FrozenSet(vec![]), "frozenset()", r#"{"$frozenset":[]}"#),
            (Data::FrozenSet(vec![1.into()]), "frozenset({1})", r#"{"$frozenset":[1]}"#),
            (Data::dict([("a", 1.into()), ("b", Data::None)]), "{'a': 1, 'b': None}", r#"{"a":1,"b":null}"#),
            (
                Data::Dict(vec![(1.into(), 2.into()), ("1".into(), 3.into())]),
                "{1: 2, '1': 3}",
                r#"{"$dict":[[1,2],["1",3]]}"#,
            ),
            (Data::dict([("$set", 1.into())]), "{'$set': 1}", r#"{"$dict":[["$set",1]]}"#),
        ];
        for (data, people, json) in all {
            assert_eq!((data.to_string().as_str(), data.to_json().to_string().as_str()), (people, json));
            if !matches!(data, Data::Str(_)) {
                assert_eq!(Data::typed(json).unwrap(), data);
            }
        }
        assert!(matches!(Data::typed(r#"{"$float":"nan"}"#).unwrap(), Data::Float(x) if x.is_nan()));
        assert_eq!(Data::Float(f64::NAN).to_json().to_string(), r#"{"$float":"nan"}"#);
        let object = |parts: Vec<Data>| Data::Object([vec![class("Pose")], parts].concat());
        for (data, people) in [
            (class("Pose"), "<class geometry.Pose>"),
            (object(vec![Data::Tuple(vec![1.into(), 2.into()])]), "<geometry.Pose(1, 2)>"),
            (object(vec![Data::Tuple(vec![]), Data::dict([("x", 1.into())])]), "<geometry.Pose {'x': 1}>"),
            (object(vec![Data::Tuple(vec![])]), "<geometry.Pose()>"),
        ] {
            assert_eq!(data.to_string(), people);
        }
        assert_eq!(
            object(vec![Data::Tuple(vec![1.into()])]).to_json().to_string(),
            r#"{"$object":[{"$class":"geometry.Pose"},{"$tuple":[1]}]}"#
        );
    }

    #[test]
    fn arguments_that_would_not_arrive_as_typed_are_refused() {
        for wrong in [
            "9223372036854775808",
            "1267650600228229401496703205376",
            r#"{"$bytes":"0"}"#,
            r#"{"$float":"x"}"#,
            r#"{"$x":1}"#,
        ] {
            assert!(Data::typed(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Data::typed("-9223372036854775808").unwrap(), Data::Int(i64::MIN));
        assert_eq!(Data::typed("\"12\"").unwrap(), "12".into());
        assert_eq!(Data::typed("not json").unwrap(), "not json".into());
    }
}
