//! The partition table of a disk image: MBR with logical partitions, GPT, or both.

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use piman_core::install::gpt::{self, Header};
use piman_core::install::mbr::{self, Mbr};

use super::area::Area;
use super::filesystem;

/// A sector of the tables that are understood, in bytes.
pub(super) const SECTOR: u64 = 512;
/// A sector of some disks that are not, in bytes.
const LARGE_SECTOR: u64 = 4096;
/// The partition types of a partition that holds others.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// As many logical partitions are read.
const LOGICAL_MAX: usize = 128;
/// As many entries of a GPT are read.
const ENTRIES_MAX: u32 = 128;

/// What kind of table an image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    /// In the first sector.
    Mbr,
    /// A GPT.
    Gpt,
    /// A GPT with partitions in its MBR, too, for what knows only MBRs.
    Hybrid,
}

impl TableKind {
    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mbr => "MBR",
            Self::Gpt => "GPT",
            Self::Hybrid => "GPT with a hybrid MBR",
        }
    }
}

/// A partition as the table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) number: u8,
    /// In bytes, as is the length.
    pub(super) start: u64,
    pub(super) length: u64,
    /// Its name in a GPT.
    pub(super) name: String,
    /// What `PARTUUID=` calls it.
    pub(super) id: String,
}

impl Slot {
    pub(super) fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }
}

/// A table that was checked: its partitions are apart from each other and in the image, and there is one at least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) kind: TableKind,
    /// In the order of their places.
    pub(super) slots: Vec<Slot>,
    /// Where the table at the beginning ends, in bytes.
    pub(super) end: u64,
    /// Where its copy lies at the end of the image, in bytes.
    pub(super) backup: Option<(u64, u64)>,
    /// What has to be written so that the table at the beginning is whole again: where, and what.
    pub(super) repair: Vec<(u64, Vec<u8>)>,
}

impl Table {
    /// Reads the table of a whole image.
    pub(super) fn read(image: &Area<'_>) -> anyhow::Result<Self> {
        ensure!(image.length() >= 2 * SECTOR, "the image is too short for a partition table");
        let first = image.bytes::<{ mbr::BYTES }>(0)?;
        let mbr = match Mbr::read(&first) {
            Ok(mbr) => mbr,
            Err(why) => return Err(no_table(image, why)),
        };
        let table = if mbr.partitions.iter().any(|p| p.kind == gpt::PROTECTIVE) {
            Self::of_gpt(image, &mbr)?
        } else {
            Self::of_mbr(image, &mbr)?
        };
        if table.slots.is_empty() {
            if let Some(what) = filesystem::at_start(image) {
                bail!(only_filesystem(what));
            }
            bail!("its partition table ({}, at byte 0) has no partition", table.kind.name());
        }
        table.check(image)?;
        Ok(table)
    }

    fn of_mbr(image: &Area<'_>, mbr: &Mbr) -> anyhow::Result<Self> {
        let bytes = |sectors: u32| u64::from(sectors) * SECTOR;
        let id = |number: u8| format!("{:08x}-{number:02x}", mbr.disk_id);
        let slot = |number: u8, start: u64, sectors: u32| Slot {
            number,
            start,
            length: bytes(sectors),
            name: String::new(),
            id: id(number),
        };
        let mut slots = Vec::new();
        let mut extended = None;
        for (number, partition) in (1..).zip(&mbr.partitions).filter(|(_, p)| p.is_used()) {
            if !EXTENDED.contains(&partition.kind) {
                slots.push(slot(number, bytes(partition.first), partition.sectors));
            } else if extended.replace((bytes(partition.first), bytes(partition.sectors))).is_some() {
                bail!("its partition table has two extended partitions");
            }
        }
        if let Some((start, length)) = extended {
            let end = start + length;
            ensure!(end <= image.length(), beyond("the extended partition", end, image.length()));
            if let Some(other) = slots.iter().find(|s| s.start < end && start < s.end()) {
                bail!("partition {} and the extended partition at byte {start} overlap", other.number);
            }
            for (number, (first, sectors)) in (5..).zip(logical(image, start, length)?) {
                slots.push(slot(number, first, sectors));
            }
        }
        Ok(Self { kind: TableKind::Mbr, slots, end: SECTOR, backup: None, repair: Vec::new() })
    }

