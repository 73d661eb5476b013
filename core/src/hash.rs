//! BLAKE3 hashes as values: 32 bytes, written as 64 lower-case hexadecimal digits.

use core::fmt;

use crate::text::{self, Sink, ToText};

/// A BLAKE3 hash. What it is taken over is said where it is used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Hash(pub [u8; 32]);

/// As it is written everywhere, in two numbers.
#[cfg(feature = "defmt")]
impl defmt::Format for Hash {
    fn format(&self, f: defmt::Formatter<'_>) {
        let [first, second] = [self.0.first_chunk(), self.0.last_chunk()]
            .map(|half| half.map_or(0, |bytes| u128::from_be_bytes(*bytes)));
        defmt::write!(f, "{=u128:032x}{=u128:032x}", first, second)
    }
}

impl Hash {
    /// Reads exactly 64 hexadecimal digits of either case; anything else is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut hash = Self::default();
        hash.read_hex(text.as_bytes()).then_some(hash)
    }

    /// Reads 64 digits into it; `false` if it is something else.
    pub(crate) fn read_hex(&mut self, digits: &[u8]) -> bool {
        text::read_hex(&mut self.0, digits)
    }
}

impl ToText for Hash {
    fn write_text(&self, to: &mut impl Sink) {
        text::hex(to, &self.0)
    }
}

/// All 64 digits; `{:.N}` writes the first N only, for people.
impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(64);
        for (i, byte) in self.0.iter().enumerate() {
            match digits.saturating_sub(2 * i) {
                0 => break,
                1 => write!(f, "{:x}", byte >> 4)?,
                _ => write!(f, "{byte:02x}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:.16}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn text_and_back() {
        let mut bytes = [0; 32];
        for (i, b) in bytes.iter_mut().enumerate() {
            *b = i as u8 * 7 + 3;
        }
        let hash = Hash(bytes);
        let text = format!("{hash}");
        assert_eq!(text.len(), 64);
        assert_eq!(Hash::parse(&text), Some(hash));
        assert_eq!(Hash::parse(&text.to_uppercase()), Some(hash));
        assert_eq!(format!("{hash:.5}"), text[..5]);
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in ["", "0", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(Hash::parse(bad), None, "{bad}");
        }
    }
}
