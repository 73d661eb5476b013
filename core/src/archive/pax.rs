//! The records of pax headers: what they say about the entry that follows.

use crate::base64;
use alloc::vec::Vec;

use super::sparse::Map;
use super::{Damage, NAME_MAX, Time, XATTRS_MAX, Xattr, acl};
use crate::archive::header::decimal;

/// What pax headers said about an entry; what they did not is `None`.
#[derive(Debug, Clone, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<Xattr>,
    /// Access control lists, as the kernel takes them.
    pub(super) access: Option<Vec<u8>>,
    pub(super) default: Option<Vec<u8>>,
    pub(super) sparse: Sparse,
}

/// What the `GNU.sparse.` records said.
#[derive(Debug, Clone, Default)]
pub(super) struct Sparse {
    /// The version, as far as it is told: format 1.0 tells it, 0.0 and 0.1 do not.
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    /// The name; `path` is a made-up one then.
    pub(super) name: Option<Vec<u8>>,
    /// The size with the holes.
    pub(super) size: Option<u64>,
    /// Formats 0.0 and 0.1.
    pub(super) map: Option<Map>,
    /// Format 0.0: an offset that waits for its length.
    offset: Option<u64>,
}

impl Pax {
    /// How long the names and values of all extended attributes are together.
    pub(super) fn xattr_bytes(&self) -> u64 {
        self.xattrs.iter().map(|x| (x.name.len() + x.value.len()) as u64).sum()
    }

    /// Takes in the records of a header: any number of `length key=value\n`.
    ///
    /// # Errors
    /// Records or values that are malformed or beyond our limits. Keys that are not known
    /// are passed over.
    pub(super) fn apply(&mut self, mut records: &[u8]) -> Result<(), Damage> {
        // Some writers pad with NULs.
        while records.first().is_some_and(|b| *b != 0) {
            let space = records.iter().take(8).position(|b| *b == b' ').ok_or(BAD)?;
            let length = decimal(records.get(..space).unwrap_or_default()).ok_or(BAD)?;
            let length = usize::try_from(length).map_err(|_| BAD)?;
            let (record, rest) = records.split_at_checked(length).ok_or(BAD)?;
            let record = record.get(space + 1..).and_then(|r| r.strip_suffix(b"\n")).ok_or(BAD)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or(BAD)?;
            let (key, value) = record.split_at_checked(equals).ok_or(BAD)?;
            self.record(key, value.get(1..).unwrap_or_default())?;
            records = rest;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damage> {
        // An empty value takes back what was said, for all but extended attributes.
        match key {
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link = name(value)?,
            b"size" => self.size = optional(value, "size", decimal)?,
            b"uid" => self.uid = optional(value, "owner", decimal_u32)?,
            b"gid" => self.gid = optional(value, "group", decimal_u32)?,
            b"SCHILY.acl.access" => self.access = list(value),
            b"SCHILY.acl.default" => self.default = list(value),
            b"mtime" => self.mtime = optional(value, "time", time)?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    // GNU tar writes `=` as %3D and `%` as %25.
                    return self.xattr(unescape(name), value.to_vec());
                }
                if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let value: Option<Vec<u8>> = base64::decode(value).collect();
                    let value = value.ok_or(Damage::Pax("an extended attribute is not base64"))?;
                    return self.xattr(unescape(name), value);
                }
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    return self.sparse.record(key, value);
                }
            }
        }
        Ok(())
    }

    /// The last one of a name counts.
    fn xattr(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<(), Damage> {
        if name.is_empty() || name.contains(&0) {
            return Err(Damage::Pax("an extended attribute without a name"));
        }
        let full = self.xattrs.len() >= XATTRS_MAX;
        match self.xattrs.iter_mut().find(|x| x.name == name) {
            Some(xattr) => xattr.value = value,
            None if full => return Err(Damage::TooLong("list of extended attributes")),
            None => self.xattrs.push(Xattr { name, value }),
        }
        Ok(())
    }
}

impl Sparse {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damage> {
        let number = || decimal(value).ok_or(Damage::Sparse("a number"));
        match key {
            b"major" => self.major = Some(number()?),
            b"minor" => self.minor = Some(number()?),
            b"name" => self.name = name(value)?,
            b"size" | b"realsize" => self.size = Some(number()?),
            b"offset" => {
                let waiting = self.offset.replace(number()?);
                if waiting.is_some() {
                    return Err(Damage::Sparse("an offset without a length"));
                }
            }
            b"numbytes" => {
                let offset = self.offset.take().ok_or(Damage::Sparse("a length without an offset"))?;
                self.map.get_or_insert_default().push(offset, number()?)?;
            }
            b"map" => {
                let mut map = Map::default();
                let mut numbers = value.split(|b| *b == b',').filter(|n| !n.is_empty()).map(decimal);
                while let Some(offset) = numbers.next() {
                    let length = numbers.next().flatten();
                    let (Some(offset), Some(length)) = (offset, length) else {
                        return Err(Damage::Sparse("a number of the map"));
                    };
                    map.push(offset, length)?;
                }
                self.map = Some(map);
            }
            // `numblocks` says what the map says itself.
            _ => {}
        }
        Ok(())
    }

