//! ext4 filesystems made without mounting: their shape, the places that must really be
//! written on a card that holds garbage, and empty ones.
//!
//! What is left as it was on the card: free space, and the inode tables' unused parts. The
//! latter are marked as not zeroed, as mke2fs does with `lazy_itable_init`: the kernel zeroes
//! them in the background after the first mount, and e2fsck does not look at them. The
//! journal is always written in full, as zeros: a stale one must never be replayed.

pub mod reader;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::prelude::rust_2024::*;

use mkext4::spec::{self, BLOCK_SIZE, BLOCKS_PER_GROUP, JOURNAL_INO};
use mkext4::{FsBuilder, InodeCount, Options, RegionSink, csum};

/// The size of a block, in bytes.
pub const BLOCK: u64 = BLOCK_SIZE as u64;

/// The largest journal, in blocks (16 MiB): all of it has to be written.
const JOURNAL_MAX: u32 = 4096;
const INODE_SIZE: u64 = 256;
const INODES_PER_BLOCK: u64 = BLOCK / INODE_SIZE;
const DESCRIPTOR: usize = 32;
/// Groups whose bitmaps and inode tables lie together.
const FLEX: u64 = 16;
const GROUP: u64 = BLOCKS_PER_GROUP as u64;
/// Blocks that a short last group must have beside its own metadata, as mke2fs has it.
const LAST_GROUP_MIN: u64 = 50;
/// mkext4 makes no journal below this.
const BLOCKS_MIN: u64 = 4096;

/// How large a filesystem is and how many inodes it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Its size, in blocks.
    blocks: u64,
    inodes_per_group: u64,
}

/// Why no filesystem can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SizeError {
    /// The room is smaller than the smallest filesystem, which has so many bytes.
    TooSmall {
        /// In bytes.
        needed: u64,
    },
    /// The room is larger than a filesystem of 32-bit block numbers (16 TiB).
    TooLarge,
    /// So many entries have no place in a filesystem of this size.
    TooManyEntries,
}

impl std::fmt::Display for SizeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooSmall { needed } => {
                write!(f, "too small for a filesystem: {needed} bytes are needed at least")
            }
            Self::TooLarge => f.write_str("too large: this filesystem ends at 16 TiB"),
            Self::TooManyEntries => f.write_str("more entries than a filesystem of this size can hold"),
        }
    }
}

impl std::error::Error for SizeError {}

impl Geometry {
    /// The filesystem for a room of `room` bytes with `entries` entries in it (0 if unknown):
    /// as many inodes as mke2fs would make, and always a quarter more than the entries. A last
    /// group that is too short for its own metadata is left out, so the filesystem may be
    /// a little smaller than the room.
    ///
    /// # Errors
    /// [`SizeError`] if no filesystem of that size can be made.
    pub fn new(room: u64, entries: u64) -> Result<Self, SizeError> {
        let blocks = room / BLOCK;
        if blocks < BLOCKS_MIN {
            return Err(SizeError::TooSmall { needed: BLOCKS_MIN * BLOCK });
        }
        if blocks >= u64::from(u32::MAX) {
            return Err(SizeError::TooLarge);
        }
        let shape = Self::of_blocks(blocks, entries)?;
        let last = blocks % GROUP;
        if blocks < GROUP || last == 0 || last >= 3 + shape.gdt_blocks() + shape.table() + LAST_GROUP_MIN {
            return Ok(shape);
        }
        Self::of_blocks(blocks - last, entries)
    }

    fn of_blocks(blocks: u64, entries: u64) -> Result<Self, SizeError> {
        let groups = blocks.div_ceil(GROUP);
        // mke2fs.conf: filesystems below 512 MiB are "small".
        let ratio = if blocks * BLOCK < 512 << 20 { 4096 } else { 16_384 };
        let tight = entries.saturating_add(64);
        let generous = (blocks * BLOCK / ratio).max(tight.saturating_add(entries / 4));
        // A number that is next to the largest one has no multiple above it.
        let mut shapes = [generous, tight].into_iter().filter_map(|inodes| {
            let inodes_per_group = inodes.div_ceil(groups).checked_next_multiple_of(INODES_PER_BLOCK)?;
            Some(Self { blocks, inodes_per_group })
        });
        // The tables of a flex group must end before the backup superblock of its second group.
        shapes
            .find(|shape| {
                let flex = groups.min(FLEX) * (shape.table() + 2) + 1 + shape.gdt_blocks();
                flex <= GROUP.min(blocks) && shape.inodes_per_group <= GROUP
            })
            .ok_or(SizeError::TooManyEntries)
    }

