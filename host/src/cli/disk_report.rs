//! What `piman image add` says of a disk image.

use std::fmt::Write as _;

use crate::images::disk_image::DiskImage;
use crate::text::human::bytes;

/// Its table, its partitions, what is used, how it grows, and for which cards it is: a few lines.
pub(super) fn report(image: &DiskImage) -> String {
    let all: u64 = image.partitions.iter().map(|p| p.length).sum();
    let count = match image.partitions.len() {
        1 => "1 partition".into(),
        n => format!("{n} partitions"),
    };
    let mut out = format!(
        "a disk image: {}, {count} of {}, {} used\n",
        image.table.name(),
        bytes(all),
        bytes(image.used_bytes())
    );
    for part in &image.partitions {
        // Writing to a string does not fail.
        let _ =
            write!(out, "  partition {}: {}, {}", part.number, part.filesystem.name(), bytes(part.length));
        if !part.label.is_empty() {
            let _ = write!(out, ", `{}`", part.label.escape_debug());
        }
        if image.root == Some(part.number) {
            out.push_str(", the root filesystem");
        }
        if image.boot == Some(part.number) {
            out.push_str(", the firmware boots from it");
        }
        out.push('\n');
    }
    let needs = image.bytes;
    let _ = writeln!(out, "it {}; for cards of at least {needs} bytes ({})", image.growth, bytes(needs));
    out
}
