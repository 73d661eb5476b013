//! One image on cards of all sizes: judged by e2fsck, by what mke2fs makes of the same size, and by an independent reader.

use std::collections::HashMap;

use piman_core::install::grow::{self, BLOCK_BYTES, Block, Disk, Failure as Ended, Refusal};
use proptest::prelude::*;

use super::sizes::by_chance;
use super::*;

const GB: u64 = 1_000_000_000;

/// A sparse disk with a partition of so many bytes.
fn sparse(room: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(OFFSET + room).unwrap();
    file
}

/// What dumpe2fs says of a filesystem.
fn numbers(disk: &Path, offset: u64) -> HashMap<String, u64> {
    let name = format!("{}?offset={offset}", disk.display());
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = run(Command::new("dumpe2fs").args(["-h", &name]).env("LC_ALL", "C").env("PATH", path));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?))).collect()
}

#[test]
fn cards_of_all_sizes_get_what_mke2fs_would_have_given() {
    let archive = noisy(20);
    let made = made(archive.path(), 0).unwrap();
    let server = faultless(&made.image);
    let used = made.image.header().entries + 12;
    let cards = [4 * GB, 8 * GB, 16 * GB, 32 * GB, 64 * GB, 128 * GB, 31_914_983_424, 1000 * GB, 2000 * GB];
    let odd =
        [OFFSET + 600 * MIB + 4096, OFFSET + (16 << 30) + 5 * MIB, OFFSET + (129 << 27), 15_931_539_456];
    for card in cards.into_iter().chain(odd) {
        let room = card - OFFSET;
        let disk = sparse(room);
        install(&server, &made.image, &disk);
        e2fsck(disk.path(), OFFSET, room);
        assert_equal(disk.path(), &made);
        let other = sparse(0);
        other.as_file().set_len(room).unwrap();
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let mut mke2fs = Command::new("mke2fs");
        mke2fs
            .args(["-q", "-t", "ext4", "-O", "^64bit", "-J", "size=16"])
            .arg(other.path())
            .env("PATH", path);
        run(&mut mke2fs);
        let (ours, theirs) = (numbers(disk.path(), OFFSET), numbers(other.path(), 0));
        for key in ["Block count", "Reserved block count", "First inode", "Inode size", "Blocks per group"] {
            assert_eq!(ours[key], theirs[key], "{key} on {card}");
        }
        // mke2fs gives a short last group fewer, and so the others; here each has as many.
        let near = |key: &str, few: u64| {
            let (ours, theirs) = (ours[key], theirs[key]);
            assert!(ours.abs_diff(theirs) <= theirs / 128 + few, "{key} on {card}: {ours}, mke2fs {theirs}");
        };
        near("Free inodes", used + 8192);
        near("Inode count", 8192);
        near("Free blocks", made.image.header().used_bytes / 4096 + 1024);
        assert_eq!(ours["Inodes per group"], 8192);
        assert!(ours["Reserved GDT blocks"] + room.div_ceil(16 << 30) == 128, "{ours:?}");
    }
}

/// The kernel's and mkext4's notions of a filesystem are not the only ones.
#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn an_independent_reader_reads_them() {
    let archive = noisy(20);
    let made = made(archive.path(), 0).unwrap();
    let extracted = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar");
    run(tar.args(["-I", "zstd", "-xpf"]).arg(archive.path()).arg("-C").arg(extracted.path()));
    // The archive does not describe it.
    run(Command::new("touch").args(["-d", "@1700000000"]).arg(extracted.path()));
    let want = installed(extracted.path());
    for room in [made.image.header().total_bytes, 4 * GB, 17 << 30, 128 * GB, 2000 * GB] {
        let disk = sparse(room);
        install(&faultless(&made.image), &made.image, &disk);
        piman_tests::reader::assert_reads(disk.path(), OFFSET, &want);
    }
}

