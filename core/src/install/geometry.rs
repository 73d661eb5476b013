//! How large an ext4 filesystem is on a card, how many inodes it has, and what is left for files: as mke2fs has it, but
//! with a smaller journal.

/// The size of a block, in bytes.
pub const BLOCK: u64 = 4096;
/// Blocks of a group.
pub(crate) const GROUP: u64 = 8 * BLOCK;
/// The size of an inode, in bytes.
pub(crate) const INODE_SIZE: u64 = 256;
/// The size of a group's descriptor, in bytes.
pub(crate) const DESCRIPTOR: usize = 32;

/// The largest journal, in blocks (16 MiB): all of it has to be written.
pub const JOURNAL_MAX: u64 = 4096;
pub(crate) const INODES_PER_BLOCK: u64 = BLOCK / INODE_SIZE;
/// Groups whose bitmaps and inode tables lie together.
pub(crate) const FLEX: u64 = 16;
/// Blocks that a short last group must have beside its own metadata, as mke2fs has it.
pub(crate) const LAST_GROUP_MIN: u64 = 50;
/// There is no journal below this.
const BLOCKS_MIN: u64 = 4096;

/// How large a filesystem is and how many inodes it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Geometry {
    /// Its size, in blocks.
    blocks: u64,
    inodes_per_group: u64,
}

/// Why no filesystem can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
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

impl core::fmt::Display for SizeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooSmall { needed } => {
                write!(f, "too small for a filesystem: {needed} bytes are needed at least")
            }
            Self::TooLarge => f.write_str("too large: this filesystem ends at 16 TiB"),
            Self::TooManyEntries => f.write_str("more entries than a filesystem of this size can hold"),
        }
    }
}

impl core::error::Error for SizeError {}

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

    /// The size of its journal, in blocks.
    #[must_use]
    pub fn journal(&self) -> u64 {
        if self.blocks < GROUP { 1024 } else { JOURNAL_MAX }
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

    /// Its inodes.
    #[must_use]
    pub fn inodes(&self) -> u64 {
        self.inodes_per_group * self.groups()
    }
}

/// The groups that hold a copy of the superblock: 1 and the powers of 3, 5 and 7.
pub(crate) fn backups(groups: u64) -> impl Iterator<Item = u64> {
    let powers = |base: u64| core::iter::successors(Some(base), move |g| g.checked_mul(base));
    let powers = move |base| powers(base).take_while(move |g| *g < groups);
    core::iter::once(1).filter(move |g| *g < groups).chain(powers(3)).chain(powers(5)).chain(powers(7))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

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
}
