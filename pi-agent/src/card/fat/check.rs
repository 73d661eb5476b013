//! Whether a FAT filesystem is whole enough to be changed: every chain ends, stays inside, and belongs to one file or
//! folder. The crate that reads and writes it follows chains wherever they lead.
//!
//! Source: "Microsoft FAT Specification", 2005.

use anyhow::{Context, bail, ensure};

use crate::card::disk::Window;

/// The largest table that is read, in bytes: four million clusters.
const TABLE_MAX: u64 = 16 << 20;
/// The longest folder, in bytes, as the specification has it.
const FOLDER_MAX: usize = 65_536 * ENTRY;
/// The size of an entry of a folder.
pub(super) const ENTRY: usize = 32;

/// Attributes of an entry.
const FOLDER: u8 = 0x10;
const LABEL: u8 = 0x08;
const LONG_NAME: u8 = 0x0f;
/// The first byte of an entry that is free.
const DELETED: u8 = 0xe5;

/// What the first sector says, and the table of clusters.
pub(super) struct Volume<'w, 'd> {
    window: &'w Window<'d>,
    bits: u64,
    table: Vec<u8>,
    /// Where the tables are and how long each is, in bytes.
    tables: (u64, u64),
    clusters: u32,
    /// Where the first cluster is, in bytes.
    data: u64,
    cluster_bytes: usize,
    /// Of a FAT32.
    root_cluster: u32,
    /// Of the others: where the root folder is, and how long, in bytes.
    root: (u64, usize),
}

/// Looks at all folders of the filesystem in a part of a disk.
///
/// # Errors
/// If it is no FAT filesystem, or it is damaged; says how.
pub(super) fn check(window: &Window<'_>) -> anyhow::Result<()> {
    walk(&Volume::read(window)?, &mut |_, _| Ok(()))
}

/// Gives folders that the library has made their first two entries as others expect them: it puts long names before
/// them, and has the second one name the root folder of a FAT32 by its cluster.
///
/// # Errors
/// Like [`check`], or if the disk cannot be written.
pub(super) fn tidy(window: &Window<'_>) -> anyhow::Result<()> {
    let volume = Volume::read(window)?;
    walk(&volume, &mut |first, content| {
        let Some((head, _)) = content.split_first_chunk::<{ 4 * ENTRY }>() else { return Ok(()) };
        let [long, own, long_too, above] = head.as_chunks().0 else { return Ok(()) };
        let is_named = |entry: &[u8; ENTRY], name: &[u8]| entry.starts_with(name) && entry[11] & FOLDER != 0;
        let is_long = |entry: &[u8; ENTRY]| entry[11] & LONG_NAME == LONG_NAME;
        if !(is_long(long) && is_named(own, b".  ") && is_long(long_too) && is_named(above, b"..  ")) {
            return Ok(());
        }
        let mut above = *above;
        if volume.cluster_in(&above) == volume.root_cluster {
            let places = above.iter_mut().enumerate().filter(|(at, _)| matches!(at, 20 | 21 | 26 | 27));
            places.for_each(|(_, byte)| *byte = 0);
        }
        let mut free = [0; ENTRY];
        free[0] = DELETED;
        let entries = [*own, above, free, free].concat();
        Ok(window.write_all_at(volume.place(first), &entries)?)
    })
}

/// Whether nothing is in an entry of a folder.
pub(super) fn is_free(entry: &[u8; ENTRY]) -> bool {
    matches!(entry[0], 0 | DELETED)
}

/// What is done with a folder other than the root: its first cluster and what is in it.
type Visit<'v> = dyn FnMut(u32, &[u8]) -> anyhow::Result<()> + 'v;

fn walk(volume: &Volume<'_, '_>, visit: &mut Visit<'_>) -> anyhow::Result<()> {
    let mut seen = vec![0_u8; usize::try_from(volume.clusters / 8).unwrap_or(0) + 1];
    let mut folders = Vec::new();
    if volume.bits == 32 {
        let chain = volume.chain(volume.root_cluster, &mut seen)?;
        volume.look_into(&volume.content(&chain)?, &mut seen, &mut folders)?;
    } else {
        let mut bytes = vec![0; volume.root.1];
        volume.window.read_exact_at(volume.root.0, &mut bytes).context("reading the root folder")?;
        volume.look_into(&bytes, &mut seen, &mut folders)?;
    }
    while let Some(first) = folders.pop() {
        let chain = volume.chain(first, &mut seen)?;
        let content = volume.content(&chain)?;
        volume.look_into(&content, &mut seen, &mut folders)?;
        visit(first, &content)?;
    }
    Ok(())
}

