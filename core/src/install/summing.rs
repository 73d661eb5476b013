//! The chunk hashes of an archive: made in one pass with the hash of the whole, checked
//! against it, and then each chunk against its own. The format is the core's.

use alloc::vec::Vec;
use core::fmt;
use core::mem;
use core::ops::Range;

use crate::hash::Hash;
use crate::install::sums::{self, CHUNK, SUM};
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use blake3::{Hash as Root, Hasher};

/// Hashes an archive and its chunks as it passes, in pieces of any size.
#[derive(Debug, Default)]
pub struct ChunkHasher {
    /// Of the chunk that is being read.
    hasher: Hasher,
    /// How much of that there was, in bytes.
    filled: usize,
    /// Of the chunks before it.
    table: Vec<ChainingValue>,
}

#[cfg(feature = "defmt")]
impl defmt::Format for ChunkHasher {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "ChunkHasher({} chunks and {} bytes)", self.table.len(), self.filled)
    }
}

impl ChunkHasher {
    /// Before the first byte.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what comes next.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.filled == CHUNK as usize {
                self.table.push(self.hasher.finalize_non_root());
                self.hasher = at(self.table.len());
                self.filled = 0;
            }
            let room = CHUNK as usize - self.filled;
            let (now, later) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            self.hasher.update(now);
            self.filled += now.len();
            bytes = later;
        }
    }

    /// The hash of the whole, and the table of the chunks' hashes.
    #[must_use]
    pub fn finish(mut self) -> (Hash, Vec<u8>) {
        if self.table.is_empty() {
            return (Hash(*self.hasher.finalize().as_bytes()), Vec::new());
        }
        self.table.push(self.hasher.finalize_non_root());
        let table = mem::take(&mut self.table);
        let id = root(&table).map_or_else(Hash::default, |id| Hash(*id.as_bytes()));
        (id, table.concat())
    }
}

/// A hasher for the chunk with this number.
fn at(index: usize) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(index as u64 * u64::from(CHUNK));
    hasher
}

/// The hash of a whole by those of its chunks; `None` for less than two.
fn root(table: &[ChainingValue]) -> Option<Root> {
    let (left, right) = halves(table)?;
    Some(merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash))
}

fn subtree(table: &[ChainingValue]) -> ChainingValue {
    match (halves(table), table) {
        (Some((left, right)), _) => merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash),
        (None, [one, ..]) => *one,
        // Halves are never empty.
        (None, []) => ChainingValue::default(),
    }
}

/// BLAKE3 makes the left one as large a power of two as leaves something for the right one.
fn halves(table: &[ChainingValue]) -> Option<(&[ChainingValue], &[ChainingValue])> {
    let left = table.len().checked_next_power_of_two()? / 2;
    table.split_at_checked(left).filter(|(left, right)| !left.is_empty() && !right.is_empty())
}

/// Why bytes are not the table of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Wrong {
    /// It has another size than the archive's table has.
    Size,
    /// Its hashes do not give the archive's.
    Hash,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size => "the table of chunk hashes has the wrong size",
            Self::Hash => "the chunk hashes do not give the hash of the archive",
        })
    }
}

impl core::error::Error for Wrong {}

/// The chunk hashes of an archive, which give its hash.
#[derive(Debug, Clone)]
pub struct ChunkHashes {
    id: Hash,
    bytes: u64,
    table: Vec<ChainingValue>,
}

/// Not every chunk: there may be thousands.
#[cfg(feature = "defmt")]
impl defmt::Format for ChunkHashes {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "ChunkHashes({}, {} bytes, {} chunks)", self.id, self.bytes, self.table.len())
    }
}

impl ChunkHashes {
    /// Takes the table of the archive with this hash and size, in bytes.
    ///
    /// # Errors
    /// [`Wrong`]: the sender's fault.
    pub fn parse(id: Hash, bytes: u64, table: &[u8]) -> Result<Self, Wrong> {
        if sums::table_bytes(bytes) != u32::try_from(table.len()).ok() {
            return Err(Wrong::Size);
        }
        let (table, _) = table.as_chunks::<SUM>();
        match root(table) {
            Some(found) if found.as_bytes() != &id.0 => Err(Wrong::Hash),
            _ => Ok(Self { id, bytes, table: table.to_vec() }),
        }
    }

