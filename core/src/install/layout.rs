//! Where the partitions of a card lie.

/// The size of a sector, in bytes.
pub const SECTOR: u64 = 512;

/// The kind of partition table that a disk gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum TableKind {
    /// MBR, or GPT where an MBR does not reach to the end of the disk.
    #[default]
    Auto,
    /// MBR. What it does not reach stays unused.
    Mbr,
    /// GPT.
    Gpt,
}

impl core::str::FromStr for TableKind {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "mbr" | "dos" => Ok(Self::Mbr),
            "gpt" => Ok(Self::Gpt),
            _ => Err("not a kind of partition table: auto, mbr or gpt"),
        }
    }
}

/// Two partitions: a FAT one to boot from, and the root filesystem to the end of the disk, or to a third one there
/// that installations leave alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Layout {
    /// The disk's identifier in an MBR.
    pub disk_id: u32,
    /// First sector of the boot partition.
    pub boot_start: u64,
    /// Sectors of the boot partition.
    pub boot_sectors: u64,
    /// First sector of the root partition.
    pub root_start: u64,
    /// Sectors of the root partition; `None`: to the end of the disk.
    pub root_sectors: Option<u64>,
    /// Sectors of the partition behind it that is kept; 0: there is none.
    pub data_sectors: u64,
    /// The kind of partition table.
    pub table: TableKind,
}

impl Layout {
    /// The layout that the old script made.
    pub const DEFAULT: Self = Self {
        disk_id: 0x5f5d_7a31,
        boot_start: 8192,
        boot_sectors: 88_472,
        root_start: 98_304,
        root_sectors: None,
        data_sectors: 0,
        table: TableKind::Auto,
    };
}

impl Default for Layout {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Part of a disk, in sectors of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Extent {
    /// Its first sector.
    pub start: u64,
    /// How many it has.
    pub sectors: u64,
}

/// Where a layout puts what on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Places {
    /// Whether the table is a GPT.
    pub gpt: bool,
    /// The root partition.
    pub root: Extent,
    /// The partition that is kept, if there is to be one.
    pub data: Option<Extent>,
}

/// Why a layout does not fit a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum SizeError {
    /// The partitions overlap, or the first begins where the table is.
    Overlap,
    /// The disk is too small; so many bytes are needed at least.
    TooSmall {
        /// The smallest disk that would do, in bytes.
        needed: u64,
    },
    /// A partition begins or ends behind sector 2^32, the limit of an MBR.
    TooLarge,
    /// The boot partition has no room for a FAT filesystem.
    BootTooSmall,
}

impl core::fmt::Display for SizeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Overlap => f.write_str("the partitions overlap each other or the table"),
            Self::TooSmall { needed } => {
                write!(f, "the disk is too small: it must have at least {needed} bytes")
            }
            Self::BootTooSmall => {
                write!(f, "the boot partition is too small: it must have at least {BOOT_MIN} sectors")
            }
            Self::TooLarge => f.write_str("the partitions reach behind 2 TiB, the limit of an MBR"),
        }
    }
}

impl core::error::Error for SizeError {}

/// The smallest boot partition that a FAT filesystem fits into, in sectors.
const BOOT_MIN: u64 = 42;

/// The smallest root partition that is of any use, in sectors (64 MiB).
const ROOT_MIN: u64 = 64 << 11;

/// What the partition that is kept and the end before a GPT's copy are a multiple of, in sectors (1 MiB).
const GRAIN: u64 = 2048;

/// What the root partition begins on a multiple of behind a boot partition that is filled, in sectors (4 MiB).
const BOOT_GRAIN: u64 = 8192;

