//! The chunk table of an image: what is where in the root filesystem or on the whole disk, and its hashes.
//!
//! Binary, little-endian. A header of [`HEADER`] bytes, then an entry of [`ENTRY`] bytes for
//! each chunk, in the order of their offsets. A chunk is a run of used blocks;
//! what no chunk covers is free space and left as it is. Chunks are stored one
//! after another, each compressed with zstd, or as it is where that does not help
//! (then `stored` equals `length`). The BLAKE3 hash of the table names the image.
//!
//! A table that is not [whole](Header::whole) is of an image that is still being made: its chunks are the first ones
//! of it, and [`Next`] says which table has more.

use core::fmt;

use crate::hash::Hash;

/// The size of the header, in bytes.
pub const HEADER: usize = 96;
/// The size of an entry, in bytes.
pub const ENTRY: usize = 88;
/// The largest chunk, unpacked, in bytes.
pub const CHUNK_MAX: u32 = 4 << 20;
/// What offsets and lengths are a multiple of, in bytes.
pub const BLOCK: u64 = 4096;
/// The most chunks in a table.
pub const CHUNKS_MAX: u32 = 1 << 17;
/// The largest table, in bytes.
pub const TABLE_MAX: usize = HEADER + CHUNKS_MAX as usize * ENTRY;

/// Offsets count from the start of the root filesystem.
const ROOT: [u8; 8] = *b"PIMANTB1";
/// Offsets count from the start of the disk.
const DISK: [u8; 8] = *b"PIMANTB2";

/// In the scope's flags: whether the last ext4 filesystem is to grow.
const GROWS: u8 = 1;
/// In the same: chunks are missing.
const BEGUN: u8 = 2;

/// What an image is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Scope {
    /// The root filesystem, in a partition that the agent makes.
    Root {
        /// Whether it is as small as its content allows, and the agent makes it as large as the partition
        /// ([`grow`](super::grow)). If not, it was made for partitions of one size.
        grows: bool,
    },
    /// A whole disk, with a partition table of its own.
    Disk(WholeDisk),
}

/// What an agent needs to know of the image of a whole disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct WholeDisk {
    /// The number of the partition with the root filesystem, from 1; 0: it is not known.
    pub root: u8,
    /// Whether the last partition and its ext4 filesystem are to grow to the end of the disk.
    pub grows: bool,
    /// The size of the sectors that the partition table counts, in bytes: 512 or 4096.
    pub sector: u16,
}

impl Scope {
    const fn encode(self, whole: bool) -> ([u8; 8], [u8; 4]) {
        let begun = if whole { 0 } else { BEGUN };
        match self {
            Self::Root { grows } => (ROOT, [grows as u8 | begun, 0, 0, 0]),
            Self::Disk(WholeDisk { root, grows, sector }) => {
                let [low, high] = sector.to_le_bytes();
                (DISK, [root, grows as u8 | begun, low, high])
            }
        }
    }

    /// The scope, and whether no chunk is missing.
    fn decode(magic: [u8; 8], fields: [u8; 4]) -> Option<(Self, bool)> {
        let (scope, flags) = match (magic, fields) {
            (ROOT, [flags, 0, 0, 0]) => (Self::Root { grows: flags & GROWS != 0 }, flags),
            (DISK, [root, flags, low, high]) => {
                let sector = u16::from_le_bytes([low, high]);
                let disk = WholeDisk { root, grows: flags & GROWS != 0, sector };
                matches!(sector, 512 | 4096).then_some((Self::Disk(disk), flags))?
            }
            _ => return None,
        };
        (flags & !(GROWS | BEGUN) == 0).then_some((scope, flags & BEGUN == 0))
    }
}