    /// Whether the entry is a sparse file.
    pub(super) fn is_told(&self) -> bool {
        self.major.is_some() || self.map.is_some() || self.size.is_some()
    }
}

const BAD: Damage = Damage::Pax("a record");

fn optional<T>(
    value: &[u8],
    what: &'static str,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> Result<Option<T>, Damage> {
    if value.is_empty() {
        return Ok(None);
    }
    parse(value).map(Some).ok_or(Damage::Number(what))
}

fn name(value: &[u8]) -> Result<Option<Vec<u8>>, Damage> {
    if value.len() > NAME_MAX {
        return Err(Damage::TooLong("name"));
    }
    Ok(Some(value).filter(|v| !v.is_empty()).map(<[u8]>::to_vec))
}

fn list(text: &[u8]) -> Option<Vec<u8>> {
    let list = acl::parse(text);
    if list.is_none() && !text.is_empty() {
        warning!("an access control list that cannot be read, or is too long, is left out");
    }
    list
}

fn decimal_u32(digits: &[u8]) -> Option<u32> {
    decimal(digits)?.try_into().ok()
}

/// Seconds since 1970 with a fraction of any length; what is below a nanosecond is cut off
/// towards the past.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |t| (true, t));
    let mut parts = text.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(b"000000000").take(9);
    let nanos = digits.fold(0, |n: u32, d| n * 10 + u32::from(d - b'0'));
    let finer = fraction.get(9..).is_some_and(|f| f.iter().any(|d| *d != b'0'));
    if !negative {
        return Some(Time { seconds, nanos });
    }
    match nanos + u32::from(finer) {
        0 => Some(Time { seconds: -seconds, nanos: 0 }),
        below => Some(Time { seconds: -seconds - 1, nanos: 1_000_000_000 - below }),
    }
}

/// `%` and two hexadecimal digits are a byte; anything else is itself.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        out.push(*first);
        if *first == b'%'
            && let [high, low, tail @ ..] = tail
            && let (Some(high), Some(low)) = (char::from(*high).to_digit(16), char::from(*low).to_digit(16))
        {
            out.pop();
            out.extend(u8::try_from(high << 4 | low));
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::string::ToString as _;

    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn values_may_hold_anything() {
        let value = b"line\nline = 12 x=y\n\0\xff";
        let records = [record("SCHILY.xattr.user.a%3Db%25", value), record("path", b"a\nb")].concat();
        let mut pax = Pax::default();
        pax.apply(&records).unwrap();
        assert_eq!(pax.xattrs, [Xattr { name: b"user.a=b%".to_vec(), value: value.to_vec() }]);
        assert_eq!(pax.path.unwrap(), b"a\nb");
    }

    #[test]
    fn the_last_one_counts_and_an_empty_one_takes_back() {
        let mut pax = Pax::default();
        pax.apply(&[record("size", b"5"), record("uid", b"7"), record("size", b"6")].concat()).unwrap();
        assert_eq!((pax.size, pax.uid), (Some(6), Some(7)));
        pax.apply(&record("uid", b"")).unwrap();
        assert_eq!(pax.uid, None);
        pax.apply(&record("LIBARCHIVE.xattr.user.x", b"AP9h")).unwrap();
        pax.apply(&record("SCHILY.xattr.user.x", b"\0\xffb")).unwrap();
        assert_eq!(pax.xattrs, [Xattr { name: b"user.x".to_vec(), value: b"\0\xffb".to_vec() }]);
    }

    #[test]
    fn times() {
        for (text, seconds, nanos) in [
            ("0", 0, 0),
            ("1700000000.123456789", 1_700_000_000, 123_456_789),
            ("1.5", 1, 500_000_000),
            ("1.0000000019", 1, 1),
            ("-1.5", -2, 500_000_000),
            ("-7", -7, 0),
            ("-0.0000000001", -1, 999_999_999),
        ] {
            assert_eq!(time(text.as_bytes()), Some(Time { seconds, nanos }), "{text}");
        }
        for bad in ["", "-", ".", "1.x", "+1", "99999999999999999999"] {
            assert_eq!(time(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn malformed_records_are_told() {
        for bad in [
            &b"x"[..],
            b"5 a=b",
            b"6 a=b\n9",
            b"0 a=b\n",
            b"1 a=b\n",
            b"2 a=b\n",
            b"99 a=b\n",
            b"6 abc\n",
            b"99999999999999999999 a=b\n",
            b"-6 a=b\n",
        ] {
            assert!(Pax::default().apply(bad).is_err(), "{}", bad.escape_ascii());
        }
        assert!(Pax::default().apply(b"6 a=b\n\0\0\0").is_ok());
    }
}
