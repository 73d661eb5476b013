//! The parser of archives: it never panics, ends, and what it says about files holds.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use piman_core::archive::{Kind, Reader, components};

fuzz_target!(|data: &[u8]| {
    let Some((flags, archive)) = data.split_first() else { return };
    let mut archive = archive.to_vec();
    // No fuzzer guesses a checksum, so most inputs get right ones, and an end.
    if flags & 1 == 1 {
        archive.chunks_exact_mut(512).filter(|b| b.iter().any(|x| *x != 0)).for_each(seal);
    }
    if flags & 2 == 2 {
        archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    }
    let mut reader = Reader::new(&*archive);
    let mut last = 0;
    while let Ok(Some(entry)) = reader.next_entry() {
        assert!(reader.position() > last && reader.position() <= archive.len() as u64);
        last = reader.position();
        assert!(!entry.path.is_empty() && entry.path.len() <= 4096 && entry.mode <= 0o7777);
        assert!(entry.mtime.nanos < 1_000_000_000);
        let names: BTreeSet<_> = entry.xattrs.iter().map(|x| &x.name).collect();
        assert_eq!(names.len(), entry.xattrs.len());
        if let Ok(parts) = components(&entry.path) {
            assert!(parts.into_iter().all(|p| !matches!(p, b"" | b"." | b"..") && !p.contains(&b'/')));
        }
        let Kind::File(file) = &entry.kind else { continue };
        let (mut end, mut stored) = (0, 0);
        for segment in file.segments() {
            assert!(segment.offset >= end && segment.length > 0);
            end = segment.offset + segment.length;
            stored += segment.length;
        }
        assert!(end <= file.size);
        if flags & 4 == 4 {
            continue;
        }
        let mut read = 0;
        while let Ok(piece) = reader.content() {
            if piece.is_empty() {
                assert_eq!(read, stored);
                break;
            }
            let length = piece.len();
            read += length as u64;
            reader.consume(length);
        }
    }
});

fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
