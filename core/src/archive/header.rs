//! One header block of a tar archive: where its fields lie and how numbers are written.

use super::Damage;
use alloc::vec::Vec;

/// Archives are made of blocks of this size, in bytes.
pub(super) const BLOCK: usize = 512;

/// Which fields follow the magic, by the magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Nothing of use.
    V7,
    /// A prefix of the name.
    Ustar,
    /// The map of a sparse file.
    Gnu,
}

/// A header block whose checksum is right.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    /// # Errors
    /// A wrong checksum. Some old archivers summed signed bytes; that counts too.
    pub(super) fn new(block: &'a [u8; BLOCK]) -> Result<Self, Damage> {
        let header = Self(block);
        let written = octal(header.field(148, 8)).ok_or(Damage::Checksum)?;
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (at, &byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if written == unsigned || written == signed { Ok(header) } else { Err(Damage::Checksum) }
    }

    pub(super) fn kind(&self) -> u8 {
        self.0.get(156).copied().unwrap_or_default()
    }

    pub(super) fn format(&self) -> Format {
        match self.field(257, 8) {
            b"ustar  \0" => Format::Gnu,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Format::Ustar,
            _ => Format::V7,
        }
    }

    /// The name, with its prefix, appended to `out`.
    pub(super) fn name(&self, out: &mut Vec<u8>) {
        if self.format() == Format::Ustar {
            let prefix = text(self.field(345, 155));
            if !prefix.is_empty() {
                out.extend_from_slice(prefix);
                out.push(b'/');
            }
        }
        out.extend_from_slice(text(self.field(0, 100)));
    }

    pub(super) fn link(&self) -> &'a [u8] {
        text(self.field(157, 100))
    }

    pub(super) fn mode(&self) -> Result<u32, Damage> {
        let mode = number(self.field(100, 8)).ok_or(Damage::Number("mode"))?;
        Ok(u32::try_from(mode & 0o7777).unwrap_or_default())
    }

    pub(super) fn uid(&self) -> Result<u32, Damage> {
        small(self.field(108, 8), "owner")
    }

    pub(super) fn gid(&self) -> Result<u32, Damage> {
        small(self.field(116, 8), "group")
    }

    pub(super) fn size(&self) -> Result<u64, Damage> {
        unsigned(self.field(124, 12), "size")
    }

    pub(super) fn mtime(&self) -> Result<i64, Damage> {
        number(self.field(136, 12)).ok_or(Damage::Number("time"))
    }

    pub(super) fn major(&self) -> Result<u32, Damage> {
        small(self.field(329, 8), "major device number")
    }

    pub(super) fn minor(&self) -> Result<u32, Damage> {
        small(self.field(337, 8), "minor device number")
    }

    /// GNU sparse files: the first four segments, whether a block with more follows.
    pub(super) fn sparse(&self) -> (&'a [u8], bool) {
        (self.field(386, 96), self.field(482, 1) != [0])
    }

    /// GNU sparse files: the size with its holes.
    pub(super) fn real_size(&self) -> Result<u64, Damage> {
        unsigned(self.field(483, 12), "size of a sparse file")
    }

    fn field(&self, at: usize, len: usize) -> &'a [u8] {
        self.0.get(at..at + len).unwrap_or_default()
    }
}

/// A number that cannot be negative.
pub(super) fn unsigned(field: &[u8], name: &'static str) -> Result<u64, Damage> {
    number(field).and_then(|n| u64::try_from(n).ok()).ok_or(Damage::Number(name))
}

fn small(field: &[u8], name: &'static str) -> Result<u32, Damage> {
    number(field).and_then(|n| u32::try_from(n).ok()).ok_or(Damage::Number(name))
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// Octal digits, or the number itself in big-endian bytes where the first bit is set (GNU).
fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    // The second bit is the sign; at most 12 bytes, so 95 bits and a sign fit.
    let sign = i128::from(first & 0x40) << 1;
    let top = i128::from(first & 0x7f) - sign;
    let value = rest.iter().try_fold(top, |n, &b| n.checked_mul(256)?.checked_add(i128::from(b)))?;
    i64::try_from(value).ok()
}

/// Blank counts as 0: old archivers leave fields blank that do not apply.
fn octal(field: &[u8]) -> Option<i64> {
    let start = field.iter().position(|b| !matches!(b, b' ' | 0)).unwrap_or(field.len());
    let digits = field.get(start..).unwrap_or_default();
    let end = digits.iter().position(|b| matches!(b, b' ' | 0)).unwrap_or(digits.len());
    digits.get(..end)?.iter().try_fold(0_i64, |n, &b| {
        let digit = b.checked_sub(b'0').filter(|d| *d < 8)?;
        n.checked_mul(8)?.checked_add(i64::from(digit))
    })
}

/// Digits only, up to the largest file size there is.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let value = digits.iter().try_fold(0_u64, |n, &b| {
        let digit = b.checked_sub(b'0').filter(|d| *d < 10)?;
        n.checked_mul(10)?.checked_add(u64::from(digit))
    })?;
    i64::try_from(value).ok().map(|_| value)
}

#[cfg(test)]
mod tests {
    use std::format;

    use super::*;

    #[test]
    fn numbers_of_all_kinds() {
        for (field, want) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777777", Some(0o77_777_777_777)),
            (b"00000648", None),
            (b"-0000001", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\x80\0\0\0\x02\0\0\0\0\0\0\0", Some(0x200_0000_0000_0000)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"", None),
        ] {
            assert_eq!(number(field), want, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn a_checksum_of_unsigned_or_signed_bytes() {
        let mut block = [0; BLOCK];
        block[0] = 0xe9;
        for sum in [0xe9 + 8 * 32, 0xe9 - 256 + 8 * 32] {
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            assert!(Header::new(&block).is_ok());
        }
        block[1] = 1;
        assert_eq!(Header::new(&block).unwrap_err(), Damage::Checksum);
        assert_eq!(Header::new(&[b' '; BLOCK]).unwrap_err(), Damage::Checksum);
    }
}
