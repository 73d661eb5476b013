use super::*;
use std::vec::Vec;

fn entry(offset: u64, length: u32, stored: u32, position: u64) -> Entry {
    Entry { offset, length, stored, position, stored_hash: Hash([1; 32]), hash: Hash([2; 32]) }
}

fn bytes(header: Header, entries: &[Entry]) -> Vec<u8> {
    let mut out = header.encode().to_vec();
    out.extend(entries.iter().flat_map(Entry::encode));
    out
}

fn good() -> (Header, [Entry; 3]) {
    let entries = [
        entry(0, 4096, 100, 0),
        entry(4096, CHUNK_MAX, CHUNK_MAX, 100),
        entry(16 << 20, 8192, 9, 100 + u64::from(CHUNK_MAX)),
    ];
    let header = Header {
        scope: Scope::Root { grows: false },
        whole: true,
        chunks: 3,
        total_bytes: 64 << 20,
        used_bytes: 4096 + (4 << 20) + 8192,
        stored_bytes: 109 + (4 << 20),
        archive: Hash([5; 32]),
        proof_offset: (16 << 20) + 4096,
        entries: 12,
    };
    (header, entries)
}

#[test]
fn a_table_and_back() {
    let (header, entries) = good();
    let bytes = bytes(header, &entries);
    assert_eq!(bytes.len(), HEADER + 3 * ENTRY);
    let table = Table::parse(&bytes).unwrap();
    assert_eq!(table.header(), header);
    assert_eq!(table.iter().collect::<Vec<_>>(), entries);
    assert_eq!((table.entry(2), table.entry(3)), (Some(entries[2]), None));
}

#[test]
fn a_disk_says_what_it_is() {
    let (header, entries) = good();
    let root = header.encode();
    assert_eq!((&root[..8], &root[12..16]), (&b"PIMANTB1"[..], &[0; 4][..]));
    let disk = WholeDisk { root: 2, grows: true, sector: 4096 };
    let raw = bytes(Header { scope: Scope::Disk(disk), ..header }, &entries);
    assert_eq!((&raw[..8], &raw[12..16]), (&b"PIMANTB2"[..], &[2, 1, 0, 16][..]));
    assert_eq!(Table::parse(&raw).unwrap().header().scope, Scope::Disk(disk));
    for (at, byte) in [(7, b'3'), (7, b'1'), (13, 4), (14, 1), (15, 1)] {
        let mut wrong = raw.clone();
        wrong[at] = byte;
        assert_eq!(Table::parse(&wrong).unwrap_err(), BadTable::Magic, "byte {at}");
    }
}

/// The first chunks of an image that is being made.
fn begun(chunks: usize) -> Vec<u8> {
    let (header, entries) = good();
    bytes(Header { whole: false, chunks: chunks as u32, ..header }, &entries[..chunks])
}

#[test]
fn an_image_is_known_by_its_first_chunks_while_it_is_made() {
    let (header, entries) = good();
    let all = bytes(header, &entries);
    let whole = Table::parse(&all).unwrap();
    let (one, two) = (begun(1), begun(2));
    let (one, two) = (Table::parse(&one).unwrap(), Table::parse(&two).unwrap());
    assert!(!one.header().whole && whole.header().whole);
    assert!(whole.continues(&one) && whole.continues(&two) && two.continues(&one) && !one.continues(&two));
    // Another chunk, another size, another archive.
    let changes: [fn(&mut Header, &mut [Entry; 3]); 3] =
        [|_, e| e[0].hash = Hash([9; 32]), |h, _| h.total_bytes += 4096, |h, _| h.archive = Hash([9; 32])];
    for change in changes {
        let (mut header, mut entries) = good();
        change(&mut header, &mut entries);
        let other = bytes(header, &entries);
        assert!(!Table::parse(&other).unwrap().continues(&one));
    }
    // Less than there is, or a proof in a gap between the chunks.
    let (header, entries) = good();
    let wrong = Header { whole: false, chunks: 1, used_bytes: 4095, ..header };
    assert_eq!(Table::parse(&bytes(wrong, &entries[..1])).unwrap_err(), BadTable::Header);
    let wrong = Header { whole: false, proof_offset: 8 << 20, ..header };
    assert_eq!(Table::parse(&bytes(wrong, &entries)).unwrap_err(), BadTable::Header);
    let wrong = Header { whole: false, proof_offset: 64 << 20, ..header };
    assert_eq!(Table::parse(&bytes(wrong, &entries)).unwrap_err(), BadTable::Header);
    let next = Next { table: Hash([7; 32]), table_bytes: 0x0102_0304 };
    assert_eq!(Next::decode(&next.encode()), next);
    assert_eq!(next.encode()[32..], [4, 3, 2, 1]);
}

#[test]
fn every_truncation_is_refused() {
    let (header, entries) = good();
    let bytes = bytes(header, &entries);
    for n in 0..bytes.len() {
        assert!(Table::parse(&bytes[..n]).is_err(), "{n} bytes");
    }
}

#[test]
fn impossible_tables() {
    type Change = fn(&mut Header, &mut [Entry; 3]);
    let changes: [(Change, BadTable); 14] = [
        (|_, e| e[0].offset = 4096, BadTable::Entry(0)),
        (|_, e| e[0].stored = 0, BadTable::Entry(0)),
        (|_, e| e[0].stored = 4097, BadTable::Entry(0)),
        (|_, e| e[0].length = 0, BadTable::Entry(0)),
        (|_, e| e[1].offset = 0, BadTable::Entry(1)),
        (|_, e| e[1].offset += 1, BadTable::Entry(1)),
        (|_, e| e[1].length += 4096, BadTable::Entry(1)),
        (|_, e| e[1].position += 1, BadTable::Entry(1)),
        (|_, e| e[2].offset = (64 << 20) - 4096, BadTable::Entry(2)),
        (|_, e| e[2].offset = u64::MAX - 4095, BadTable::Entry(2)),
        (|h, _| h.used_bytes += 1, BadTable::Header),
        (|h, _| h.proof_offset = 8 << 20, BadTable::Header),
        (|h, _| h.proof_offset = 0, BadTable::Header),
        (|h, _| h.chunks = 2, BadTable::Size),
    ];
    for (i, (change, want)) in changes.into_iter().enumerate() {
        let (mut header, mut entries) = good();
        change(&mut header, &mut entries);
        assert_eq!(Table::parse(&bytes(header, &entries)).unwrap_err(), want, "change {i}");
    }
}
