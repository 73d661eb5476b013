//! Numbers and strings of the text protocols.

use crate::rpc::arena::{DecodeError, Inner};
use crate::text as number;

type Put<'p> = &'p mut dyn FnMut(u8) -> Result<(), DecodeError>;

/// An argument of INT or LONG: `01` and `00` are truth values, a trailing `L` is Python 2's.
pub(super) fn integer(line: &[u8], may_be_bool: bool) -> Result<Inner, DecodeError> {
    match line {
        b"00" if may_be_bool => return Ok(Inner::Bool(false)),
        b"01" if may_be_bool => return Ok(Inner::Bool(true)),
        _ => {}
    }
    let text = match line.trim_ascii() {
        [text @ .., b'L'] => text,
        text => text,
    };
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(DecodeError::Malformed);
    }
    let size = number::parse(digits).ok_or(DecodeError::BigInteger)?;
    let value = if is_negative { 0_i64.checked_sub_unsigned(size) } else { size.try_into().ok() };
    value.map(Inner::Int).ok_or(DecodeError::BigInteger)
}

/// Little-endian two's complement of any length, the argument of LONG1 and LONG4.
pub(super) fn long(bytes: &[u8]) -> Result<Inner, DecodeError> {
    let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xFF } else { 0 };
    let (low, high) = bytes.split_at_checked(8).unwrap_or((bytes, &[]));
    let mut word = [fill; 8];
    for (to, from) in word.iter_mut().zip(low) {
        *to = *from;
    }
    let value = i64::from_le_bytes(word);
    if high.iter().any(|b| *b != fill) || (!high.is_empty() && (value < 0) != (fill == 0xFF)) {
        return Err(DecodeError::BigInteger);
    }
    Ok(Inner::Int(value))
}

/// The argument of FLOAT, as Python's `repr` writes it.
pub(super) fn float(line: &[u8]) -> Result<f64, DecodeError> {
    super::float::parse(line.trim_ascii()).ok_or(DecodeError::Malformed)
}

/// The place of a memo in decimal.
pub(super) fn index(line: &[u8]) -> Result<u32, DecodeError> {
    let index = number::parse(line.trim_ascii()).and_then(|index| index.try_into().ok());
    index.ok_or(DecodeError::Malformed)
}

pub(super) fn str(bytes: &[u8]) -> Result<&str, DecodeError> {
    core::str::from_utf8(bytes).map_err(|_| DecodeError::BadText)
}

/// The argument of UNICODE: Latin-1 with `\uHHHH` and `\UHHHHHHHH`, into UTF-8.
pub(super) fn raw_unicode(mut line: &[u8], put: Put<'_>) -> Result<(), DecodeError> {
    while let Some((first, rest)) = line.split_first() {
        line = rest;
        let digits = match (first, rest.first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => {
                utf8(char::from(*first), put)?;
                continue;
            }
        };
        let hex = rest.get(1..=digits).ok_or(DecodeError::Malformed)?;
        line = rest.get(1 + digits..).unwrap_or_default();
        let code =
            hex.iter().try_fold(0, |code: u32, digit| Some(code << 4 | u32::from(number::nibble(*digit)?)));
        let code = code.ok_or(DecodeError::Malformed)?;
        utf8(char::from_u32(code).ok_or(DecodeError::BadText)?, put)?;
    }
    Ok(())
}

/// The argument of STRING: a quoted literal of Python 2.
pub(super) fn quoted(line: &[u8], put: Put<'_>) -> Result<(), DecodeError> {
    let line = line.trim_ascii();
    let ([b'\'', body @ .., b'\''] | [b'"', body @ .., b'"']) = line else {
        return Err(DecodeError::Malformed);
    };
    let mut bytes = body.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            put(byte)?;
            continue;
        }
        match bytes.next().ok_or(DecodeError::Malformed)? {
            b'n' => put(b'\n')?,
            b'r' => put(b'\r')?,
            b't' => put(b'\t')?,
            b'x' => {
                let mut nibble = || number::nibble(bytes.next()?);
                let (high, low) = nibble().zip(nibble()).ok_or(DecodeError::Malformed)?;
                put(high << 4 | low)?;
            }
            c @ (b'\\' | b'\'' | b'"') => put(c)?,
            // Python's repr writes no other.
            _ => return Err(DecodeError::Malformed),
        }
    }
    Ok(())
}

fn utf8(c: char, put: Put<'_>) -> Result<(), DecodeError> {
    c.encode_utf8(&mut [0; 4]).bytes().try_for_each(put)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_up_to_64_bits() {
        for value in [0, 1, -1, 127, 128, -128, -129, 255, 65_535, i64::MAX, i64::MIN] {
            let bytes = value.to_le_bytes();
            // Any length that holds it, as short as Python writes it or longer.
            for extra in 0..3 {
                let mut long_bytes = bytes.to_vec();
                long_bytes.extend(std::iter::repeat_n(if value < 0 { 0xFF } else { 0 }, extra));
                assert!(matches!(long(&long_bytes), Ok(Inner::Int(v)) if v == value));
            }
            let line = std::format!("{value}L");
            assert!(matches!(integer(line.as_bytes(), true), Ok(Inner::Int(v)) if v == value));
        }
        assert!(matches!(long(&[]), Ok(Inner::Int(0))));
        assert!(matches!(long(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0]), Err(DecodeError::BigInteger)));
        assert!(matches!(long(&[0, 0, 0, 0, 0, 0, 0, 0, 1]), Err(DecodeError::BigInteger)));
        assert!(matches!(long(&[0, 0, 0, 0, 0, 0, 0, 0, 0xFF]), Err(DecodeError::BigInteger)));
        assert!(matches!(integer(b"9223372036854775808", false), Err(DecodeError::BigInteger)));
        assert!(matches!(integer(b"1x", false), Err(DecodeError::Malformed)));
        assert!(matches!(integer(b"01", false), Ok(Inner::Int(1))));
    }
}
