//! Partition tables: any sector is read or refused, and what was read is written as it was; a GPT that is fitted to any
//! disk is one there, with the same partitions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use piman_core::install::gpt::{self, ENTRY, HEADER};
use piman_core::install::mbr::{BYTES, Mbr};

/// How many entries an array has.
const ENTRIES: usize = 5;

fuzz_target!(|data: &[u8]| {
    let mut sector = [0; BYTES];
    let length = data.len().min(BYTES);
    sector[..length].copy_from_slice(&data[..length]);
    check(&sector);
    // No fuzzer that begins with short inputs reaches the end; so the same bytes are taken for the end of a table.
    sector.rotate_right(BYTES - 2 - length.min(BYTES - 2));
    sector[BYTES - 2..].copy_from_slice(&[0x55, 0xaa]);
    check(&sector);
    if let Some((how, entries)) = data.split_first_chunk() {
        fit(*how, entries);
    }
});

fn check(sector: &[u8; BYTES]) {
    if let Ok(table) = Mbr::read(sector) {
        assert_eq!(&table.write(), sector);
    }
}

/// No fuzzer guesses checksums: they are made here.
fn fit(how: [u8; 9], entries: &[u8]) {
    let mut array = [0; ENTRIES * ENTRY];
    array.iter_mut().zip(entries).for_each(|(to, from)| *to = *from);
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(b"EFI PART");
    header[12] = HEADER as u8;
    header[24] = 1;
    header[72] = 2;
    header[80] = ENTRIES as u8;
    header[84] = ENTRY as u8;
    header[88..].copy_from_slice(&gpt::crc32(array).to_le_bytes());
    let sum = gpt::crc32(header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    let [kind, sectors @ ..] = how;
    let sectors = u64::from_le_bytes(sectors) >> (kind >> 2);
    let (sector, grows) = (if kind & 1 == 0 { 512 } else { 4096 }, kind & 2 == 0);
    let before = array;
    let Some(fitted) = gpt::fit(&header, &mut array, sector, sectors, grows) else { return };
    let first = gpt::Header::read(&fitted.first, 1).expect("a header");
    let last = gpt::Header::read(&fitted.last, sectors - 1).expect("its copy");
    assert_eq!((first.array, last.array), (2, fitted.array_copy));
    assert!(first.array_sum == gpt::crc32(array) && last.array_sum == first.array_sum);
    let (was, is) = (before.as_chunks::<ENTRY>().0, array.as_chunks::<ENTRY>().0);
    let changed: Vec<_> = was.iter().zip(is).filter(|(was, is)| was != is).collect();
    assert!(changed.len() <= usize::from(grows));
    for (was, is) in changed {
        let (was, is) = (gpt::Partition::read(was), gpt::Partition::read(is));
        assert!(is.last > was.last && is.last < fitted.array_copy);
        assert_eq!(gpt::Partition { last: was.last, ..is }, was);
    }
}
