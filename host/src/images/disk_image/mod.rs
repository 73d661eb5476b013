//! Raw disk images: what is on them, and which blocks of them a card needs. Nothing in them is trusted.
//!
//! | file | what lives there |
//! |---|---|
//! | `area` | a part of the file, read at offsets |
//! | `table` | MBR and GPT |
//! | `filesystem` | which filesystem a partition has |
//! | `ext4`, `fat` | which blocks of it are used |
//! | `used` | which blocks of the image are used; the proof's block |
//! | `ranges` | runs of bytes |
//! | `bmap` | what a bmap file says |
//! | `system` | where the root filesystem is, what boots it, how it grows |
//! | `files` | files in the root filesystem |
//! | `boot_files` | files in the boot partition |
//! | `build` | its used blocks as chunks |
//! | `trailer` | what a bmap said, behind our own copy |
//! | `inspect` | whether the system can run on a Pi |
//! | `pieces` | all bytes, without reading holes |

mod area;
mod bmap;
mod boot_files;
mod build;
mod ext4;
mod fat;
mod files;
mod filesystem;
mod inspect;
mod pieces;
mod ranges;
mod system;
mod table;
mod trailer;
mod used;

use std::fs::File;

use anyhow::{Context, ensure};
use piman_core::hosted::unpack::packing;
use piman_core::install::table::{CHUNK_MAX, CHUNKS_MAX};

use crate::images::fitness::Fitness;
use crate::images::output::Output;
use area::Area;
pub(crate) use area::is_zero;
pub use bmap::Bmap;
pub use build::build;
use filesystem::Filesystem;
pub use filesystem::FilesystemKind;
pub(crate) use pieces::Pieces;
pub(crate) use ranges::joined;
pub use system::Growth;
use table::Table;
pub use table::TableKind;
pub use trailer::write as write_trailer;

/// Whether a file that begins so may be a disk image: 2048 bytes are enough.
#[must_use]
pub fn begins(head: &[u8]) -> bool {
    let at = |place: usize, magic: &[u8]| head.get(place..).is_some_and(|rest| rest.starts_with(magic));
    // Packed bytes may be anything.
    packing(head).is_none() && (at(510, &[0x55, 0xaa]) || at(512, b"EFI PART"))
}

/// The block of a card, in bytes.
const BLOCK: u64 = ranges::BLOCK;

/// A partition of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its number in the table, from 1; logical ones begin with 5.
    pub number: u8,
    /// Where it begins, in bytes.
    pub start: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// What is in it.
    pub filesystem: FilesystemKind,
    /// The filesystem's label, or the partition's name if it has none; may be empty.
    pub label: String,
    /// What `PARTUUID=` calls it.
    pub id: String,
    /// What `UUID=` calls the filesystem; may be empty.
    pub uuid: String,
    /// Its name in a GPT; may be empty.
    pub name: String,
}

impl Part {
    /// Where it ends, in bytes.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }
}

/// A disk image.
#[derive(Debug, Clone)]
pub struct DiskImage {
    /// How large a card has to be, in bytes: a multiple of 4096.
    pub bytes: u64,
    /// The size of a sector of its table, in bytes.
    pub sector: u64,
    /// Its table.
    pub table: TableKind,
    /// Its partitions, in the order of their numbers.
    pub partitions: Vec<Part>,
    /// What has to be on a card, as beginning and end in bytes: whole blocks of 4096, ascending, apart from each other.
    pub used: Vec<(u64, u64)>,
    /// Where the block for the proof is, in bytes; it is not among the used ones.
    pub proof_offset: u64,
    /// The number of the partition with the root filesystem.
    pub root: Option<u8>,
    /// The number of the partition that the firmware boots from.
    pub boot: Option<u8>,
    /// How the root filesystem comes to fill the card.
    pub growth: Growth,
    /// What has to be written into it so that its table is whole, where a copy of it was used: where, and what.
    pub repair: Vec<(u64, Vec<u8>)>,
    /// Whether the system can run on a Pi, and what else is remarkable.
    pub fitness: Fitness,
}

