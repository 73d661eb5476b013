//! Which part of a file a request asks for (RFC 9110, section 14).

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its first byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

/// What a `Range` asks for, of a file of this length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// All of it: the range is of a kind that a server may ignore, such as several at once, or it is none.
    Whole,
    /// This.
    Part(Part),
    /// Nothing that is there.
    Unsatisfiable,
}

impl Range {
    /// Reads the value of the header.
    #[must_use]
    pub fn parse(value: &str, length: u64) -> Self {
        let Some(set) = strip_unit(value).filter(|set| !set.contains(',')) else { return Self::Whole };
        let Some((first, last)) = set.trim().split_once('-') else { return Self::Whole };
        let numbers = (number(first), number(last));
        match numbers {
            (Some(Some(first)), Some(last)) => {
                if last.is_some_and(|last| last < first) {
                    return Self::Whole;
                }
                if first >= length {
                    return Self::Unsatisfiable;
                }
                let last = last.unwrap_or(u64::MAX).min(length - 1);
                Self::Part(Part { offset: first, length: last - first + 1 })
            }
            // The last bytes.
            (Some(None), Some(Some(last))) => match last.min(length) {
                0 => Self::Unsatisfiable,
                length_of_part => {
                    Self::Part(Part { offset: length - length_of_part, length: length_of_part })
                }
            },
            _ => Self::Whole,
        }
    }
}

/// Units are told without regard to case.
fn strip_unit(value: &str) -> Option<&str> {
    let (unit, set) = value.split_once('=')?;
    unit.trim().eq_ignore_ascii_case("bytes").then_some(set)
}

/// `None`: no number; `Some(None)`: nothing. A number that is too large is as good as the largest.
fn number(text: &str) -> Option<Option<u64>> {
    if text.is_empty() {
        return Some(None);
    }
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| Some(text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let part = |offset, length| Range::Part(Part { offset, length });
        for (value, length, range) in [
            ("bytes=0-0", 10, part(0, 1)),
            ("bytes=2-", 10, part(2, 8)),
            ("Bytes=2-4", 10, part(2, 3)),
            ("bytes=9-99", 10, part(9, 1)),
            ("bytes=0-99999999999999999999999", 10, part(0, 10)),
            ("bytes=-3", 10, part(7, 3)),
            ("bytes=-30", 10, part(0, 10)),
            ("bytes= 1-2 ", 10, part(1, 2)),
            ("bytes=10-", 10, Range::Unsatisfiable),
            ("bytes=99999999999999999999999-", 10, Range::Unsatisfiable),
            ("bytes=-0", 10, Range::Unsatisfiable),
            ("bytes=0-", 0, Range::Unsatisfiable),
            ("bytes=-1", 0, Range::Unsatisfiable),
            ("bytes=4-2", 10, Range::Whole),
            ("bytes=0-1,3-4", 10, Range::Whole),
            ("bytes=a-b", 10, Range::Whole),
            ("bytes=+1-2", 10, Range::Whole),
            ("bytes=-", 10, Range::Whole),
            ("bytes", 10, Range::Whole),
            ("lines=0-1", 10, Range::Whole),
        ] {
            assert_eq!(Range::parse(value, length), range, "{value} of {length}");
        }
    }
}