/// What is said once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Header {
    /// What the image is of; what follows and the chunks are told in bytes of that.
    pub scope: Scope,
    /// Whether no chunk is missing. If not, the two sums are of all chunks that there will be: `used_bytes` as it is
    /// planned, `stored_bytes` as it is expected.
    pub whole: bool,
    /// How many chunks there are.
    pub chunks: u32,
    /// The size of the filesystem, or the smallest disk that will do, in bytes.
    pub total_bytes: u64,
    /// All chunks together, unpacked, in bytes.
    pub used_bytes: u64,
    /// All chunks together as they are stored, in bytes.
    pub stored_bytes: u64,
    /// BLAKE3 of the archive or disk image that this was made from.
    pub archive: Hash,
    /// Where the proof's one block is, which the agent fills in, in bytes.
    pub proof_offset: u64,
    /// How many entries the archive has; 0 for a disk image.
    pub entries: u64,
}

/// One chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Entry {
    /// Where in the image it lies, in bytes.
    pub offset: u64,
    /// Its size there, in bytes.
    pub length: u32,
    /// Its size as it is stored, in bytes.
    pub stored: u32,
    /// Where among the stored chunks it lies, in bytes.
    pub position: u64,
    /// BLAKE3 of it as it is stored.
    pub stored_hash: Hash,
    /// BLAKE3 of it, unpacked.
    pub hash: Hash,
}

/// Why bytes are not a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum BadTable {
    /// It does not begin as a table does, or is one of another version.
    Magic,
    /// Its size does not fit the number of chunks, or there are too many or none.
    Size,
    /// The header contradicts the entries or itself.
    Header,
    /// This entry overlaps another, is too large, or lies outside of the image.
    Entry(u32),
}

impl fmt::Display for BadTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("this is no chunk table of a version known here"),
            Self::Size => f.write_str("the chunk table has the wrong size"),
            Self::Header => f.write_str("the chunk table's header is wrong"),
            Self::Entry(i) => write!(f, "chunk {i} of the table is impossible"),
        }
    }
}

impl core::error::Error for BadTable {}

/// A table whose every entry was checked.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    header: Header,
    entries: &'a [[u8; ENTRY]],
}

/// Not every chunk: there may be thousands.
#[cfg(feature = "defmt")]
impl defmt::Format for Table<'_> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Table({}, {} chunks)", self.header, self.entries.len())
    }
}

impl<'a> Table<'a> {
    /// Checks a whole table: after this, chunks lie in ascending order, apart from each other
    /// and inside the image, the first begins at 0 and holds its first block, the
    /// stored ones follow each other without a gap, and all sums are right.
    ///
    /// # Errors
    /// [`BadTable`], the fault of whoever made the table.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadTable> {
        let (head, rest) = bytes.split_first_chunk::<HEADER>().ok_or(BadTable::Size)?;
        let header = Header::decode(head).ok_or(BadTable::Magic)?;
        let (entries, tail) = rest.as_chunks::<ENTRY>();
        if !tail.is_empty()
            || entries.len() != header.chunks as usize
            || !(1..=CHUNKS_MAX).contains(&header.chunks)
        {
            return Err(BadTable::Size);
        }
        let (mut end, mut used, mut stored) = (0, 0_u64, 0_u64);
        for (i, raw) in (0..).zip(entries) {
            let entry = Entry::decode(raw);
            let right = entry.offset >= end
                && (i > 0 || entry.offset == 0)
                && entry.offset.is_multiple_of(BLOCK)
                && u64::from(entry.length).is_multiple_of(BLOCK)
                && (1..=CHUNK_MAX).contains(&entry.length)
                && (1..=entry.length).contains(&entry.stored)
                && entry.position == stored;
            let past = entry.offset.checked_add(u64::from(entry.length));
            let past = past.filter(|p| right && *p <= header.total_bytes);
            end = past.ok_or(BadTable::Entry(i))?;
            used += u64::from(entry.length);
            stored += u64::from(entry.stored);
        }
        let table = Self { header, entries };
        let proof =
            table.iter().any(|e| (e.offset..e.offset + u64::from(e.length)).contains(&header.proof_offset));
        let sums = if header.whole {
            (header.used_bytes, header.stored_bytes) == (used, stored)
        } else {
            header.used_bytes >= used && header.stored_bytes >= stored
        };
        // What is missing lies behind.
        let proof = proof || (!header.whole && (end..header.total_bytes).contains(&header.proof_offset));
        let right =
            proof && sums && header.proof_offset >= BLOCK && header.proof_offset.is_multiple_of(BLOCK);
        if right { Ok(table) } else { Err(BadTable::Header) }
    }

    /// Whether this is a table of the same image, made later: all chunks of `earlier` are in it, and nothing else has
    /// changed.
    #[must_use]
    pub fn continues(&self, earlier: &Self) -> bool {
        let sums = |h: Header| Header { whole: true, chunks: 0, used_bytes: 0, stored_bytes: 0, ..h };
        self.entries.starts_with(earlier.entries) && sums(self.header) == sums(earlier.header)
    }

    /// What is said once.
    #[must_use]
    pub fn header(&self) -> Header {
        self.header
    }

    /// The chunk with this number, from 0.
    #[must_use]
    pub fn entry(&self, index: u32) -> Option<Entry> {
        self.entries.get(index as usize).map(Entry::decode)
    }

    /// All chunks in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Entry> + use<'a> {
        self.entries.iter().map(Entry::decode)
    }
}

