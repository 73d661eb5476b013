//! Values of answers.

use piman_core::rpc::{Encode, Kind, NoRoom, Out};

/// What a function returns; an error is `Class: message`.
pub(super) type Answer = Result<Data, String>;

/// A value of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Data {
    None,
    Int(i64),
    Float(f64),
    Str(String),
    Dict(Vec<(&'static str, Self)>),
}

impl Encode for Data {
    fn encode(&self, out: &mut dyn Out) -> Result<(), NoRoom> {
        match self {
            Self::None => out.none(),
            Self::Int(i) => out.int(*i),
            Self::Float(x) => out.float(*x),
            Self::Str(s) => out.str(s),
            Self::Dict(pairs) => {
                out.begin(Kind::Dict, 2 * pairs.len())?;
                for (key, value) in pairs {
                    out.str(key)?;
                    value.encode(out)?;
                }
                out.end(Kind::Dict, 2 * pairs.len())
            }
        }
    }
}

impl From<Option<&str>> for Data {
    fn from(text: Option<&str>) -> Self {
        text.map_or(Self::None, |s| Self::Str(s.into()))
    }
}
