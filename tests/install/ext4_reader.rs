//! Filesystems that say of themselves what cannot be: they cannot be read, and nothing panics.

use std::cell::RefCell;
use std::os::unix::fs::FileExt;

use mkext4::reader::Fs;
use mkext4::spec::{Inode, ROOT_INO, incompat, ro_compat};
use piman_core::hosted::ext4;
use piman_core::hosted::ext4::reader::{self, BYTES_MAX};
use proptest::prelude::*;

const SUPERBLOCK: usize = 1024;
const DESCRIPTORS: usize = 4096;
/// Places of the superblock's fields, in bytes.
const BLOCKS: usize = 4;
const FIRST_DATA_BLOCK: usize = 0x14;
const LOG_BLOCK: usize = 0x18;
const BLOCKS_PER_GROUP: usize = 0x20;
const INODES_PER_GROUP: usize = 0x28;
const INODE_SIZE: usize = 0x58;
const INCOMPAT: usize = 0x60;
const RO_COMPAT: usize = 0x64;
const DESCRIPTOR_SIZE: usize = 0xfe;
const BLOCKS_HIGH: usize = 0x150;
/// And of an inode's.
const SIZE: usize = 4;
const SIZE_HIGH: usize = 0x6c;
const DEPTH: usize = 0x28 + 6;

/// An empty filesystem without checksums, in which any byte may be changed.
fn filesystem() -> Vec<u8> {
    let file = tempfile::tempfile().unwrap();
    ext4::format(&file, 0, 16 << 20, 0, "root", 1_700_000_000).unwrap();
    let mut bytes = vec![0; 16 << 20];
    let length = file.metadata().unwrap().len() as usize;
    file.read_exact_at(&mut bytes[..length], 0).unwrap();
    let flags = u32_at(&bytes, SUPERBLOCK + RO_COMPAT) & !ro_compat::METADATA_CSUM;
    put(&mut bytes, SUPERBLOCK + RO_COMPAT, &flags.to_le_bytes());
    bytes
}

fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    bytes[at..at + new.len()].copy_from_slice(new);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Reads the root directory as the agent and the comparison do.
fn read(bytes: &[u8]) -> mkext4::Result<usize> {
    let fs = reader::open(bytes)?;
    let root = reader::small(&fs, ROOT_INO, BYTES_MAX)?;
    reader::extents(&fs, ROOT_INO, &root)?;
    Ok(fs.read_dir(ROOT_INO)?.len())
}

fn says(bytes: &[u8], what: &str) {
    let error = read(bytes).unwrap_err().to_string();
    assert!(error.contains(what), "{what}: {error}");
}

/// Where the root directory's inode is.
fn root_inode(bytes: &[u8]) -> usize {
    let table = Fs::open(bytes).unwrap().group_desc(0).unwrap().inode_table as usize * 4096;
    table + (ROOT_INO as usize - 1) * 256
}

#[test]
fn numbers_that_cannot_be_counted_with_are_refused() {
    let whole = filesystem();
    assert_eq!(read(&whole).unwrap(), 3, "., .. and lost+found");
    let wide = (u32_at(&whole, SUPERBLOCK + INCOMPAT) | incompat::BIT64).to_le_bytes();
    let all = 0xffff_ffff_u32.to_le_bytes();
    for (fields, what) in [
        (&[(LOG_BLOCK, &all[..])][..], "superblock"),
        (&[(LOG_BLOCK, &66_u32.to_le_bytes())], "superblock"),
        (&[(LOG_BLOCK, &6_u32.to_le_bytes())], "block size 65536"),
        (&[(FIRST_DATA_BLOCK, &1_u32.to_le_bytes())], "superblock"),
        (&[(FIRST_DATA_BLOCK, &all)], "superblock"),
        (&[(BLOCKS_PER_GROUP, &[0; 4])], "superblock"),
        (&[(BLOCKS_PER_GROUP, &all)], "superblock"),
        (&[(INODES_PER_GROUP, &[0; 4])], "superblock"),
        (&[(INODES_PER_GROUP, &all)], "superblock"),
        (&[(INODE_SIZE, &[0; 2])], "superblock"),
        (&[(INODE_SIZE, &[0xff; 2])], "superblock"),
        (&[(BLOCKS, &[0; 4])], "superblock"),
        (&[(DESCRIPTOR_SIZE, &[0xff; 2])], "superblock"),
        (&[(DESCRIPTOR_SIZE, &[8, 0])], "superblock"),
        (&[(INCOMPAT, &wide), (DESCRIPTOR_SIZE, &[64, 0]), (BLOCKS_HIGH, &all)], "superblock"),
        (&[(INCOMPAT, &wide), (DESCRIPTOR_SIZE, &[0, 0x80])], "superblock"),
    ] {
        let mut bytes = whole.clone();
        for (at, value) in fields {
            put(&mut bytes, SUPERBLOCK + at, value);
        }
        says(&bytes, what);
    }
    // A block number of 64 bits.
    let mut bytes = whole;
    put(&mut bytes, SUPERBLOCK + INCOMPAT, &wide);
    put(&mut bytes, SUPERBLOCK + DESCRIPTOR_SIZE, &[64, 0]);
    assert_eq!(read(&bytes).unwrap(), 3, "with wide descriptors");
    put(&mut bytes, DESCRIPTORS + 0x28, &all);
    says(&bytes, "descriptor of group 0");
}