/// Takes little-endian fields off the front of an array that is known to be long enough;
/// what is missing reads as 0.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// Puts fields one after another; what does not fit is left out.
struct Bytes<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Bytes<N> {
    fn put(mut self, field: &[u8]) -> Self {
        if let Some(place) = self.bytes.get_mut(self.at..self.at + field.len()) {
            place.copy_from_slice(field);
        }
        self.at += field.len();
        self
    }
}

impl Header {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER] {
        let (magic, scope) = self.scope.encode(self.whole);
        Bytes { bytes: [0; HEADER], at: 0 }
            .put(&magic)
            .put(&self.chunks.to_le_bytes())
            .put(&scope)
            .put(&self.total_bytes.to_le_bytes())
            .put(&self.used_bytes.to_le_bytes())
            .put(&self.stored_bytes.to_le_bytes())
            .put(&self.archive.0)
            .put(&self.proof_offset.to_le_bytes())
            .put(&self.entries.to_le_bytes())
            .bytes
    }

    /// Reads a header alone, for whoever wants to know what an image is; `None` if it is no header of a table.
    /// Only [`Table::parse`] checks it against the entries.
    #[must_use]
    pub fn decode(bytes: &[u8; HEADER]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let magic = fields.take();
        let chunks = fields.u32();
        let (scope, whole) = Scope::decode(magic, fields.take())?;
        Some(Self {
            scope,
            whole,
            chunks,
            total_bytes: fields.u64(),
            used_bytes: fields.u64(),
            stored_bytes: fields.u64(),
            archive: Hash(fields.take()),
            proof_offset: fields.u64(),
            entries: fields.u64(),
        })
    }
}

/// Which table has more chunks of an image that is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Next {
    /// BLAKE3 of that table, its id.
    pub table: Hash,
    /// Its size, in bytes.
    pub table_bytes: u32,
}

impl Next {
    /// The size of this, in bytes.
    pub const BYTES: usize = 36;

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        Bytes { bytes: [0; Self::BYTES], at: 0 }.put(&self.table.0).put(&self.table_bytes.to_le_bytes()).bytes
    }

    /// Reads it.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Self {
        let mut fields = Fields(bytes);
        Self { table: Hash(fields.take()), table_bytes: fields.u32() }
    }
}

impl Entry {
    /// The entry's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ENTRY] {
        Bytes { bytes: [0; ENTRY], at: 0 }
            .put(&self.offset.to_le_bytes())
            .put(&self.length.to_le_bytes())
            .put(&self.stored.to_le_bytes())
            .put(&self.position.to_le_bytes())
            .put(&self.stored_hash.0)
            .put(&self.hash.0)
            .bytes
    }

    fn decode(bytes: &[u8; ENTRY]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            offset: fields.u64(),
            length: fields.u32(),
            stored: fields.u32(),
            position: fields.u64(),
            stored_hash: Hash(fields.take()),
            hash: Hash(fields.take()),
        }
    }
}

#[cfg(test)]
mod tests;
