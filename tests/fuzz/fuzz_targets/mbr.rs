//! Partition tables: any sector is read or refused, and what was read is written as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use piman_core::install::mbr::{BYTES, Mbr};

fuzz_target!(|data: &[u8]| {
    let mut sector = [0; BYTES];
    let length = data.len().min(BYTES);
    sector[..length].copy_from_slice(&data[..length]);
    check(&sector);
    // No fuzzer that begins with short inputs reaches the end; so the same bytes are taken for the end of a table.
    sector.rotate_right(BYTES - 2 - length.min(BYTES - 2));
    sector[BYTES - 2..].copy_from_slice(&[0x55, 0xaa]);
    check(&sector);
});

fn check(sector: &[u8; BYTES]) {
    if let Ok(table) = Mbr::read(sector) {
        assert_eq!(&table.write(), sector);
    }
}
