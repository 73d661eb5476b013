//! The partition table of a large disk (GPT; UEFI specification, chapter 5): a header and an array of entries at its
//! start, a copy of both at its end, and an MBR that says that there is one.
//!
//! Only the first [`PARTITIONS`] entries are ever used; the array has the 128 that every program expects.

use super::mbr::{self, Mbr};

/// The partitions that a table of ours can have.
pub const PARTITIONS: usize = 4;
/// The size of an entry.
pub const ENTRY: usize = 128;
/// The size of the array of entries.
pub const ARRAY: usize = 128 * ENTRY;
/// The size of a header.
pub const HEADER: usize = 92;
/// The partition type of the MBR before a GPT.
pub const PROTECTIVE: u8 = 0xee;

const SIGNATURE: [u8; 8] = *b"EFI PART";
const REVISION: u32 = 0x0001_0000;

/// An identifier as it is on the disk: its first three numbers are little-endian.
pub type Guid = [u8; 16];

/// The type of a partition that is not used.
pub const UNUSED: Guid = [0; 16];
/// The type of a filesystem that firmware and others read: EBD0A0A2-B9E5-4433-87C0-68B6B72699C7.
pub const BASIC_DATA: Guid = *b"\xa2\xa0\xd0\xeb\xe5\xb9\x33\x44\x87\xc0\x68\xb6\xb7\x26\x99\xc7";
/// The type of a filesystem of Linux: 0FC63DAF-8483-4772-8E79-3D69D8477DE4.
pub const LINUX: Guid = *b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4";
/// The identifier of an entry that is not used and says that a partition will be there.
pub const WITHHELD: Guid = *b"piman: to follow";

/// One partition, in sectors of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Partition {
    /// Its type; [`UNUSED`]: there is none.
    pub kind: Guid,
    /// Its own identifier.
    pub id: Guid,
    /// Its first sector.
    pub first: u64,
    /// Its last sector.
    pub last: u64,
    /// What programs may do with it.
    pub attributes: u64,
    /// Its name in UTF-16.
    pub name: [u16; 36],
}

impl Partition {
    /// None.
    pub const NONE: Self = Self { kind: UNUSED, id: UNUSED, first: 0, last: 0, attributes: 0, name: [0; 36] };

    /// A partition that begins at this sector and has so many.
    #[must_use]
    pub fn new(kind: Guid, id: Guid, first: u64, sectors: u64, name: &str) -> Self {
        let mut partition = Self { kind, id, first, ..Self::NONE };
        partition.last = first.saturating_add(sectors).saturating_sub(1);
        for (place, unit) in partition.name.iter_mut().zip(name.encode_utf16()) {
            *place = unit;
        }
        partition
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.kind != UNUSED
    }

    /// How many sectors it has.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.last.saturating_sub(self.first).saturating_add(1)
    }

    /// This one as an entry that every reader passes over, and that says what is to follow. Some readers take one that
    /// begins somewhere for a partition, whatever its type says.
    #[must_use]
    pub fn withheld(&self) -> Self {
        Self { id: WITHHELD, attributes: self.first, ..Self::NONE }
    }

    /// Whether it is one that is to follow.
    #[must_use]
    pub fn is_withheld(&self) -> bool {
        !self.is_used() && self.id == WITHHELD && self.attributes > 0
    }

    /// Reads an entry of the array, for whoever reads more of them than [`Gpt`] keeps.
    #[must_use]
    pub fn read(entry: &[u8; ENTRY]) -> Self {
        let mut fields = Fields(entry);
        let (kind, id) = (fields.take(), fields.take());
        let [first, last, attributes] = [fields.u64(), fields.u64(), fields.u64()];
        let name = core::array::from_fn(|_| u16::from_le_bytes(fields.take()));
        Self { kind, id, first, last, attributes, name }
    }

    fn bytes(&self) -> impl Iterator<Item = u8> {
        let numbers = [self.first, self.last, self.attributes].into_iter().flat_map(u64::to_le_bytes);
        let ids = self.kind.into_iter().chain(self.id);
        ids.chain(numbers).chain(self.name.into_iter().flat_map(u16::to_le_bytes))
    }
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Gpt {
    /// The disk's identifier.
    pub disk: Guid,
    /// Its partitions, in the order of their numbers.
    pub partitions: [Partition; PARTITIONS],
}

