//! Chunk tables: what passes the check lies where it should, and is written as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use piman_core::hash::Hash;
use piman_core::install::table::{BLOCK, CHUNK_MAX, Entry, HEADER, Header, Scope, Table};

fuzz_target!(|data: &[u8]| {
    check(data);
    // No fuzzer guesses the sums, so the same bytes are taken for chunks that follow each other.
    let (mut offset, mut position, mut used) = (0, 0, 0);
    let mut entries = Vec::new();
    for raw in data.chunks_exact(4) {
        let [gap, length, stored, wild] = [raw[0], raw[1], raw[2], raw[3]].map(u64::from);
        let length = (length % 1024 + 1) * BLOCK;
        let entry = Entry {
            offset: offset + if entries.is_empty() { 0 } else { gap * BLOCK },
            length: u32::try_from(length).unwrap_or(CHUNK_MAX),
            stored: u32::try_from(stored + 1).unwrap_or(1),
            position: position + u64::from(wild == 255),
            stored_hash: Hash([raw[3]; 32]),
            hash: Hash([raw[0]; 32]),
        };
        offset = entry.offset + length;
        position += u64::from(entry.stored);
        used += length;
        entries.push(entry);
    }
    let header = Header {
        chunks: u32::try_from(entries.len()).unwrap_or(u32::MAX),
        total_bytes: offset,
        used_bytes: used,
        stored_bytes: position,
        proof_offset: BLOCK,
        ..Header::decode(&header_of(data)).unwrap_or_else(empty)
    };
    let mut bytes = header.encode().to_vec();
    entries.iter().for_each(|e| bytes.extend_from_slice(&e.encode()));
    check(&bytes);
});

fn check(bytes: &[u8]) {
    let Ok(table) = Table::parse(bytes) else { return };
    let mut out = table.header().encode().to_vec();
    let (mut end, mut position) = (0, 0);
    for (i, entry) in (0..).zip(table.iter()) {
        assert_eq!(table.entry(i), Some(entry));
        assert!(entry.offset >= end && entry.position == position);
        assert!(entry.length > 0 && entry.length <= CHUNK_MAX && entry.stored <= entry.length);
        end = entry.offset + u64::from(entry.length);
        position += u64::from(entry.stored);
        out.extend_from_slice(&entry.encode());
    }
    assert!(end <= table.header().total_bytes);
    assert_eq!(out, bytes);
}

fn header_of(data: &[u8]) -> [u8; HEADER] {
    let mut head = [0; HEADER];
    let length = data.len().min(HEADER);
    head[..length].copy_from_slice(&data[..length]);
    head
}

fn empty() -> Header {
    Header {
        scope: Scope::Root { grows: false },
        whole: true,
        chunks: 0,
        total_bytes: 0,
        used_bytes: 0,
        stored_bytes: 0,
        archive: Hash([0; 32]),
        proof_offset: 0,
        entries: 0,
    }
}
