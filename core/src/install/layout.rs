//! Where the partitions of a card lie, and how large its root filesystem is.

/// The size of a sector, in bytes.
pub const SECTOR: u64 = 512;

/// An MBR layout of two partitions: a FAT one to boot from, and the root filesystem
/// to the end of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Layout {
    /// The disk's identifier in the partition table.
    pub disk_id: u32,
    /// First sector of the boot partition.
    pub boot_start: u64,
    /// Sectors of the boot partition.
    pub boot_sectors: u64,
    /// First sector of the root partition.
    pub root_start: u64,
    /// Sectors of the root partition; `None`: to the end of the disk.
    pub root_sectors: Option<u64>,
}

/// The layout that the old script made.
impl Default for Layout {
    fn default() -> Self {
        Self {
            disk_id: 0x5f5d_7a31,
            boot_start: 8192,
            boot_sectors: 88_472,
            root_start: 98_304,
            root_sectors: None,
        }
    }
}

/// Why a layout does not fit a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum SizeError {
    /// The partitions overlap, or the first begins before sector 1.
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
            Self::Overlap => f.write_str("the partitions overlap"),
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

impl Layout {
    /// Sectors of the root partition on a disk of `disk_bytes`.
    ///
    /// # Errors
    /// [`SizeError`] if the layout does not fit the disk or an MBR.
    pub fn root_on(&self, disk_bytes: u64) -> Result<u64, SizeError> {
        let sectors = disk_bytes / SECTOR;
        let boot_end = self.boot_start.checked_add(self.boot_sectors).ok_or(SizeError::TooLarge)?;
        if self.boot_start == 0 || self.boot_sectors == 0 || boot_end > self.root_start {
            return Err(SizeError::Overlap);
        }
        if self.boot_sectors < BOOT_MIN {
            return Err(SizeError::BootTooSmall);
        }
        // An MBR counts 32 bits of sectors: what is behind stays unused.
        let sectors = sectors.min(u64::from(u32::MAX));
        let wanted = self.root_sectors.unwrap_or(ROOT_MIN);
        let needed = self.root_start.checked_add(wanted).filter(|n| *n <= u64::from(u32::MAX));
        let needed = needed.ok_or(SizeError::TooLarge)?;
        if sectors < needed {
            return Err(SizeError::TooSmall { needed: needed * SECTOR });
        }
        Ok(self.root_sectors.unwrap_or(sectors - self.root_start))
    }
}

/// The size of the filesystem in a root partition of `root_bytes`: rounded down so that
/// cards of nearly the same size share one image; at most 1/32 of the partition stays
/// unused. Always whole blocks of 4096 bytes.
#[must_use]
pub const fn filesystem_bytes(root_bytes: u64) -> u64 {
    let step = match root_bytes.checked_ilog2() {
        Some(log) if log > 17 => 1 << (log - 5),
        _ => 4096,
    };
    root_bytes / step * step
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
        assert_eq!(layout.root_on(1 << 50), Ok(u64::from(u32::MAX) - 98_304));
    }

    #[test]
    fn nearly_the_same_cards_share_an_image() {
        assert_eq!(filesystem_bytes(31_864_651_776), filesystem_bytes(31_700_000_000));
        for bytes in [0, 4095, 4096, 1 << 27, (1 << 35) - 1, 31_864_651_776, u64::MAX] {
            let fs = filesystem_bytes(bytes);
            assert!(
                fs <= bytes && fs.is_multiple_of(4096) && bytes - fs <= (bytes / 32).max(4095),
                "{bytes}"
            );
        }
    }
}
