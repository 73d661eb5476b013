//! Text on its way out without the machinery of `core::fmt`, which costs a microcontroller more
//! flash than a whole session: numbers, hashes, and a piece of a line for each write.

use core::fmt::{self, Write as _};

/// Whether a character from a peer may be shown on a terminal or in a list. Not shown are control characters (also
/// those of Latin-1, U+0080 to U+009F, which some terminals obey) and those that are invisible and make a line read
/// otherwise than it is: the direction of writing, separators of lines, spaces of no width, fillers, variants, tags.
#[must_use]
pub fn is_shown(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{3164}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// The character, or a space in place of one that is not [shown](is_shown): for texts that are kept and must not grow.
#[must_use]
pub fn shown_or_space(c: char) -> char {
    if is_shown(c) { c } else { ' ' }
}

/// A text from a peer for one line of a terminal or a log: what [`is_shown`] refuses is written as `\n`, `\t`, `\r` or
/// `\u{1b}`.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(f, self.0, |f, c| write!(f, "{}", c.escape_default()), |_| false)
    }
}

/// What a program prints, as it goes to a terminal: the same as [`Escaped`], but ends of lines and tabs stay.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct EscapedLines<'a>(pub &'a str);

impl fmt::Display for EscapedLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(f, self.0, |f, c| write!(f, "{}", c.escape_default()), |c| matches!(c, '\n' | '\t'))
    }
}

/// A JSON document in which also those characters are escaped that JSON allows but a terminal obeys. They occur only
/// inside strings, where `\uXXXX` means the same; ends of lines between values stay.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct EscapedJson<'a>(pub &'a str);

impl fmt::Display for EscapedJson<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = |f: &mut fmt::Formatter<'_>, c: char| {
            c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(f, "\\u{unit:04x}"))
        };
        escape(f, self.0, units, |c| c == '\n')
    }
}

fn escape(
    f: &mut fmt::Formatter<'_>,
    text: &str,
    hidden: impl Fn(&mut fmt::Formatter<'_>, char) -> fmt::Result,
    stays: impl Fn(char) -> bool,
) -> fmt::Result {
    let mut rest = text;
    while let Some((at, c)) = rest.char_indices().find(|(_, c)| !is_shown(*c) && !stays(*c)) {
        let (shown, behind) = rest.split_at(at);
        f.write_str(shown)?;
        hidden(f, c)?;
        rest = behind.get(c.len_utf8()..).unwrap_or_default();
    }
    f.write_str(rest)
}

/// Whether a file on a FAT filesystem can have such a name.
#[must_use]
pub fn is_fat_name(name: &str) -> bool {
    let is_bad = |c: char| c.is_control() || "\"*/:<>?\\|".contains(c) || u32::from(c) > 0xffff;
    !(name.is_empty()
        || name.len() > 255
        || name.contains(is_bad)
        || name.ends_with(['.', ' '])
        || name.starts_with(' '))
}

/// What takes a text and cannot refuse it: nobody has to look whether it did.
pub(crate) trait Sink {
    /// Takes a character of ASCII.
    fn byte(&mut self, byte: u8);

    /// Takes a text.
    fn text(&mut self, text: &str);
}

/// What writes itself as text by plain calls.
pub(crate) trait ToText {
    /// Writes all of it.
    fn write_text(&self, to: &mut impl Sink);

    /// The same for people, by `Display`.
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = Shown { f, result: Ok(()) };
        self.write_text(&mut shown);
        shown.result
    }
}

/// Keeps the first error.
struct Shown<'f, 'b> {
    f: &'f mut fmt::Formatter<'b>,
    result: fmt::Result,
}

impl Sink for Shown<'_, '_> {
    fn byte(&mut self, byte: u8) {
        if self.result.is_ok() {
            self.result = self.f.write_char(byte.into());
        }
    }

