//! Where everything has its place in a filesystem that can grow, by its superblock.

use super::bytes::{Block, crc32c, get, le16, le32, put16, put32};
use super::{BLOCK_BYTES, Refusal};
use crate::install::geometry::{
    BLOCK, DESCRIPTOR, FLEX, GROUP, INODE_SIZE, INODES_PER_BLOCK, LAST_GROUP_MIN,
};

/// Where the superblock begins in the first block; a copy begins with its block.
pub(super) const PRIMARY: usize = 1024;
const BYTES: usize = 1024;
/// Places of its fields, in bytes.
mod field {
    pub(super) const INODES: usize = 0x00;
    pub(super) const BLOCKS: usize = 0x04;
    pub(super) const RESERVED: usize = 0x08;
    pub(super) const FREE_BLOCKS: usize = 0x0c;
    pub(super) const FREE_INODES: usize = 0x10;
    pub(super) const FIRST_BLOCK: usize = 0x14;
    pub(super) const LOG_BLOCK: usize = 0x18;
    pub(super) const PER_GROUP: usize = 0x20;
    pub(super) const CLUSTERS_PER_GROUP: usize = 0x24;
    pub(super) const INODES_PER_GROUP: usize = 0x28;
    pub(super) const MAGIC: usize = 0x38;
    pub(super) const INODE_SIZE: usize = 0x58;
    pub(super) const GROUP_NUMBER: usize = 0x5a;
    pub(super) const COMPAT: usize = 0x5c;
    pub(super) const INCOMPAT: usize = 0x60;
    pub(super) const RO_COMPAT: usize = 0x64;
    pub(super) const UUID: usize = 0x68;
    pub(super) const RESERVED_DESCRIPTORS: usize = 0xce;
    pub(super) const LOG_FLEX: usize = 0x174;
    pub(super) const CHECKSUM_TYPE: usize = 0x175;
    pub(super) const OVERHEAD: usize = 0x248;
    pub(super) const SEED: usize = 0x270;
    pub(super) const CHECKSUM: usize = 0x3fc;
}
const MAGIC: u16 = 0xef53;
/// Copies of the superblock in two groups of choice.
const SPARSE_SUPER2: u32 = 0x200;
/// There are reserved blocks for descriptors, and inode 7 names them.
const RESIZE_INODE: u32 = 0x10;
/// The seed of all checksums is in the superblock.
const CSUM_SEED: u32 = 0x2000;
/// File types, extents, flexible groups, the seed.
const INCOMPAT_KNOWN: u32 = 0x2 | 0x40 | FLEX_BG | CSUM_SEED;
const FLEX_BG: u32 = 0x200;
const SPARSE_SUPER: u32 = 0x1;
const METADATA_CSUM: u32 = 0x400;
/// Allocation in clusters.
const BIGALLOC: u32 = 0x200;
/// The part of all blocks that is reserved for the superuser, as mke2fs has it.
const RESERVED_PERCENT: u64 = 5;

/// What is the same at every size of one filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Frame {
    inodes_per_group: u64,
    /// Blocks after each superblock for descriptors, used and reserved.
    area: u64,
}

impl Frame {
    /// The frame with so many inodes in each group (a multiple of 16) and so many blocks for descriptors after each
    /// superblock; `None` if it would leave no room in a group.
    #[must_use]
    pub fn new(inodes_per_group: u64, area: u64) -> Option<Self> {
        let right = inodes_per_group.is_multiple_of(INODES_PER_BLOCK)
            && (INODES_PER_BLOCK..=GROUP).contains(&inodes_per_group)
            // As many as the superblock can name: the descriptors of 2^32 blocks.
            && (1..=BLOCK / 4).contains(&area);
        let frame = Self { inodes_per_group, area };
        (right && frame.base(0) + frame.flex() + LAST_GROUP_MIN <= GROUP).then_some(frame)
    }

    /// The largest filesystem, in blocks.
    #[must_use]
    pub fn blocks_max(&self) -> u64 {
        (self.area * per_descriptor_block() * GROUP).min(u64::from(u32::MAX) / GROUP * GROUP)
    }

