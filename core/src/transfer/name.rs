//! Names of files as they may appear on the wire.

use core::fmt;
use core::str;

use heapless::String;

/// The longest name in bytes.
pub const NAME_MAX: usize = 255;

/// The name of a file in the one folder that a server serves: never a path, never hidden.
#[derive(Clone, PartialEq, Eq)]
pub struct Name(String<NAME_MAX>);

#[cfg(feature = "defmt")]
impl defmt::Format for Name {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::Format::format(self.as_str(), f)
    }
}

/// Why a name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum BadName {
    /// Nothing is left after trimming.
    Empty,
    /// More than [`NAME_MAX`] bytes.
    TooLong,
    /// Not UTF-8.
    NotUtf8,
    /// It begins with a dot: hidden files, `.` and `..`.
    Dot,
    /// `/` or `\`.
    Separator,
    /// A control character, NUL included.
    Control,
}

impl Name {
    /// Takes a name off the wire or the command line: NULs and white space are trimmed at both ends.
    ///
    /// # Errors
    /// [`BadName`] for anything that is not the plain name of a visible file.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadName> {
        let text = str::from_utf8(bytes).map_err(|_| BadName::NotUtf8)?;
        let text = trim(text);
        if text.is_empty() {
            return Err(BadName::Empty);
        }
        if text.starts_with('.') {
            return Err(BadName::Dot);
        }
        if text.bytes().any(|b| matches!(b, b'/' | b'\\')) {
            return Err(BadName::Separator);
        }
        if text.chars().any(char::is_control) {
            return Err(BadName::Control);
        }
        String::try_from(text).map(Self).map_err(|_| BadName::TooLong)
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Without NULs and white space at both ends. By hand, since the library's searchers and tables cost a
/// microcontroller more than all of this.
fn trim(text: &str) -> &str {
    let mut inside = text.chars();
    while let Some(c) = inside.clone().next()
        && is_empty(c)
    {
        inside.next();
    }
    while let Some(c) = inside.clone().next_back()
        && is_empty(c)
    {
        inside.next_back();
    }
    inside.as_str()
}

/// NUL, and what `char::is_whitespace` says.
fn is_empty(c: char) -> bool {
    matches!(c, '\0' | '\t'..='\r' | ' ' | '\u{85}' | '\u{A0}' | '\u{1680}' | '\u{2000}'..='\u{200A}')
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202F}' | '\u{205F}' | '\u{3000}')
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the name is empty",
            Self::TooLong => "the name is longer than 255 bytes",
            Self::NotUtf8 => "the name is not UTF-8",
            Self::Dot => "the name begins with a dot",
            Self::Separator => "the name has a path separator in it",
            Self::Control => "the name has a control character in it",
        })
    }
}

impl core::error::Error for BadName {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_what_the_standard_library_says() {
        for c in '\0'..=char::MAX {
            let mut text = [0; 4];
            let empty = trim(c.encode_utf8(&mut text)).is_empty();
            assert_eq!(empty, c == '\0' || c.is_whitespace(), "{c:?}");
        }
    }

    #[test]
    fn padding_and_white_space_go() {
        for ok in [&b"a b.log"[..], b"a b.log\0\0\0", b"  a b.log \r\n\0\0", b"\0a b.log"] {
            assert_eq!(Name::parse(ok).unwrap().as_str(), "a b.log");
        }
        assert_eq!(Name::parse("\u{fc}\u{2603}".as_bytes()).unwrap().as_str(), "\u{fc}\u{2603}");
        assert_eq!(Name::parse(&[b'n'; 255]).unwrap().as_str().len(), 255);
    }

    #[test]
    fn the_refused() {
        for (bytes, why) in [
            (&b""[..], BadName::Empty),
            (b"\0 \0", BadName::Empty),
            (&[b'n'; 256], BadName::TooLong),
            (b"\xff\xfe", BadName::NotUtf8),
            (b"..", BadName::Dot),
            (b".hidden", BadName::Dot),
            (b"../etc/passwd", BadName::Dot),
            (b"a/b", BadName::Separator),
            (b"/etc/passwd", BadName::Separator),
            (b"a\\b", BadName::Separator),
            (b"a\0b", BadName::Control),
            (b"a\nb", BadName::Control),
            (b"a\x1b[2Jb", BadName::Control),
            ("a\u{85}b".as_bytes(), BadName::Control),
        ] {
            assert_eq!(Name::parse(bytes), Err(why), "{bytes:?}");
        }
    }
}
