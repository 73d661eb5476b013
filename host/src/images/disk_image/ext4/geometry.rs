//! Where what has a fixed place is in an ext4 filesystem, by its superblock.

use anyhow::{Context, ensure};
use mkext4::csum;

use crate::images::disk_image::area::{Area, le16, le32};

/// Where the sets of features are in the superblock.
const COMPAT: usize = 0x5c;
pub(super) const INCOMPAT: usize = 0x60;
pub(super) const RO_COMPAT: usize = 0x64;

const SPARSE_SUPER2: u32 = 0x200;
pub(super) const RECOVER: u32 = 0x4;
const META_BG: u32 = 0x10;
const WIDE: u32 = 0x80;
const CSUM_SEED: u32 = 0x2000;
/// What changes nothing about which blocks the bitmaps say are used: file types, meta groups, extents, 64 bits,
/// protection against two mounts, flexible groups, large attributes, seeds, large directories, data in inodes,
/// encryption, names in any case.
pub(super) const KNOWN: u32 = 0x2
    | RECOVER
    | META_BG
    | 0x40
    | WIDE
    | 0x100
    | 0x200
    | 0x400
    | 0x1000
    | CSUM_SEED
    | 0x4000
    | 0x8000
    | 0x3_0000;
const SPARSE_SUPER: u32 = 0x1;
const GDT_CSUM: u32 = 0x10;
pub(super) const BIGALLOC: u32 = 0x200;
const METADATA_CSUM: u32 = 0x400;

/// The sizes and numbers of a filesystem.
pub(super) struct Geometry {
    /// The size of a block, in bytes.
    pub(super) block: u64,
    pub(super) blocks: u64,
    pub(super) free: u64,
    /// The first block of the first group.
    pub(super) first: u64,
    /// Blocks of each group.
    pub(super) per_group: u64,
    pub(super) groups: u64,
    /// Blocks of the inode table of each group.
    pub(super) table_blocks: u64,
    /// Inodes of each group.
    pub(super) inodes: u64,
    /// The size of an inode, in bytes.
    pub(super) inode_bytes: u64,
    pub(super) uuid: [u8; 16],
    /// Where checksums begin, if metadata has some.
    pub(super) seed: Option<u32>,
    /// Whether only group descriptors have checksums.
    pub(super) has_group_sums: bool,
    descriptor_bytes: u64,
    reserved: u64,
    /// Blocks of descriptors that are in one place; the others are in their groups.
    together: u64,
    is_meta: bool,
    /// Whether only a few groups have copies of the superblock.
    is_sparse: bool,
    /// If only these two have one.
    backups: Option<[u64; 2]>,
}

/// Where the metadata is, in blocks: sorted, apart from each other.
pub(super) struct Metadata {
    pub(super) runs: Vec<(u64, u64)>,
}

impl Metadata {
    /// What is in these blocks.
    pub(super) fn within(&self, first: u64, past: u64) -> Vec<(u64, u64)> {
        let from = self.runs.partition_point(|(_, end)| *end <= first);
        let some = self.runs.get(from..).unwrap_or_default().iter().take_while(|(start, _)| *start < past);
        some.map(|(start, end)| (*start.max(&first), *end.min(&past))).collect()
    }
}

