//! Base64 (RFC 4648), read.

/// The bytes of a text in base64, one by one; `None` in place of a byte where the text is no base64.
///
/// `=` at the end may be there or not, and the end of a line is passed over: keys and archives are written in both
/// ways.
pub fn decode(text: &[u8]) -> impl Iterator<Item = Option<u8>> + Clone + use<'_> {
    let end = text.iter().rposition(|b| *b != b'=').map_or(0, |at| at + 1);
    let mut digits = text.get(..end).unwrap_or_default().iter().filter(|b| **b != b'\n');
    let (mut bits, mut held, mut good) = (0_u32, 0, true);
    core::iter::from_fn(move || {
        while good && held < 8 {
            let Some(value) = digit(*digits.next()?) else {
                good = false;
                return Some(None);
            };
            (bits, held) = ((bits & 0xff) << 6 | value, held + 6);
        }
        held = good.then(|| held - 8)?;
        Some(u8::try_from(bits >> held & 0xff).ok())
    })
}

fn digit(byte: u8) -> Option<u32> {
    Some(u32::from(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn with_and_without_padding() {
        for (text, want) in [
            ("", &b""[..]),
            ("Zg", b"f"),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("Zm9v\nYmFy\n", b"foobar"),
            ("/+8=", b"\xff\xef"),
            ("+/8=", b"\xfb\xff"),
        ] {
            let bytes: Option<Vec<u8>> = decode(text.as_bytes()).collect();
            assert_eq!(bytes.as_deref(), Some(want), "{text}");
        }
        for bad in ["Z*", "*", "Zm9v YmFy", "Zg==Zg==", "Zg=\u{e4}"] {
            assert_eq!(decode(bad.as_bytes()).collect::<Option<Vec<u8>>>(), None, "{bad}");
        }
        assert_eq!(
            decode(b"Zm9v*YmFy").count(),
            4,
            "nothing comes after a character that base64 does not have"
        );
    }
}
