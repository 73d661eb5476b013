//! What kind of filesystem, or of anything else, a part of a disk holds, by its signature.
//!
//! Places and magic numbers are those of the kernel's headers (`linux/magic.h`, `fs/*`) and of the specifications:
//! ext4.rst, "exFAT file system specification" (Microsoft), btrfs-dev-docs "On-disk format", XFS "Filesystem
//! Structure", f2fs.rst, "LUKS1/LUKS2 On-Disk Format Specification", lvm2 `format_text/layout.h`, mdadm `super0.c`
//! and `super1.c`. `libblkid` looks at the same places, and so does whoever mounts by UUID.

use piman_core::text::is_shown;

use super::source::{Region, Unreadable};

/// Something that others recognise.
pub(crate) struct Filesystem {
    /// What it is, as people call it.
    pub(crate) kind: &'static str,
    /// How its owner calls it; empty: not at all.
    pub(crate) label: String,
    /// What tells it from others of its kind.
    pub(crate) identity: Vec<u8>,
    /// When it was used last, in seconds since 1970, where that is easy to know.
    pub(crate) last_used: Option<u64>,
    /// Where it was mounted then.
    pub(crate) mounted_at: String,
}

/// How a label is written.
#[derive(Clone, Copy)]
enum Text {
    /// In bytes, up to a zero.
    Bytes(u64, u64),
    /// In 16-bit characters, little-endian, up to a zero.
    Wide(u64, u64),
}

/// Where a signature is.
#[derive(Clone, Copy)]
enum Place {
    /// So many bytes from the start.
    Start(u64),
    /// Depends on the length of the region.
    End(fn(u64) -> Option<u64>),
}

/// One kind of thing.
struct Signature {
    kind: &'static str,
    place: Place,
    magic: &'static [u8],
    /// Where its identity is, and how long: a UUID, a serial number.
    identity: (u64, u64),
    label: Option<Text>,
}

const fn at(
    kind: &'static str,
    place: u64,
    magic: &'static [u8],
    identity: (u64, u64),
    label: Option<Text>,
) -> Signature {
    Signature { kind, place: Place::Start(place), magic, identity, label }
}

/// The longest magic number.
const MAGIC_MAX: usize = 16;

const MD_MAGIC: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];
const MD: &str = "a member of an MD RAID";
const LVM: &str = "a physical volume of LVM";
const LUKS: &str = "encrypted (LUKS)";

/// Where MD 1.0 has its superblock: 8 KiB before the end at least, on a multiple of 4 KiB.
fn md_1_0(length: u64) -> Option<u64> {
    (length / 512).checked_sub(16).map(|sectors| (sectors & !7) * 512)
}

/// Where MD 0.90 has it: the last whole 64 KiB.
fn md_0_90(length: u64) -> Option<u64> {
    (length & !0xffff).checked_sub(0x1_0000)
}

