//! Reads from what may be a failing disk: bytes, or the byte at which it cannot be read.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The smallest piece that is read to find the byte where a disk fails.
const STEP: usize = 4096;

/// Something with bytes at positions.
pub(crate) trait Source {
    /// How many bytes it has.
    fn bytes(&self) -> u64;
    /// The size of a sector, in bytes.
    fn sector(&self) -> u64;
    /// Reads all of `buf`, which lies inside.
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// An open disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DiskSource<'d> {
    pub(crate) file: &'d File,
    pub(crate) bytes: u64,
    pub(crate) sector: u64,
}

impl Source for DiskSource<'_> {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn sector(&self) -> u64 {
        self.sector
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, at)
    }
}

/// A disk that does not give back what is on it.
#[derive(Debug)]
pub(crate) struct Unreadable {
    at: u64,
    error: io::Error,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {} cannot be read: {}", self.at, self.error)
    }
}

/// A part of a disk: all of it, or a partition.
#[derive(Clone, Copy)]
pub(crate) struct Region<'s> {
    source: &'s dyn Source,
    offset: u64,
    length: u64,
}

impl<'s> Region<'s> {
    /// The whole of it.
    pub(crate) fn whole(source: &'s dyn Source) -> Self {
        Self { source, offset: 0, length: source.bytes() }
    }

    /// A part of it, cut to what is there.
    pub(crate) fn part(&self, offset: u64, length: u64) -> Self {
        let start = offset.min(self.length);
        let length = length.min(self.length - start);
        Self { source: self.source, offset: self.offset + start, length }
    }

    /// Where it begins on the disk, in bytes.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Its length, in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The size of a sector of the disk, in bytes.
    pub(crate) fn sector(&self) -> u64 {
        self.source.sector()
    }

    /// Reads from `at`; what lies behind the end reads as zeros.
    pub(crate) fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), Unreadable> {
        buf.fill(0);
        let room = usize::try_from(self.length.saturating_sub(at)).unwrap_or(usize::MAX).min(buf.len());
        let Some(buf) = buf.get_mut(..room).filter(|b| !b.is_empty()) else { return Ok(()) };
        let from = self.offset + at;
        if self.source.read(from, buf).is_ok() {
            return Ok(());
        }
        // Again in small pieces, to know where.
        let mut at = from;
        for piece in buf.chunks_mut(STEP) {
            self.source.read(at, piece).map_err(|error| Unreadable { at, error })?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// So many bytes from `at`.
    pub(crate) fn bytes<const N: usize>(&self, at: u64) -> Result<[u8; N], Unreadable> {
        let mut bytes = [0; N];
        self.read(at, &mut bytes)?;
        Ok(bytes)
    }

    /// A little-endian number.
    pub(crate) fn u32(&self, at: u64) -> Result<u32, Unreadable> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    /// A little-endian number.
    pub(crate) fn u64(&self, at: u64) -> Result<u64, Unreadable> {
        self.bytes(at).map(u64::from_le_bytes)
    }

    /// Whether a range holds nothing but zeros, or nothing but ones as flash does that was never written.
    pub(crate) fn is_blank(&self, from: u64, length: u64) -> Result<bool, Unreadable> {
        let mut buf = vec![0; 256 << 10];
        let end = from.saturating_add(length).min(self.length);
        let (mut at, mut seen) = (from, None);
        while at < end {
            let n = usize::try_from(end - at).unwrap_or(usize::MAX).min(buf.len());
            let piece = buf.get_mut(..n).unwrap_or_default();
            self.read(at, piece)?;
            let first = *seen.get_or_insert(piece.first().copied().unwrap_or(0));
            if !matches!(first, 0 | 0xff) || piece.iter().any(|b| *b != first) {
                return Ok(false);
            }
            at += n as u64;
        }
        Ok(true)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Bytes in memory, some of which cannot be read.
    pub(crate) struct Bytes {
        pub(crate) bytes: Vec<u8>,
        pub(crate) sector: u64,
        pub(crate) bad: std::ops::Range<u64>,
    }

    impl Bytes {
        pub(crate) fn new(bytes: Vec<u8>) -> Self {
            Self { bytes, sector: 512, bad: 0..0 }
        }
    }

    impl Source for Bytes {
        fn bytes(&self) -> u64 {
            self.bytes.len() as u64
        }
        fn sector(&self) -> u64 {
            self.sector
        }
        fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
            let end = at + buf.len() as u64;
            if at < self.bad.end && end > self.bad.start {
                return Err(io::Error::from_raw_os_error(5));
            }
            buf.copy_from_slice(&self.bytes[at as usize..end as usize]);
            Ok(())
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_blank() {
        let good = Bytes::new(vec![0xff; 1 << 20]);
        assert!(Region::whole(&good).is_blank(0, 1 << 20).unwrap());
        let mixed = Bytes::new([vec![0xff; 4096], vec![0; 4096]].concat());
        assert!(!Region::whole(&mixed).is_blank(0, 8192).unwrap());
        let bad = Bytes { bad: 300_000..300_001, ..Bytes::new(vec![0; 1 << 20]) };
        let error = Region::whole(&bad).is_blank(0, 1 << 20).unwrap_err().to_string();
        assert!(error.starts_with("byte 299008 cannot be read"), "{error}");
        // What is not looked at does not matter, and behind the end there are zeros.
        assert!(Region::whole(&bad).is_blank(0, 262_144).unwrap());
        assert_eq!(Region::whole(&bad).bytes::<4>(u64::MAX).unwrap(), [0; 4]);
    }
}
