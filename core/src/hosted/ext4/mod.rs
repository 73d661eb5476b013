//! ext4 filesystems made without mounting: the places that must really be
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

use mkext4::spec::{self, JOURNAL_INO};
use mkext4::{FsBuilder, InodeCount, Options, RegionSink, csum};

use crate::install::geometry::{BLOCK, DESCRIPTOR, GROUP, Geometry, INODE_SIZE, SizeError, backups};

/// What mkext4 is told to make a filesystem of so many bytes with so many inodes and a journal of so many blocks, with
/// a fresh random UUID. `now` is the time of its making, in seconds since 1970; what 32 bits cannot hold is cut to
/// them.
///
/// # Errors
/// If the system has no random numbers, or a number has more than 32 bits.
pub fn options(bytes: u64, inodes: u64, journal: u64, now: i64) -> io::Result<Options> {
    let epoch = now.clamp(0, u32::MAX.into());
    let mut options = Options::new(bytes, random_uuid()?, epoch);
    options.inodes = InodeCount::Exact(u32::try_from(inodes).map_err(io::Error::other)?);
    options.journal_blocks = Some(u32::try_from(journal).map_err(io::Error::other)?);
    Ok(options)
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
/// was interrupted is no filesystem. `entries` will be in it, 0 if unknown; `now` as in [`options`]; `label` is cut to 16 bytes.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] with a [`SizeError`] if the room does not do; else what the
/// disk says.
pub fn format(disk: &File, offset: u64, room: u64, entries: u64, label: &str, now: i64) -> io::Result<u64> {
    let invalid = |e: SizeError| io::Error::new(io::ErrorKind::InvalidInput, e);
    let shape = Geometry::new(room, entries).map_err(invalid)?;
    let mut options = options(shape.bytes(), shape.inodes(), shape.journal(), now)?;
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
    fn every_filesystem_has_its_own_uuid() {
        let [a, b] = [0, 0].map(|now| options(1 << 30, 65_536, 4096, now).unwrap());
        assert_ne!(a.fs_uuid, b.fs_uuid);
        assert_eq!((a.fs_uuid[6] >> 4, a.fs_uuid[8] >> 6), (4, 2));
    }
}
