//! From what a card boots, and how much of it that takes.

use piman_core::install::layout::{Layout, SECTOR};

use crate::images::fitness::BootFrom;
use crate::state::About;
use crate::state::archive_facts::Content;

/// What the root partition begins at a multiple of, in bytes.
const ROOT_GRAIN: u64 = 4 << 20;

/// From what a card with this image boots, and how large the boot partition is that an agent fills for it, in bytes;
/// 0: none is filled.
#[must_use]
pub fn boot_of(content: &Content, about: &About) -> (BootFrom, u64) {
    let found = &content.fitness.system.boot;
    let from = about.boot.unwrap_or(found.from());
    let is_filled = from == BootFrom::Card && !content.is_disk();
    (from, if is_filled { about.boot_bytes.unwrap_or(found.partition_bytes) } else { 0 })
}

/// How many bytes a boot partition of this size takes from the root filesystem of a card as agents lay it out.
#[must_use]
pub fn taken_by_boot(boot_bytes: u64) -> u64 {
    if boot_bytes == 0 {
        return 0;
    }
    let start = (Layout::DEFAULT.boot_start * SECTOR).saturating_add(boot_bytes);
    let root = start.checked_next_multiple_of(ROOT_GRAIN).unwrap_or(u64::MAX);
    root.saturating_sub(Layout::DEFAULT.root_start * SECTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_much_a_boot_partition_takes() {
        assert_eq!(taken_by_boot(0), 0);
        assert_eq!(taken_by_boot(512 << 20), (516 - 48) << 20);
        assert!(taken_by_boot(u64::MAX) > 1 << 60);
    }
}