    fn text(&mut self, text: &str) {
        if self.result.is_ok() {
            self.result = self.f.write_str(text);
        }
    }
}

/// One digit of any base up to 16.
pub(crate) fn digit(to: &mut impl Sink, digit: u8) {
    to.byte(if digit < 10 { b'0' + digit } else { b'a' - 10 + (digit & 0xF) });
}

/// Bytes, as two digits each.
pub(crate) fn hex(to: &mut impl Sink, bytes: &[u8]) {
    for byte in bytes {
        digit(to, byte >> 4);
        digit(to, byte & 0xF);
    }
}

/// The value of a hexadecimal digit of either case.
pub(crate) fn nibble(digit: u8) -> Option<u8> {
    let decimal = digit.wrapping_sub(b'0');
    // The bit that makes a letter a small one.
    let letter = (digit | 0x20).wrapping_sub(b'a');
    if decimal < 10 { Some(decimal) } else { (letter < 6).then(|| letter + 10) }
}

/// A number in decimal, with zeros in front up to `width` digits.
pub(crate) fn number(to: &mut impl Sink, number: u64, width: u8) {
    // Divided byte by byte: small processors have to be taught a division of 64 bits.
    let mut number = number.to_be_bytes();
    // The last digit first; u64::MAX has 20.
    let mut digits = [0; 20];
    let mut count = 0;
    for place in &mut digits {
        if number == [0; 8] && count >= width.max(1) {
            break;
        }
        let mut rest = 0;
        for byte in &mut number {
            rest = rest << 8 | u32::from(*byte);
            // Below 256, since the rest before was below 10.
            *byte = (rest / 10) as u8;
            rest %= 10;
        }
        *place = rest as u8;
        count += 1;
    }
    for value in digits.iter().take(count.into()).rev() {
        digit(to, *value);
    }
}

/// Reads a number in decimal: digits alone. `None` if it has anything else, or is too large.
pub(crate) fn parse(text: &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for byte in text {
        let digit = byte.wrapping_sub(b'0');
        // Compared, since small processors have to be taught a product of 64 bits that may be too large.
        if digit > 9 || number > u64::MAX / 10 {
            return None;
        }
        number = (number * 10).checked_add(digit.into())?;
    }
    (!text.is_empty()).then_some(number)
}

/// Reads two hexadecimal digits for each of `bytes`; `false` if there are fewer, more, or other characters.
pub(crate) fn read_hex(bytes: &mut [u8], digits: &[u8]) -> bool {
    let mut all = digits.iter();
    for byte in bytes {
        for _ in 0..2 {
            let Some(digit) = all.next().and_then(|digit| nibble(*digit)) else { return false };
            *byte = *byte << 4 | digit;
        }
    }
    all.next().is_none()
}

/// What follows `prefix`, if it is there. The standard library's has a panic in it that a linker
/// cannot tell away.
pub(crate) fn after<'a>(bytes: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    prefix.iter().try_fold(bytes, |rest, want| {
        let (first, rest) = rest.split_first()?;
        (first == want).then_some(rest)
    })
}

/// Takes a text in parts of `N` bytes.
pub(crate) struct Piece<const N: usize> {
    /// The bytes of earlier parts.
    done: usize,
    /// The bytes that were written, of all parts.
    seen: usize,
    bytes: [u8; N],
}

impl<const N: usize> Piece<N> {
    pub(crate) const fn new() -> Self {
        Self { done: 0, seen: 0, bytes: [0; N] }
    }

    /// Takes the next part of what `words` writes; `false` if there is no more. It must be the same
    /// text each time.
    pub(crate) fn fill(&mut self, words: &mut impl FnMut(&mut Self)) -> bool {
        self.done += self.bytes().len();
        if self.done > 0 && self.done >= self.seen {
            return false;
        }
        self.seen = 0;
        words(self);
        self.seen > self.done
    }

