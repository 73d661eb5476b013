//! What is on a disk, of whoever: in words for people, and as a fingerprint that tells it from other disks.
//!
//! | file | what lives there |
//! |---|---|
//! | `source` | reads from what may be a failing disk |
//! | `table` | partition tables |
//! | `filesystem` | what a part of a disk holds, by its signature |
//!
//! All of it takes any bytes: what is on a foreign disk is nobody's promise.

pub(crate) mod filesystem;
pub(crate) mod source;
pub(crate) mod table;

use std::fmt::Write as _;

use crate::telemetry::display::size;
use filesystem::{Filesystem, detect};
use source::{Region, Unreadable};
use table::{Kind, Table};

/// How much of a disk's start and end has to be empty for it to count as blank. Before its end tables have their
/// copies and RAIDs their superblocks; the start reaches over the first blocks of the first partition, which
/// begins at 4 MiB at the latest with all usual programs.
const START: u64 = 8 << 20;
const END: u64 = 1 << 20;

/// The most partitions that are described one by one.
const PARTS_MAX: usize = 12;

/// What was found on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contents {
    /// In words.
    pub(crate) text: String,
    /// Whether there is nothing at all.
    pub(crate) blank: bool,
    /// What tells it from others.
    identity: Vec<u8>,
}

impl Contents {
    /// Looks at a disk. `places` are further places, in bytes, that have to be empty for it to count as blank.
    pub(crate) fn of(disk: &Region<'_>, places: &[u64]) -> Result<Self, Unreadable> {
        let whole = detect(disk)?;
        let table = table_beside(disk, whole.as_ref())?;
        let mut identity = table.identity;
        let mut text = match table.kind {
            Kind::Mbr => "MBR table".to_owned(),
            Kind::Gpt => "GPT table".to_owned(),
            Kind::None => String::new(),
        };
        if table.kind != Kind::Gpt
            && let Some(found) = &whole
        {
            put(&mut identity, 0, found);
            if !text.is_empty() {
                text.push_str("; ");
            }
            describe(&mut text, "the whole disk", disk.length(), "", Some(found));
        }
        for part in table.parts.iter().take(PARTS_MAX) {
            let found = detect(&disk.part(part.offset, part.length))?;
            if let Some(found) = &found {
                put(&mut identity, part.offset, found);
            }
            text.push_str("; ");
            describe(&mut text, &format!("p{}", part.number), part.length, &part.name, found.as_ref());
        }
        if table.parts.len() > PARTS_MAX {
            // Writing to a String cannot fail.
            let _ = write!(text, "; {} more partitions", table.parts.len() - PARTS_MAX);
        }
        if text == "MBR table" || text == "GPT table" {
            text.push_str(" without partitions");
        }
        if !text.is_empty() {
            return Ok(Self { text, blank: false, identity });
        }
        let blank = is_blank(disk, places)?;
        if !blank {
            identity = disk.bytes::<512>(0)?.to_vec();
        }
        let text = if blank { "nothing" } else { "data that is not recognised, without a partition table" };
        Ok(Self { text: text.into(), blank, identity })
    }

    /// The fingerprint of a disk that holds this. `id` is how it calls itself, `more` what else is known of it.
    pub(crate) fn print(&self, bytes: u64, id: Option<&str>, more: &[u8]) -> u64 {
        fingerprint(&[&bytes.to_le_bytes(), id.unwrap_or_default().as_bytes(), &self.identity, more])
    }
}

/// The partition table of a disk.
pub(crate) fn table_of(disk: &Region<'_>) -> Result<Table, Unreadable> {
    table_beside(disk, detect(disk)?.as_ref())
}

/// The partition table of a disk that is recognised as this as a whole.
fn table_beside(disk: &Region<'_>, whole: Option<&Filesystem>) -> Result<Table, Unreadable> {
    let table = table::read(disk)?;
    // A filesystem on the whole disk ends its first sector as a partition table does.
    let is_none =
        table.kind == Kind::Mbr && whole.is_some_and(|w| matches!(w.kind, "vfat" | "ntfs" | "exfat"));
    Ok(if is_none { Table { kind: Kind::None, parts: Vec::new(), identity: Vec::new() } } else { table })
}

/// The first bytes of a hash of these, each with its length.
pub(crate) fn fingerprint(parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"piman disk 1");
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hasher.finalize().as_bytes().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn put(identity: &mut Vec<u8>, offset: u64, found: &Filesystem) {
    identity.extend(offset.to_le_bytes());
    for part in [found.kind.as_bytes(), found.label.as_bytes(), &found.identity] {
        identity.extend((part.len() as u64).to_le_bytes());
        identity.extend(part);
    }
}

fn describe(text: &mut String, what: &str, length: u64, name: &str, found: Option<&Filesystem>) {
    let kind = found.map_or("not recognised", |f| f.kind);
    let label = found.map_or("", |f| &f.label);
    let label = if label.is_empty() { name } else { label };
    // Writing to a String cannot fail.
    let _ = write!(text, "{what} {} {kind}", size(length));
    if !label.is_empty() {
        let _ = write!(text, " \"{label}\"");
    }
    let Some(found) = found else { return };
    if let Some(when) = found.last_used {
        let _ = write!(text, ", last used {}", date(when));
    }
    if !found.mounted_at.is_empty() {
        let _ = write!(text, " at {}", found.mounted_at);
    }
}