/// What a header says.
///
/// [`Header::moved`] makes the header of the one copy out of that of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Header {
    /// The disk's identifier.
    pub disk: Guid,
    /// The first sector of the array of entries.
    pub array: u64,
    /// How many entries it has.
    pub entries: u32,
    /// The size of each.
    pub entry_bytes: u32,
    /// The array's checksum.
    pub array_sum: u32,
}

/// Which of the two copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Copy {
    /// At the start of the disk: the header, then the array.
    First,
    /// At its end: the array, then the header.
    Last,
}

/// The sectors that an array takes.
const fn array_sectors(sector: u64) -> u64 {
    (ARRAY as u64).div_ceil(if sector == 0 { 512 } else { sector })
}

/// How much of the start of a disk is the table's, with the MBR, in bytes.
#[must_use]
pub const fn table_bytes(sector: u64) -> u64 {
    (2 + array_sectors(sector)) * sector
}

/// Where a copy begins on a disk of so many sectors, and how long it is, in bytes.
#[must_use]
pub const fn place(copy: Copy, sector: u64, sectors: u64) -> (u64, u64) {
    let count = 1 + array_sectors(sector);
    let start = match copy {
        Copy::First => 1,
        Copy::Last => sectors.saturating_sub(count),
    };
    (start * sector, count * sector)
}

/// Where the header of a copy is: its sector.
#[must_use]
pub const fn header_at(copy: Copy, sectors: u64) -> u64 {
    match copy {
        Copy::First => 1,
        Copy::Last => sectors.saturating_sub(1),
    }
}

impl Header {
    /// Reads one that lies in the sector `at`; `None` if its signature or its checksum is wrong.
    #[must_use]
    pub fn read(bytes: &[u8; HEADER], at: u64) -> Option<Self> {
        let mut fields = Fields(bytes);
        let right = fields.take() == SIGNATURE;
        let [_revision, size, sum, _reserved] = [fields.u32(), fields.u32(), fields.u32(), fields.u32()];
        let here = fields.u64();
        let [_other, _first, _last] = [fields.u64(), fields.u64(), fields.u64()];
        let (disk, array) = (fields.take(), fields.u64());
        let [entries, entry_bytes, array_sum] = [fields.u32(), fields.u32(), fields.u32()];
        let summed = (0..).zip(bytes).map(|(i, byte)| if (16..20).contains(&i) { 0 } else { *byte });
        let right = right && size as usize == HEADER && here == at && crc32(summed) == sum;
        right.then_some(Self { disk, array, entries, entry_bytes, array_sum })
    }

    /// The header of the other copy, whose array begins in the sector `array`, out of the bytes of one that is right.
    #[must_use]
    pub fn moved(bytes: &[u8; HEADER], array: u64) -> [u8; HEADER] {
        let [here, there] = [bytes.get(24..32), bytes.get(32..40)].map(Option::unwrap_or_default);
        with_fields(bytes, &[(24, there), (32, here), (72, &array.to_le_bytes())])
    }
}

/// A header with other fields, each at its place, and the checksum for them.
fn with_fields(header: &[u8; HEADER], fields: &[(usize, &[u8])]) -> [u8; HEADER] {
    let mut bytes = *header;
    let mut put = |at: usize, field: &[u8]| {
        bytes.iter_mut().skip(at).zip(field).for_each(|(place, byte)| *place = *byte);
    };
    fields.iter().for_each(|(at, field)| put(*at, field));
    put(16, &[0; 4]);
    let sum = crc32(bytes);
    bytes.iter_mut().skip(16).zip(sum.to_le_bytes()).for_each(|(place, byte)| *place = byte);
    bytes
}

