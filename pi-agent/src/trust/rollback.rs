//! The counter below which a card takes no image: that of what is installed, and, while nothing
//! is, a sector between the partition table and the first partition that remembers it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use piman_core::install::gpt::{HEADER, Header};
use piman_core::install::layout::{Layout, SECTOR};

use super::device::Device;
use crate::card::content::source::{DiskSource, Region};
use crate::card::content::table;
use crate::card::disk::{is_root_withheld, sector_bytes};
use crate::card::inspect;

/// Where the sector is: behind what a partition table may take.
pub(super) const AT: u64 = 64 * SECTOR;
/// Where it is as well while the image of a whole disk is being written, which may have something of its own there: in
/// the first block, which is written last.
pub(super) const UNDER_WAY: u64 = 2 * SECTOR;

const HEADING: &[u8; 16] = b"piman-counter 1\n";

/// The smallest counter that a disk of so many bytes takes; 0: any.
#[must_use]
pub fn rollback_counter(disk: &File, bytes: u64) -> u64 {
    remembered(disk).max(inspect::look(disk, bytes).counter())
}

/// Remembers the counter of what is installed, before that is erased: earlier agents did not. Returns it.
///
/// # Errors
/// If the disk cannot be written.
pub fn raise(disk: &File, bytes: u64, layout: &Layout) -> io::Result<u64> {
    let card = inspect::look(disk, bytes);
    remember(disk, card.counter(), layout, card.is_whole_disk().then_some(bytes))?;
    Ok(card.counter().max(remembered(disk)))
}

/// A first block that remembers a counter, and the key of this Pi, until another one takes its place; it begins with
/// this sector.
#[must_use]
pub fn first_block(table: &[u8; SECTOR as usize], counter: u64, device: Option<&Device>) -> Vec<u8> {
    let mut block = table.to_vec();
    block.resize(4096, 0);
    let place = block.iter_mut().skip(UNDER_WAY as usize);
    place.zip(sector_of(counter)).for_each(|(place, byte)| *place = byte);
    if let Some(device) = device {
        device.put_under_way(&mut block);
    }
    block
}

/// Remembers the counter of what was just installed: its filesystem may be damaged when it is erased, and then says
/// nothing any more. `whole_disk` is the size of a disk that holds the image of a whole disk, in bytes: that may have
/// something of its own where the counter is kept.
///
/// # Errors
/// If the disk cannot be written.
pub fn remember(disk: &File, counter: u64, layout: &Layout, whole_disk: Option<u64>) -> io::Result<()> {
    if counter <= remembered(disk) {
        return Ok(());
    }
    if !is_free_at(disk, AT, (layout, whole_disk), HEADING)? {
        log::warn!(
            "something else lies where the counter against older images is kept: only the proof has it"
        );
        return Ok(());
    }
    disk.write_all_at(&sector_of(counter), AT)?;
    disk.sync_data()
}

fn sector_of(counter: u64) -> [u8; SECTOR as usize] {
    let mut sector = [0; SECTOR as usize];
    let text = [&HEADING[..], &counter.to_le_bytes()].concat();
    let sum = blake3::hash(&text);
    for (place, byte) in sector.iter_mut().zip(text.iter().chain(sum.as_bytes())) {
        *place = *byte;
    }
    sector
}

/// Whether the sector there belongs to nobody, and on a whole disk's image holds nothing, or what begins with this
/// heading. `whole_disk` is the size of a disk that holds such an image, in bytes.
pub(super) fn is_free_at(
    disk: &File,
    at: u64,
    (layout, whole_disk): (&Layout, Option<u64>),
    heading: &[u8],
) -> io::Result<bool> {
    let Some(bytes) = whole_disk else {
        return Ok(layout.boot_start.min(layout.root_start) * SECTOR >= at + SECTOR);
    };
    let mut sector = [0; SECTOR as usize];
    disk.read_exact_at(&mut sector, at)?;
    let empty = sector.starts_with(heading) || sector.iter().all(|byte| *byte == 0);
    Ok(empty && table_end(disk, bytes, at + SECTOR)? <= at)
}

