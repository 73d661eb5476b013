//! How large the filesystem of an image is: as small as its content allows, and laid out to grow.

use piman_core::install::geometry::JOURNAL_MAX;
use piman_core::install::grow::{Frame, Shape};
use piman_core::install::table::BLOCK;

use super::Error;
use super::tree::{Kind, ROOT, Tree};

/// The longest target of a symbolic link that needs no block.
const SHORT_LINK: usize = 59;
/// Blocks of a group.
const GROUP: u64 = 8 * BLOCK;
/// The largest root filesystem that an image grows to, in bytes (2 TiB).
pub const GROWS_TO: u64 = 2 << 40;
/// Blocks for the descriptors of all its groups.
const DESCRIPTOR_BLOCKS: u64 = GROWS_TO / (GROUP * BLOCK) * 32 / BLOCK;
/// Inodes of a group, as mke2fs has it from 512 MiB on: one for 16 KiB.
const INODES_PER_GROUP: u64 = 8192;
/// The most that a group has room for beside its bitmaps, the descriptors and some blocks.
const INODES_PER_GROUP_MAX: u64 = (GROUP - 16 * 2 - 1 - DESCRIPTOR_BLOCKS - 50) / 16 * 16;
/// An image is made as large as this for its inodes alone (2 GiB: every card is larger), and has more of them in each
/// group only if that does not do.
const GROUPS_FOR_INODES: u64 = 16;
/// Blocks that are left free in any case, beside a hundredth.
const SLACK: u64 = 64;

/// What a tree needs of a filesystem.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    inodes: u64,
    blocks: u64,
}

impl Need {
    pub(super) fn of(tree: &Tree) -> Self {
        let names = tree.names();
        // The root, lost+found of four blocks, the proof.
        let mut need = Self { inodes: 13, blocks: 6 };
        for (id, (node, names)) in tree.nodes.iter().zip(&names).enumerate() {
            if id != ROOT && names.is_empty() {
                continue;
            }
            need.inodes += 1;
            need.blocks += match &node.kind {
                Kind::File { size, runs: None, .. } => size.div_ceil(BLOCK),
                Kind::File { runs: Some(runs), .. } => {
                    // And the tree of its extents.
                    let data: u64 = runs.iter().map(|(start, end)| (end - start).div_ceil(BLOCK)).sum();
                    data + if runs.len() > 4 { runs.len() as u64 / 340 + 2 } else { 0 }
                }
                Kind::Directory(children) => {
                    let bytes: usize = children.keys().map(|n| (n.len() + 8).next_multiple_of(4)).sum();
                    bytes as u64 / 4000 + 1
                }
                Kind::Symlink(target) => u64::from(target.len() > SHORT_LINK),
                _ => 0,
            };
            need.blocks += u64::from(!node.xattrs.is_empty());
        }
        need
    }

    /// The layout that the content fits into.
    pub(super) fn frame(&self) -> Result<Frame, Error> {
        let inodes = self.wanted_inodes();
        // Where the inode tables of the first 16 groups end, and so on.
        let tables = 1 + DESCRIPTOR_BLOCKS + 16 * (2 + INODES_PER_GROUP / 16);
        let groups = (self.blocks + JOURNAL_MAX + tables).div_ceil(GROUP);
        let groups = inodes.div_ceil(INODES_PER_GROUP).min(GROUPS_FOR_INODES).max(groups);
        let wanted = inodes.div_ceil(groups).max(INODES_PER_GROUP).next_multiple_of(16);
        // Where the groups of the content have too little room for them, there are more groups, up to twice as many.
        let per_group =
            if wanted <= 2 * INODES_PER_GROUP_MAX { wanted.min(INODES_PER_GROUP_MAX) } else { wanted };
        Frame::new(per_group, DESCRIPTOR_BLOCKS).ok_or_else(|| {
            let text =
                format!("{} entries in so few bytes have more inodes than ext4 has room for", self.inodes);
            Error::Unsupported(text)
        })
    }

    /// The smallest filesystem in that frame, if its content ends before this block.
    pub(super) fn smallest(&self, frame: Frame, spare: u64) -> Result<Shape, Error> {
        let for_inodes = self.wanted_inodes().div_ceil(frame.with_blocks(GROUP).inodes());
        let blocks = (spare + 1 + SLACK + self.blocks / 100).max((for_inodes - 1) * GROUP + 1);
        let blocks = frame.fit_up(blocks);
        if blocks > frame.blocks_max() { Err(self.too_large()) } else { Ok(frame.with_blocks(blocks)) }
    }

    /// What is larger than any card.
    pub(super) fn too_large(&self) -> Error {
        let text = format!("it needs {} bytes, and an image has at most 2 TiB", self.blocks * BLOCK);
        Error::Unsupported(text)
    }

    fn wanted_inodes(&self) -> u64 {
        self.inodes + self.inodes / 10 + 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_and_an_inode_for_every_entry() {
        for (inodes, blocks, most) in [
            (13, 6, 64 << 20),
            (1000, 20_000_000, 84 << 30),
            (50_000, 500_000, 9 << 28),
            (100_000, 100_000, 2 << 30),
            (300_000, 300_000, 9 << 28),
            (2_000_000, 2_000_000, 9 << 30),
        ] {
            let need = Need { inodes, blocks };
            let frame = need.frame().unwrap();
            // As the builder lays it out: one block after the other, around what has a fixed place.
            let mut end = 0;
            for _ in 0..blocks + JOURNAL_MAX {
                end = frame.next_for_files(end) + 1;
            }
            let shape = need.smallest(frame, frame.next_for_files(end)).unwrap();
            assert!(shape.inodes() > inodes * 11 / 10 && shape.blocks() > end, "{need:?}");
            assert!(shape.bytes() < most, "{need:?}: {}", shape.bytes());
            assert_eq!(frame.fit(shape.blocks()), shape.blocks());
        }
        assert!(Need { inodes: 10_000_000, blocks: 10 }.frame().is_err());
        let huge = Need { inodes: 10, blocks: 1 << 29 };
        assert!(huge.smallest(huge.frame().unwrap(), 1 << 29).is_err());
    }
}
