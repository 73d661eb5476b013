//! Partition tables, of whoever: MBR with logical partitions, and GPT (UEFI specification, chapter 5).

use piman_core::install::mbr::{self, Mbr};

use super::filesystem::{printable, wide};
use super::source::{Region, Unreadable};

/// What kind of table a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// None that is recognised.
    None,
    /// MBR, as PCs always had it.
    Mbr,
    /// GPT.
    Gpt,
}

/// One partition, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Its number as the kernel counts.
    pub(crate) number: u32,
    /// Where it begins.
    pub(crate) offset: u64,
    /// How long it is.
    pub(crate) length: u64,
    /// Its name in a GPT.
    pub(crate) name: String,
}

/// A table and its partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    /// Which kind.
    pub(crate) kind: Kind,
    /// Its partitions, in the order of the table.
    pub(crate) parts: Vec<Part>,
    /// What tells it from other tables.
    pub(crate) identity: Vec<u8>,
}

const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// Logical partitions that are followed; a chain that is a ring ends here.
const LOGICAL_MAX: u32 = 128;
/// Entries of a GPT that are looked at: what every program makes.
const ENTRIES_MAX: u32 = 128;
const GPT: &[u8; 8] = b"EFI PART";

/// Reads the table of a disk.
pub(crate) fn read(disk: &Region<'_>) -> Result<Table, Unreadable> {
    let sector: [u8; mbr::BYTES] = disk.bytes(0)?;
    let mbr = Mbr::read(&sector).ok();
    let protective = mbr.as_ref().is_some_and(|t| t.partitions.iter().any(|p| p.kind == PROTECTIVE));
    if protective || mbr.is_none() {
        // A table that was made for sectors of the other size is one all the same.
        for sector in [disk.sector(), 512, 4096] {
            let last = (disk.length() / sector).saturating_sub(1);
            for header in [1, last] {
                if let Some(table) = gpt(disk, sector, header)? {
                    return Ok(table);
                }
            }
        }
    }
    let Some(mbr) = mbr.filter(|t| t.partitions.iter().any(mbr::Partition::is_used)) else {
        return Ok(Table { kind: Kind::None, parts: Vec::new(), identity: Vec::new() });
    };
    let mut parts = Vec::new();
    for (number, entry) in (1..).zip(&mbr.partitions) {
        if !entry.is_used() || entry.kind == PROTECTIVE {
            continue;
        }
        let (first, count) = (u64::from(entry.first), u64::from(entry.sectors));
        if EXTENDED.contains(&entry.kind) {
            let before = parts.len();
            logical(disk, first, &mut parts)?;
            // What it is made of may be damaged; it is there all the same.
            if parts.len() > before {
                continue;
            }
        }
        parts.push(part(disk, number, first, count));
    }
    Ok(Table { kind: Kind::Mbr, parts, identity: sector.get(440..).unwrap_or_default().to_vec() })
}

fn part(disk: &Region<'_>, number: u32, first: u64, count: u64) -> Part {
    let sector = disk.sector();
    Part {
        number,
        offset: first.saturating_mul(sector),
        length: count.saturating_mul(sector),
        name: String::new(),
    }
}

/// The chain of tables in an extended partition: each has one partition and the place of the next.
fn logical(disk: &Region<'_>, extended: u64, parts: &mut Vec<Part>) -> Result<(), Unreadable> {
    let mut at = extended;
    // A table without a partition has no number.
    let mut number = 5;
    for _ in 0..LOGICAL_MAX {
        let sector = disk.bytes(at.saturating_mul(disk.sector()))?;
        let Ok(Mbr { partitions: [one, next, ..], .. }) = Mbr::read(&sector) else { break };
        if one.is_used() {
            parts.push(part(disk, number, at.saturating_add(one.first.into()), one.sectors.into()));
            number += 1;
        }
        if !next.is_used() {
            break;
        }
        at = extended.saturating_add(next.first.into());
    }
    Ok(())
}

