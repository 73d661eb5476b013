//! The counter below which a card takes no image: that of what is installed, and, while nothing
//! is, a sector between the partition table and the first partition that remembers it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use piman_core::install::layout::{Layout, SECTOR};

use crate::card::inspect;

/// Where the sector is: behind what a partition table may take.
const AT: u64 = 64 * SECTOR;

const HEADING: &[u8; 16] = b"piman-counter 1\n";

/// The smallest counter that a disk of so many bytes takes; 0: any.
#[must_use]
pub fn rollback_counter(disk: &File, bytes: u64) -> u64 {
    remembered(disk).max(inspect::look(disk, bytes).counter())
}

/// Remembers the counter of what is installed, before that is erased: earlier agents did not.
///
/// # Errors
/// If the disk cannot be written.
pub fn raise(disk: &File, bytes: u64, layout: &Layout) -> io::Result<()> {
    let card = inspect::look(disk, bytes);
    remember(disk, card.counter(), layout, card.is_whole_disk())
}

/// Remembers the counter of what was just installed: its filesystem may be damaged when it is erased, and then says
/// nothing any more. The image of a whole disk may have something of its own where the counter is kept.
///
/// # Errors
/// If the disk cannot be written.
pub fn remember(disk: &File, counter: u64, layout: &Layout, whole_disk: bool) -> io::Result<()> {
    if counter <= remembered(disk) {
        return Ok(());
    }
    if layout.boot_start.min(layout.root_start) * SECTOR < AT + SECTOR {
        log::warn!("a partition begins so early that the counter against older images is not kept");
        return Ok(());
    }
    if whole_disk && !is_free(disk)? {
        log::warn!(
            "the image has something where the counter against older images is kept: only its proof has it"
        );
        return Ok(());
    }
    let mut sector = [0; SECTOR as usize];
    let text = [&HEADING[..], &counter.to_le_bytes()].concat();
    let sum = blake3::hash(&text);
    for (place, byte) in sector.iter_mut().zip(text.iter().chain(sum.as_bytes())) {
        *place = *byte;
    }
    disk.write_all_at(&sector, AT)?;
    disk.sync_data()
}

/// Whether the place holds nothing, or what we keep there.
fn is_free(disk: &File) -> io::Result<bool> {
    let mut sector = [0; SECTOR as usize];
    disk.read_exact_at(&mut sector, AT)?;
    Ok(sector.starts_with(HEADING) || sector.iter().all(|byte| *byte == 0))
}

fn remembered(disk: &File) -> u64 {
    let mut sector = [0; SECTOR as usize];
    // A disk that cannot be read will not be installed.
    if disk.read_exact_at(&mut sector, AT).is_err() {
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
        raise(&disk, 1 << 20, &Layout::default()).unwrap();
        assert_eq!(remembered(&disk), 77);
        disk.write_all_at(&[1], AT + 20).unwrap();
        assert_eq!(remembered(&disk), 0);
        let layout = Layout::default();
        for (counter, kept) in [(9, 9), (3, 9), (0, 9), (10, 10)] {
            remember(&disk, counter, &layout, counter == 10).unwrap();
            assert_eq!(rollback_counter(&disk, 1 << 20), kept);
        }
        // A partition is never written to for it.
        let early = Layout { boot_start: 64, ..layout };
        remember(&disk, 11, &early, false).unwrap();
        assert_eq!(remembered(&disk), 10);
        // Nor is what a whole disk's image has there.
        disk.write_all_at(b"a boot loader", AT).unwrap();
        remember(&disk, 12, &layout, true).unwrap();
        assert_eq!(remembered(&disk), 0);
        remember(&disk, 12, &layout, false).unwrap();
        assert_eq!(remembered(&disk), 12);
        std::fs::remove_file(&path).unwrap();
    }
}