/// How far what a partition table says of a disk of so many bytes reaches at its start: its own entries, and whatever
/// partition begins before `end`.
fn table_end(disk: &File, bytes: u64, end: u64) -> io::Result<u64> {
    let sector = sector_bytes(disk);
    let source = DiskSource { file: disk, bytes, sector };
    let table = table::read(&Region::whole(&source)).map_err(|wrong| io::Error::other(wrong.to_string()))?;
    if table.parts.iter().any(|part| part.offset < end) {
        return Ok(u64::MAX);
    }
    let mut header = [0; HEADER];
    disk.read_exact_at(&mut header, sector)?;
    Ok(Header::read(&header, 1).map_or(SECTOR, |header| {
        let entries = u64::from(header.entries) * u64::from(header.entry_bytes);
        header.array.saturating_mul(sector).saturating_add(entries)
    }))
}

fn remembered(disk: &File) -> u64 {
    let under_way = if is_root_withheld(disk) { remembered_at(disk, UNDER_WAY) } else { 0 };
    remembered_at(disk, AT).max(under_way)
}

fn remembered_at(disk: &File, at: u64) -> u64 {
    let mut sector = [0; SECTOR as usize];
    // A disk that cannot be read will not be installed.
    if disk.read_exact_at(&mut sector, at).is_err() {
        return 0;
    }
    let (text, rest) = sector.split_at(HEADING.len() + 8);
    let whole = text.starts_with(HEADING) && rest.starts_with(blake3::hash(text).as_bytes());
    let counter = text.last_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if whole { counter } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use piman_core::install::mbr::{LINUX, Mbr, Partition};

    #[test]
    fn what_is_remembered_is_whole_or_nothing() {
        let path = std::env::temp_dir().join(format!("rollback-{}", std::process::id()));
        let disk = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        assert_eq!(rollback_counter(&disk, 0), 0);
        disk.set_len(1 << 20).unwrap();
        assert_eq!(remembered(&disk), 0);
        let text = [&HEADING[..], &77_u64.to_le_bytes()].concat();
        disk.write_all_at(&[&text[..], blake3::hash(&text).as_bytes()].concat(), AT).unwrap();
        assert_eq!(rollback_counter(&disk, 1 << 20), 77);
        // Nothing is installed, so nothing is to be remembered.
        assert_eq!(raise(&disk, 1 << 20, &Layout::default()).unwrap(), 77);
        assert_eq!(remembered(&disk), 77);
        disk.write_all_at(&[1], AT + 20).unwrap();
        assert_eq!(remembered(&disk), 0);
        let layout = Layout::default();
        for (counter, kept) in [(9, 9), (3, 9), (0, 9), (10, 10)] {
            remember(&disk, counter, &layout, (counter == 10).then_some(1 << 20)).unwrap();
            assert_eq!(rollback_counter(&disk, 1 << 20), kept);
        }
        // A partition is never written to for it.
        let early = Layout { boot_start: 64, ..layout };
        remember(&disk, 11, &early, None).unwrap();
        assert_eq!(remembered(&disk), 10);
        // Nor is what a whole disk's image has there.
        disk.write_all_at(b"a boot loader", AT).unwrap();
        remember(&disk, 12, &layout, Some(1 << 20)).unwrap();
        assert_eq!(remembered(&disk), 0);
        remember(&disk, 12, &layout, None).unwrap();
        assert_eq!(remembered(&disk), 12);
        // While the image of a whole disk is being written nothing else remembers it.
        let mut withheld = Mbr::new(0);
        withheld.partitions[1] = Partition::new(LINUX, 8192, 0);
        disk.write_all_at(&vec![0; 1 << 20], 0).unwrap();
        disk.write_all_at(&first_block(&withheld.write(), 55, None), 0).unwrap();
        assert_eq!(rollback_counter(&disk, 1 << 20), 55);
        withheld.partitions[1].sectors = 1000;
        disk.write_all_at(&withheld.write(), 0).unwrap();
        assert_eq!(remembered(&disk), 0, "it is another first block by now");
        // Nor is a partition of such an image written to.
        withheld.partitions[0] = Partition::new(LINUX, 64, 8);
        disk.write_all_at(&withheld.write(), 0).unwrap();
        remember(&disk, 12, &layout, Some(1 << 20)).unwrap();
        assert_eq!(remembered(&disk), 0);
        std::fs::remove_file(&path).unwrap();
    }
}
