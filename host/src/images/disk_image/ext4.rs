//! Which blocks of an ext4 filesystem are used, by its block bitmaps. What contradicts itself is not believed: then
//! the caller copies everything.

mod geometry;
mod volume;

use anyhow::{Context, bail, ensure};
use mkext4::csum::crc32c_raw;

use super::area::{Area, le16, le32};
use super::ranges::{Ranges, joined};
use geometry::{Geometry, Metadata};
pub(super) use volume::{Unread, Volume};

/// The block bitmap of a group is not written: nothing but metadata is used in it.
const BLOCK_UNINIT: u16 = 2;

/// A descriptor of a group.
struct Group {
    block_bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
    free_blocks: u64,
    flags: u16,
    /// Sixteen bits of it, or all.
    bitmap_sum: u32,
}

/// The used parts of the filesystem in a partition, in bytes from its beginning, sorted; and where it ends.
///
/// # Errors
/// Why its bitmaps cannot be believed.
pub(super) fn used(partition: &Area<'_>) -> anyhow::Result<(Vec<(u64, u64)>, u64)> {
    refusal(&partition.bytes(1024).context("it has no superblock")?)?;
    let geometry = Geometry::read(partition)?;
    let metadata = metadata(partition, &geometry)?;
    let mut used = Ranges::default();
    // What boots a PC, and the superblock.
    used.add(0, geometry.block.max(2048));
    for (first, past) in &metadata.runs {
        used.add(first * geometry.block, past * geometry.block);
    }
    let mut free = 0;
    let mut bitmap = vec![0; usize::try_from(geometry.block)?];
    for number in 0..geometry.groups {
        let group = Group::read(partition, &geometry, number)?;
        let context = || format!("group {number} contradicts itself");
        free += group
            .add(partition, &geometry, &metadata, number, &mut bitmap, &mut used)
            .with_context(context)?;
    }
    ensure!(
        free == geometry.free,
        "its groups have {free} free blocks, but its superblock says {}",
        geometry.free
    );
    Ok((used.finish(), geometry.blocks * geometry.block))
}

/// All metadata that has a fixed place, in blocks; no two of them in one place.
fn metadata(partition: &Area<'_>, geometry: &Geometry) -> anyhow::Result<Metadata> {
    let mut runs = Vec::new();
    let mut total = 0;
    let mut add = |first: u64, count: u64| {
        total += count;
        runs.push((first, first + count));
    };
    for number in 0..geometry.groups {
        let group = Group::read(partition, geometry, number)?;
        let base = geometry.base(number);
        add(geometry.first_of(number), base);
        for (what, first, count) in [
            ("block bitmap", group.block_bitmap, 1),
            ("inode bitmap", group.inode_bitmap, 1),
            ("inode table", group.inode_table, geometry.table_blocks),
        ] {
            let inside =
                first > geometry.first && first.checked_add(count).is_some_and(|end| end <= geometry.blocks);
            ensure!(inside, "the {what} of group {number} is said to be at block {first}");
            add(first, count);
        }
    }
    runs.retain(|(first, past)| first < past);
    let runs = joined(runs, usize::MAX);
    let apart: u64 = runs.iter().map(|(first, past)| past - first).sum();
    ensure!(apart == total, "two of its bitmaps or tables are said to be in one place");
    Ok(Metadata { runs })
}

impl Group {
    fn read(partition: &Area<'_>, geometry: &Geometry, number: u64) -> anyhow::Result<Self> {
        let (at, size) = geometry.descriptor(number);
        let mut bytes = vec![0; size];
        partition.read(at, &mut bytes).context("its group descriptors are behind its end")?;
        let right = geometry.descriptor_sum(number, &bytes).is_none_or(|sum| sum == le16(&bytes, 0x1e));
        ensure!(right, "the checksum of group descriptor {number} is wrong");
        let is_long = size >= 64;
        let wide = |low: usize, high: usize| {
            u64::from(le32(&bytes, low)) | if is_long { u64::from(le32(&bytes, high)) << 32 } else { 0 }
        };
        let high16 = |at: usize| if is_long { u32::from(le16(&bytes, at)) << 16 } else { 0 };
        Ok(Self {
            block_bitmap: wide(0, 0x20),
            inode_bitmap: wide(4, 0x24),
            inode_table: wide(8, 0x28),
            free_blocks: u64::from(u32::from(le16(&bytes, 0x0c)) | high16(0x2c)),
            flags: le16(&bytes, 0x12),
            bitmap_sum: u32::from(le16(&bytes, 0x18)) | high16(0x38),
        })
    }

