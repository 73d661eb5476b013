//! The partition table of a disk: its first sector (MBR).

use core::fmt;

/// How long it is.
pub const BYTES: usize = 512;
/// The partition type of FAT32 with LBA.
pub const FAT32_LBA: u8 = 0x0c;
/// The partition type of a filesystem of Linux.
pub const LINUX: u8 = 0x83;

const BOOT_CODE: usize = 440;
const ENTRY: usize = 16;
/// The last two bytes.
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// The first byte of the entry of an active partition.
const ACTIVE: u8 = 0x80;

/// A partition table. What is written is what was read, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Mbr {
    /// The program that a PC would boot.
    pub boot_code: [u8; BOOT_CODE],
    /// The disk's identifier.
    pub disk_id: u32,
    /// Two bytes that nobody needs; some systems mark a disk as write-protected there.
    pub reserved: [u8; 2],
    /// The four partitions; those that are not used have the type 0.
    pub partitions: [Partition; 4],
}

/// A partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Partition {
    /// Whether a PC would boot from it.
    pub active: bool,
    /// Its type; 0: it is not used.
    pub kind: u8,
    /// Its first sector.
    pub first: u32,
    /// How many sectors it has.
    pub sectors: u32,
    /// Its first and its last sector as cylinder, head and sector, which nobody reads any more.
    pub cylinders: [[u8; 3]; 2],
}

/// A sector is no partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum NoTable {
    /// It does not end with the two bytes that every table has.
    Signature,
    /// The first byte of a partition's entry is neither 0 nor 128.
    Active,
}

impl fmt::Display for NoTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signature => "no partition table: its mark is missing at the end of the first sector",
            Self::Active => "no partition table: an entry is damaged",
        })
    }
}

impl core::error::Error for NoTable {}

impl Partition {
    /// A partition of this type that begins at this sector and has so many.
    #[must_use]
    pub const fn new(kind: u8, first: u32, sectors: u32) -> Self {
        Self { active: false, kind, first, sectors, cylinders: [[0; 3]; 2] }
    }

    /// Whether there is a partition.
    #[must_use]
    pub const fn is_used(&self) -> bool {
        self.kind != 0
    }

    fn read(entry: &[u8; ENTRY]) -> Result<Self, NoTable> {
        let [active, a, b, c, kind, d, e, f, first @ .., s, t, u, v] = *entry;
        if active != 0 && active != ACTIVE {
            return Err(NoTable::Active);
        }
        Ok(Self {
            active: active == ACTIVE,
            kind,
            first: u32::from_le_bytes(first),
            sectors: u32::from_le_bytes([s, t, u, v]),
            cylinders: [[a, b, c], [d, e, f]],
        })
    }

    fn write(&self) -> [u8; ENTRY] {
        let active = if self.active { ACTIVE } else { 0 };
        let [[a, b, c], [d, e, f]] = self.cylinders;
        let [g, h, i, j] = self.first.to_le_bytes();
        let [s, t, u, v] = self.sectors.to_le_bytes();
        [active, a, b, c, self.kind, d, e, f, g, h, i, j, s, t, u, v]
    }
}

impl Mbr {
    /// A table without partitions.
    #[must_use]
    pub const fn new(disk_id: u32) -> Self {
        let none = Partition::new(0, 0, 0);
        Self { boot_code: [0; BOOT_CODE], disk_id, reserved: [0; 2], partitions: [none; 4] }
    }

    /// Reads the first sector of a disk.
    ///
    /// # Errors
    /// If it is no partition table.
    pub fn read(sector: &[u8; BYTES]) -> Result<Self, NoTable> {
        let [table @ .., last_but_one, last] = sector;
        if [*last_but_one, *last] != SIGNATURE {
            return Err(NoTable::Signature);
        }
        let mut mbr = Self::new(0);
        // All of these are there: the sector is long enough.
        let Some((boot_code, rest)) = table.split_first_chunk() else { return Err(NoTable::Signature) };
        let Some((disk_id, rest)) = rest.split_first_chunk() else { return Err(NoTable::Signature) };
        let Some((reserved, rest)) = rest.split_first_chunk() else { return Err(NoTable::Signature) };
        (mbr.boot_code, mbr.disk_id, mbr.reserved) = (*boot_code, u32::from_le_bytes(*disk_id), *reserved);
        for (partition, entry) in mbr.partitions.iter_mut().zip(rest.as_chunks().0) {
            *partition = Partition::read(entry)?;
        }
        Ok(mbr)
    }

    /// The sector that says this.
    #[must_use]
    pub fn write(&self) -> [u8; BYTES] {
        let id = self.disk_id.to_le_bytes();
        let entries = self.partitions.iter().flat_map(Partition::write);
        let all = self.boot_code.into_iter().chain(id).chain(self.reserved).chain(entries).chain(SIGNATURE);
        let mut sector = [0; BYTES];
        for (place, byte) in sector.iter_mut().zip(all) {
            *place = byte;
        }
        sector
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_two_partitions() {
        let mut mbr = Mbr::new(0x5f5d_7a31);
        mbr.partitions[0] = Partition { active: true, ..Partition::new(FAT32_LBA, 8192, 88_472) };
        mbr.partitions[1] =
            Partition { cylinders: [[1, 2, 3], [4, 5, 6]], ..Partition::new(LINUX, 98_304, u32::MAX) };
        let sector = mbr.write();
        assert_eq!(sector[440..446], [0x31, 0x7a, 0x5d, 0x5f, 0, 0]);
        assert_eq!(sector[446..462], [0x80, 0, 0, 0, 0x0c, 0, 0, 0, 0, 0x20, 0, 0, 0x98, 0x59, 1, 0]);
        assert_eq!(sector[462..478], [0, 1, 2, 3, 0x83, 4, 5, 6, 0, 0x80, 1, 0, 0xff, 0xff, 0xff, 0xff]);
        assert!(sector[478..510].iter().all(|b| *b == 0) && sector[510..] == SIGNATURE);
        assert_eq!(Mbr::read(&sector).as_ref(), Ok(&mbr));
        assert_eq!(mbr.partitions.map(|p| p.is_used()), [true, true, false, false]);
    }

    #[test]
    fn what_is_no_table() {
        let sector = Mbr::new(1).write();
        for (at, value, why) in
            [(510, 0, NoTable::Signature), (511, 0x55, NoTable::Signature), (446 + 48, 1, NoTable::Active)]
        {
            let mut bad = sector;
            bad[at] = value;
            assert_eq!(Mbr::read(&bad), Err(why));
        }
        assert_eq!(Mbr::read(&[0; 512]), Err(NoTable::Signature));
    }
}
