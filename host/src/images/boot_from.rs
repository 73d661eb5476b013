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

/// Why no agent can fill the boot partition that cards with this image are to have, with `more` bytes of files that a
/// profile has; `None`: it can, or none is filled.
#[must_use]
pub fn refusal(content: &Content, about: &About, more: u64) -> Option<String> {
    let (from, bytes) = boot_of(content, about);
    let found = &content.fitness.system.boot;
    if content.is_disk() || from != BootFrom::Card {
        return None;
    }
    if found.least_bytes == 0 {
        return Some(
            "cards with it are to boot by themselves (--boot card), and it has no boot files in /boot/firmware or /boot: \
             add it with --boot network, or pack the boot files with it"
                .into(),
        );
    }
    if !found.not_copied.is_empty() {
        return Some(format!(
            "cards with it are to boot by themselves (--boot card), and its boot files cannot be copied to a boot \
             partition: {}; add it with --boot network, or pack it again without that",
            found.not_copied
        ));
    }
    let least = found.least_bytes.saturating_add(more);
    (least > bytes).then(|| {
        let mib = least.div_ceil(1 << 20);
        format!(
            "its boot files{} need a boot partition of {mib} MiB, and cards with it are to have one of {} MiB: add it with \
             --boot-size {mib}M or larger",
            if more > 0 { " and those of the Pi's profile" } else { "" },
            bytes >> 20
        )
    })
}

/// The room for a root filesystem on a card of `disk_bytes` that has `root_bytes` for it, when its boot partition is made
/// as large as this; all in bytes. Where the Pi's partitions lie is known if it is where agents put them by default; of
/// another layout it is the least that there can be.
#[must_use]
pub fn room_beside(boot_bytes: u64, disk_bytes: u64, root_bytes: u64) -> u64 {
    if boot_bytes == 0 {
        return root_bytes;
    }
    let default = Layout::DEFAULT;
    let is_default = default.root_on(disk_bytes).is_ok_and(|sectors| sectors * SECTOR == root_bytes);
    let taken = match is_default {
        true => {
            default.with_boot(boot_bytes).root_start.saturating_sub(default.root_start).saturating_mul(SECTOR)
        }
        // The boot partition begins somewhere before the root partition, and may take the place up to that, too.
        false => boot_bytes.saturating_add(ROOT_GRAIN),
    };
    root_bytes.saturating_sub(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_much_room_a_boot_partition_leaves() {
        let disk = 8 << 30;
        let root = Layout::DEFAULT.root_on(disk).unwrap() * SECTOR;
        assert_eq!(room_beside(0, disk, root), root);
        assert_eq!(room_beside(512 << 20, disk, root), root - ((516 - 48) << 20));
        assert_eq!(room_beside(u64::MAX, disk, root), 0);
        assert_eq!(room_beside(512 << 20, 0, 0), 0);
    }

    #[test]
    fn what_a_pi_has_in_the_end_is_never_less() {
        let own = Layout { boot_start: 2048, boot_sectors: 2048, root_start: 4096, ..Layout::DEFAULT };
        let late = Layout { boot_start: 1 << 20, root_start: (1 << 20) + 524_288, ..own };
        let kept = Layout { data_sectors: 1 << 20, ..Layout::DEFAULT };
        let mut default = 0;
        for layout in [Layout::DEFAULT, own, late, kept] {
            for boot in [64_u64 << 20, (64 << 20) + 512, 300 << 20, 512 << 20, 4 << 30] {
                for disk in [8_u64 << 30, (8 << 30) + (3 << 20), 4 << 40] {
                    let before = layout.root_on(disk).unwrap() * SECTOR;
                    let has = layout.with_boot(boot).root_on(disk).unwrap() * SECTOR;
                    let known = room_beside(boot, disk, before);
                    assert!(known <= has, "{layout:?} {boot} {disk}: {known} of {has}");
                    default += u32::from(layout == Layout::DEFAULT && known == has);
                }
            }
        }
        assert_eq!(default, 15, "of the default layout it is known exactly");
    }
}