    fn of_gpt(image: &Area<'_>, mbr: &Mbr) -> anyhow::Result<Self> {
        let sectors = image.length() / SECTOR;
        let copies = [gpt::Copy::First, gpt::Copy::Last].map(|copy| {
            let found = Copy::read(image, gpt::header_at(copy, sectors));
            found.with_context(|| match copy {
                gpt::Copy::First => format!("the GPT at byte {SECTOR}"),
                gpt::Copy::Last => format!("its copy at byte {}", sectors.saturating_sub(1) * SECTOR),
            })
        });
        let is_hybrid = mbr.partitions.iter().any(|p| p.is_used() && p.kind != gpt::PROTECTIVE);
        let kind = if is_hybrid { TableKind::Hybrid } else { TableKind::Gpt };
        let (table, backup, repair) = match copies {
            [Ok(first), last] => {
                let backup = last.ok().map(|last| last.backup(image.length()));
                (first, backup, Vec::new())
            }
            [Err(_), Ok(last)] => {
                let header = Header::moved(&last.header, 2);
                let repair = vec![(SECTOR, header.to_vec()), (2 * SECTOR, last.array.clone())];
                let backup = last.backup(image.length());
                (Copy { array_at: 2 * SECTOR, ..last }, Some(backup), repair)
            }
            [Err(first), Err(last)] => {
                if image.bytes::<8>(LARGE_SECTOR).is_ok_and(|magic| magic == *b"EFI PART") {
                    bail!(large_sectors(LARGE_SECTOR));
                }
                bail!("both copies of its GPT are damaged: {first:#}; {last:#}");
            }
        };
        Ok(Self {
            kind,
            slots: table.slots()?,
            end: table.array_at + table.array.len() as u64,
            backup,
            repair,
        })
    }

    /// Sorts the partitions, and compares their places.
    fn check(&self, image: &Area<'_>) -> anyhow::Result<()> {
        for slot in &self.slots {
            let Slot { number, start, length, .. } = slot;
            ensure!(*length > 0, "partition {number} at byte {start} has no length");
            if *start < self.end {
                bail!(
                    "partition {number} begins at byte {start}, in the partition table, which ends at {}",
                    self.end
                );
            }
            if slot.end() > image.length() {
                // A table for large sectors, read as one for small ones, may look like that, too.
                self.sectors(image)?;
                bail!(beyond(&format!("partition {number}"), slot.end(), image.length()));
            }
        }
        let mut sorted: Vec<&Slot> = self.slots.iter().collect();
        sorted.sort_unstable_by_key(|s| s.start);
        for pair in sorted.windows(2) {
            if let [a, b] = pair
                && a.end() > b.start
            {
                bail!(
                    "partitions {} and {} overlap: the one ends at byte {}, the other begins at byte {}",
                    a.number,
                    b.number,
                    a.end(),
                    b.start
                );
            }
        }
        self.sectors(image)
    }

    /// An MBR does not say how large its sectors are: the filesystems show it.
    fn sectors(&self, image: &Area<'_>) -> anyhow::Result<()> {
        let factor = LARGE_SECTOR / SECTOR;
        let is_there = |at: u64| filesystem::at_start(&image.part(at, u64::MAX)).is_some();
        let first = self.slots.iter().min_by_key(|s| s.start);
        let is_large = first.is_some_and(|s| !is_there(s.start) && is_there(s.start.saturating_mul(factor)));
        ensure!(!(self.kind == TableKind::Mbr && is_large), large_sectors(0));
        Ok(())
    }
}

fn large_sectors(at: u64) -> String {
    format!(
        "its partition table (at byte {at}) is made for disks with sectors of 4096 bytes, and cards have sectors of 512 \
         bytes: it needs an image that is made for SD cards"
    )
}

fn beyond(what: &str, end: u64, length: u64) -> String {
    format!(
        "{what} ends at byte {end}, but the image has only {length} bytes: it is cut, or its table is wrong"
    )
}

pub(super) fn only_filesystem(what: &str) -> String {
    format!(
        "it is an image of a filesystem ({what}), not of a disk: there is no partition table at byte 0; mount it, and \
         add the folder where it is mounted"
    )
}

/// Why there is no table, and what there is instead.
fn no_table(image: &Area<'_>, why: mbr::NoTable) -> anyhow::Error {
    if let Some(what) = filesystem::at_start(image) {
        return anyhow::Error::msg(only_filesystem(what));
    }
    if image.bytes::<8>(SECTOR).is_ok_and(|magic| magic == *b"EFI PART") {
        return anyhow::Error::from(why)
            .context("it has a GPT, but the sector before it, at byte 0, is damaged");
    }
    anyhow::Error::from(why).context("it is no image of a disk")
}