#[test]
fn what_is_behind_two_tebibytes_is_not_used() {
    let archive = noisy(1);
    let made = made(archive.path(), 0).unwrap();
    let disk = sparse(3 << 40);
    let area = area(disk.as_file(), disk.as_file(), 3 << 40);
    let mut pending = install_on(&faultless(&made.image), &made.image, &area).unwrap();
    agent::grow(&area, &mut pending).unwrap();
    agent::commit(&area, &pending, &proof(&made.image)).unwrap();
    assert_eq!(pending.summary.total_bytes, 2 << 40);
    e2fsck(disk.path(), OFFSET, 2 << 40);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_grown_filesystem_is_filled_to_the_last_byte() {
    let archive = noisy(20);
    let made = made(archive.path(), 0).unwrap();
    // Two flexible groups, and a short last group.
    let room = 17 * 128 * MIB + 40 * MIB;
    let disk = sparse(room);
    install(&faultless(&made.image), &made.image, &disk);
    let mounted = Mounted::new(disk.path(), OFFSET, room, "init_itable=0");
    let before = installed(mounted.path());
    let mut filler = File::create(mounted.path().join("filler")).unwrap();
    let piece = vec![0x77; 1 << 20];
    while filler.write_all(&piece).is_ok() {}
    let filled = filler.metadata().unwrap().len();
    assert!(filled > room - 120 * MIB, "{filled} of {room}");
    drop(filler);
    mounted.wait_for_lazy_init();
    run(Command::new("sync").arg("-f").arg(mounted.path()));
    fs::remove_file(mounted.path().join("filler")).unwrap();
    assert_same(&without_times(installed(mounted.path()), &[""]), &without_times(before, &[""]));
    drop(mounted);
    e2fsck(disk.path(), OFFSET, room);
    assert_equal(disk.path(), &made);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn resize2fs_makes_it_larger_still() {
    let archive = noisy(2);
    let made = made(archive.path(), 0).unwrap();
    for (room, larger) in [(700 * MIB, 3000 * MIB), (15 << 30, 40 << 30)] {
        let disk = sparse(room);
        install(&faultless(&made.image), &made.image, &disk);
        disk.as_file().set_len(OFFSET + larger).unwrap();
        let device = LoopDevice::of_part(disk.path(), OFFSET);
        run(Command::new("e2fsck").arg("-fy").arg(device.path()));
        run(Command::new("resize2fs").arg(device.path()));
        drop(device);
        e2fsck(disk.path(), OFFSET, larger);
        assert_equal(disk.path(), &made);
        assert_eq!(numbers(disk.path(), OFFSET)["Block count"], larger / 4096);
    }
}

#[test]
fn growth_that_breaks_off_is_never_valid_and_is_done_again() {
    let archive = noisy(30);
    let made = made(archive.path(), 0).unwrap();
    let server = faultless(&made.image);
    let room = 40 * 128 * MIB + 7 * MIB;
    let disk = sparse(room);
    let mut writes = 0;
    loop {
        let area = area(disk.as_file(), disk.as_file(), room);
        let mut pending = install_on(&server, &made.image, &area).unwrap();
        let error = rustix::io::Errno::IO;
        let failing = faults::Failing { area, writes_left: writes.into(), error };
        let Err(failure) = agent::grow(&failing, &mut pending) else { break };
        assert_eq!((failure.cause, failure.stage), (Cause::Disk, Stage::Filesystem));
        assert!(mkext4_open(disk.path()).is_err());
        writes += 1;
    }
    assert!(writes > 8, "{writes}");
    let summary = install(&server, &made.image, &disk);
    assert!(summary.reused + 4 > summary.chunks, "{summary:?}");
    e2fsck(disk.path(), OFFSET, room);
    assert_equal(disk.path(), &made);
}

#[test]
fn trees_by_chance_on_cards_by_chance() {
    let mut random = piman_tests::chance::Random::new(7);
    for seed in 100..112 {
        let archive = by_chance(seed).packed();
        let made = made(archive.path(), 0).unwrap();
        let least = made.image.header().total_bytes;
        for most in [8 << 20, 3 << 30, 70 << 30] {
            let room = least + random.below(most);
            let disk = sparse(room);
            install(&faultless(&made.image), &made.image, &disk);
            e2fsck(disk.path(), OFFSET, room);
            assert_equal(disk.path(), &made);
        }
    }
}

/// The blocks of an image, and what is written over them; what nobody wrote is zero.
struct Overlay<'a> {
    image: &'a HashMap<u64, Block>,
    written: HashMap<u64, Block>,
    past: u64,
}

impl Disk for Overlay<'_> {
    type Error = ();

    fn read(&mut self, block: u64, into: &mut Block) -> Result<(), ()> {
        let found = self.written.get(&block).or_else(|| self.image.get(&block));
        *into = found.copied().unwrap_or([0; BLOCK_BYTES]);
        Ok(())
    }

    fn write(&mut self, block: u64, bytes: &Block) -> Result<(), ()> {
        assert!(block > 0 && block < self.past, "block {block} of {}", self.past);
        self.written.insert(block, *bytes);
        Ok(())
    }
}