    /// Blocks of one inode table.
    pub(super) fn table(&self) -> u64 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    pub(super) fn inodes_per_group(&self) -> u64 {
        self.inodes_per_group
    }

    /// Blocks that a whole flexible group has bitmaps and inode tables in.
    fn flex(&self) -> u64 {
        FLEX * (2 + self.table())
    }

    /// How many blocks a group begins with that are superblock, descriptors or reserved for descriptors.
    fn base(&self, group: u64) -> u64 {
        if has_superblock(group) { 1 + self.area } else { 0 }
    }

    /// The first block of a group.
    pub(super) fn start(&self, group: u64) -> u64 {
        group * GROUP
    }

    /// Where the block bitmap of a group is.
    pub(super) fn block_bitmap(&self, group: u64) -> u64 {
        let leader = leader(group);
        leader * GROUP + self.base(leader) + group % FLEX
    }

    pub(super) fn inode_bitmap(&self, group: u64) -> u64 {
        self.block_bitmap(group) + FLEX
    }

    pub(super) fn inode_table(&self, group: u64) -> u64 {
        let leader = leader(group);
        leader * GROUP + self.base(leader) + 2 * FLEX + group % FLEX * self.table()
    }

    /// The first block from this one on that holds files or directories or nothing.
    #[must_use]
    pub fn next_for_files(&self, block: u64) -> u64 {
        let group = block / GROUP;
        let fixed = self.base(group) + if is_leader(group) { self.flex() } else { 0 };
        group * GROUP + (block % GROUP).max(fixed)
    }

    /// The size that a filesystem gets in a room of so many blocks: a last group that is too short for its own
    /// metadata and a few files is left out.
    #[must_use]
    pub fn fit(&self, room_blocks: u64) -> u64 {
        let blocks = room_blocks.min(self.blocks_max());
        let last = blocks % GROUP;
        if blocks > GROUP && last > 0 && last < self.last_group_min(blocks / GROUP) {
            return blocks - last;
        }
        blocks
    }

    /// The smallest size from so many blocks on that [`fit`](Self::fit) leaves as it is.
    #[must_use]
    pub fn fit_up(&self, blocks: u64) -> u64 {
        let (group, last) = (blocks / GROUP, blocks % GROUP);
        if last == 0 { blocks } else { group * GROUP + last.max(self.last_group_min(group)) }
    }

    fn last_group_min(&self, group: u64) -> u64 {
        self.base(group) + 2 * FLEX + self.table() + LAST_GROUP_MIN
    }

    /// The filesystem in this frame with so many blocks.
    #[must_use]
    pub fn with_blocks(self, blocks: u64) -> Shape {
        Shape { frame: self, blocks }
    }
}

/// The group in whose blocks the bitmaps and inode tables of this one are.
pub(super) fn leader(group: u64) -> u64 {
    group / FLEX * FLEX
}

pub(super) fn is_leader(group: u64) -> bool {
    leader(group) == group
}

/// Whether a group begins with a superblock: 0, 1 and the powers of 3, 5 and 7.
fn has_superblock(group: u64) -> bool {
    let is_power = |base: u64| {
        let mut rest = group;
        while rest > 1 && rest.is_multiple_of(base) {
            rest /= base;
        }
        rest <= 1
    };
    [3, 5, 7].into_iter().any(is_power)
}

/// Descriptors of one block.
pub(super) const fn per_descriptor_block() -> u64 {
    BLOCK / DESCRIPTOR as u64
}

/// A filesystem of a certain size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Shape {
    pub(super) frame: Frame,
    blocks: u64,
}