/// Whether all places where tables and signatures live are empty.
fn is_blank(disk: &Region<'_>, places: &[u64]) -> Result<bool, Unreadable> {
    let ends = [(0, START), (disk.length().saturating_sub(END), END)];
    for (from, length) in ends.into_iter().chain(places.iter().map(|at| (*at, END))) {
        if !disk.is_blank(from, length)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The day of a moment, as 2026-11-26. Counted from March, so that the leap day is a year's last.
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (of_month, month) = (day - (153 * month + 2) / 5 + 1, (month + 2) % 12 + 1);
    format!("{}-{month:02}-{of_month:02}", era * 400 + year + u64::from(month <= 2))
}

#[cfg(test)]
mod tests {
    use super::source::tests::Bytes;
    use super::*;
    use piman_core::install::mbr::{Mbr, Partition};

    fn contents(disk: &Bytes) -> Result<Contents, Unreadable> {
        Contents::of(&Region::whole(disk), &[48 << 20])
    }

    #[test]
    fn days() {
        for (seconds, day) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_799, "2000-02-29"),
            (1_795_231_447, "2026-11-21"),
            (u32::MAX.into(), "2106-02-07"),
        ] {
            assert_eq!(date(seconds), day);
        }
    }

    #[test]
    fn blank_is_only_what_was_read_and_is_empty() {
        let mut disk = Bytes::new(vec![0; 64 << 20]);
        assert!(contents(&disk).unwrap().blank);
        disk.bad = (64 << 20) - 1..64 << 20;
        let error = contents(&disk).unwrap_err().to_string();
        assert!(error.starts_with("byte 67104768 cannot be read"), "{error}");
        disk.bad = 0..0;
        for place in [0, 5 << 20, 48 << 20, (64 << 20) - 1] {
            disk.bytes[place] = 1;
            let found = contents(&disk).unwrap();
            assert!(!found.blank && found.text.contains("not recognised"), "{place}: {found:?}");
            disk.bytes[place] = 0;
        }
        assert!(contents(&Bytes::new(Vec::new())).unwrap().blank);
    }

    /// A card with a FAT and an ext4 filesystem, as far as their signatures go.
    fn card() -> Bytes {
        let mut disk = vec![0; 64 << 20];
        let mut mbr = Mbr::new(7);
        mbr.partitions[0] = Partition::new(0x0c, 8192, 8192);
        mbr.partitions[1] = Partition::new(0x83, 65_536, 65_536);
        disk[..512].copy_from_slice(&mbr.write());
        disk[(4 << 20) + 0x52..][..8].copy_from_slice(b"FAT32   ");
        disk[(4 << 20) + 0x47..][..11].copy_from_slice(b"bootfs     ");
        let ext = &mut disk[32 << 20..];
        ext[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        ext[0x460] = 0x40;
        ext[0x42c..0x430].copy_from_slice(&1_795_231_447_u32.to_le_bytes());
        ext[0x478..0x47e].copy_from_slice(b"rootfs");
        ext[0x488] = b'/';
        Bytes::new(disk)
    }

    #[test]
    fn partitions_in_words_and_a_fingerprint_that_mounting_does_not_change() {
        let mut disk = card();
        let found = contents(&disk).unwrap();
        assert_eq!(
            found.text,
            "MBR table; p1 4.0 MiB vfat \"bootfs\"; p2 32.0 MiB ext4 \"rootfs\", last used 2026-11-21 at /"
        );
        let print = found.print(1, Some("cid"), b"");
        assert!(print != found.print(2, Some("cid"), b"") && print != found.print(1, Some("cie"), b""));
        // Times, the place of the last mount, free blocks.
        disk.bytes[(32 << 20) + 0x42c] ^= 1;
        disk.bytes[(32 << 20) + 0x489] = b'x';
        disk.bytes[(32 << 20) + 0x40c] ^= 1;
        assert_eq!(contents(&disk).unwrap().print(1, Some("cid"), b""), print);
        // Another filesystem, another table, another place.
        for at in [(32 << 20) + 0x468, 440, 446 + 8, (4 << 20) + 0x43] {
            disk.bytes[at] ^= 1;
            assert_ne!(contents(&disk).unwrap().print(1, Some("cid"), b""), print, "{at}");
            disk.bytes[at] ^= 1;
        }
    }

    #[test]
    fn any_bytes_are_a_disk() {
        // Numbers by chance, with what makes each parser go on.
        let mut seed = 7_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize
        };
        for _ in 0..300 {
            let mut bytes = card().bytes;
            bytes.truncate([1 << 20, 40 << 20, 64 << 20, 513][random() % 4]);
            for _ in 0..40 {
                let places = [random() % 512, 512 + random() % 512, 4096 + random() % 512, random()];
                let at = places[random() % 4] % bytes.len();
                bytes[at] = [0, 0xff, 0x05, 0xee, random() as u8][random() % 5];
            }
            if random() % 3 == 0 && bytes.len() > 520 {
                bytes[512..520].copy_from_slice(b"EFI PART");
            }
            let disk = Bytes { sector: [512, 4096][random() % 2], ..Bytes::new(bytes) };
            assert!(!contents(&disk).unwrap().text.is_empty());
        }
    }
}
