//! An ext4 filesystem of ours made as large as its partition, without mounting it.
//!
//! | file | what lives there |
//! |---|---|
//! | `shape` | where everything has its place, by the superblock |
//! | `groups` | bitmaps and descriptors of groups |
//! | `reserve` | the blocks that are reserved for descriptors, and inode 7, which names them |
//! | `bytes` | fields, bits and the checksum |
//!
//! An image is made once, as small as its content allows, and [`grow`] makes it as large as the card: it writes the
//! group descriptors and what they describe, all copies, and what is reserved for a later `resize2fs`. The kernel has
//! no part in it, so that it works everywhere and for every size. It reads only what is in the image, so it can be done
//! again from the image after a power cut. The first block, with the superblock, is changed in memory alone: the
//! caller writes it last.
//!
//! New groups are as `mke2fs -E lazy_itable_init` makes them: bitmaps that say nothing but the metadata's place are not
//! written, and inode tables are not zeroed; the kernel does that in the background after the first mount.

mod bytes;
mod groups;
mod reserve;
mod shape;

use core::fmt;

pub use bytes::Block;
pub use shape::{Frame, Shape};

use super::geometry::BLOCK;
use groups::Groups;
use shape::{Superblock, copy_for};

/// The size of a block, in bytes.
pub const BLOCK_BYTES: usize = BLOCK as usize;

/// Where the filesystem is: blocks, counted from its beginning.
pub trait Disk {
    /// What can go wrong.
    type Error;

    /// Reads a block.
    ///
    /// # Errors
    /// What the disk says.
    fn read(&mut self, block: u64, into: &mut Block) -> Result<(), Self::Error>;

    /// Writes a block.
    ///
    /// # Errors
    /// What the disk says.
    fn write(&mut self, block: u64, bytes: &Block) -> Result<(), Self::Error>;
}

/// Why a filesystem is not made larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Refusal {
    /// The first block holds no superblock of a filesystem that is laid out to grow.
    Superblock,
    /// The descriptor of this group says something else than the superblock.
    Group(u64),
    /// Inode 7 does not name the blocks that are reserved for descriptors.
    Reserve,
    /// The room is smaller than the filesystem.
    TooSmall {
        /// The size of the filesystem, in bytes.
        needed: u64,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => f.write_str("the first block is not that of a filesystem that can grow"),
            Self::Group(group) => write!(f, "the descriptor of group {group} contradicts the superblock"),
            Self::Reserve => f.write_str("inode 7 does not name what is reserved for descriptors"),
            Self::TooSmall { needed } => {
                write!(f, "the filesystem has {needed} bytes, and its room has fewer")
            }
        }
    }
}

impl core::error::Error for Refusal {}

/// Why growing ended early: the filesystem must be written again from the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Failure<E> {
    /// The filesystem is not one that can grow so.
    Refused(Refusal),
    /// The disk failed.
    Disk(E),
}

impl<E> From<Refusal> for Failure<E> {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Makes a filesystem as large as a room of so many bytes. `first` is its first block, from the image, and is changed
/// to what has to be written there last; everything else is written to `disk`, which holds the image. A last group that
/// is too short for its own metadata is left out, and what is behind [`Frame::blocks_max`] is not used. Gives what the
/// filesystem is now. Needs about 20 KiB of stack.
///
/// # Errors
/// [`Failure`]. Nothing was written if it is [`Refusal::TooSmall`].
pub fn grow<D: Disk>(first: &mut Block, room: u64, disk: &mut D) -> Result<Shape, Failure<D::Error>> {
    let superblock = Superblock::read(first)?;
    let from = superblock.shape;
    let blocks = from.frame.fit(room / BLOCK);
    if blocks < from.blocks() {
        return Err(Refusal::TooSmall { needed: from.bytes() }.into());
    }
    resize(first, &superblock, blocks, None, disk)
}

/// Makes a new filesystem smaller, of which nothing is used behind that size; the other way to make an image. `spare`
/// is a free block, which names what is reserved for descriptors from then on.
///
/// # Errors
/// [`Failure`]; the filesystem is of no use then.
pub fn cut<D: Disk>(
    first: &mut Block,
    blocks: u64,
    spare: u64,
    disk: &mut D,
) -> Result<Shape, Failure<D::Error>> {
    let superblock = Superblock::read(first)?;
    let frame = superblock.shape.frame;
    if blocks > superblock.shape.blocks() || frame.fit(blocks) != blocks || spare >= blocks {
        return Err(Refusal::TooSmall { needed: superblock.shape.bytes() }.into());
    }
    resize(first, &superblock, blocks, Some(spare), disk)
}

fn resize<D: Disk>(
    first: &mut Block,
    superblock: &Superblock,
    blocks: u64,
    spare: Option<u64>,
    disk: &mut D,
) -> Result<Shape, Failure<D::Error>> {
    let to = superblock.shape.frame.with_blocks(blocks);
    let groups = Groups::new(superblock, to, spare, disk)?;
    let free = groups.free(superblock).ok_or(Refusal::Superblock)?;
    superblock.write(&to, free, first).ok_or(Refusal::Superblock)?;
    reserve::write(superblock.seed, &to, spare, disk)?;
    // The descriptors of the image are read for each copy: their own place is written last.
    for group in to.backups() {
        let start = to.frame.start(group);
        disk.write(start, &copy_for(first, group)).map_err(Failure::Disk)?;
        write_descriptors(&groups, start + 1, disk)?;
    }
    write_descriptors(&groups, 1, disk)?;
    Ok(to)
}

/// Writes all descriptors to this place.
fn write_descriptors<D: Disk>(groups: &Groups, at: u64, disk: &mut D) -> Result<(), Failure<D::Error>> {
    for index in 0..groups.to().descriptor_blocks() {
        let mut block = [0; BLOCK_BYTES];
        if index < groups.from().descriptor_blocks() {
            disk.read(1 + index, &mut block).map_err(Failure::Disk)?;
        }
        groups.render(index, &mut block);
        disk.write(at + index, &block).map_err(Failure::Disk)?;
    }
    Ok(())
}