    /// Its size, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks * BLOCK
    }

    fn groups(&self) -> u64 {
        self.blocks.div_ceil(GROUP)
    }

    /// Blocks of one inode table.
    fn table(&self) -> u64 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    fn gdt_blocks(&self) -> u64 {
        (self.groups() * DESCRIPTOR as u64).div_ceil(BLOCK)
    }

    fn journal(&self) -> u64 {
        let default = if self.blocks < GROUP { 1024 } else { JOURNAL_MAX };
        u64::from(default)
    }

    /// Blocks that hold neither files nor directories.
    #[must_use]
    pub fn overhead(&self) -> u64 {
        let supers = 1 + backups(self.groups()).count() as u64;
        supers * (1 + self.gdt_blocks()) + self.groups() * (2 + self.table()) + self.journal()
    }

    /// Blocks for files and directories.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.blocks.saturating_sub(self.overhead())
    }

    /// What mkext4 is told, with a fresh random UUID. `now` is the time of its making, in
    /// seconds since 1970; what 32 bits cannot hold is cut to them.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn options(&self, now: i64) -> io::Result<Options> {
        let epoch = now.clamp(0, u32::MAX.into());
        let mut options = Options::new(self.bytes(), random_uuid()?, epoch);
        let inodes = u32::try_from(self.inodes_per_group * self.groups());
        options.inodes = InodeCount::Exact(inodes.map_err(io::Error::other)?);
        options.journal_blocks = Some(u32::try_from(self.journal()).map_err(io::Error::other)?);
        Ok(options)
    }
}

/// A version 4 UUID.
fn random_uuid() -> io::Result<[u8; 16]> {
    let mut uuid = [0; 16];
    let n = rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty())?;
    if n != uuid.len() {
        return Err(io::Error::other("the system has too few random numbers"));
    }
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

/// The groups that hold a copy of the superblock: 1 and the powers of 3, 5 and 7.
fn backups(groups: u64) -> impl Iterator<Item = u64> {
    let powers = |base: u64| std::iter::successors(Some(base), move |g| g.checked_mul(base));
    let powers = move |base| powers(base).take_while(move |g| *g < groups);
    std::iter::once(1).filter(move |g| *g < groups).chain(powers(3)).chain(powers(5)).chain(powers(7))
}

/// Passes on to another sink only what must be written on a disk that holds garbage: every
/// byte of data, the rest of a file's last block, and the whole journal. Marks the inode
/// tables as not zeroed on the way.
#[derive(Debug)]
pub struct SparseSink<S> {
    inner: S,
    seed: u32,
    groups: u64,
    /// Where the first inode table begins, in bytes; 0 until it is known.
    table: u64,
    /// Where the journal lies, in bytes: beginning and end; empty until it is known.
    journal: Vec<(u64, u64)>,
}

impl<S: RegionSink> SparseSink<S> {
    /// A filter before `inner`, for one filesystem.
    pub fn new(inner: S) -> Self {
        Self { inner, seed: 0, groups: 0, table: 0, journal: Vec::new() }
    }

    /// The sink behind it.
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// Whether group descriptors begin at this byte.
    fn has_descriptors(&self, offset: u64) -> bool {
        let block = offset / BLOCK;
        offset == BLOCK || (block % GROUP == 1 && backups(self.groups).any(|g| g == block / GROUP))
    }

    fn learn_superblock(&mut self, block: &[u8]) -> io::Result<()> {
        let bytes = block.get(1024..2048).ok_or_else(unexpected)?;
        let superblock = spec::Superblock::decode(bytes).map_err(io::Error::other)?;
        if superblock.desc_size() != DESCRIPTOR {
            return Err(unexpected());
        }
        self.seed = csum::fs_seed(&superblock.uuid);
        self.groups = superblock.group_count();
        Ok(())
    }

