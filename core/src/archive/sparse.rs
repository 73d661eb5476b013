//! The maps of sparse files: which parts hold data, in each of the four ways to write them.

use super::header::decimal;
use super::header::{BLOCK, unsigned};
use super::{Damage, SEGMENTS_MAX, Segment};
use alloc::vec::Vec;

/// The parts of a file that hold data, in order, none of them empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Map {
    segments: Vec<Segment>,
    /// Where the last part ends, also if it is empty (which marks the end of the file).
    end: u64,
    stored: u64,
}

impl Map {
    /// # Errors
    /// Parts that overlap or go backwards, and too many of them.
    pub(super) fn push(&mut self, offset: u64, length: u64) -> Result<(), Damage> {
        let end = offset.checked_add(length).ok_or(Damage::Sparse("a part beyond all files"))?;
        if offset < self.end {
            return Err(Damage::Sparse("parts that overlap"));
        }
        self.end = end;
        if length == 0 {
            return Ok(());
        }
        if self.segments.len() == SEGMENTS_MAX {
            return Err(Damage::TooLong("map of a sparse file"));
        }
        self.stored += length;
        self.segments.push(Segment { offset, length });
        Ok(())
    }

    /// Takes in pairs of tar numbers, 12 bytes each, as GNU's own format has them in its
    /// headers; a blank one ends the list.
    pub(super) fn push_block(&mut self, fields: &[u8]) -> Result<(), Damage> {
        for pair in fields.chunks_exact(24) {
            let (offset, length) = pair.split_at(12);
            if length.first() == Some(&0) {
                break;
            }
            self.push(
                unsigned(offset, "offset of a sparse file")?,
                unsigned(length, "length of a sparse file")?,
            )?;
        }
        Ok(())
    }

    /// The parts of a file of `size` bytes of which the archive stores `stored`.
    pub(super) fn finish(self, size: u64, stored: u64) -> Result<Vec<Segment>, Damage> {
        if self.end > size {
            return Err(Damage::Sparse("a part beyond the end of the file"));
        }
        if self.stored != stored {
            return Err(Damage::Sparse("the map does not fit what is stored"));
        }
        Ok(self.segments)
    }
}

/// Reads the map that stands before the data in pax format 1.0: decimal numbers, one per
/// line (how many parts, then offset and length of each), padded to whole blocks.
#[derive(Debug, Default)]
pub(super) struct Prefix {
    map: Map,
    parts: Option<u64>,
    offset: Option<u64>,
    digits: Vec<u8>,
}

impl Prefix {
    /// Takes in one block; `true` when the map is complete.
    pub(super) fn push(&mut self, block: &[u8; BLOCK]) -> Result<bool, Damage> {
        for &byte in block {
            if byte != b'\n' {
                if self.digits.len() >= 20 {
                    return Err(Damage::Sparse("a number of the map"));
                }
                self.digits.push(byte);
                continue;
            }
            let number = decimal(&self.digits).ok_or(Damage::Sparse("a number of the map"))?;
            self.digits.clear();
            if self.number(number)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn finish(self) -> Map {
        self.map
    }

    fn number(&mut self, number: u64) -> Result<bool, Damage> {
        let Some(parts) = &mut self.parts else {
            self.parts = Some(number);
            return Ok(number == 0);
        };
        let Some(offset) = self.offset.take() else {
            self.offset = Some(number);
            return Ok(false);
        };
        self.map.push(offset, number)?;
        *parts -= 1;
        Ok(*parts == 0)
    }
}

#[cfg(test)]
mod tests {
    use std::format;

    use super::*;

    #[test]
    fn a_map_in_blocks() {
        let mut text = b"60\n".to_vec();
        for i in 0..60_u64 {
            text.extend(format!("{}\n{}\n", i * 1_000_000, 512).bytes());
        }
        text.resize(text.len().next_multiple_of(BLOCK), 0);
        let (blocks, _) = text.as_chunks::<BLOCK>();
        let mut prefix = Prefix::default();
        let (last, first) = blocks.split_last().unwrap();
        for block in first {
            assert!(!prefix.push(block).unwrap());
        }
        assert!(prefix.push(last).unwrap());
        let segments = prefix.finish().finish(60_000_000, 60 * 512).unwrap();
        assert_eq!(segments.len(), 60);
        assert_eq!(segments[59], Segment { offset: 59_000_000, length: 512 });
    }

    #[test]
    fn maps_that_make_no_sense() {
        let mut map = Map::default();
        map.push(10, 5).unwrap();
        assert!(map.push(14, 1).is_err());
        assert!(map.push(u64::MAX, 1).is_err());
        map.push(15, 1).unwrap();
        map.push(20, 0).unwrap();
        assert!(map.clone().finish(19, 6).is_err(), "too short");
        assert!(map.clone().finish(20, 7).is_err(), "not all stored");
        assert_eq!(map.finish(20, 6).unwrap().len(), 2);
        assert!(Prefix::default().push(&[b'1'; BLOCK]).is_err());
        assert!(Prefix::default().push(&[b'\n'; BLOCK]).is_err());
        let mut none = [0; BLOCK];
        none[..2].copy_from_slice(b"0\n");
        assert!(Prefix::default().push(&none).unwrap());
    }
}