impl Gpt {
    /// The table with this header, whose array begins with `first` and has the checksum `sum`; `None` if that is not
    /// the one that the header says.
    #[must_use]
    pub fn read(header: &Header, first: &[u8; PARTITIONS * ENTRY], sum: u32) -> Option<Self> {
        if sum != header.array_sum
            || header.entry_bytes as usize != ENTRY
            || (header.entries as usize) < PARTITIONS
        {
            return None;
        }
        let mut partitions = [Partition::NONE; PARTITIONS];
        for (partition, entry) in partitions.iter_mut().zip(first.as_chunks().0) {
            *partition = Partition::read(entry);
        }
        Some(Self { disk: header.disk, partitions })
    }

    /// The array's bytes that are not zero.
    #[must_use]
    pub fn entries(&self) -> [u8; PARTITIONS * ENTRY] {
        let mut bytes = [0; PARTITIONS * ENTRY];
        let all = self.partitions.iter().flat_map(Partition::bytes);
        for (place, byte) in bytes.iter_mut().zip(all) {
            *place = byte;
        }
        bytes
    }

    /// The header of a copy on a disk of so many sectors of this size.
    #[must_use]
    pub fn header(&self, copy: Copy, sector: u64, sectors: u64) -> [u8; HEADER] {
        let zeros = core::iter::repeat_n(0, ARRAY - PARTITIONS * ENTRY);
        let array_sum = crc32(self.entries().into_iter().chain(zeros));
        let array = match copy {
            Copy::First => 2,
            Copy::Last => sectors.saturating_sub(1 + array_sectors(sector)),
        };
        let other = if copy == Copy::First { Copy::Last } else { Copy::First };
        let usable = (2 + array_sectors(sector), sectors.saturating_sub(2 + array_sectors(sector)));
        let fill = |sum: u32| {
            let mut bytes = [0; HEADER];
            let words =
                |words: &[u32], at: &mut dyn FnMut(&[u8])| words.iter().for_each(|w| at(&w.to_le_bytes()));
            let mut rest = bytes.iter_mut();
            let mut put = |field: &[u8]| rest.by_ref().zip(field).for_each(|(place, byte)| *place = *byte);
            put(&SIGNATURE);
            words(&[REVISION, HEADER as u32, sum, 0], &mut put);
            for number in [header_at(copy, sectors), header_at(other, sectors), usable.0, usable.1] {
                put(&number.to_le_bytes());
            }
            put(&self.disk);
            put(&array.to_le_bytes());
            words(&[(ARRAY / ENTRY) as u32, ENTRY as u32, array_sum], &mut put);
            bytes
        };
        fill(crc32(fill(0)))
    }

    /// The first sector of a disk with a GPT: to a program that knows only MBRs all of it is in use.
    #[must_use]
    pub fn protective(sectors: u64) -> Mbr {
        let count = u32::try_from(sectors.saturating_sub(1)).unwrap_or(u32::MAX);
        let mut mbr = Mbr::new(0);
        let [first, ..] = &mut mbr.partitions;
        *first =
            mbr::Partition { cylinders: [[0, 2, 0], [0xff; 3]], ..mbr::Partition::new(PROTECTIVE, 1, count) };
        mbr
    }
}

/// A GPT that was made for a disk of another size, as it is to be on this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Fitted {
    /// The header at the start of the disk.
    pub first: [u8; HEADER],
    /// The header at its end, in its last sector.
    pub last: [u8; HEADER],
    /// The sector where the copy of the array begins.
    pub array_copy: u64,
}

/// What a partition that grows ends on a multiple of, in bytes.
const GRAIN: u64 = 1 << 20;

