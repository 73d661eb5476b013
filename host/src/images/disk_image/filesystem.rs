//! Which filesystem a partition has, by its content.

use super::area::{Area, le16, le32};

/// A filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilesystemKind {
    /// ext2, ext3 or ext4.
    Ext,
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// Another one, by its name.
    Other(&'static str),
    /// Nothing that is known here.
    Unknown,
}

impl FilesystemKind {
    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext => "ext4",
            Self::Fat => "FAT",
            Self::Other(name) => name,
            Self::Unknown => "unknown",
        }
    }
}

/// A filesystem, and what it calls itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filesystem {
    pub(super) kind: FilesystemKind,
    pub(super) label: String,
    /// What `UUID=` calls it.
    pub(super) uuid: String,
}

/// Where the marks of others are, and what they are.
const OTHERS: [(u64, &[u8], &str); 9] = [
    (0x1_0040, b"_BHRfS_M", "btrfs"),
    (0, b"XFSB", "XFS"),
    (0x400, b"\x10\x20\xf5\xf2", "F2FS"),
    (0, b"hsqs", "SquashFS"),
    (0x400, b"\xe2\xe1\xf5\xe0", "EROFS"),
    (4086, b"SWAPSPACE2", "swap"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
];

impl Filesystem {
    pub(super) fn of(partition: &Area<'_>) -> Self {
        let other = |kind| Self { kind, label: String::new(), uuid: String::new() };
        let begins = |(at, magic, _): &&(u64, &[u8], &str)| {
            let mut buf = vec![0; magic.len()];
            partition.read(*at, &mut buf).is_ok() && buf == **magic
        };
        // FAT comes last: its mark is the weakest, and others keep a boot sector.
        if let Ok(superblock) = partition.bytes::<1024>(1024)
            && le16(&superblock, 0x38) == 0xef53
        {
            let [label, uuid] = [superblock.get(0x78..0x88), superblock.get(0x68..0x78)];
            let hex: String = uuid.unwrap_or_default().iter().map(|b| format!("{b:02x}")).collect();
            let parts = [hex.get(..8), hex.get(8..12), hex.get(12..16), hex.get(16..20), hex.get(20..)];
            let uuid = parts.map(Option::unwrap_or_default).join("-");
            return Self { kind: FilesystemKind::Ext, label: text(label.unwrap_or_default()), uuid };
        }
        if let Some((.., name)) = OTHERS.iter().find(begins) {
            return other(FilesystemKind::Other(name));
        }
        let Ok(boot) = partition.bytes::<512>(0) else { return other(FilesystemKind::Unknown) };
        if !is_fat(&boot) {
            return other(FilesystemKind::Unknown);
        }
        // FAT32 has a size of its tables here that does not fit there.
        let (id, label) = if le16(&boot, 22) == 0 { (67, boot.get(71..82)) } else { (39, boot.get(43..54)) };
        let serial = le32(&boot, id);
        let uuid = format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff);
        let label =
            Some(text(label.unwrap_or_default())).filter(|label| label != "NO NAME").unwrap_or_default();
        Self { kind: FilesystemKind::Fat, label, uuid }
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).trim_end().to_owned()
}

/// Whether a sector is the first one of a FAT filesystem.
pub(super) fn is_fat(boot: &[u8; 512]) -> bool {
    let (sector, cluster) = (le16(boot, 11), boot.get(13).copied().unwrap_or(0));
    le16(boot, 510) == 0xaa55
        && matches!(boot.first(), Some(0xeb | 0xe9))
        && matches!(sector, 512 | 1024 | 2048 | 4096)
        && cluster.is_power_of_two()
        && le16(boot, 14) > 0
        && matches!(boot.get(16), Some(1 | 2))
        && boot.get(21).is_some_and(|media| *media >= 0xf0)
}

/// The filesystem that begins here, if there is one that is known.
pub(super) fn at_start(area: &Area<'_>) -> Option<&'static str> {
    let kind = Filesystem::of(area).kind;
    (kind != FilesystemKind::Unknown).then(|| kind.name())
}