impl Layout {
    /// The same with a boot partition of `bytes` at least, and the root partition behind it; both end or begin on a
    /// multiple of 4 MiB. 0: the layout as it is.
    #[must_use]
    pub const fn with_boot(self, bytes: u64) -> Self {
        if bytes == 0 {
            return self;
        }
        let end = self.boot_start.saturating_add(bytes.div_ceil(SECTOR));
        // What is too large to be rounded up is too large for every disk.
        let root_start = match end.checked_next_multiple_of(BOOT_GRAIN) {
            Some(root_start) => root_start,
            None => end,
        };
        Self { boot_sectors: root_start.saturating_sub(self.boot_start), root_start, ..self }
    }

    /// Sectors of the root partition on a disk of `disk_bytes` with sectors of 512 bytes.
    ///
    /// # Errors
    /// [`SizeError`] if the layout does not fit the disk or its table.
    pub fn root_on(&self, disk_bytes: u64) -> Result<u64, SizeError> {
        Ok(self.places(disk_bytes, SECTOR)?.root.sectors)
    }

    /// Where everything lies on a disk of `disk_bytes` whose sectors have `sector` bytes.
    ///
    /// # Errors
    /// [`SizeError`] if the layout does not fit the disk or its table.
    pub fn places(&self, disk_bytes: u64, sector: u64) -> Result<Places, SizeError> {
        let scale = (sector / SECTOR).max(1);
        let limit = u64::from(u32::MAX) * scale;
        let sectors = disk_bytes / SECTOR / scale * scale;
        let gpt = match self.table {
            TableKind::Auto => sectors > limit,
            kind => kind == TableKind::Gpt,
        };
        let table_end = if gpt { super::gpt::table_bytes(sector) / SECTOR } else { 1 };
        let boot_end = self.boot_start.checked_add(self.boot_sectors).ok_or(SizeError::TooLarge)?;
        if self.boot_start < table_end || self.boot_sectors == 0 || boot_end > self.root_start {
            return Err(SizeError::Overlap);
        }
        if self.boot_sectors < BOOT_MIN {
            return Err(SizeError::BootTooSmall);
        }
        // An MBR counts 32 bits of sectors: what is behind stays unused. A GPT has its copy at the end.
        let grains = |sectors: u64| sectors / GRAIN * GRAIN;
        let end = if gpt { grains(sectors.saturating_sub(GRAIN)) } else { sectors.min(limit) };
        let slack = if gpt { 2 * GRAIN } else { 0 } + if self.data_sectors > 0 { GRAIN } else { 0 };
        let wanted = self.root_sectors.unwrap_or(ROOT_MIN);
        let needed = [wanted, self.data_sectors, slack]
            .into_iter()
            .try_fold(self.root_start, u64::checked_add)
            .filter(|needed| gpt || *needed <= limit)
            .ok_or(SizeError::TooLarge)?;
        let too_small = SizeError::TooSmall { needed: needed.saturating_mul(SECTOR) };
        let data_sectors = self.data_sectors.next_multiple_of(GRAIN);
        let data = (data_sectors > 0).then(|| grains(end.saturating_sub(data_sectors)));
        let root_end = data.unwrap_or(end);
        let room = root_end.checked_sub(self.root_start).filter(|room| *room >= wanted).ok_or(too_small)?;
        Ok(Places {
            gpt,
            root: Extent { start: self.root_start, sectors: self.root_sectors.unwrap_or(room) },
            data: data.map(|start| Extent { start, sectors: data_sectors }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_layout_on_a_32_gb_card() {
        let layout = Layout::default();
        assert_eq!(layout.root_on(31_914_983_424), Ok(31_914_983_424 / 512 - 98_304));
    }

    #[test]
    fn misfits() {
        let layout = Layout::default();
        let needed = (98_304 + ROOT_MIN) * SECTOR;
        assert_eq!(layout.root_on(0), Err(SizeError::TooSmall { needed }));
        assert_eq!(layout.root_on(needed - 1), Err(SizeError::TooSmall { needed }));
        assert_eq!(layout.root_on(needed), Ok(ROOT_MIN));
        assert_eq!(Layout { root_start: 9000, ..layout }.root_on(1 << 40), Err(SizeError::Overlap));
        assert_eq!(Layout { boot_sectors: 20, ..layout }.root_on(1 << 40), Err(SizeError::BootTooSmall));
        assert_eq!(Layout { boot_start: u64::MAX, ..layout }.root_on(1 << 40), Err(SizeError::TooLarge));
        let fixed = Layout { root_sectors: Some(u64::MAX), ..layout };
        assert_eq!(fixed.root_on(1 << 40), Err(SizeError::TooLarge));
        let mbr = Layout { table: TableKind::Mbr, ..layout };
        assert_eq!(mbr.root_on(1 << 50), Ok(u64::from(u32::MAX) - 98_304));
        for bad in [Layout { data_sectors: u64::MAX, ..layout }, Layout { data_sectors: 1 << 32, ..mbr }] {
            assert_eq!(bad.root_on(1 << 50), Err(SizeError::TooLarge));
        }
    }

    #[test]
    fn a_gpt_begins_where_an_mbr_ends() {
        let auto = Layout::default();
        let at = |layout: Layout, bytes, sector| layout.places(bytes, sector).unwrap();
        let two_tib = u64::from(u32::MAX) * SECTOR;
        assert!(!at(auto, two_tib, 512).gpt && at(auto, two_tib + 512, 512).gpt);
        assert!(!at(auto, 3_000_000_000_000, 4096).gpt && at(auto, 17 << 40, 4096).gpt);
        for sector in [512, 4096] {
            let places = at(Layout { table: TableKind::Gpt, ..auto }, 3_000_592_982_016, sector);
            let end = (places.root.start + places.root.sectors) * SECTOR;
            assert!(
                end.is_multiple_of(1 << 20) && 3_000_592_982_016 - end >= 1 << 20 && places.data.is_none()
            );
        }
        let early = Layout { boot_start: 33, table: TableKind::Gpt, ..auto };
        assert_eq!(early.places(1 << 40, 512), Err(SizeError::Overlap));
        assert_eq!(Layout { boot_start: 34, ..early }.places(1 << 40, 4096), Err(SizeError::Overlap));
        assert!(Layout { boot_start: 34, ..early }.places(1 << 40, 512).is_ok());
    }

    #[test]
    fn a_boot_partition_as_large_as_wanted() {
        let layout = Layout::default();
        assert_eq!(layout.with_boot(0), layout);
        for (bytes, root_start) in
            [(1, 16_384), (512 << 20, 8192 + (512 << 11)), ((512 << 20) + 1, 8192 + (516 << 11))]
        {
            let large = layout.with_boot(bytes);
            assert_eq!((large.root_start, large.boot_start), (root_start, layout.boot_start));
            assert_eq!(large.boot_start + large.boot_sectors, root_start);
            assert!(large.boot_sectors * SECTOR >= bytes && large.places(1 << 34, 512).is_ok());
            assert!(large.places(1 << 34, 4096).is_ok());
        }
        for bytes in [u64::MAX, u64::MAX - 511, 1 << 63, 4 << 40] {
            assert!(layout.with_boot(bytes).places(64 << 30, 512).is_err());
        }
    }

    #[test]
    fn what_is_kept_lies_in_the_same_place_each_time() {
        for table in [TableKind::Mbr, TableKind::Gpt] {
            for sector in [512, 4096] {
                let layout = Layout { data_sectors: 5000, table, ..Layout::default() };
                let places = layout.places(31_914_983_424, sector).unwrap();
                let data = places.data.unwrap();
                assert_eq!((data.sectors, data.start % 2048), (3 * 2048, 0));
                assert_eq!(places.root.start + places.root.sectors, data.start);
                assert!((data.start + data.sectors) * SECTOR <= 31_914_983_424);
                let Err(SizeError::TooSmall { needed }) = layout.places(90 << 20, sector) else {
                    panic!("it fits")
                };
                assert!(layout.places(needed, sector).is_ok());
            }
        }
    }
}