impl Shape {
    /// Its size, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks * BLOCK
    }

    /// Its size, in blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// How many groups it has; the last one may be short.
    #[must_use]
    pub fn groups(&self) -> u64 {
        self.blocks.div_ceil(GROUP)
    }

    /// Its inodes.
    #[must_use]
    pub fn inodes(&self) -> u64 {
        self.groups() * self.frame.inodes_per_group
    }

    pub(super) fn last_group(&self) -> u64 {
        self.groups().saturating_sub(1)
    }

    /// Blocks of a group.
    pub(super) fn blocks_in(&self, group: u64) -> u64 {
        self.blocks.saturating_sub(group * GROUP).min(GROUP)
    }

    /// Blocks of descriptors that are in use.
    #[must_use]
    pub fn descriptor_blocks(&self) -> u64 {
        self.groups().div_ceil(per_descriptor_block())
    }

    pub(super) fn reserved_descriptors(&self) -> u64 {
        self.frame.area.saturating_sub(self.descriptor_blocks())
    }

    /// The groups whose bitmaps and inode tables are in this one's blocks; none if it does not lead.
    pub(super) fn members(&self, group: u64) -> core::ops::Range<u64> {
        let end = if is_leader(group) { (group + FLEX).min(self.groups()) } else { group };
        group..end
    }

    /// The blocks of an empty group that are used, from its beginning, in a bitmap that is all zeros.
    pub(super) fn mark_metadata(&self, group: u64, bits: &mut Block) {
        super::bytes::fill(bits, 0, self.frame.base(group), true);
        self.mark_members(group, bits);
    }

    /// Those of the groups that it leads, also in a bitmap of another size.
    pub(super) fn mark_members(&self, group: u64, bits: &mut Block) {
        if !is_leader(group) {
            return;
        }
        let frame = &self.frame;
        for member in group..group + FLEX {
            let is_there = member < self.groups();
            for (at, length) in [
                (frame.block_bitmap(member), 1),
                (frame.inode_bitmap(member), 1),
                (frame.inode_table(member), frame.table()),
            ] {
                let at = at - group * GROUP;
                super::bytes::fill(bits, at, at + length, is_there);
            }
        }
    }

    /// How many blocks of an empty group are free.
    pub(super) fn free_in_empty(&self, group: u64) -> u64 {
        let members = self.members(group);
        let used = self.frame.base(group) + (members.end - members.start) * (2 + self.frame.table());
        self.blocks_in(group).saturating_sub(used)
    }

    /// The groups with a copy of the superblock, in their order.
    pub(super) fn backups(&self) -> impl Iterator<Item = u64> + use<> {
        (1..self.groups()).filter(|group| has_superblock(*group))
    }

    /// Blocks that never hold files, but for the journal.
    pub(super) fn fixed(&self) -> u64 {
        let supers = 1 + self.backups().count() as u64;
        supers * (1 + self.frame.area) + self.groups() * (2 + self.frame.table())
    }

    /// Whether the image of this filesystem has to hold this block of metadata. What growth writes in any case is left
    /// out: copies of the superblock and the descriptors, what is reserved, and what belongs to no group.
    #[must_use]
    pub fn is_kept(&self, block: u64) -> bool {
        let (group, at) = (block / GROUP, block % GROUP);
        if block >= self.blocks {
            return false;
        }
        if at < self.frame.base(group) {
            return group == 0 && at <= self.descriptor_blocks();
        }
        let place = at - self.frame.base(group);
        !is_leader(group) || place >= 2 * FLEX || group + place % FLEX < self.groups()
    }
}

/// A superblock that was looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Superblock {
    pub(super) shape: Shape,
    pub(super) free_blocks: u64,
    free_inodes: u64,
    overhead: u64,
    pub(super) seed: u32,
}

