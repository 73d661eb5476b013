//! Bitmaps and descriptors of groups.

use super::bytes::{Block, crc32c, fill, get, le16, le32, put16, put32, zeros};
use super::shape::{Shape, Superblock, is_leader, leader, per_descriptor_block};
use super::{BLOCK_BYTES, Disk, Failure, Refusal};
use crate::install::geometry::{DESCRIPTOR, GROUP};

/// Places of a descriptor's fields, in bytes.
mod field {
    pub(super) const BLOCK_BITMAP: usize = 0x00;
    pub(super) const INODE_BITMAP: usize = 0x04;
    pub(super) const INODE_TABLE: usize = 0x08;
    pub(super) const FREE_BLOCKS: usize = 0x0c;
    pub(super) const FREE_INODES: usize = 0x0e;
    pub(super) const FLAGS: usize = 0x12;
    pub(super) const BLOCK_BITMAP_SUM: usize = 0x18;
    pub(super) const INODES_UNUSED: usize = 0x1c;
    pub(super) const CHECKSUM: usize = 0x1e;
}
/// The inode bitmap is not written: all are free.
const INODE_UNINIT: u64 = 1;
/// The block bitmap is not written: nothing but metadata is used.
const BLOCK_UNINIT: u64 = 2;

/// What is written down of a group's block bitmap.
#[derive(Debug, Clone, Copy, Default)]
struct Bitmap {
    group: u64,
    free: u64,
    sum: u64,
}

/// All groups of a filesystem of another size.
pub(super) struct Groups {
    from: Shape,
    to: Shape,
    seed: u32,
    /// The groups at the edges of the old and the new size, those that lead them, and that of the spare block.
    special: [Option<Bitmap>; 5],
    /// The checksum of the bitmap of a whole empty group that leads 16 others.
    plain_sum: u64,
    /// By how much those that were there have more free blocks than before, and fewer.
    more: u64,
    fewer: u64,
}

impl Groups {
    /// Looks at the bitmaps that have to change, and writes all that are new or change.
    pub(super) fn new<D: Disk>(
        superblock: &Superblock,
        to: Shape,
        spare: Option<u64>,
        disk: &mut D,
    ) -> Result<Self, Failure<D::Error>> {
        let (from, seed) = (superblock.shape, superblock.seed);
        let mut groups = Self { from, to, seed, special: [None; 5], plain_sum: 0, more: 0, fewer: 0 };
        let (old, new) = (from.last_group(), to.last_group());
        let of_spare = spare.map_or(new, |block| block / GROUP);
        for (index, group) in [leader(old), old, leader(new), new, of_spare].into_iter().enumerate() {
            if group >= to.groups() || groups.special(group).is_some() {
                continue;
            }
            let bitmap = groups.change(group, spare, disk)?;
            if let Some(place) = groups.special.get_mut(index) {
                *place = Some(bitmap);
            }
        }
        groups.write_plain(disk)?;
        Ok(groups)
    }

    pub(super) fn from(&self) -> &Shape {
        &self.from
    }

    pub(super) fn to(&self) -> &Shape {
        &self.to
    }

    fn special(&self, group: u64) -> Option<&Bitmap> {
        self.special.iter().flatten().find(|bitmap| bitmap.group == group)
    }

    /// Makes the bitmap of a group what it has to be.
    fn change<D: Disk>(
        &mut self,
        group: u64,
        spare: Option<u64>,
        disk: &mut D,
    ) -> Result<Bitmap, Failure<D::Error>> {
        let (from, to) = (self.from, self.to);
        let mut bits = [0; BLOCK_BYTES];
        let place = to.frame.block_bitmap(group);
        let before = if group < from.groups() {
            let descriptor = self.checked(group, disk)?;
            disk.read(place, &mut bits).map_err(Failure::Disk)?;
            if crc32c(self.seed, &bits) & 0xffff != u32::from(le16(&descriptor, field::BLOCK_BITMAP_SUM)) {
                return Err(Refusal::Group(group).into());
            }
            fill(&mut bits, from.blocks_in(group), to.blocks_in(group), false);
            to.mark_members(group, &mut bits);
            Some(u64::from(le16(&descriptor, field::FREE_BLOCKS)))
        } else {
            to.mark_metadata(group, &mut bits);
            None
        };
        fill(&mut bits, to.blocks_in(group), GROUP, true);
        if let Some(spare) = spare.filter(|spare| spare / GROUP == group) {
            fill(&mut bits, spare % GROUP, spare % GROUP + 1, true);
        }
        let free = zeros(&bits);
        if let Some(before) = before {
            self.more += free.saturating_sub(before);
            self.fewer += before.saturating_sub(free);
        }
        disk.write(place, &bits).map_err(Failure::Disk)?;
        Ok(Bitmap { group, free, sum: self.sum(&bits) })
    }

    fn sum(&self, bits: &Block) -> u64 {
        u64::from(crc32c(self.seed, bits) & 0xffff)
    }