/// The logical partitions of an extended one: first byte and sectors of each.
fn logical(image: &Area<'_>, start: u64, length: u64) -> anyhow::Result<Vec<(u64, u32)>> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut at = start;
    loop {
        ensure!(seen.insert(at), "its chain of logical partitions leads round in a circle at byte {at}");
        ensure!(seen.len() <= LOGICAL_MAX, "it has more than {LOGICAL_MAX} logical partitions");
        let sector = image.bytes::<{ mbr::BYTES }>(at)?;
        let context = || format!("the table of a logical partition at byte {at}");
        let [partition, link, ..] = Mbr::read(&sector).with_context(context)?.partitions;
        if partition.is_used() && !EXTENDED.contains(&partition.kind) {
            let first = at + u64::from(partition.first) * SECTOR;
            let end = first + u64::from(partition.sectors) * SECTOR;
            ensure!(
                first > at && end <= start + length,
                "logical partition {} (byte {first} to {end}) lies outside of the extended partition (byte {start} to {})",
                found.len() + 5,
                start + length
            );
            found.push((first, partition.sectors));
        }
        if !EXTENDED.contains(&link.kind) || link.first == 0 {
            return Ok(found);
        }
        at = start + u64::from(link.first) * SECTOR;
        ensure!(
            at < start + length,
            "its chain of logical partitions leads out of the extended partition, to byte {at}"
        );
    }
}

/// One copy of a GPT.
struct Copy {
    header: [u8; gpt::HEADER],
    /// Where its array begins, in bytes.
    array_at: u64,
    array: Vec<u8>,
}

/// How far before the header of the copy at the end its entries may begin to be where every program has them, in bytes.
const BACKUP_MAX: u64 = 64 << 10;

impl Copy {
    /// What of the end of an image of so many bytes is this copy's. What is elsewhere is copied like anything else.
    fn backup(&self, length: u64) -> (u64, u64) {
        let header = (length / SECTOR).saturating_sub(1) * SECTOR;
        let distance = header.checked_sub(self.array_at).filter(|distance| *distance <= BACKUP_MAX);
        match distance.filter(|distance| self.array.len() as u64 <= *distance) {
            Some(_) => (self.array_at, length),
            None => (header, length),
        }
    }

    fn read(image: &Area<'_>, sector: u64) -> anyhow::Result<Self> {
        let bytes = image.bytes::<{ gpt::HEADER }>(sector.saturating_mul(SECTOR))?;
        let header = Header::read(&bytes, sector).context("its header is damaged")?;
        ensure!(
            header.entry_bytes as usize == gpt::ENTRY,
            "its entries have {} bytes, not 128",
            header.entry_bytes
        );
        ensure!(header.entries <= ENTRIES_MAX, "it has {} entries: more than {ENTRIES_MAX}", header.entries);
        let mut array = vec![0; header.entries as usize * gpt::ENTRY];
        let array_at = header.array.saturating_mul(SECTOR);
        image.read(array_at, &mut array).context("its entries lie behind the end of the image")?;
        ensure!(
            gpt::crc32(array.iter().copied()) == header.array_sum,
            "its entries at byte {array_at} are damaged"
        );
        Ok(Self { header: bytes, array_at, array })
    }

    fn slots(&self) -> anyhow::Result<Vec<Slot>> {
        let entries = self.array.as_chunks().0.iter().map(gpt::Partition::read);
        let mut slots = Vec::new();
        for (number, partition) in (1..).zip(entries).filter(|(_, p)| p.is_used()) {
            ensure!(
                partition.first <= partition.last,
                "partition {number} ends at sector {}, before it begins at {}",
                partition.last,
                partition.first
            );
            let name = partition.name.into_iter().take_while(|unit| *unit != 0);
            slots.push(Slot {
                number,
                start: partition.first.saturating_mul(SECTOR),
                length: partition.sectors().saturating_mul(SECTOR),
                name: char::decode_utf16(name).map(|c| c.unwrap_or('?')).collect(),
                id: guid(&partition.id),
            });
        }
        Ok(slots)
    }
}

/// As it is written.
fn guid(id: &gpt::Guid) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = *id;
    let (first, second, third) = (u32::from_le_bytes([a, b, c, d]), [f, e], [h, g]);
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let (fourth, fifth) = rest.split_at(2);
    format!("{first:08x}-{}-{}-{}-{}", hex(&second), hex(&third), hex(fourth), hex(fifth))
}

#[cfg(test)]
mod tests;
