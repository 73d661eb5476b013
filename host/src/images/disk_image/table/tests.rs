use std::fs::File;
use std::os::unix::fs::FileExt;

use piman_core::install::gpt::{Gpt, Partition as Entry};
use piman_core::install::mbr::Partition;

use super::*;

const SECTORS: u64 = 65536;

fn file() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(SECTORS * SECTOR).unwrap();
    file
}

fn read(file: &File) -> Result<Table, String> {
    let length = file.metadata().unwrap().len();
    Table::read(&Area::new(file, length)).map_err(|e| format!("{e:#}"))
}

fn mbr(partitions: &[Partition]) -> Mbr {
    let mut mbr = Mbr::new(0x5f5d_7a31);
    mbr.partitions.iter_mut().zip(partitions).for_each(|(place, partition)| *place = *partition);
    mbr
}

fn put(file: &File, sector: u64, bytes: &[u8]) {
    file.write_all_at(bytes, sector * SECTOR).unwrap();
}

/// A GPT with three partitions, in both copies, and the MBR before it.
fn with_gpt() -> File {
    let file = file();
    let mut partitions = [Entry::NONE; gpt::PARTITIONS];
    partitions[0] = Entry::new(gpt::BASIC_DATA, [1; 16], 2048, 2048, "boot");
    partitions[2] = Entry::new(gpt::LINUX, *b"0123456789abcdef", 8192, 8192, "röt");
    let table = Gpt { disk: [9; 16], partitions };
    put(&file, 0, &Gpt::protective(SECTORS).write());
    for (copy, header, array) in [(gpt::Copy::First, 1, 2), (gpt::Copy::Last, SECTORS - 1, SECTORS - 33)] {
        put(&file, header, &table.header(copy, SECTOR, SECTORS));
        put(&file, array, &table.entries());
    }
    file
}

/// The beginning of a SquashFS.
fn filesystem(file: &File, at: u64) {
    file.write_all_at(b"hsqs", at).unwrap();
}

#[test]
fn primary_and_logical_partitions() {
    let file = file();
    let partitions =
        [Partition::new(0x0c, 2048, 2048), Partition::new(5, 8192, 20000), Partition::new(0x83, 4096, 10)];
    put(&file, 0, &mbr(&partitions).write());
    put(&file, 8192, &mbr(&[Partition::new(0x83, 64, 1000), Partition::new(5, 2000, 3000)]).write());
    put(&file, 10192, &mbr(&[Partition::new(0x83, 1, 2)]).write());
    let table = read(&file).unwrap();
    let found: Vec<_> = table.slots.iter().map(|s| (s.number, s.start / SECTOR, s.length / SECTOR)).collect();
    assert_eq!(found, [(1, 2048, 2048), (3, 4096, 10), (5, 8256, 1000), (6, 10193, 2)]);
    assert_eq!((table.kind, table.end, table.backup), (TableKind::Mbr, 512, None));
    assert_eq!(table.slots[2].id, "5f5d7a31-05");
    for (link, want) in [
        (Partition::new(5, 1, 0), "damaged"),
        (Partition::new(5, 2000, 3000), "circle at byte 5218304"),
        (Partition::new(5, 20000, 1), "leads out of the extended partition"),
    ] {
        // The second link leads somewhere.
        put(&file, 10192, &mbr(&[Partition::new(0x83, 1, 2), link]).write());
        put(&file, 8193, &[7; 512]);
        let e = read(&file).unwrap_err();
        assert!(e.contains(want) || (want == "damaged" && e.contains("no partition table")), "{e}");
    }
    put(&file, 8192, &mbr(&[Partition::new(0x83, 64, 20000)]).write());
    assert!(read(&file).unwrap_err().contains("outside of the extended partition"));
}