impl Superblock {
    /// Looks at the superblock in the first block of a filesystem.
    pub(super) fn read(first: &Block) -> Result<Self, Refusal> {
        let sb: [u8; BYTES] = get(first, PRIMARY);
        let wrong = Err(Refusal::Superblock);
        let (compat, incompat, ro) =
            (le32(&sb, field::COMPAT), le32(&sb, field::INCOMPAT), le32(&sb, field::RO_COMPAT));
        let group = GROUP as u32;
        if le16(&sb, field::MAGIC) != MAGIC
            || checksum(&sb) != le32(&sb, field::CHECKSUM)
            || get(&sb, field::CHECKSUM_TYPE) != [1]
            || incompat & !INCOMPAT_KNOWN != 0
            || incompat & FLEX_BG == 0
            || ro & (SPARSE_SUPER | METADATA_CSUM | BIGALLOC) != SPARSE_SUPER | METADATA_CSUM
            || compat & SPARSE_SUPER2 != 0
            || le32(&sb, field::FIRST_BLOCK) != 0
            || le32(&sb, field::LOG_BLOCK) != 2
            || [field::PER_GROUP, field::CLUSTERS_PER_GROUP].iter().any(|at| le32(&sb, *at) != group)
            || u64::from(le16(&sb, field::INODE_SIZE)) != INODE_SIZE
            || get(&sb, field::LOG_FLEX) != [FLEX.ilog2() as u8]
        {
            return wrong;
        }
        let number = |at| u64::from(le32(&sb, at));
        let reserved = u64::from(le16(&sb, field::RESERVED_DESCRIPTORS));
        let blocks = number(field::BLOCKS);
        let area = blocks.div_ceil(GROUP).div_ceil(per_descriptor_block()) + reserved;
        let Some(frame) = Frame::new(number(field::INODES_PER_GROUP), area) else { return wrong };
        let shape = frame.with_blocks(blocks);
        let (free_blocks, free_inodes) = (number(field::FREE_BLOCKS), number(field::FREE_INODES));
        let inodes = shape.inodes();
        if blocks == 0
            || frame.fit(blocks) != blocks
            || number(field::INODES) != inodes
            || free_inodes > inodes
            || free_blocks > blocks
        {
            return wrong;
        }
        let uuid: [u8; 16] = get(&sb, field::UUID);
        let seed = if incompat & CSUM_SEED != 0 { le32(&sb, field::SEED) } else { crc32c(u32::MAX, &uuid) };
        Ok(Self { shape, free_blocks, free_inodes, overhead: number(field::OVERHEAD), seed })
    }

    /// Makes the first block that of the grown filesystem. Gives `None` if the numbers that were there cannot be.
    pub(super) fn write(&self, to: &Shape, free_blocks: u64, first: &mut Block) -> Option<()> {
        let from = &self.shape;
        let inodes = to.inodes();
        let used_inodes = from.inodes().checked_sub(self.free_inodes)?;
        // What is neither the metadata of groups nor the copies of descriptors is the journal.
        let journal = self.overhead.checked_sub(from.fixed())?;
        let mut sb: [u8; BYTES] = get(first, PRIMARY);
        put32(&mut sb, field::INODES, inodes);
        put32(&mut sb, field::BLOCKS, to.blocks);
        put32(&mut sb, field::RESERVED, to.blocks * RESERVED_PERCENT / 100);
        put32(&mut sb, field::FREE_BLOCKS, free_blocks);
        put32(&mut sb, field::FREE_INODES, inodes.checked_sub(used_inodes)?);
        put32(&mut sb, field::OVERHEAD, to.fixed() + journal);
        put16(&mut sb, field::RESERVED_DESCRIPTORS, to.reserved_descriptors());
        let compat = u64::from(le32(&sb, field::COMPAT) | RESIZE_INODE);
        put32(&mut sb, field::COMPAT, compat);
        let sum = checksum(&sb);
        put32(&mut sb, field::CHECKSUM, sum.into());
        super::bytes::put(first, PRIMARY, sb);
        Some(())
    }
}

/// The block of a copy of the superblock, for a group.
pub(super) fn copy_for(first: &Block, group: u64) -> Block {
    let mut sb: [u8; BYTES] = get(first, PRIMARY);
    put16(&mut sb, field::GROUP_NUMBER, group);
    let sum = checksum(&sb);
    put32(&mut sb, field::CHECKSUM, sum.into());
    let mut block = [0; BLOCK_BYTES];
    super::bytes::put(&mut block, 0, sb);
    block
}

fn checksum(sb: &[u8; BYTES]) -> u32 {
    crc32c(u32::MAX, sb.get(..field::CHECKSUM).unwrap_or_default())
}
