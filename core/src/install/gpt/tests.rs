use super::*;

#[test]
fn a_table_is_fitted_to_a_larger_disk() {
    let table = table();
    let (small, large) = ((1 << 34) + 3, (1 << 35) + 77);
    for grows in [false, true] {
        let mut array = [0; ARRAY];
        array[..PARTITIONS * ENTRY].copy_from_slice(&table.entries());
        let fitted = fit(&table.header(Copy::First, 512, small), &mut array, 512, large, grows).unwrap();
        let mut want = table.clone();
        if grows {
            want.partitions[1].last = (large - 33) / 2048 * 2048 - 1;
        }
        assert_eq!(array[..PARTITIONS * ENTRY], want.entries());
        assert_eq!(fitted.first, want.header(Copy::First, 512, large));
        assert_eq!(fitted.last, want.header(Copy::Last, 512, large));
        assert_eq!(fitted.array_copy * 512, place(Copy::Last, 512, large).0);
        // On a smaller one it does not fit, and what is wrong is not made right.
        let mut again = array;
        assert_eq!(fit(&fitted.first, &mut again, 512, 98_304, grows), None);
        again[40] ^= 1;
        assert_eq!(fit(&fitted.first, &mut again, 512, large, grows), None);
        let mut header = fitted.first;
        header[50] ^= 1;
        assert_eq!(fit(&header, &mut array, 512, large, grows), None);
    }
    for sectors in 0..40 {
        let mut array = [0; ARRAY];
        assert_eq!(fit(&[0; HEADER], &mut array, 512, sectors, true), None);
        array[..PARTITIONS * ENTRY].copy_from_slice(&table.entries());
        assert_eq!(fit(&table.header(Copy::First, 512, small), &mut array, 512, sectors, true), None);
    }
}

#[test]
fn a_table_gets_other_identifiers() {
    let table = table();
    let sectors = 1 << 34;
    let mut array = [0; ARRAY];
    array[..PARTITIONS * ENTRY].copy_from_slice(&table.entries());
    let mut want = table.clone();
    (want.disk, want.partitions[1].id) = ([9; 16], [8; 16]);
    for copy in [Copy::First, Copy::Last] {
        let (header, at) = (table.header(copy, 512, sectors), header_at(copy, sectors));
        let mut array = array;
        let id = |number, _: &Partition| (number != 1).then_some([8; 16]);
        let renewed = renew(&header, at, &mut array, [9; 16], id).unwrap();
        assert_eq!(
            (renewed, &array[..PARTITIONS * ENTRY]),
            (want.header(copy, 512, sectors), &want.entries()[..])
        );
        let again = array;
        assert_eq!(renew(&header, at, &mut array, [7; 16], id), None, "the array is another one's");
        assert_eq!(renew(&renewed, at + 1, &mut array, [7; 16], id), None);
        assert_eq!(renew(&renewed, at, &mut array[1..], [7; 16], id), None);
        assert_eq!(array, again);
    }
}

fn table() -> Gpt {
    let mut partitions = [Partition::NONE; PARTITIONS];
    partitions[0] = Partition::new(BASIC_DATA, [1; 16], 8192, 88_472, "boot");
    partitions[1] = Partition::new(LINUX, [2; 16], 98_304, 1 << 33, "root");
    Gpt { disk: *b"0123456789abcdef", partitions }
}

fn sum(table: &Gpt) -> u32 {
    crc32(table.entries().into_iter().chain([0; ARRAY - PARTITIONS * ENTRY]))
}

#[test]
fn the_checksum_that_everybody_has() {
    assert_eq!(crc32(*b"123456789"), 0xcbf4_3926);
}

#[test]
fn a_table_and_back() {
    let table = table();
    let sectors = 6_000_000_000;
    for (copy, at) in [(Copy::First, 1), (Copy::Last, sectors - 1)] {
        let bytes = table.header(copy, 512, sectors);
        let header = Header::read(&bytes, at).unwrap();
        assert_eq!((header.disk, header.entries, header.entry_bytes), (table.disk, 128, 128));
        assert_eq!(header.array, if copy == Copy::First { 2 } else { sectors - 33 });
        assert_eq!(Gpt::read(&header, &table.entries(), sum(&table)).as_ref(), Some(&table));
        assert_eq!(Gpt::read(&header, &table.entries(), 0), None);
        let (other, place) = if copy == Copy::First { (sectors - 1, sectors - 33) } else { (1, 2) };
        let moved = Header::moved(&bytes, place);
        assert_eq!(Header::read(&moved, other).map(|h| h.array), Some(place));
        // One in another place is another one's copy.
        assert_eq!(Header::read(&bytes, at - 1), None);
        for damaged in 0..HEADER {
            let mut bytes = bytes;
            bytes[damaged] ^= 1;
            assert_eq!(Header::read(&bytes, at), None, "byte {damaged}");
        }
    }
    assert_eq!(place(Copy::First, 512, sectors), (512, 33 * 512));
    assert_eq!(place(Copy::Last, 512, sectors), ((sectors - 33) * 512, 33 * 512));
    assert_eq!(place(Copy::Last, 4096, 1000), (995 * 4096, 5 * 4096));
    assert_eq!((table_bytes(512), table_bytes(4096)), (34 * 512, 6 * 4096));
}

#[test]
fn what_is_withheld_is_no_partition() {
    let mut table = table();
    let shown = table.partitions[1];
    assert!(shown.is_used() && !shown.is_withheld() && shown.sectors() == 1 << 33);
    table.partitions[1] = shown.withheld();
    let header = Header::read(&table.header(Copy::First, 4096, 1 << 30), 1).unwrap();
    let read = Gpt::read(&header, &table.entries(), sum(&table)).unwrap().partitions[1];
    assert!(!read.is_used() && read.is_withheld() && (read.first, read.last) == (0, 0));
    assert!(!Partition::NONE.is_withheld());
}

#[test]
fn the_mbr_before_it() {
    let small = Gpt::protective(1000).partitions;
    assert_eq!((small[0].kind, small[0].first, small[0].sectors), (PROTECTIVE, 1, 999));
    assert_eq!(Gpt::protective(1 << 40).partitions[0].sectors, u32::MAX);
    assert!(small[1..].iter().all(|p| !p.is_used()));
}