    /// The part.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.seen.saturating_sub(self.done)).unwrap_or(&self.bytes)
    }

    pub(crate) fn put_all(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.put(*byte);
        }
    }

    fn put(&mut self, byte: u8) {
        // Before the part this wraps to what no piece has.
        if let Some(place) = self.bytes.get_mut(self.seen.wrapping_sub(self.done)) {
            *place = byte;
        }
        self.seen += 1;
    }
}

impl<const N: usize> Sink for Piece<N> {
    fn byte(&mut self, byte: u8) {
        self.put(byte);
    }

    fn text(&mut self, text: &str) {
        self.put_all(text.as_bytes());
    }
}

/// For what others write into it.
impl<const N: usize> fmt::Write for Piece<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.text(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec::Vec;

    /// A number and its width.
    struct Number(u64, u8);

    impl ToText for Number {
        fn write_text(&self, to: &mut impl Sink) {
            number(to, self.0, self.1);
        }
    }

    impl fmt::Display for Number {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.show(f)
        }
    }

    #[test]
    fn numbers_as_the_standard_library_writes_them() {
        let mut samples: Vec<u64> =
            (0..64).flat_map(|bit| [1 << bit, (1 << bit) - 1, u64::MAX >> bit]).collect();
        samples.extend((0..20).map(|e| 10_u64.pow(e)));
        for n in samples {
            let text = Number(n, 0).to_string();
            assert_eq!(text, n.to_string());
            assert_eq!(parse(text.as_bytes()), Some(n));
        }
        assert_eq!([Number(7, 2), Number(2026, 4)].map(|n| n.to_string()).concat(), "072026");
        for bad in ["", "+1", "-1", " 1", "1 ", "0x1", "18446744073709551616", "99999999999999999999999"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn what_a_terminal_obeys_is_written_out() {
        let hostile = "a\x1b[2J\r\n\t\x7f\u{85}\u{9b}31m\u{202e}\u{2066}\u{200b}\u{feff}\u{e0041}é";
        assert!(!Escaped(hostile).to_string().chars().any(|c| !is_shown(c)));
        assert_eq!(Escaped("é\n\u{9b}\t").to_string(), "é\\n\\u{9b}\\t");
        assert_eq!(EscapedLines("a\tb\r\n\x1b").to_string(), "a\tb\\r\n\\u{1b}");
        assert_eq!(EscapedJson("{\n\"\u{9b}\u{e0041}\"}").to_string(), "{\n\"\\u009b\\udb40\\udc41\"}");
        for text in ["", "plain é 日本"] {
            assert_eq!(Escaped(text).to_string(), text);
        }
        assert_eq!("a\x07b".chars().map(shown_or_space).collect::<std::string::String>(), "a b");
    }

    #[test]
    fn hexadecimal_digits_as_the_standard_library_reads_them() {
        for byte in 0..=u8::MAX {
            assert_eq!(nibble(byte).map(u32::from), char::from(byte).to_digit(16), "{byte}");
        }
        let mut bytes = [0; 2];
        assert!(read_hex(&mut bytes, b"0aF9"));
        assert_eq!(bytes, [0x0a, 0xf9]);
        for bad in ["", "0aF", "0aF9b", "0aF9bc", "0xF9"] {
            assert!(!read_hex(&mut bytes, bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn a_text_through_pieces_is_the_text() {
        fn through<const N: usize>(text: &str) -> Vec<u8> {
            let (mut all, mut window) = (Vec::new(), Piece::<N>::new());
            while window.fill(&mut |to| to.text(text)) {
                all.extend_from_slice(window.bytes());
            }
            all
        }
        for text in ["", "1", "12", "123", "a longer one, which ends within a piece"] {
            assert_eq!(through::<1>(text), text.as_bytes());
            assert_eq!(through::<2>(text), text.as_bytes());
            assert_eq!(through::<40>(text), text.as_bytes());
            assert_eq!(through::<41>(text), text.as_bytes());
        }
    }
}