#[test]
fn a_directory_that_would_fill_the_memory_is_not_read() {
    let whole = filesystem();
    let root = root_inode(&whole);
    assert_eq!(Inode::decode(&whole[root..root + 256]).unwrap().size, 4096);
    let changed = |at: usize, value: &[u8]| {
        let mut bytes = whole.clone();
        put(&mut bytes, root + at, value);
        bytes
    };
    says(&changed(SIZE, &(BYTES_MAX as u32 + 1).to_le_bytes()), "16777217 bytes in inode 2");
    says(&changed(SIZE_HIGH, &[1, 0, 0, 0]), "bytes in inode 2");
    says(&changed(DEPTH, &[3, 0]), "depth 3");
    says(&changed(DEPTH, &[0xff, 0xff]), "depth 65535");
    // As large as may be, it is looked at: there is no more of it than a block.
    says(&changed(SIZE, &(BYTES_MAX as u32).to_le_bytes()), "hole in directory");
    // Two extents for the same blocks.
    let extent: [u8; 12] = whole[root + 0x28 + 12..][..12].try_into().unwrap();
    let mut bytes = changed(0x28 + 2, &[2, 0]);
    put(&mut bytes, root + 0x28 + 24, &extent);
    says(&bytes, "extents of inode 2 overlap");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(5000) })]

    #[test]
    fn whatever_the_superblock_says_nothing_panics(
        fields in proptest::collection::vec((0_usize..256, any::<u32>(), any::<bool>()), 1..6),
        wide in any::<bool>(),
        descriptor in proptest::option::of((0_usize..64, any::<u8>())),
    ) {
        thread_local!(static WHOLE: RefCell<Vec<u8>> = RefCell::default());
        let mut bytes = WHOLE.take();
        if bytes.is_empty() {
            // It is the first case, or that before has failed.
            bytes = filesystem();
        }
        let before = bytes[..2 * DESCRIPTORS].to_vec();
        if wide {
            let flags = u32_at(&bytes, SUPERBLOCK + INCOMPAT) | incompat::BIT64;
            put(&mut bytes, SUPERBLOCK + INCOMPAT, &flags.to_le_bytes());
            put(&mut bytes, SUPERBLOCK + DESCRIPTOR_SIZE, &[64, 0]);
        }
        for (field, value, edge) in fields {
            // The first fields are those that matter; a card of ours, with a few bits of it changed.
            let at = SUPERBLOCK + 4 * if edge { field % 26 } else { field };
            let value = if edge { u32_at(&bytes, at) ^ 1 << (value % 32) } else { value };
            put(&mut bytes, at, &value.to_le_bytes());
        }
        // What it is, and that no checksum has to be right.
        put(&mut bytes, SUPERBLOCK + 0x38, &[0x53, 0xef]);
        let flags = u32_at(&bytes, SUPERBLOCK + RO_COMPAT) & !ro_compat::METADATA_CSUM;
        put(&mut bytes, SUPERBLOCK + RO_COMPAT, &flags.to_le_bytes());
        if let Some((at, value)) = descriptor {
            bytes[DESCRIPTORS + at] = value;
        }
        let _ = read(&bytes);
        put(&mut bytes, 0, &before);
        WHOLE.set(bytes);
    }
}