    /// Inode 8 is in the first block of the first inode table.
    fn learn_journal(&mut self, table: &[u8]) -> io::Result<()> {
        let raw = table.chunks_exact(INODE_SIZE as usize).nth(JOURNAL_INO as usize - 1);
        let inode = spec::Inode::decode(raw.ok_or_else(unexpected)?).map_err(io::Error::other)?;
        let root = inode.extent_root().ok_or_else(unexpected)?;
        let header = spec::ExtentHeader::decode(root).map_err(io::Error::other)?;
        if header.depth != 0 || header.entries > 4 {
            return Err(unexpected());
        }
        let entries = (0..usize::from(header.entries)).map(|i| spec::extent::entry(root, i));
        let runs = entries.map(spec::Extent::decode).map(|e| (e.start, e.start + u64::from(e.len())));
        self.journal = runs.map(|(start, end)| (start * BLOCK, end * BLOCK)).collect();
        let bytes: u64 = self.journal.iter().map(|(start, end)| end - start).sum();
        if bytes == inode.size && bytes > 0 { Ok(()) } else { Err(unexpected()) }
    }

    /// The descriptors with their inode tables marked as not zeroed.
    fn unzeroed(&self, descriptors: &[u8]) -> Vec<u8> {
        let mut bytes = descriptors.to_vec();
        for (group, raw) in (0_u32..).zip(bytes.as_chunks_mut::<DESCRIPTOR>().0) {
            if u64::from(group) >= self.groups {
                break;
            }
            let [lo, hi] = spec::bg_flags::INODE_ZEROED.to_le_bytes();
            raw[0x12] &= !lo;
            raw[0x13] &= !hi;
            let [lo, hi] = csum::group_desc(self.seed, group, raw).to_le_bytes();
            raw[0x1e] = lo;
            raw[0x1f] = hi;
        }
        bytes
    }
}

fn unexpected() -> io::Error {
    io::Error::other("the filesystem builder lays things out in an unknown way")
}

impl<S: RegionSink> RegionSink for SparseSink<S> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if offset == 0 {
            self.learn_superblock(bytes)?;
        } else if self.has_descriptors(offset) {
            if self.table == 0 {
                let raw = bytes.get(..DESCRIPTOR).ok_or_else(unexpected)?;
                let first = spec::GroupDesc::decode(raw).map_err(io::Error::other)?;
                self.table = first.inode_table * BLOCK;
            }
            return self.inner.data(offset, &self.unzeroed(bytes));
        } else if offset == self.table {
            self.learn_journal(bytes)?;
        }
        self.inner.data(offset, bytes)
    }

    fn zeros(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset + len;
        // A file's last block must be written to its end.
        let padding = offset.next_multiple_of(BLOCK).min(end) - offset;
        if padding > 0 {
            self.inner.zeros(offset, padding)?;
        }
        if padding < len && self.journal.is_empty() {
            // Before the journal is known there can only be the unused part of the first table.
            let table_end = self.table > 0 && offset + padding > self.table;
            return if table_end { Err(unexpected()) } else { Ok(()) };
        }
        for (from, to) in &self.journal {
            let (from, to) = ((*from).max(offset + padding), (*to).min(end));
            if from < to {
                self.inner.zeros(from, to - from)?;
            }
        }
        Ok(())
    }
}

/// Writes to a disk, `offset` bytes from its start; block 0 is kept back.
struct Partition<'a> {
    disk: &'a File,
    offset: u64,
    first: Vec<u8>,
}

impl RegionSink for Partition<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if offset == 0 {
            self.first = bytes.to_vec();
            return Ok(());
        }
        self.disk.write_all_at(bytes, self.offset + offset)
    }

    fn zeros(&mut self, offset: u64, len: u64) -> io::Result<()> {
        // Not a static: its zeros would be 64 KiB of the program's file.
        let zeros = vec![0; 64 << 10];
        let mut at = offset;
        while at < offset + len {
            let n = (offset + len - at).min(zeros.len() as u64);
            // n is at most the length of the zeros.
            self.disk.write_all_at(zeros.get(..n as usize).unwrap_or_default(), self.offset + at)?;
            at += n;
        }
        Ok(())
    }
}