/// Fits a GPT to a disk of so many sectors of this size: its copy moves to the end, and with `grows` the last partition
/// reaches there. `header` is the one at the start of the disk and `array` all entries that it names; what changes in
/// them is changed there. `None` if it is no GPT, its checksums are wrong, or a partition lies behind the end.
pub fn fit(
    header: &[u8; HEADER],
    array: &mut [u8],
    sector: u64,
    sectors: u64,
    grows: bool,
) -> Option<Fitted> {
    let Header { entries, entry_bytes, array_sum, .. } = Header::read(header, 1)?;
    let size =
        usize::try_from(entry_bytes).ok().filter(|size| *size >= ENTRY && size.is_multiple_of(ENTRY))?;
    let bytes = usize::try_from(entries).ok()?.checked_mul(size)?;
    if array.len() != bytes || crc32(array.iter().copied()) != array_sum || sector == 0 {
        return None;
    }
    let array_copy = sectors.checked_sub(1 + (bytes as u64).div_ceil(sector))?;
    let usable = array_copy.checked_sub(1)?;
    let mut last: Option<(&mut [u8], u64)> = None;
    for entry in array.chunks_exact_mut(size) {
        let partition = Partition::read(entry.first_chunk()?);
        if partition.kind == UNUSED {
            continue;
        }
        if partition.last > usable || partition.first > partition.last {
            return None;
        }
        if last.as_ref().is_none_or(|(_, end)| *end < partition.last) {
            last = Some((entry, partition.last));
        }
    }
    if let Some((entry, end)) = last.filter(|_| grows) {
        let grain = (GRAIN / sector).max(1);
        let grown = ((usable + 1) / grain * grain).saturating_sub(1).max(end);
        entry.get_mut(LAST..LAST + 8)?.copy_from_slice(&grown.to_le_bytes());
    }
    let sum = crc32(array.iter().copied()).to_le_bytes();
    let array_first = Fields(header.get(72..)?).u64();
    let copy = |here: u64, other: u64, array: u64| {
        let [here, other, usable, array] = [here, other, usable, array].map(u64::to_le_bytes);
        with_fields(header, &[(24, &here), (32, &other), (48, &usable), (72, &array), (88, &sum)])
    };
    let end = sectors - 1;
    Some(Fitted { first: copy(1, end, array_first), last: copy(end, 1, array_copy), array_copy })
}

/// Gives a GPT other identifiers: the `disk`, and each partition for which `id` has one; partitions are counted from 1.
/// `header` is one of its copies, which lies in the sector `at`, and `array` all entries that it names, which are changed
/// there. Returns that header; `None` if it is no GPT, or its checksums are wrong: then nothing is changed.
pub fn renew(
    header: &[u8; HEADER],
    at: u64,
    array: &mut [u8],
    disk: Guid,
    mut id: impl FnMut(u32, &Partition) -> Option<Guid>,
) -> Option<[u8; HEADER]> {
    let Header { entries, entry_bytes, array_sum, .. } = Header::read(header, at)?;
    let size = usize::try_from(entry_bytes).ok().filter(|size| *size >= ENTRY)?;
    let bytes = usize::try_from(entries).ok()?.checked_mul(size)?;
    if array.len() != bytes || crc32(array.iter().copied()) != array_sum {
        return None;
    }
    for (number, entry) in (1_u32..).zip(array.chunks_exact_mut(size)) {
        let partition = Partition::read(entry.first_chunk()?);
        if let Some(id) = Some(partition).filter(Partition::is_used).and_then(|p| id(number, &p)) {
            entry.iter_mut().skip(ID).zip(id).for_each(|(place, byte)| *place = byte);
        }
    }
    let sum = crc32(array.iter().copied()).to_le_bytes();
    Some(with_fields(header, &[(56, &disk), (88, &sum)]))
}

/// Where an entry has its identifier.
const ID: usize = 16;
/// Where an entry says which is its last sector.
const LAST: usize = 40;

/// Takes fields off the front of an array that is known to be long enough; what is missing reads as 0.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk::<N>() else { return [0; N] };
        self.0 = rest;
        *field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// The checksum of a GPT (as in Ethernet and gzip). Bit by bit: 16 KiB are summed a few times in an installation.
#[must_use]
pub fn crc32(bytes: impl IntoIterator<Item = u8>) -> u32 {
    let step = |sum: u32, byte: u8| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(sum & 1)))
    };
    !bytes.into_iter().fold(!0, step)
}

#[cfg(test)]
mod tests;
