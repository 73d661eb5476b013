//! Reading filesystems that others have made. A card can say anything of itself: what mkext4's reader would count
//! with, or hold in memory, is looked at first.

use std::format;
use std::string::String;
use std::vec::Vec;

use mkext4::reader::{FileExtent, Fs, ReadAt};
use mkext4::spec::{Inode, Superblock, incompat};
use mkext4::{Error, Result};

/// The largest directory that is read, in bytes: a hundred thousand names take a tenth of that.
pub const BYTES_MAX: u64 = 16 << 20;
/// The deepest tree of extents: of so much a file has half a million.
const DEPTH_MAX: u16 = 2;
/// The largest size of a block is 1 KiB, shifted by so much.
const LOG_BLOCK_MAX: u32 = 6;
/// The most blocks: 16 TiB. With the descriptors' size it bounds what they take, 8 MiB.
const BLOCKS_MAX: u64 = 1 << 32;
/// Block numbers have 48 bits everywhere but in the descriptors of groups.
const BLOCK_NUMBER_MAX: u64 = 1 << 48;

fn wrong(what: &'static str, why: String) -> Error {
    Error::Corrupt { what, why }
}

/// Opens a filesystem whose superblock and group descriptors hold no numbers that cannot be counted with.
///
/// # Errors
/// If it cannot be read, is no ext4 filesystem, or has what this reader does not know.
pub fn open<R: ReadAt>(source: R) -> Result<Fs<R>> {
    let mut bytes = [0; Superblock::LEN];
    source.read_exact_at(1024, &mut bytes)?;
    check(&Superblock::decode(&bytes)?)?;
    let fs = Fs::open(source)?;
    let group = |group| fs.group_desc(group).is_ok_and(|found| found.inode_table < BLOCK_NUMBER_MAX);
    match (0..fs.superblock().group_count()).find(|number| !group(*number)) {
        Some(number) => Err(wrong("group", format!("the descriptor of group {number}"))),
        None => Ok(fs),
    }
}

/// Looks at what [`Fs::open`] shifts, subtracts and multiplies before, or without, looking at it itself.
fn check(sb: &Superblock) -> Result<()> {
    let sizes: &[u16] = if sb.feature_incompat & incompat::BIT64 != 0 { &[64] } else { &[0, 32] };
    let why = if sb.log_block_size > LOG_BLOCK_MAX {
        format!("blocks of 2^{} KiB", sb.log_block_size)
    } else if sb.blocks_count > BLOCKS_MAX || sb.blocks_per_group == 0 {
        format!("{} blocks in groups of {}", sb.blocks_count, sb.blocks_per_group)
    } else if u64::from(sb.first_data_block) > sb.blocks_count.min(u64::from(sb.log_block_size == 0)) {
        format!("its first block is {}", sb.first_data_block)
    } else if !sizes.contains(&sb.desc_size) {
        format!("group descriptors of {} bytes", sb.desc_size)
    } else {
        return Ok(());
    };
    Err(wrong("superblock", why))
}

/// The inode of a directory or of a file that is read as a whole, if it has at most `bytes_max` bytes: the reader
/// holds all of it, and all of its extents.
///
/// # Errors
/// If it is larger or its tree of extents is too deep, or it cannot be read.
pub fn small<R: ReadAt>(fs: &Fs<R>, number: u32, bytes_max: u64) -> Result<Inode> {
    let inode = fs.inode(number)?;
    bounded(&inode)?;
    match inode.size <= bytes_max {
        true => Ok(inode),
        false => Err(Error::Unsupported(format!("{} bytes in inode {number}", inode.size))),
    }
}

/// The extents of a file of any size, one after the other.
///
/// # Errors
/// If its tree of extents is too deep, they overlap, or it cannot be read.
pub fn extents<R: ReadAt>(fs: &Fs<R>, number: u32, inode: &Inode) -> Result<Vec<FileExtent>> {
    bounded(inode)?;
    let extents = fs.extents(number, inode)?;
    let overlap = |pair: &[FileExtent]| match pair {
        [a, b] => u64::from(a.logical) + u64::from(a.len) > u64::from(b.logical),
        _ => false,
    };
    match extents.windows(2).any(overlap) {
        true => Err(wrong("extent tree", format!("extents of inode {number} overlap"))),
        false => Ok(extents),
    }
}

/// Refuses a tree of extents that would take more memory than it is worth.
fn bounded(inode: &Inode) -> Result<()> {
    // The depth is in the fourth field of its root.
    let depth =
        inode.extent_root().and_then(|root| root.get(6..8)?.try_into().ok()).map_or(0, u16::from_le_bytes);
    match depth <= DEPTH_MAX {
        true => Ok(()),
        false => Err(Error::Unsupported(format!("a tree of extents of depth {depth}"))),
    }
}