#[test]
fn a_gpt_and_its_copy() {
    let file = with_gpt();
    let whole = read(&file).unwrap();
    let found: Vec<_> =
        whole.slots.iter().map(|s| (s.number, s.start / SECTOR, s.length / SECTOR, &*s.name)).collect();
    assert_eq!(found, [(1, 2048, 2048, "boot"), (3, 8192, 8192, "röt")]);
    assert_eq!(whole.slots[1].id, "33323130-3534-3736-3839-616263646566");
    assert_eq!((whole.kind, whole.end), (TableKind::Gpt, 34 * SECTOR));
    assert_eq!(whole.backup, Some(((SECTORS - 33) * SECTOR, SECTORS * SECTOR)));
    assert!(whole.repair.is_empty());
    // A broken entry, or a broken header: the copy is used, and says how to repair the first.
    for sector in [2, 1] {
        put(&file, sector, b"damaged");
        let copy = read(&file).unwrap();
        assert_eq!((&copy.slots, copy.end, copy.backup), (&whole.slots, whole.end, whole.backup));
        for (at, bytes) in &copy.repair {
            file.write_all_at(bytes, *at).unwrap();
        }
        assert_eq!(read(&file).unwrap(), whole);
    }
    put(&file, SECTORS - 1, b"damaged");
    assert_eq!(read(&file).unwrap(), Table { backup: None, ..whole });
    put(&file, 1, b"damaged");
    let e = read(&file).unwrap_err();
    assert!(e.contains("both copies of its GPT are damaged: the GPT at byte 512"), "{e}");
}

#[test]
fn a_hybrid_table_counts_as_its_gpt() {
    let file = with_gpt();
    let mut mbr = Gpt::protective(SECTORS);
    mbr.partitions[0].sectors = 2047;
    mbr.partitions[1] = Partition::new(0x0c, 2048, 2048);
    put(&file, 0, &mbr.write());
    let table = read(&file).unwrap();
    assert_eq!((table.kind, table.slots.len()), (TableKind::Hybrid, 2));
}

#[test]
fn tables_that_no_card_can_have() {
    type Case<'c> = (&'c [Partition], &'c str);
    let cases: [Case<'_>; 6] = [
        (&[], "has no partition"),
        (
            &[Partition::new(0x0c, 2048, 4096), Partition::new(0x83, 4096, 10)],
            "partitions 1 and 2 overlap: the one ends",
        ),
        (&[Partition::new(0x0c, 2048, u32::MAX)], "partition 1 ends at byte 2199024303616"),
        (&[Partition::new(0x0c, 0, 10)], "partition 1 begins at byte 0, in the partition table"),
        (&[Partition::new(0x0c, 2048, 0)], "has no length"),
        (&[Partition::new(5, 2048, 10), Partition::new(0x0f, 4096, 10)], "two extended"),
    ];
    for (partitions, want) in cases {
        let file = file();
        put(&file, 0, &mbr(partitions).write());
        let e = read(&file).unwrap_err();
        assert!(e.contains(want), "{want}: {e}");
    }
    let file = with_gpt();
    let short = Area::new(&file, 10000 * SECTOR);
    let e = Table::read(&short).unwrap_err().to_string();
    assert!(e.contains("partition 3 ends at byte 8388608, but the image has only 5120000 bytes"), "{e}");
    assert!(Table::read(&Area::new(&file, 600)).is_err());
}

#[test]
fn tables_for_large_sectors() {
    // A GPT says it by its place, an MBR by what is where it points to.
    let file = file();
    put(&file, 0, &Gpt::protective(SECTORS / 8).write());
    put(&file, 8, b"EFI PART");
    assert!(read(&file).unwrap_err().contains("sectors of 4096 bytes"));
    for (first, sectors) in [(256, 100), (256, 60000)] {
        let file = self::file();
        put(
            &file,
            0,
            &mbr(&[Partition::new(0x83, first, sectors), Partition::new(0x83, 65000, 600)]).write(),
        );
        filesystem(&file, u64::from(first) * LARGE_SECTOR);
        assert!(read(&file).unwrap_err().contains("sectors of 4096 bytes"));
    }
}

#[test]
fn what_has_no_table() {
    let file = file();
    assert!(read(&file).unwrap_err().contains("no image of a disk"));
    file.write_all_at(&[0x53, 0xef], 1080).unwrap();
    let e = read(&file).unwrap_err();
    assert!(e.contains("an image of a filesystem (ext4), not of a disk"), "{e}");
    let file = with_gpt();
    put(&file, 0, &[0; 512]);
    assert!(read(&file).unwrap_err().contains("has a GPT, but the sector before it"));
}