    /// How many chunks there are.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        sums::chunks(self.bytes).unwrap_or(0)
    }

    /// Where in the archive a chunk lies, in bytes.
    #[must_use]
    pub fn range(&self, index: u32) -> Range<u64> {
        sums::range(index, self.bytes)
    }

    /// Whether these bytes are that chunk. When all are, the archive is whole.
    #[must_use]
    pub fn is(&self, index: u32, chunk: &[u8]) -> bool {
        let range = self.range(index);
        if range.end - range.start != chunk.len() as u64 {
            return false;
        }
        match self.table.get(index as usize) {
            Some(sum) => at(index as usize).update(chunk).finalize_non_root() == *sum,
            None => index == 0 && self.table.is_empty() && blake3::hash(chunk).as_bytes() == &self.id.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const MIB: usize = CHUNK as usize;

    fn content(bytes: usize) -> Vec<u8> {
        let mut content = vec![0; bytes];
        Hasher::new().finalize_xof().fill(&mut content);
        content
    }

    #[test]
    fn the_whole_by_its_chunks_is_what_blake3_says() {
        let all = content(9 * MIB + 5);
        for bytes in
            [0, 1, 1024, 1025, MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB, 4 * MIB + 7, 7 * MIB, all.len()]
        {
            let archive = &all[..bytes];
            for piece in [MIB, 100_003, 3 * MIB + 1] {
                let mut summing = ChunkHasher::new();
                archive.chunks(piece).for_each(|p| summing.update(p));
                let (id, table) = summing.finish();
                assert_eq!(&id.0, blake3::hash(archive).as_bytes(), "{bytes} bytes by {piece}");
                let sums = ChunkHashes::parse(id, bytes as u64, &table).unwrap();
                let chunks: Vec<&[u8]> = archive.chunks(MIB).collect();
                assert_eq!(chunks.len(), sums.chunks() as usize);
                assert!((0..).zip(&chunks).all(|(i, c)| sums.is(i, c)), "{bytes} bytes");
            }
        }
    }

    #[test]
    fn one_wrong_bit_is_one_wrong_chunk() {
        let archive = content(3 * MIB + 9);
        let mut summing = ChunkHasher::new();
        summing.update(&archive);
        let (id, table) = summing.finish();
        let sums = ChunkHashes::parse(id, archive.len() as u64, &table).unwrap();
        for at in [0, MIB - 1, MIB, 2 * MIB + 77, archive.len() - 1] {
            let mut bad = archive.clone();
            bad[at] ^= 0x10;
            let wrong: Vec<_> = (0..).zip(bad.chunks(MIB)).filter(|(i, c)| !sums.is(*i, c)).collect();
            assert_eq!(wrong.len(), 1, "{at}");
            assert_eq!(wrong[0].0 as usize, at / MIB);
        }
        // The right bytes at another place, cut, or behind the end.
        assert!(!sums.is(1, &archive[..MIB]) && !sums.is(0, &archive[..MIB - 1]));
        assert!(!sums.is(4, &[]) && !sums.is(u32::MAX, &[]));
    }

    #[test]
    fn a_table_of_something_else_is_refused() {
        let archive = content(2 * MIB + 1);
        let mut summing = ChunkHasher::new();
        summing.update(&archive);
        let (id, table) = summing.finish();
        let bytes = archive.len() as u64;
        for byte in 0..table.len() {
            let mut bad = table.clone();
            bad[byte] ^= 1;
            assert_eq!(ChunkHashes::parse(id, bytes, &bad).unwrap_err(), Wrong::Hash);
        }
        assert_eq!(ChunkHashes::parse(id, bytes, &table[..64]).unwrap_err(), Wrong::Size);
        assert_eq!(ChunkHashes::parse(id, bytes + u64::from(CHUNK), &table).unwrap_err(), Wrong::Size);
        assert_eq!(ChunkHashes::parse(Hash([0; 32]), bytes, &table).unwrap_err(), Wrong::Hash);
        assert_eq!(ChunkHashes::parse(id, u64::MAX, &table).unwrap_err(), Wrong::Size);
    }
}