    /// The descriptor of a group of the image, if that is where it has to be.
    fn checked<D: Disk>(&self, group: u64, disk: &mut D) -> Result<[u8; DESCRIPTOR], Failure<D::Error>> {
        let mut block = [0; BLOCK_BYTES];
        disk.read(1 + group / per_descriptor_block(), &mut block).map_err(Failure::Disk)?;
        let at = (group % per_descriptor_block()) as usize * DESCRIPTOR;
        let descriptor: [u8; DESCRIPTOR] = get(&block, at);
        let frame = &self.from.frame;
        let right = [
            (field::BLOCK_BITMAP, frame.block_bitmap(group)),
            (field::INODE_BITMAP, frame.inode_bitmap(group)),
            (field::INODE_TABLE, frame.inode_table(group)),
        ]
        .iter()
        .all(|(at, block)| u64::from(le32(&descriptor, *at)) == *block)
            && u64::from(le16(&descriptor, field::FLAGS)) & BLOCK_UNINIT == 0
            && self.checksum(group, &descriptor) == u64::from(le16(&descriptor, field::CHECKSUM));
        if right { Ok(descriptor) } else { Err(Refusal::Group(group).into()) }
    }

    /// Writes the bitmaps of new groups that lead others and are like all such.
    fn write_plain<D: Disk>(&mut self, disk: &mut D) -> Result<(), Failure<D::Error>> {
        let mut bits = [0; BLOCK_BYTES];
        for group in (self.from.groups()..self.to.groups()).filter(|group| is_leader(*group)) {
            if self.special(group).is_some() {
                continue;
            }
            // The first of them: the others have the same. None has a copy of the superblock.
            if self.plain_sum == 0 {
                self.to.mark_metadata(group, &mut bits);
                self.plain_sum = self.sum(&bits);
            }
            disk.write(self.to.frame.block_bitmap(group), &bits).map_err(Failure::Disk)?;
        }
        Ok(())
    }

    /// How many blocks are free; `None` if the numbers that were there cannot be.
    pub(super) fn free(&self, superblock: &Superblock) -> Option<u64> {
        let (from, to) = (&self.from, &self.to);
        let new: u64 = (from.groups()..to.groups()).map(|group| to.free_in_empty(group)).sum();
        let gone: u64 = (to.groups()..from.groups()).map(|group| from.free_in_empty(group)).sum();
        let free = (superblock.free_blocks + new + self.more).checked_sub(gone + self.fewer)?;
        (free <= to.blocks()).then_some(free)
    }

    /// Makes a block of the image's descriptors, or zeros, that of all groups.
    pub(super) fn render(&self, index: u64, block: &mut Block) {
        let all = block.as_chunks_mut::<DESCRIPTOR>().0;
        for (group, descriptor) in (index * per_descriptor_block()..).zip(all) {
            if group >= self.to.groups() {
                *descriptor = [0; DESCRIPTOR];
            } else if group >= self.from.groups() {
                self.describe(group, descriptor);
            } else if let Some(bitmap) = self.special(group) {
                put16(descriptor, field::FREE_BLOCKS, bitmap.free);
                put16(descriptor, field::BLOCK_BITMAP_SUM, bitmap.sum);
                let sum = self.checksum(group, descriptor);
                put16(descriptor, field::CHECKSUM, sum);
            }
        }
    }

    /// The descriptor of a new group.
    fn describe(&self, group: u64, descriptor: &mut [u8; DESCRIPTOR]) {
        let frame = &self.to.frame;
        *descriptor = [0; DESCRIPTOR];
        put32(descriptor, field::BLOCK_BITMAP, frame.block_bitmap(group));
        put32(descriptor, field::INODE_BITMAP, frame.inode_bitmap(group));
        put32(descriptor, field::INODE_TABLE, frame.inode_table(group));
        put16(descriptor, field::FREE_BLOCKS, self.to.free_in_empty(group));
        put16(descriptor, field::FREE_INODES, frame.inodes_per_group());
        put16(descriptor, field::INODES_UNUSED, frame.inodes_per_group());
        let sum = match self.special(group) {
            Some(bitmap) => Some(bitmap.sum),
            None => is_leader(group).then_some(self.plain_sum),
        };
        put16(descriptor, field::FLAGS, INODE_UNINIT | if sum.is_none() { BLOCK_UNINIT } else { 0 });
        put16(descriptor, field::BLOCK_BITMAP_SUM, sum.unwrap_or(0));
        let sum = self.checksum(group, descriptor);
        put16(descriptor, field::CHECKSUM, sum);
    }

    fn checksum(&self, group: u64, descriptor: &[u8; DESCRIPTOR]) -> u64 {
        let [a, b, c, d, ..] = group.to_le_bytes();
        let sum = crc32c(self.seed, &[a, b, c, d]);
        let sum = crc32c(sum, descriptor.get(..field::CHECKSUM).unwrap_or_default());
        u64::from(crc32c(sum, &[0; 2]) & 0xffff)
    }
}
