//! Inodes and blocks of an ext4 filesystem, whatever the size of its blocks is. All numbers in it are looked at before they
//! are counted with.

use anyhow::{Context, ensure};
use mkext4::csum;
use mkext4::reader::FileExtent;
use mkext4::spec::Inode;

use super::geometry::{Geometry, INCOMPAT, KNOWN, RECOVER};
use super::{Group, metadata};
use crate::images::disk_image::area::{Area, le32};

const EXTENTS: u32 = 0x40;
/// Content in inodes, encryption, names in any case: files are not where they are looked for.
const ELSEWHERE: u32 = 0x8000 | 0x1_0000 | 0x2_0000;

/// A filesystem that is whole as far as its fixed places go.
pub(in crate::images::disk_image) struct Volume<'f> {
    area: Area<'f>,
    geometry: Geometry,
}

/// What is needed of a filesystem, and why it cannot be read here: it may be whole.
pub(in crate::images::disk_image) enum Unread {
    /// It is damaged.
    Damaged,
    /// It has or lacks something, to be said behind its name.
    Unknown(&'static str),
}

impl<'f> Volume<'f> {
    pub(in crate::images::disk_image) fn open(area: Area<'f>) -> Result<Self, Unread> {
        let geometry = Geometry::read(&area)
            .and_then(|geometry| metadata(&area, &geometry).map(|_| geometry))
            .map_err(|_| Unread::Damaged)?;
        let superblock = area.bytes::<1024>(1024).map_err(|_| Unread::Damaged)?;
        let features = le32(&superblock, INCOMPAT);
        match features {
            _ if features & !KNOWN != 0 => {
                Err(Unread::Unknown("has features of ext4 that are not known here"))
            }
            _ if features & ELSEWHERE != 0 => Err(Unread::Unknown(
                "has files in a way that is not read here (encrypted, or inside of inodes)",
            )),
            _ if features & EXTENTS == 0 => {
                Err(Unread::Unknown("is ext2 or ext3, of which no files are read here"))
            }
            _ if features & RECOVER != 0 => {
                Err(Unread::Unknown("was not unmounted, so that not all of its files can be read here"))
            }
            _ => Ok(Self { area, geometry }),
        }
    }

    /// The size of a block, in bytes.
    pub(in crate::images::disk_image) fn block(&self) -> u64 {
        self.geometry.block
    }

    pub(in crate::images::disk_image) fn read_block(&self, block: u64) -> anyhow::Result<Vec<u8>> {
        let at = block.checked_mul(self.geometry.block).context("a block is behind the end")?;
        let mut bytes = vec![0; usize::try_from(self.geometry.block)?];
        self.area.read(at, &mut bytes).with_context(|| format!("reading block {block}"))?;
        Ok(bytes)
    }

    pub(in crate::images::disk_image) fn inode(&self, number: u32) -> anyhow::Result<Inode> {
        let what = || format!("reading inode {number}");
        let Geometry { inodes, inode_bytes, groups, block, .. } = self.geometry;
        let index = u64::from(number).checked_sub(1).context("there is no inode 0")?;
        // It has one at least.
        let (group, place) = (index / inodes.max(1), index % inodes.max(1));
        ensure!(group < groups, "there is no inode {number}");
        let table = Group::read(&self.area, &self.geometry, group)?.inode_table;
        let at = table.checked_mul(block).and_then(|table| table.checked_add(place * inode_bytes));
        let mut bytes = vec![0; usize::try_from(inode_bytes)?];
        self.area.read(at.with_context(what)?, &mut bytes).with_context(what)?;
        let inode = Inode::decode(&bytes)?;
        if let Some(seed) = self.geometry.seed {
            let sum = csum::inode(seed, number, inode.generation, &bytes);
            // Small inodes have half of it.
            let kept = if inode.extra_isize >= 4 { u32::MAX } else { 0xffff };
            ensure!(sum & kept == inode.checksum & kept, "the checksum of inode {number} is wrong");
        }
        Ok(inode)
    }

    /// The bytes of a file from its beginning, of which these are the places; holes are zeros. Returns how many it has.
    pub(in crate::images::disk_image) fn read_file(
        &self,
        inode: &Inode,
        places: &[FileExtent],
        bytes: &mut [u8],
    ) -> anyhow::Result<usize> {
        let block = self.geometry.block;
        let length = usize::try_from(inode.size).unwrap_or(usize::MAX).min(bytes.len());
        let bytes = bytes.get_mut(..length).unwrap_or_default();
        bytes.fill(0);
        for place in places.iter().filter(|place| !place.unwritten) {
            // Numbers of 32 bits.
            let from = usize::try_from(u64::from(place.logical) * block).unwrap_or(usize::MAX);
            let most = usize::try_from(u64::from(place.len) * block).unwrap_or(usize::MAX);
            let Some(rest) = bytes.get_mut(from..) else { continue };
            let length = rest.len().min(most);
            let at = place.physical.checked_mul(block).context("a file is behind the end")?;
            self.area.read(at, rest.get_mut(..length).unwrap_or_default()).context("reading a file")?;
        }
        Ok(length)
    }
}