    /// Adds what is used in this group, and returns how many blocks are free.
    fn add(
        &self,
        partition: &Area<'_>,
        geometry: &Geometry,
        metadata: &Metadata,
        number: u64,
        bitmap: &mut [u8],
        used: &mut Ranges,
    ) -> anyhow::Result<u64> {
        let first = geometry.first_of(number);
        let past = geometry.first_of(number + 1).min(geometry.blocks);
        let count = past - first;
        let own = metadata.within(first, past);
        if geometry.has_uninit() && self.flags & BLOCK_UNINIT != 0 {
            let fixed: u64 = own.iter().map(|(a, b)| b - a).sum();
            ensure!(count - fixed == self.free_blocks, "its free blocks are not those without metadata");
            return Ok(self.free_blocks);
        }
        partition.read(self.block_bitmap * geometry.block, bitmap)?;
        if let Some(sum) = geometry.bitmap_sum(bitmap) {
            let mask = if geometry.descriptor(0).1 >= 64 { u32::MAX } else { 0xffff };
            ensure!(sum & mask == self.bitmap_sum, "the checksum of its block bitmap is wrong");
        }
        for (a, b) in own {
            let is_used = (a - first..b - first).all(|bit| is_set(bitmap, bit));
            ensure!(is_used, "its block bitmap says that metadata at block {a} is free");
        }
        let (mut free, mut run) = (0, None);
        for bit in 0..count {
            // A byte at a time where nothing changes.
            if is_set(bitmap, bit) {
                run.get_or_insert(first + bit);
            } else {
                free += 1;
                if let Some(start) = run.take() {
                    used.add(start * geometry.block, (first + bit) * geometry.block);
                }
            }
        }
        if let Some(start) = run {
            used.add(start * geometry.block, past * geometry.block);
        }
        ensure!(
            free == self.free_blocks,
            "{free} blocks are free in its block bitmap, but its descriptor says {}",
            self.free_blocks
        );
        Ok(free)
    }
}

fn is_set(bitmap: &[u8], bit: u64) -> bool {
    let byte = usize::try_from(bit / 8).ok().and_then(|at| bitmap.get(at));
    byte.is_none_or(|byte| byte & 1 << (bit % 8) != 0)
}

impl Geometry {
    /// What the checksum of a group's descriptor has to be; `None`: it has none.
    fn descriptor_sum(&self, number: u64, bytes: &[u8]) -> Option<u16> {
        let number = u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
        let (before, after) = (bytes.get(..0x1e)?, bytes.get(0x20..)?);
        if let Some(seed) = self.seed {
            let sum =
                [&number[..], before, &[0; 2], after].iter().fold(seed, |sum, part| crc32c_raw(sum, part));
            return u16::try_from(sum & 0xffff).ok();
        }
        // The older one leaves its own field out.
        let parts = [&self.uuid[..], &number, before, after];
        self.has_group_sums.then(|| parts.iter().fold(!0, |sum, part| crc16(sum, part)))
    }

    fn bitmap_sum(&self, bitmap: &[u8]) -> Option<u32> {
        let bytes = bitmap.get(..usize::try_from(self.per_group / 8).ok()?)?;
        Some(crc32c_raw(self.seed?, bytes))
    }
}

/// As the kernel's `crc16`.
fn crc16(sum: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(sum, |sum, byte| {
        (0..8).fold(sum ^ u16::from(*byte), |sum, _| (sum >> 1) ^ if sum & 1 == 1 { 0xa001 } else { 0 })
    })
}

/// Says why only the whole partition can be copied.
fn refusal(superblock: &[u8; 1024]) -> anyhow::Result<()> {
    let state = le16(superblock, 0x3a);
    let incompat = le32(superblock, geometry::INCOMPAT);
    if incompat & geometry::RECOVER != 0 {
        bail!("its journal has to be replayed: it was not unmounted");
    }
    ensure!(state & 2 == 0, "it is marked as having errors");
    ensure!(state & 1 == 1, "it was not unmounted");
    let unknown = incompat & !geometry::KNOWN;
    ensure!(unknown == 0, "it has features that are not known here ({unknown:#x})");
    ensure!(
        le32(superblock, geometry::RO_COMPAT) & geometry::BIGALLOC == 0,
        "it allocates in clusters (bigalloc)"
    );
    Ok(())
}

#[cfg(test)]
mod tests;