impl<'w, 'd> Volume<'w, 'd> {
    pub(super) fn read(window: &'w Window<'d>) -> anyhow::Result<Self> {
        let mut sector = [0_u8; 512];
        window.read_exact_at(0, &mut sector).context("reading the first sector")?;
        let byte = |at: usize| u64::from(sector.get(at).copied().unwrap_or(0));
        let short = |at: usize| byte(at) | byte(at + 1) << 8;
        let long = |at: usize| short(at) | short(at + 2) << 16;
        let (sector_bytes, per_cluster) = (short(11), byte(13));
        ensure!(matches!(sector_bytes, 512 | 1024 | 2048 | 4096), "sectors of {sector_bytes} bytes");
        ensure!(per_cluster.is_power_of_two(), "clusters of {per_cluster} sectors");
        let (reserved, fats, entries) = (short(14), byte(16), short(17));
        ensure!(reserved > 0 && matches!(fats, 1 | 2), "its first sector is damaged");
        let either = |small: u64, large: u64| if small == 0 { large } else { small };
        let (sectors, per_fat) = (either(short(19), long(32)), either(short(22), long(36)));
        ensure!(sectors * sector_bytes <= window.length(), "it is larger than its partition");
        let root_sectors = (entries * ENTRY as u64).div_ceil(sector_bytes);
        let root = reserved + fats * per_fat;
        let data = root + root_sectors;
        let clusters = sectors.checked_sub(data).context("it has no room for files")? / per_cluster;
        let bits = match clusters {
            ..4085 => 12,
            4085..65_525 => 16,
            _ => 32,
        };
        ensure!((bits == 32) == (short(22) == 0), "its first sector is damaged");
        // Of several tables one may be in use alone.
        let active = if bits == 32 && short(40) & 0x80 != 0 { short(40) & 0xf } else { 0 };
        ensure!(active < fats, "its first sector is damaged");
        let needed = ((clusters + 2) * bits).div_ceil(8);
        ensure!(needed <= per_fat * sector_bytes, "its table is shorter than it");
        ensure!(needed <= TABLE_MAX, "it has more clusters than this agent reads: {clusters}");
        let mut table = vec![0; usize::try_from(needed)?];
        let at = (reserved + active * per_fat) * sector_bytes;
        window.read_exact_at(at, &mut table).context("reading its table")?;
        Ok(Self {
            window,
            bits,
            table,
            tables: (reserved * sector_bytes, per_fat * sector_bytes),
            clusters: u32::try_from(clusters)?,
            data: data * sector_bytes,
            cluster_bytes: usize::try_from(per_cluster * sector_bytes)?,
            root_cluster: u32::try_from(long(44))?,
            root: (root * sector_bytes, usize::try_from(root_sectors * sector_bytes)?),
        })
    }

    /// Whether a byte is in a table.
    pub(super) fn is_table(&self, at: u64) -> bool {
        (self.tables.0..self.root.0).contains(&at)
    }

    /// Whether it is where files and folders are.
    pub(super) fn is_data(&self, at: u64) -> bool {
        at >= self.data
    }

    /// Whether it is in a folder: files are never changed in their place, so that every other cluster in use is one.
    pub(super) fn is_folder(&self, at: u64) -> bool {
        let in_root = at >= self.root.0 && at < self.data;
        let cluster = at.checked_sub(self.data).map(|at| at / self.cluster_bytes.max(1) as u64 + 2);
        in_root || cluster.is_some_and(|cluster| u32::try_from(cluster).is_ok_and(|c| self.next(c) != 0))
    }

    /// A sector of a table in which no cluster becomes free; `kept` has all sectors of it that are new.
    pub(super) fn with_old(
        &self,
        at: u64,
        new: &[u8; 512],
        kept: &std::collections::BTreeMap<u64, [u8; 512]>,
    ) -> [u8; 512] {
        let (start, length) = self.tables;
        let inside = (at - start) % length.max(1);
        let byte_of = |place: u64| {
            let there = at - inside + place;
            let sector = kept.get(&(there / 512 * 512)).and_then(|sector| sector.get((there % 512) as usize));
            sector.copied().unwrap_or_else(|| self.table.get(place as usize).copied().unwrap_or(0))
        };
        let mut merged = *new;
        // All that have a bit in this sector.
        let (first, past) = (inside * 8 / self.bits, ((inside + 512) * 8).div_ceil(self.bits));
        for cluster in first.saturating_sub(1)..past.min(u64::from(self.clusters) + 2) {
            let bit = cluster * self.bits;
            let bytes = (0..4).rev().map(|n| byte_of(bit / 8 + n));
            let value = self.value(bit, bytes);
            let before = u32::try_from(cluster).map_or(0, |cluster| self.next(cluster));
            if value != 0 || before == 0 {
                continue;
            }
            for n in 0..self.bits {
                let place = bit + n;
                let Some(inside) = (place / 8).checked_sub(inside) else { continue };
                if let Some(byte) = merged.get_mut(inside as usize) {
                    *byte = *byte & !(1 << (place % 8)) | u8::from(before >> n & 1 == 1) << (place % 8);
                }
            }
        }
        merged
    }