/// Makes an empty filesystem in the `room` bytes of `disk` that begin at `offset`, brings it
/// to the medium, and returns its size in bytes. Its first block is written last, so what
/// was interrupted is no filesystem. `entries` will be in it, 0 if unknown; `now` as in [`Geometry::options`]; `label` is cut to 16 bytes.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] with a [`SizeError`] if the room does not do; else what the
/// disk says.
pub fn format(disk: &File, offset: u64, room: u64, entries: u64, label: &str, now: i64) -> io::Result<u64> {
    let invalid = |e: SizeError| io::Error::new(io::ErrorKind::InvalidInput, e);
    let shape = Geometry::new(room, entries).map_err(invalid)?;
    let mut options = shape.options(now)?;
    let end = (0..=label.len().min(16)).rev().find(|n| label.is_char_boundary(*n)).unwrap_or(0);
    options.label = label.get(..end).filter(|l| !l.is_empty()).map(str::to_owned);
    let layout = FsBuilder::new(options).and_then(FsBuilder::seal).map_err(io::Error::other)?;
    let mut sink = SparseSink::new(Partition { disk, offset, first: Vec::new() });
    layout.writer(&mut sink).and_then(mkext4::build::ImageWriter::finish).map_err(|e| match e {
        mkext4::Error::Io(e) => e,
        e => io::Error::other(e),
    })?;
    let first = sink.into_inner().first;
    disk.sync_data()?;
    disk.write_all_at(&first, offset)?;
    disk.sync_data()?;
    Ok(shape.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_at_the_edges() {
        assert_eq!(Geometry::new(16 << 20, 0).unwrap().bytes(), 16 << 20);
        assert!(matches!(Geometry::new((16 << 20) - 1, 0), Err(SizeError::TooSmall { .. })));
        assert_eq!(Geometry::new(16 << 40, 0), Err(SizeError::TooLarge));
        for entries in [100_000, u64::MAX / 5 * 4, u64::MAX - 64, u64::MAX] {
            assert_eq!(Geometry::new(128 << 20, entries), Err(SizeError::TooManyEntries), "{entries}");
            assert_eq!(
                Geometry::new(8 << 30, entries.max(1 << 40)),
                Err(SizeError::TooManyEntries),
                "{entries}"
            );
        }
        for groups in [1, 2, 3, 16, 17, 49, 64] {
            let whole = groups * GROUP * BLOCK;
            assert_eq!(Geometry::new(whole, 0).unwrap().bytes(), whole);
            assert_eq!(Geometry::new(whole + BLOCK, 0).unwrap().bytes(), whole);
            assert_eq!(Geometry::new(whole + 4095, 0).unwrap().bytes(), whole);
            let much = whole + 20_000 * BLOCK;
            assert_eq!(Geometry::new(much, 0).unwrap().bytes(), much);
        }
    }

    #[test]
    fn there_is_an_inode_for_every_entry() {
        for (room, entries) in [(128 << 20, 20_000), (1 << 30, 200_000), (4 << 30, 700_000), (64 << 30, 1)] {
            let shape = Geometry::new(room, entries).unwrap();
            assert!(shape.groups() * shape.inodes_per_group >= entries * 5 / 4, "{room} {entries}");
        }
        let tight = Geometry::new(4 << 30, 900_000).unwrap();
        assert!(tight.groups() * tight.inodes_per_group > 900_000);
    }

    #[test]
    fn backups_are_where_sparse_super_has_them() {
        let mut groups: Vec<u64> = backups(512).collect();
        groups.sort_unstable();
        assert_eq!(groups, [1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343]);
        assert_eq!(backups(1).count(), 0);
    }

    #[test]
    fn every_filesystem_has_its_own_uuid() {
        let shape = Geometry::new(1 << 30, 0).unwrap();
        let (a, b) = (shape.options(0).unwrap(), shape.options(0).unwrap());
        assert_ne!(a.fs_uuid, b.fs_uuid);
        assert_eq!((a.fs_uuid[6] >> 4, a.fs_uuid[8] >> 6), (4, 2));
    }
}