impl DiskImage {
    /// Reads an image: the first `length` bytes of a file or disk. `mapped`: what a bmap says has content, sorted.
    ///
    /// # Errors
    /// If it is no image, or one that no card can have, with the place; if it cannot be read.
    pub fn read(file: &File, length: u64, mapped: Option<&[(u64, u64)]>) -> anyhow::Result<Self> {
        let image = Area::new(file, length);
        let table = Table::read(&image)?;
        let mut partitions: Vec<Part> = table.slots.iter().map(|slot| part(&image, slot)).collect();
        partitions.sort_unstable_by_key(|p| p.number);
        let used = used::used(&image, &table, &partitions, mapped).context("finding what is used")?;
        let chunks: u64 =
            used.runs.iter().map(|(start, end)| (end - start).div_ceil(CHUNK_MAX.into()) + 1).sum();
        ensure!(
            chunks <= CHUNKS_MAX.into(),
            "it has more than {CHUNKS_MAX} chunks of {} MiB that are used, which no agent takes: make it smaller, or give \
             a bmap of it",
            CHUNK_MAX >> 20
        );
        let system = system::System::find(&image, &partitions);
        let fitness = inspect::fitness(&image, &table, &partitions, &system, &used.whole);
        // A GPT needs its copy behind the last partition.
        let tail = if table.kind == TableKind::Mbr { 0 } else { 33 * table::SECTOR };
        let partitions_end = partitions.iter().map(Part::end).max().unwrap_or(0).saturating_add(tail);
        let end = used.runs.last().map_or(0, |(_, end)| *end).max(partitions_end);
        Ok(Self {
            bytes: end.next_multiple_of(BLOCK),
            sector: table::SECTOR,
            table: table.kind,
            partitions,
            used: used.runs,
            proof_offset: used.proof,
            root: system.root,
            boot: system.boot,
            growth: system.growth,
            repair: table.repair,
            fitness,
        })
    }

    /// Reads our own copy of an image, which may have the list of a bmap behind it.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn of_copy(file: &File) -> anyhow::Result<Self> {
        let length = file.metadata().context("looking at it")?.len();
        let (length, mapped) = trailer::split(file, length).context("reading its end")?;
        Self::read(file, length, mapped.as_deref())
    }

    /// How many bytes are used.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used.iter().map(|(start, end)| end - start).sum()
    }
}

/// Takes the files that are wanted out of the root filesystem and the partition that boots it.
///
/// # Errors
/// If the image cannot be read here, or something cannot be written.
pub(super) fn extract(file: &File, output: &mut Output<'_>) -> anyhow::Result<()> {
    let length = file.metadata().context("looking at it")?.len();
    let (length, _) = trailer::split(file, length).context("reading its end")?;
    let image = Area::new(file, length);
    let partitions: Vec<Part> = Table::read(&image)?.slots.iter().map(|slot| part(&image, slot)).collect();
    let system = system::System::find(&image, &partitions);
    ensure!(
        system.files.is_some() || system.boot.is_some(),
        "it has neither a root filesystem nor a boot partition that can be read here"
    );
    if let Some(files) = &system.files {
        files.extract(output)?;
    }
    let boot = partitions.iter().find(|part| Some(part.number) == system.boot);
    boot.map_or(Ok(()), |part| boot_files::extract(image.part(part.start, part.length), output))
}

fn part(image: &Area<'_>, slot: &table::Slot) -> Part {
    let Filesystem { kind, label, uuid } = Filesystem::of(&image.part(slot.start, slot.length));
    Part {
        number: slot.number,
        start: slot.start,
        length: slot.length,
        filesystem: kind,
        label: if label.is_empty() { slot.name.clone() } else { label },
        id: slot.id.clone(),
        uuid,
        name: slot.name.clone(),
    }
}

#[cfg(test)]
mod tests;