/// Containers come before what they hold, and weak signatures last.
const SIGNATURES: &[Signature] = &[
    at(LUKS, 0, b"LUKS\xba\xbe", (168, 40), Some(Text::Bytes(24, 48))),
    at(LVM, 0, b"LABELONE", (32, 32), None),
    at(LVM, 512, b"LABELONE", (512 + 32, 32), None),
    at(LVM, 1024, b"LABELONE", (1024 + 32, 32), None),
    at(LVM, 1536, b"LABELONE", (1536 + 32, 32), None),
    at(MD, 0, MD_MAGIC, (16, 16), Some(Text::Bytes(32, 32))),
    at(MD, 4096, MD_MAGIC, (4096 + 16, 16), Some(Text::Bytes(4096 + 32, 32))),
    Signature { kind: MD, place: Place::End(md_1_0), magic: MD_MAGIC, identity: (16, 16), label: None },
    Signature { kind: MD, place: Place::End(md_0_90), magic: MD_MAGIC, identity: (20, 4), label: None },
    at("ext4", 0x438, &[0x53, 0xef], (0x468, 16), Some(Text::Bytes(0x478, 16))),
    at("btrfs", 0x1_0040, b"_BHRfS_M", (0x1_0020, 16), Some(Text::Bytes(0x1_012b, 256))),
    at("xfs", 0, b"XFSB", (32, 16), Some(Text::Bytes(108, 12))),
    at("f2fs", 0x400, &[0x10, 0x20, 0xf5, 0xf2], (0x46c, 16), Some(Text::Wide(0x47c, 64))),
    at("squashfs", 0, b"hsqs", (8, 24), None),
    at("erofs", 0x400, &[0xe2, 0xe1, 0xf5, 0xe0], (0x430, 16), Some(Text::Bytes(0x440, 16))),
    at(
        "bcachefs",
        0x1018,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
        (0x1038, 16),
        None,
    ),
    at("reiserfs", 0x1_0034, b"ReIsEr", (0x1_0054, 16), Some(Text::Bytes(0x1_0064, 16))),
    at("jfs", 0x8000, b"JFS1", (0x8088, 16), Some(Text::Bytes(0x8098, 16))),
    at("apfs", 32, b"NXSB", (72, 16), None),
    at("hfs+", 0x400, b"H+\x00\x04", (0x468, 8), None),
    at("hfsx", 0x400, b"HX\x00\x05", (0x468, 8), None),
    at("exfat", 3, b"EXFAT   ", (100, 4), None),
    at("ntfs", 3, b"NTFS    ", (0x48, 8), None),
    at("iso9660", 0x8001, b"CD001", (0x8028, 32), Some(Text::Bytes(0x8028, 32))),
    at("swap", 0xff6, b"SWAPSPACE2", (0x40c, 16), Some(Text::Bytes(0x41c, 16))),
    at("swap", 0x1ff6, b"SWAPSPACE2", (0x40c, 16), Some(Text::Bytes(0x41c, 16))),
    at("swap", 0x3ff6, b"SWAPSPACE2", (0x40c, 16), Some(Text::Bytes(0x41c, 16))),
    at("swap", 0xfff6, b"SWAPSPACE2", (0x40c, 16), Some(Text::Bytes(0x41c, 16))),
    at("vfat", 0x52, b"FAT32   ", (0x43, 4), Some(Text::Bytes(0x47, 11))),
    at("vfat", 0x36, b"FAT16   ", (0x27, 4), Some(Text::Bytes(0x2b, 11))),
    at("vfat", 0x36, b"FAT12   ", (0x27, 4), Some(Text::Bytes(0x2b, 11))),
];

/// Where LUKS2 has its second header, whose magic number is another.
const LUKS_SECOND: &[u8] = b"SKUL\xba\xbe";
const LUKS_SECOND_PLACES: std::ops::Range<u32> = 14..23;

impl Signature {
    /// Where it is in a region, in bytes, if it is there.
    fn find(&self, region: &Region<'_>) -> Result<Option<u64>, Unreadable> {
        let place = match self.place {
            Place::Start(place) => Some(place),
            Place::End(of) => of(region.length()),
        };
        let Some(place) = place else { return Ok(None) };
        let found: [u8; MAGIC_MAX] = region.bytes(place)?;
        Ok(found.starts_with(self.magic).then_some(place))
    }

    fn read(&self, region: &Region<'_>, place: u64) -> Result<Filesystem, Unreadable> {
        let base = if matches!(self.place, Place::End(_)) { place } else { 0 };
        let (from, length) = self.identity;
        let mut identity = vec![0; usize::try_from(length).unwrap_or(0)];
        region.read(base + from, &mut identity)?;
        let label = match self.label {
            Some(text) => read_label(region, text)?,
            None => String::new(),
        };
        let mut found =
            Filesystem { kind: self.kind, label, identity, last_used: None, mounted_at: String::new() };
        match self.kind {
            "ext4" => read_ext(region, &mut found)?,
            // Version 1 has the name of a cipher there.
            LUKS if region.bytes::<2>(6)? != [0, 2] => found.label.clear(),
            _ => {}
        }
        Ok(found)
    }
}

fn read_label(region: &Region<'_>, text: Text) -> Result<String, Unreadable> {
    let (Text::Bytes(at, length) | Text::Wide(at, length)) = text;
    let mut raw = vec![0; usize::try_from(length).unwrap_or(0)];
    region.read(at, &mut raw)?;
    let text = match text {
        Text::Bytes(..) => {
            let text = raw.split(|b| *b == 0).next().unwrap_or_default();
            String::from_utf8_lossy(text).into_owned()
        }
        Text::Wide(..) => wide(&raw),
    };
    Ok(printable(&text))
}

