//! The serial number of a FAT filesystem that nobody has mounted.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, ensure};

use crate::card::disk::{RootArea, Window};

const SECTOR: usize = 512;

/// The serial number in a first sector, and where it is there; `None` if it has none.
fn serial_in(sector: &[u8; SECTOR]) -> Option<(u32, usize)> {
    let short = |at: usize| {
        u16::from_le_bytes(sector.get(at..).and_then(|b| b.first_chunk()).copied().unwrap_or_default())
    };
    let is_one = short(510) == 0xaa55 && matches!(short(11), 512 | 1024 | 2048 | 4096);
    // Without a length of the table in 16 bits it is a FAT32.
    let at = if short(22) == 0 { 0x43 } else { 0x27 };
    let marked = matches!(sector.get(at - 1), Some(0x28 | 0x29));
    let serial = u32::from_le_bytes(*sector.get(at..)?.first_chunk()?);
    (is_one && marked).then_some((serial, at))
}

fn sector_at(disk: &File, area: &RootArea, at: u64) -> anyhow::Result<[u8; SECTOR]> {
    let mut sector = [0; SECTOR];
    Window::new(disk, area.offset, area.length).read_exact_at(at, &mut sector)?;
    Ok(sector)
}

/// The serial number of the filesystem in a part of a disk.
///
/// # Errors
/// If there is no FAT filesystem.
pub(super) fn serial(disk: &File, area: &RootArea) -> anyhow::Result<u32> {
    let sector = sector_at(disk, area, 0)?;
    serial_in(&sector).map(|(serial, _)| serial).context("it has no serial number")
}

/// Writes another one; also into the copy of the first sector that a FAT32 has.
///
/// # Errors
/// If there is no FAT filesystem, or the disk cannot be written.
pub(super) fn renew(disk: &File, area: &RootArea, serial: u32) -> anyhow::Result<()> {
    let sector = sector_at(disk, area, 0)?;
    let (old, at) = serial_in(&sector).context("it has no serial number")?;
    let short =
        |at: usize| sector.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b));
    let (sector_bytes, reserved, copy) = (u64::from(short(11)), short(14), short(0x32));
    let is_wide = short(22) == 0;
    let copy = Some(copy).filter(|copy| is_wide && (1..reserved).contains(copy));
    let copy = copy.map(|copy| u64::from(copy) * sector_bytes);
    for place in copy.into_iter().chain([0]) {
        // Whatever else lies there is no copy.
        if place > 0 && serial_in(&sector_at(disk, area, place)?) != Some((old, at)) {
            continue;
        }
        ensure!(area.length > place, "it is longer than its partition");
        disk.write_all_at(&serial.to_le_bytes(), area.offset + place + at as u64)?;
    }
    disk.sync_data()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fatfs::{FatType, FormatVolumeOptions, format_volume};

    #[test]
    fn every_kind_of_fat_and_the_copy() {
        for (bytes, kind, sector) in [
            (2 << 20, FatType::Fat12, 512_u16),
            (16 << 20, FatType::Fat16, 512),
            (40 << 20, FatType::Fat32, 512),
            (300 << 20, FatType::Fat32, 4096),
        ] {
            let disk = tempfile::tempfile().unwrap();
            disk.set_len(bytes + 4096).unwrap();
            let area = RootArea { offset: 4096, length: bytes };
            let options = FormatVolumeOptions::new().fat_type(kind).volume_id(7).bytes_per_sector(sector);
            let options =
                options.bytes_per_cluster(if kind == FatType::Fat12 { 4096 } else { sector.into() });
            format_volume(Window::new(&disk, 4096, bytes), options).unwrap();
            assert_eq!(serial(&disk, &area).unwrap(), 7);
            renew(&disk, &area, 0xdead_beef).unwrap();
            let fs =
                fatfs::FileSystem::new(Window::new(&disk, 4096, bytes), fatfs::FsOptions::new()).unwrap();
            assert_eq!((fs.volume_id(), fs.fat_type()), (0xdead_beef, kind));
            if kind == FatType::Fat32 {
                let copy = sector_at(&disk, &area, 6 * u64::from(sector)).unwrap();
                assert_eq!(serial_in(&copy).unwrap().0, 0xdead_beef);
            }
            let mut first = sector_at(&disk, &area, 0).unwrap();
            first[510] = 0;
            disk.write_all_at(&first, 4096).unwrap();
            assert!(renew(&disk, &area, 1).is_err());
        }
    }
}
