//! Values that nobody but the Pi is to see.

use std::fmt;

use piman_core::base64;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// What is shown in place of a secret. It is long enough for a Wi-Fi password, so that what is rendered with it is sound.
pub const HIDDEN: &str = "(secret)";

/// A text that is never shown: its `Debug` does not have it, and an error about it does not repeat it.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Secret(String);

impl Secret {
    /// This text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// One in its place that tells nothing.
    #[must_use]
    pub fn hidden() -> Self {
        Self(HIDDEN.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// The usual errors repeat what was found.
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text in quotes")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Secret, E> {
                if text.len() > 4096 || text.chars().any(char::is_control) {
                    return Err(E::custom(
                        "it is too long, or has a control character or a line break in it",
                    ));
                }
                Ok(Secret(text.to_owned()))
            }

            fn visit_i64<E: Error>(self, _: i64) -> Result<Secret, E> {
                Err(E::custom("write it in quotes"))
            }

            fn visit_u64<E: Error>(self, _: u64) -> Result<Secret, E> {
                Err(E::custom("write it in quotes"))
            }

            fn visit_f64<E: Error>(self, _: f64) -> Result<Secret, E> {
                Err(E::custom("write it in quotes"))
            }

            fn visit_bool<E: Error>(self, _: bool) -> Result<Secret, E> {
                Err(E::custom("write it in quotes"))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// The content of a file: a text, or other bytes in base64. Its `Debug` has the size alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "write a text in quotes, or { base64 = \"...\" }")]
pub enum Blob {
    /// A text.
    Text(String),
    /// Any bytes.
    Bytes {
        /// In base64.
        #[serde(with = "in_base64")]
        base64: Vec<u8>,
    },
}

impl Blob {
    /// The content, as bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes { base64 } => base64,
        }
    }

    /// The content, if it is a text.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Bytes { base64 } => std::str::from_utf8(base64).ok(),
        }
    }

    /// One in its place that tells nothing.
    #[must_use]
    pub fn hidden() -> Self {
        Self::Text(format!("{HIDDEN}\n"))
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Self::Text(text),
            Err(e) => Self::Bytes { base64: e.into_bytes() },
        }
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} bytes)", self.bytes().len())
    }
}

mod in_base64 {
    use base64ct::{Base64, Encoding as _};
    use serde::Serializer;

    use super::{Deserialize, Deserializer, Error, base64};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&Base64::encode_string(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let decoded: Option<Vec<u8>> = base64::decode(text.trim_ascii().as_bytes()).collect();
        decoded.ok_or_else(|| D::Error::custom("it is no base64"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_debug_nor_an_error_has_it() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}{:?}", Blob::Text("hunter2".into())), "(secret)(7 bytes)");
        for json in ["12345", "1.5", "true", "\"hun\\nter\"", "[\"hunter2\"]"] {
            let error = serde_json::from_str::<Secret>(json).unwrap_err().to_string();
            assert!(!["12345", "1.5", "hunter2"].iter().any(|s| error.contains(s)), "{error}");
        }
    }

    #[test]
    fn what_is_no_text_is_kept() {
        for bytes in [&b"text\n"[..], b"\xff\x00\x01", b""] {
            let blob = Blob::from(bytes.to_vec());
            let json = serde_json::to_string(&blob).unwrap();
            assert_eq!(serde_json::from_str::<Blob>(&json).unwrap().bytes(), bytes, "{json}");
        }
        assert!(serde_json::from_str::<Blob>("{\"base64\": \"**\"}").is_err());
    }
}