/// The GPT whose header is in this sector, if there is one.
fn gpt(disk: &Region<'_>, sector: u64, header: u64) -> Result<Option<Table>, Unreadable> {
    let at = header.saturating_mul(sector);
    let raw: [u8; 92] = disk.bytes(at)?;
    if !raw.starts_with(GPT) {
        return Ok(None);
    }
    let entries = disk.u64(at + 72)?.saturating_mul(sector);
    let (count, size) = (disk.u32(at + 80)?, u64::from(disk.u32(at + 84)?));
    let mut table =
        Table { kind: Kind::Gpt, parts: Vec::new(), identity: raw.get(56..72).unwrap_or_default().to_vec() };
    if !(128..=4096).contains(&size) {
        return Ok(Some(table));
    }
    for index in 0..count.min(ENTRIES_MAX) {
        let entry: [u8; 128] = disk.bytes(entries.saturating_add(u64::from(index) * size))?;
        let number = |at: usize| {
            let bytes = entry.get(at..at + 8).and_then(|b| b.first_chunk());
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        let (first, last) = (number(32), number(40));
        if entry.iter().take(16).all(|b| *b == 0) || last < first {
            continue;
        }
        table.identity.extend(entry.get(16..48).unwrap_or_default());
        table.parts.push(Part {
            number: index + 1,
            offset: first.saturating_mul(sector),
            length: (last - first).saturating_add(1).saturating_mul(sector),
            name: printable(&wide(entry.get(56..).unwrap_or_default())),
        });
    }
    Ok(Some(table))
}

/// Where a disk has headers of a GPT, in bytes: for sectors of each size at the start, and at the end.
pub(crate) fn gpt_headers(disk: &Region<'_>) -> Vec<u64> {
    let ends = [512, 4096].map(|sector| (disk.length() / sector).saturating_sub(1) * sector);
    let mut places: Vec<u64> = [512, 4096].into_iter().chain(ends).collect();
    places.retain(|at| disk.bytes(*at).is_ok_and(|found: [u8; 8]| found == *GPT));
    places.dedup();
    places
}

#[cfg(test)]
mod tests {
    use super::super::source::tests::Bytes;
    use super::*;
    use piman_core::install::mbr::Partition;

    fn read_bytes(bytes: Vec<u8>) -> Table {
        read(&Region::whole(&Bytes::new(bytes))).unwrap()
    }

    #[test]
    fn logical_partitions_and_a_chain_without_an_end() {
        let mut disk = vec![0; 1 << 20];
        let mut mbr = Mbr::new(7);
        mbr.partitions[0] = Partition::new(0x83, 100, 10);
        mbr.partitions[1] = Partition::new(0x05, 200, 1000);
        disk[..512].copy_from_slice(&mbr.write());
        let mut chain = Mbr::new(0);
        chain.partitions[0] = Partition::new(0x83, 1, 9);
        chain.partitions[1] = Partition::new(0x05, 50, 100);
        disk[200 * 512..201 * 512].copy_from_slice(&chain.write());
        // The second one leads to itself.
        disk[250 * 512..251 * 512].copy_from_slice(&chain.write());
        let table = read_bytes(disk);
        assert_eq!(table.kind, Kind::Mbr);
        let places: Vec<_> = table.parts.iter().take(3).map(|p| (p.number, p.offset / 512)).collect();
        assert_eq!(places, [(1, 100), (5, 201), (6, 251)]);
        assert_eq!(table.parts.len(), 1 + LOGICAL_MAX as usize);
    }

    #[test]
    fn a_gpt_at_either_end_and_one_that_lies() {
        let mut header = [0; 92];
        header[..8].copy_from_slice(GPT);
        header[72..80].copy_from_slice(&2_u64.to_le_bytes());
        header[80..84].copy_from_slice(&128_u32.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        let mut entry = [0; 128];
        entry[0] = 1;
        entry[32..40].copy_from_slice(&64_u64.to_le_bytes());
        entry[40..48].copy_from_slice(&71_u64.to_le_bytes());
        entry[56..60].copy_from_slice(&[b'o', 0, b's', 0]);
        let want = Part { number: 1, offset: 64 * 512, length: 8 * 512, name: "os".into() };
        for place in [512, (1 << 20) - 512] {
            let mut disk = vec![0; 1 << 20];
            disk[place..place + 92].copy_from_slice(&header);
            disk[1024..1024 + 128].copy_from_slice(&entry);
            let table = read_bytes(disk.clone());
            assert_eq!((table.kind, table.parts), (Kind::Gpt, vec![want.clone()]));
            let places = gpt_headers(&Region::whole(&Bytes::new(disk)));
            assert_eq!(places, [place as u64]);
        }
        // Everything that a number can say.
        header[72..].fill(0xff);
        for size in [0, 127, 128, 4096, 4097, u32::MAX] {
            let mut disk = vec![0xff; 1 << 16];
            header[84..88].copy_from_slice(&u32::to_le_bytes(size));
            disk[512..512 + 92].copy_from_slice(&header);
            assert_eq!(read_bytes(disk).kind, Kind::Gpt);
        }
    }
}
