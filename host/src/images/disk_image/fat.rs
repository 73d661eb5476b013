//! Which clusters of a FAT filesystem are used, by its file allocation table. Chains are not followed.

use anyhow::{Context, ensure};

use super::area::{Area, le16, le32};
use super::filesystem::is_fat;
use super::ranges::Ranges;

/// As much of a table is read at once: whole entries of every kind.
const PIECE: u64 = 3 << 16;

/// The kinds differ in the size of their entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Twelve,
    Sixteen,
    ThirtyTwo,
}

/// Where its parts are, in bytes.
struct Geometry {
    is_mirrored: bool,
    is_clean: bool,
    width: Width,
    fat: u64,
    fat_bytes: u64,
    fats: u64,
    data: u64,
    cluster: u64,
    clusters: u64,
    end: u64,
}

/// The used parts of the filesystem in a partition, in bytes from its beginning, sorted; and where it ends.
///
/// # Errors
/// Why its table cannot be believed.
pub(super) fn used(partition: &Area<'_>) -> anyhow::Result<(Vec<(u64, u64)>, u64)> {
    let geometry = Geometry::read(partition)?;
    ensure!(geometry.is_mirrored, "its tables are not the same on purpose");
    ensure!(geometry.is_clean, "it was not unmounted");
    let mut used = Ranges::default();
    // The reserved sectors, the tables, and the root directory of FAT12 and FAT16.
    used.add(0, geometry.data);
    let mut tables = [vec![0; usize::try_from(PIECE)?], vec![0; usize::try_from(PIECE)?]];
    let mut at = 0;
    let mut cluster = 0;
    let [first, second] = &mut tables;
    while at < geometry.fat_bytes {
        let length = usize::try_from((geometry.fat_bytes - at).min(PIECE))?;
        let piece = first.get_mut(..length).unwrap_or_default();
        partition.read(geometry.fat + at, piece).context("its table is behind its end")?;
        if geometry.fats > 1 {
            let copy = second.get_mut(..length).unwrap_or_default();
            partition.read(geometry.fat + geometry.fat_bytes + at, copy)?;
            ensure!(piece == copy, "its two allocation tables differ");
        }
        if at == 0 {
            geometry.clean(piece)?;
        }
        for value in geometry.entries(piece) {
            // The first two are no clusters.
            if let Some(number) =
                u64::checked_sub(cluster, 2).filter(|n| *n < geometry.clusters && value != 0)
            {
                let start = geometry.data + number * geometry.cluster;
                used.add(start, start + geometry.cluster);
            }
            cluster += 1;
        }
        at += length as u64;
    }
    Ok((used.finish(), geometry.end))
}

/// Whether its sizes are possible, so that a reader may look at its files.
pub(super) fn is_sound(partition: &Area<'_>) -> bool {
    Geometry::read(partition).is_ok()
}

impl Geometry {
    fn read(partition: &Area<'_>) -> anyhow::Result<Self> {
        let boot = partition.bytes::<512>(0)?;
        ensure!(is_fat(&boot), "its boot sector is damaged");
        let byte = |at: usize| u64::from(boot.get(at).copied().unwrap_or(0));
        let number = |at: usize| u64::from(le16(&boot, at));
        let either = |short: u64, long: usize| if short == 0 { u64::from(le32(&boot, long)) } else { short };
        let sector = number(11);
        let cluster = byte(13) * sector;
        let (reserved, fats, root) = (number(14), byte(16), (number(17) * 32).div_ceil(sector));
        let (sectors, fat_sectors) = (either(number(19), 32), either(number(22), 36));
        let data = reserved + fats * fat_sectors + root;
        ensure!(
            sectors > data && fat_sectors > 0,
            "it is said to have {sectors} sectors, and {data} before its files"
        );
        let end = sectors * sector;
        ensure!(end <= partition.length(), "it is said to be larger ({end} bytes) than its partition");
        let clusters = (sectors - data) / byte(13);
        // By the number of clusters and nothing else, as its specification says.
        let width = match clusters {
            ..4085 => Width::Twelve,
            4085..65525 => Width::Sixteen,
            _ => Width::ThirtyTwo,
        };
        let is_32 = number(22) == 0;
        ensure!(
            is_32 == (width == Width::ThirtyTwo),
            "its number of clusters ({clusters}) is not one of its kind"
        );
        // Only one of the tables is up to date then.
        let is_mirrored = !is_32 || number(40) & 0x80 == 0;
        // Linux marks it here while it is mounted.
        let is_clean = byte(if is_32 { 65 } else { 37 }) & 1 == 0;
        let fat_bytes = fat_sectors * sector;
        let needed = match width {
            Width::Twelve => ((clusters + 2) * 3).div_ceil(2),
            Width::Sixteen => (clusters + 2) * 2,
            Width::ThirtyTwo => (clusters + 2) * 4,
        };
        ensure!(needed <= fat_bytes, "its allocation table is too short for {clusters} clusters");
        Ok(Self {
            is_mirrored,
            is_clean,
            width,
            fat: reserved * sector,
            fat_bytes,
            fats,
            data: data * sector,
            cluster,
            clusters,
            end,
        })
    }

    /// The second entry says so, too, where others have written it.
    fn clean(&self, table: &[u8]) -> anyhow::Result<()> {
        let clean = match self.width {
            Width::Twelve => true,
            Width::Sixteen => le16(table, 2) & 0xc000 == 0xc000,
            Width::ThirtyTwo => le32(table, 4) & 0x0c00_0000 == 0x0c00_0000,
        };
        ensure!(clean, "it was not unmounted");
        Ok(())
    }

    /// The entries of a piece that begins with a whole one.
    fn entries<'t>(&self, table: &'t [u8]) -> Box<dyn Iterator<Item = u32> + 't> {
        match self.width {
            Width::Twelve => Box::new(table.chunks(3).flat_map(|three| match three {
                [a, b, c] => {
                    let both = u32::from_le_bytes([*a, *b, *c, 0]);
                    [both & 0xfff, both >> 12]
                }
                // The last one may be cut by the end of the table.
                [a, b] => [u32::from(u16::from_le_bytes([*a, *b])) & 0xfff, 0],
                _ => [0; 2],
            })),
            Width::Sixteen => {
                Box::new(table.as_chunks().0.iter().map(|entry| u32::from(u16::from_le_bytes(*entry))))
            }
            Width::ThirtyTwo => {
                Box::new(table.as_chunks().0.iter().map(|entry| u32::from_le_bytes(*entry) & 0x0fff_ffff))
            }
        }
    }
}

#[cfg(test)]
mod tests;