/// A text in 16-bit characters, up to a zero.
pub(super) fn wide(raw: &[u8]) -> String {
    let units = raw.as_chunks().0.iter().map(|pair| u16::from_le_bytes(*pair));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

/// A name from a disk as it may be displayed: terminals obey some characters.
pub(super) fn printable(text: &str) -> String {
    let text = text.trim().chars().take(32);
    text.map(|c| if !is_shown(c) || c == '"' || c == '\u{fffd}' { '?' } else { c }).collect()
}

/// What the superblock of ext2, ext3 and ext4 says beside label and UUID.
fn read_ext(region: &Region<'_>, found: &mut Filesystem) -> Result<(), Unreadable> {
    const HAS_JOURNAL: u32 = 4;
    // Extents, 64 bits, flexible groups and what came later.
    const SINCE_EXT4: u32 = !0x3f;
    let (compat, incompat) = (region.u32(0x45c)?, region.u32(0x460)?);
    found.kind = match (incompat & SINCE_EXT4, compat & HAS_JOURNAL) {
        (0, 0) => "ext2",
        (0, _) => "ext3",
        _ => "ext4",
    };
    let times = [region.u32(0x42c)?, region.u32(0x430)?];
    found.last_used = times.into_iter().max().filter(|t| *t > 0).map(u64::from);
    let place: [u8; 64] = region.bytes(0x488)?;
    let place = place.split(|b| *b == 0).next().unwrap_or_default();
    found.mounted_at = printable(&String::from_utf8_lossy(place));
    Ok(())
}

/// What a part of a disk holds, if anything is recognised.
pub(crate) fn detect(region: &Region<'_>) -> Result<Option<Filesystem>, Unreadable> {
    for signature in SIGNATURES {
        if let Some(place) = signature.find(region)? {
            return signature.read(region, place).map(Some);
        }
    }
    Ok(None)
}

/// Whether the kernel's ext4 driver may know what is here.
pub(crate) fn is_ext(region: &Region<'_>) -> Result<bool, Unreadable> {
    Ok(region.bytes(0x438)? == [0x53, 0xef])
}

/// All places in a region where others recognise something, from its start, with the length of what they look
/// for. What cannot be read they cannot recognise either.
pub(crate) fn signatures(region: &Region<'_>) -> Vec<(u64, u64)> {
    let places = SIGNATURES.iter().filter_map(|signature| {
        let place = signature.find(region).ok().flatten()?;
        Some((place, signature.magic.len() as u64))
    });
    let seconds = LUKS_SECOND_PLACES
        .map(|shift| 1 << shift)
        .filter(|place| region.bytes::<MAGIC_MAX>(*place).is_ok_and(|found| found.starts_with(LUKS_SECOND)));
    places.chain(seconds.map(|place| (place, LUKS_SECOND.len() as u64))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::source::tests::Bytes;
    use super::*;

    #[test]
    fn each_signature_is_found_in_its_place_and_none_without_it() {
        let empty = Bytes::new(vec![0; 4 << 20]);
        assert!(detect(&Region::whole(&empty)).unwrap().is_none());
        for signature in SIGNATURES {
            assert!(signature.magic.len() <= MAGIC_MAX);
            let mut bytes = vec![0; 4 << 20];
            let place = match signature.place {
                Place::Start(place) => place,
                Place::End(of) => of(4 << 20).unwrap(),
            } as usize;
            bytes[place..place + signature.magic.len()].copy_from_slice(signature.magic);
            let disk = Bytes::new(bytes);
            let region = Region::whole(&disk);
            let found = detect(&region).unwrap().unwrap();
            let want = if signature.kind == "ext4" { "ext2" } else { signature.kind };
            assert_eq!(found.kind, want);
            assert_eq!(signatures(&region), [(place as u64, signature.magic.len() as u64)]);
        }
    }

    #[test]
    fn names_are_harmless() {
        assert_eq!(printable("a\u{1b}[2J\"\n b "), "a?[2J?? b");
        assert_eq!(wide(&[b'a', 0, 0, 0xd8, 0, 0, b'b', 0]), "a\u{fffd}");
    }

    #[test]
    fn the_smallest_regions() {
        for length in [0, 1, 511, 512, 8191, 8192, 65_535, 65_536, 131_072] {
            let disk = Bytes::new(vec![0xa5; length]);
            assert!(detect(&Region::whole(&disk)).unwrap().is_none(), "{length}");
        }
    }
}