    /// What the table says of a cluster: the next one, if it is one.
    fn next(&self, cluster: u32) -> u32 {
        let bit = u64::from(cluster) * self.bits;
        let at = usize::try_from(bit / 8).unwrap_or(usize::MAX);
        let bytes: Vec<u8> =
            (0..4).map(|n| self.table.get(at.saturating_add(n)).copied().unwrap_or(0)).collect();
        self.value(bit, bytes.into_iter().rev())
    }

    /// The number at this bit, of the bytes that it is in, the last one first.
    fn value(&self, bit: u64, bytes: impl Iterator<Item = u8>) -> u32 {
        let number = bytes.fold(0_u32, |number, byte| number << 8 | u32::from(byte));
        match self.bits {
            12 => (number >> (bit % 8)) & 0xfff,
            16 => number & 0xffff,
            _ => number & 0x0fff_ffff,
        }
    }

    /// The clusters from the first on. Each is marked as seen.
    fn chain(&self, first: u32, seen: &mut [u8]) -> anyhow::Result<Vec<u32>> {
        let end = match self.bits {
            12 => 0xff8,
            16 => 0xfff8,
            _ => 0x0fff_fff8,
        };
        let (mut chain, mut cluster) = (Vec::new(), first);
        while cluster < end {
            if !(2..self.clusters.saturating_add(2)).contains(&cluster) {
                bail!("a file or folder leads to cluster {cluster}, which does not exist");
            }
            let index = cluster - 2;
            let (byte, bit) = (usize::try_from(index / 8)?, 1 << (index % 8));
            let mark = seen.get_mut(byte).context("a cluster is nowhere")?;
            if *mark & bit != 0 {
                bail!("cluster {cluster} belongs to two files, or to one twice");
            }
            *mark |= bit;
            chain.push(cluster);
            cluster = self.next(cluster);
        }
        Ok(chain)
    }

    /// Where a cluster is, in bytes.
    fn place(&self, cluster: u32) -> u64 {
        self.data + u64::from(cluster.saturating_sub(2)) * self.cluster_bytes as u64
    }

    /// The first cluster that an entry names.
    fn cluster_in(&self, entry: &[u8; ENTRY]) -> u32 {
        let high = if self.bits == 32 { u16::from_le_bytes([entry[20], entry[21]]) } else { 0 };
        u32::from(high) << 16 | u32::from(u16::from_le_bytes([entry[26], entry[27]]))
    }

    /// What is in the clusters of a folder.
    fn content(&self, chain: &[u32]) -> anyhow::Result<Vec<u8>> {
        let length = chain.len().checked_mul(self.cluster_bytes).filter(|length| *length <= FOLDER_MAX);
        let mut bytes = vec![0; length.context("a folder is longer than one can be")?];
        for (cluster, piece) in chain.iter().zip(bytes.chunks_mut(self.cluster_bytes)) {
            self.window.read_exact_at(self.place(*cluster), piece).context("reading a folder")?;
        }
        Ok(bytes)
    }

    /// Follows the chains of all files in a folder, and notes the first clusters of the folders in it.
    fn look_into(&self, folder: &[u8], seen: &mut [u8], folders: &mut Vec<u32>) -> anyhow::Result<()> {
        for entry in folder.as_chunks::<ENTRY>().0 {
            let attributes = entry[11];
            match entry[0] {
                0 => break,
                // Deleted; the folder itself and the one above.
                DELETED => continue,
                b'.' if attributes & FOLDER != 0 => continue,
                _ => {}
            }
            if attributes & LONG_NAME == LONG_NAME || attributes & LABEL != 0 {
                continue;
            }
            let first = self.cluster_in(entry);
            match (attributes & FOLDER != 0, first) {
                (true, 0) => bail!("a folder is nowhere"),
                (true, _) => folders.push(first),
                (false, 0) => {}
                (false, _) => drop(self.chain(first, seen)?),
            }
        }
        Ok(())
    }
}
