//! The blocks that are reserved for descriptors, so that a filesystem can grow further while it is mounted; and inode
//! 7, which names them. As mke2fs makes them.

use super::bytes::{Block, crc32c, get, le32, put, put16, put32};
use super::shape::Shape;
use super::{BLOCK_BYTES, Disk, Failure, Refusal};
use crate::install::geometry::{BLOCK, INODE_SIZE};

const NUMBER: u32 = 7;
/// The size of an inode, in bytes.
const BYTES: usize = INODE_SIZE as usize;
/// Where it is in the block with the first inodes.
const PLACE: usize = (NUMBER as usize - 1) * BYTES;
/// Places of its fields, in bytes.
mod field {
    pub(super) const MODE: usize = 0x00;
    pub(super) const SIZE: usize = 0x04;
    pub(super) const LINKS: usize = 0x1a;
    pub(super) const SECTORS: usize = 0x1c;
    pub(super) const BLOCKS: usize = 0x28;
    pub(super) const GENERATION: usize = 0x64;
    pub(super) const SIZE_HIGH: usize = 0x6c;
    pub(super) const CHECKSUM: usize = 0x7c;
    pub(super) const EXTRA_SIZE: usize = 0x80;
}
/// A regular file that only root reads and writes.
const MODE: u64 = 0o100_600;
/// Blocks that a file names directly.
const DIRECT: u64 = 12;
/// Block numbers of a block of them.
const PER_BLOCK: u64 = BLOCK / 4;
/// Which of the 15 block numbers of an inode is that of the block of blocks of blocks.
const DOUBLE: usize = 13;

/// Writes what is reserved and inode 7. `spare` is the block of blocks, if inode 7 does not name it yet.
pub(super) fn write<D: Disk>(
    seed: u32,
    to: &Shape,
    spare: Option<u64>,
    disk: &mut D,
) -> Result<(), Failure<D::Error>> {
    let table = to.frame.inode_table(0);
    let mut block = [0; BLOCK_BYTES];
    disk.read(table, &mut block).map_err(Failure::Disk)?;
    let mut inode: [u8; BYTES] = get(&block, PLACE);
    let named = |number: usize| u64::from(le32(&inode, field::BLOCKS + 4 * number));
    let is_only = (0..15).all(|number| number == DOUBLE || named(number) == 0);
    let double = spare.unwrap_or_else(|| named(DOUBLE));
    if !is_only || double == 0 || double >= to.blocks() || get(&inode, field::EXTRA_SIZE) != [0; 2] {
        return Err(Refusal::Reserve.into());
    }
    let first = 1 + to.descriptor_blocks();
    let reserved = first..first + to.reserved_descriptors();

    // Each names its counterparts in the groups with copies.
    let mut names: Block = [0; BLOCK_BYTES];
    for reserved in reserved.clone() {
        for (group, name) in to.backups().zip(names.as_chunks_mut::<4>().0) {
            put32(name, 0, to.frame.start(group) + reserved);
        }
        disk.write(reserved, &names).map_err(Failure::Disk)?;
    }
    names.fill(0);
    for reserved in reserved.clone() {
        // As if the first block after the superblock were number 0.
        put32(&mut names, 4 * (reserved as usize - 1), reserved);
    }
    disk.write(double, &names).map_err(Failure::Disk)?;

    let blocks = 1 + (reserved.end - reserved.start) * (1 + to.backups().count() as u64);
    let size = (PER_BLOCK * PER_BLOCK + PER_BLOCK + DIRECT) * BLOCK;
    put16(&mut inode, field::MODE, MODE);
    put16(&mut inode, field::LINKS, 1);
    put32(&mut inode, field::SIZE, size & u64::from(u32::MAX));
    put32(&mut inode, field::SIZE_HIGH, size >> 32);
    put32(&mut inode, field::SECTORS, blocks * (BLOCK / 512));
    put32(&mut inode, field::BLOCKS + 4 * DOUBLE, double);
    put16(&mut inode, field::CHECKSUM, 0);
    let sum = crc32c(seed, &NUMBER.to_le_bytes());
    let sum = crc32c(sum, &get::<4>(&inode, field::GENERATION));
    let sum = crc32c(sum, &inode) & 0xffff;
    put16(&mut inode, field::CHECKSUM, sum.into());
    put(&mut block, PLACE, inode);
    disk.write(table, &block).map_err(Failure::Disk)
}