impl Geometry {
    pub(super) fn read(partition: &Area<'_>) -> anyhow::Result<Self> {
        let sb = partition.bytes::<1024>(1024).context("it has no superblock")?;
        let (compat, incompat, ro) = (le32(&sb, COMPAT), le32(&sb, INCOMPAT), le32(&sb, RO_COMPAT));
        let has_sums = ro & METADATA_CSUM != 0;
        ensure!(
            !has_sums || csum::superblock(&sb) == le32(&sb, 0x3fc),
            "the checksum of its superblock is wrong"
        );
        let log = le32(&sb, 0x18);
        ensure!(log <= 6, "its blocks are said to have 1024 << {log} bytes");
        let block = 1024_u64 << log;
        let is_wide = incompat & WIDE != 0;
        let wide = |low: usize, high: usize| {
            u64::from(le32(&sb, low)) | if is_wide { u64::from(le32(&sb, high)) << 32 } else { 0 }
        };
        let (blocks, first) = (wide(4, 0x150), u64::from(le32(&sb, 0x14)));
        let bytes = blocks.checked_mul(block).filter(|bytes| *bytes <= partition.length());
        ensure!(bytes.is_some(), "it is said to be larger ({blocks} blocks of {block}) than its partition");
        ensure!(first == u64::from(log == 0) && blocks > first, "it is said to begin with block {first}");
        let per_group = u64::from(le32(&sb, 0x20));
        ensure!(
            per_group >= 256 && per_group <= block * 8 && per_group.is_multiple_of(8),
            "its groups are said to have {per_group} blocks"
        );
        let inode_bytes = if le32(&sb, 0x4c) == 0 { 128 } else { u64::from(le16(&sb, 0x58)) };
        let inodes = u64::from(le32(&sb, 0x28));
        ensure!(
            inode_bytes.is_power_of_two()
                && (128..=block).contains(&inode_bytes)
                && (1..=block * 8).contains(&inodes),
            "its groups are said to have {inodes} inodes of {inode_bytes} bytes"
        );
        let descriptor_bytes = if is_wide { u64::from(le16(&sb, 0xfe)) } else { 32 };
        ensure!(
            descriptor_bytes.is_power_of_two() && (32..=1024).contains(&descriptor_bytes),
            "its group descriptors are said to have {descriptor_bytes} bytes"
        );
        let groups = (blocks - first).div_ceil(per_group);
        let all = groups.div_ceil(block / descriptor_bytes);
        let is_meta = incompat & META_BG != 0;
        let mut uuid = [0; 16];
        uuid.iter_mut().zip(sb.iter().skip(0x68)).for_each(|(place, byte)| *place = *byte);
        let seed = if incompat & CSUM_SEED != 0 { le32(&sb, 0x270) } else { csum::fs_seed(&uuid) };
        let backups =
            (compat & SPARSE_SUPER2 != 0).then(|| [0x24c, 0x250].map(|at| u64::from(le32(&sb, at))));
        Ok(Self {
            block,
            blocks,
            free: wide(0x0c, 0x158),
            first,
            per_group,
            groups,
            table_blocks: (inodes * inode_bytes).div_ceil(block),
            inodes,
            inode_bytes,
            uuid,
            seed: has_sums.then_some(seed),
            has_group_sums: ro & GDT_CSUM != 0,
            descriptor_bytes,
            reserved: u64::from(le16(&sb, 0xce)),
            together: if is_meta { u64::from(le32(&sb, 0x104)).min(all) } else { all },
            is_meta,
            is_sparse: ro & SPARSE_SUPER != 0,
            backups,
        })
    }

    /// Whether a group may have a bitmap that is not written.
    pub(super) fn has_uninit(&self) -> bool {
        self.has_group_sums || self.seed.is_some()
    }

    /// The first block of a group.
    pub(super) fn first_of(&self, group: u64) -> u64 {
        self.first + group * self.per_group
    }

    /// Whether a group begins with a superblock.
    fn has_superblock(&self, group: u64) -> bool {
        let is_power = |base: u64| {
            (1..).map_while(|n| base.checked_pow(n)).take_while(|n| *n <= group).any(|n| n == group)
        };
        match self.backups {
            _ if group == 0 => true,
            Some(backups) => backups.contains(&group),
            None if !self.is_sparse || group == 1 => true,
            None => [3, 5, 7].into_iter().any(is_power),
        }
    }

    /// Descriptors of one block.
    fn per_block(&self) -> u64 {
        self.block / self.descriptor_bytes
    }

    /// How many blocks a group begins with that are superblock, descriptors or reserved for descriptors.
    pub(super) fn base(&self, group: u64) -> u64 {
        let superblock = u64::from(self.has_superblock(group));
        let per_block = self.per_block();
        if !self.is_meta || group < self.together * per_block {
            return superblock * (1 + self.together + self.reserved);
        }
        let place = group % per_block;
        superblock + u64::from(place == 0 || place == 1 || place == per_block - 1)
    }

    /// Where the descriptor of a group is, in bytes, and how long.
    pub(super) fn descriptor(&self, group: u64) -> (u64, usize) {
        let per_block = self.per_block();
        let (number, place) = (group / per_block, group % per_block);
        let block = if number < self.together {
            self.first + 1 + number
        } else {
            let first = number * per_block;
            self.first_of(first) + u64::from(self.has_superblock(first))
        };
        let bytes = usize::try_from(self.descriptor_bytes).unwrap_or(64);
        (block * self.block + place * self.descriptor_bytes, bytes)
    }
}
