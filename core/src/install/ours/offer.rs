//! What to install, and where each part of it is.

use core::fmt;

use super::{Fingerprint, Installation, MARK, Personal, put, put_installation};
use crate::hash::Hash;
use crate::text::{Sink, ToText};

/// What to install.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Offer {
    /// BLAKE3 of the whole archive: the image's identity, by whichever path it comes.
    pub id: Hash,
    /// The archive's size, in bytes.
    pub bytes: u64,
    /// The port that sends the whole archive.
    pub rootfs_port: u16,
    /// The port that sends ranges.
    pub fetch_port: u16,
    /// The same as a chunked image for this card; `None`: by stream only.
    pub image: Option<ImageOffer>,
    /// What later revisions add; all zero from a server of revision 0.
    pub more: More,
}

/// What revisions 1 and 2 add to an offer; 0 and `None` stand for what is not known or not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct More {
    /// The revision of our lines that the server speaks.
    pub revision: u16,
    /// The size of the chunks whose hashes the fetch port has ([`sums`](crate::install::sums)),
    /// in bytes; 0: it has none, and sends the archive by the rootfs port alone.
    pub sums_chunk: u32,
    /// The size of the signed manifest on the fetch port
    /// ([`manifest`](crate::install::manifest)), in bytes; 0: it is not signed.
    pub manifest_bytes: u32,
    /// The size of the unpacked archive, in bytes.
    pub unpacked_bytes: u64,
    /// How many entries it has.
    pub entries: u64,
    /// What the manifest says against rollback: a later image has a larger one.
    pub counter: u64,
    /// How this installation is called; the proof on the card names it.
    pub installation: Option<Installation>,
    /// What the server has seen on the disk and orders to be erased, since revision 2.
    pub erase: Option<Fingerprint>,
    /// What makes the card this Pi's own, since revision 2.
    pub personal: Option<Personal>,
    /// The size of the boot partition, which gets the boot files of the root filesystem, in bytes; 0: the agent's own
    /// small one, which stays empty. Since revision 2.
    pub boot_bytes: u64,
}

/// Where the chunk table of an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ImageOffer {
    /// BLAKE3 of the chunk table, which names the image when fetching.
    pub table: Hash,
    /// The size of the table, in bytes.
    pub table_bytes: u32,
    /// The size of all chunks as they are stored, in bytes.
    pub chunk_bytes: u64,
    /// Whether it is the image of a whole disk.
    pub whole_disk: bool,
}

impl Offer {
    /// Reads the fields into `place`, where it stays: an offer is large. `None` is there if one is missing.
    pub(in crate::install) fn read(fields: &[u8], place: &mut Option<Self>) {
        let offer = place.insert(Self::default());
        if !offer.fill(fields) {
            *place = None;
        }
    }

    fn fill(&mut self, fields: &[u8]) -> bool {
        // In a loop, which costs less than a call for each.
        let mut numbers = [0_u64; NUMBERS.len()];
        for (at, (number, key)) in numbers.iter_mut().zip(NUMBERS).enumerate() {
            let max = match at {
                0..SIZES_AT => u16::MAX.into(),
                SIZES_AT..COUNTS_AT => u32::MAX.into(),
                _ => u64::MAX,
            };
            *number = super::number(fields, key).filter(|n| *n <= max).unwrap_or(0);
        }
        let [rootfs, fetch, rev, table_bytes, sums, manifest, bytes, chunk_bytes, whole_disk, more @ ..] =
            &numbers;
        (self.bytes, self.rootfs_port, self.fetch_port) = (*bytes, *rootfs as u16, *fetch as u16);
        let image = self.image.insert(ImageOffer {
            table: Hash::default(),
            table_bytes: *table_bytes as u32,
            chunk_bytes: *chunk_bytes,
            whole_disk: *whole_disk == 1,
        });
        if image.table_bytes == 0 || !image.table.read(fields, "table") {
            self.image = None;
        }
        let place = &mut self.more;
        [place.unpacked_bytes, place.entries, place.counter, place.boot_bytes] = *more;
        (place.revision, place.sums_chunk, place.manifest_bytes) =
            (*rev as u16, *sums as u32, *manifest as u32);
        place.installation = Installation::field(fields);
        place.erase = Fingerprint::field(fields, "erase");
        if !place.personal.insert(Personal::default()).read(fields) {
            place.personal = None;
        }
        self.id.read(fields, "id") && *bytes > 0 && self.rootfs_port > 0 && self.fetch_port > 0
    }
}

/// The fields that are numbers: of 16 bits, of 32, of 64. One that is too large counts as missing.
const NUMBERS: [&str; 13] = [
    "rootfs",
    "fetch",
    "rev",
    "table-bytes",
    "sums",
    "manifest-bytes",
    "bytes",
    "chunk-bytes",
    "whole-disk",
    "unpacked",
    "entries",
    "counter",
    "boot-bytes",
];

/// Where those of 32 bits begin.
const SIZES_AT: usize = 3;
/// Where those of 64 bits begin.
const COUNTS_AT: usize = 6;

impl ToText for Offer {
    fn write_text(&self, to: &mut impl Sink) {
        to.text(MARK);
        to.text(" offer id=");
        self.id.write_text(to);
        put(to, " bytes=", self.bytes);
        put(to, " rootfs=", self.rootfs_port.into());
        put(to, " fetch=", self.fetch_port.into());
        if let Some(ImageOffer { table, table_bytes, chunk_bytes, whole_disk }) = &self.image {
            to.text(" table=");
            table.write_text(to);
            put(to, " table-bytes=", (*table_bytes).into());
            put(to, " chunk-bytes=", *chunk_bytes);
            if *whole_disk {
                to.text(" whole-disk=1");
            }
        }
        let More {
            revision, sums_chunk, manifest_bytes, unpacked_bytes, entries, counter, boot_bytes, ..
        } = self.more;
        for (key, value) in [
            (" rev=", revision.into()),
            (" sums=", sums_chunk.into()),
            (" manifest-bytes=", manifest_bytes.into()),
            (" unpacked=", unpacked_bytes),
            (" entries=", entries),
            (" counter=", counter),
            (" boot-bytes=", boot_bytes),
        ] {
            if value > 0 {
                put(to, key, value);
            }
        }
        put_installation(to, self.more.installation);
        Fingerprint::put(to, " erase=", self.more.erase);
        Personal::put(to, self.more.personal)
    }
}

/// The line, without its end.
impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f)
    }
}