/// The metadata of an image, by block.
fn blocks() -> HashMap<u64, Block> {
    let archive = noisy(1);
    let made = made(archive.path(), 0).unwrap();
    let room = made.image.header().total_bytes;
    let disk = sparse(room);
    install(&faultless(&made.image), &made.image, &disk);
    let block = |number: u64| {
        let mut block = [0; BLOCK_BYTES];
        disk.as_file().read_exact_at(&mut block, OFFSET + number * 4096).unwrap();
        (number, block)
    };
    (0..200).map(block).collect()
}

fn checksummed(first: &mut Block) {
    let sum = mkext4::csum::superblock(&first[1024..2048]);
    first[1024 + 0x3fc..2048].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn what_cannot_grow_is_refused() {
    let image = blocks();
    let attempt = |change: &dyn Fn(&mut HashMap<u64, Block>), room: u64| {
        let mut image = image.clone();
        change(&mut image);
        let mut first = image[&0];
        let mut disk = Overlay { image: &image, written: HashMap::new(), past: room / 4096 };
        let ended = grow::grow(&mut first, room, &mut disk);
        ended.map(|shape| shape.bytes()).map_err(|e| match e {
            Ended::Refused(why) => why,
            Ended::Disk(()) => panic!("the disk never fails"),
        })
    };
    let field = |at: usize, value: u32| {
        move |image: &mut HashMap<u64, Block>| {
            let first = image.get_mut(&0).unwrap();
            first[1024 + at..1024 + at + 4].copy_from_slice(&value.to_le_bytes());
            checksummed(first);
        }
    };
    let byte = |block: u64, at: usize| {
        move |image: &mut HashMap<u64, Block>| image.get_mut(&block).unwrap()[at] ^= 1
    };
    let whole = attempt(&|_| {}, 4 << 30);
    assert_eq!(whole, Ok(4 << 30));
    assert!(matches!(attempt(&|_| {}, 16 << 20), Err(Refusal::TooSmall { .. })));
    let superblock = Err(Refusal::Superblock);
    assert_eq!(attempt(&byte(0, 1024 + 0x90), 4 << 30), superblock, "a checksum");
    for (at, value) in [
        (0x04, 0), // blocks
        (0x04, u32::MAX),
        (0x28, 0), // inodes of a group
        (0x28, 8191),
        (0x28, 32_768),
        (0x20, 16_384),       // blocks of a group
        (0x18, 0),            // the size of a block
        (0x60, 0x2c2),        // 64 bits
        (0x60, 0x252),        // meta groups
        (0x60, 0x246),        // a journal to replay
        (0x60, 0x42),         // no flexible groups
        (0x0c, u32::MAX),     // free blocks
        (0x10, u32::MAX),     // free inodes
        (0xcc, 0xffff << 16), // reserved descriptors
    ] {
        assert_eq!(attempt(&field(at, value), 4 << 30), superblock, "{at:#x} {value:#x}");
    }
    assert_eq!(attempt(&byte(1, 8), 4 << 30), Err(Refusal::Group(0)));
    assert_eq!(attempt(&byte(129, 4000), 4 << 30), Err(Refusal::Group(0)));
    // Inode 7: its block of blocks, and another one.
    assert_eq!(attempt(&byte(161, 6 * 256 + 0x28), 4 << 30), Err(Refusal::Reserve));
    assert_eq!(attempt(&byte(161, 6 * 256 + 0x28 + 4 * 13 + 3), 4 << 30), Err(Refusal::Reserve));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn whatever_the_superblock_says_nothing_panics_and_nothing_behind_the_room_is_written(
        fields in proptest::collection::vec((0_usize..256, any::<u32>(), any::<bool>()), 0..4),
        others in proptest::collection::vec((1_u64..170, 0_usize..BLOCK_BYTES, any::<u8>()), 0..3),
        room in 0_u64..40 << 30,
    ) {
        thread_local!(static IMAGE: HashMap<u64, Block> = blocks());
        IMAGE.with(|whole| {
            let mut image = whole.clone();
            let mut first = image[&0];
            for (field, value, edge) in fields {
                let at = 1024 + 4 * if edge { field % 64 } else { field };
                let before = u32::from_le_bytes(first[at..at + 4].try_into().unwrap());
                let value = if edge { before ^ 1 << (value % 32) } else { value };
                first[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
            checksummed(&mut first);
            for (block, at, value) in others {
                image.get_mut(&block).unwrap()[at] = value;
            }
            let mut disk = Overlay { image: &image, written: HashMap::new(), past: room / 4096 };
            if let Ok(shape) = grow::grow(&mut first, room, &mut disk) {
                assert!(shape.bytes() <= room);
            }
        });
    }
}
