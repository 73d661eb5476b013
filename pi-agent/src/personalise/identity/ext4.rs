//! The UUID of an ext4 filesystem that nobody has mounted.
//!
//! Checksums of its metadata begin with the UUID. Where the filesystem does not keep what they begin with apart
//! (`metadata_csum_seed`, Linux 4.4, e2fsprogs 1.43) it does from now on, as with `tune2fs -O metadata_csum_seed -U`:
//! otherwise all metadata would have to be written again.
//!
//! Source: the kernel's ext4.rst, "Super Block", "Block Group Descriptors"; the journal inside keeps its own, as with
//! tune2fs.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, bail, ensure};
use mkext4::csum::{crc32c_raw, fs_seed};

use crate::card::disk::{RootArea, Window};

/// The size of a superblock, in bytes.
const SIZE: usize = 1024;
/// Where the first one is, in bytes.
const FIRST: u64 = 1024;
/// The most groups whose superblocks are looked for.
const GROUPS_MAX: u64 = 1 << 20;
/// The longest table of descriptors that is written again, in bytes.
const DESCRIPTORS_MAX: u64 = 16 << 20;

const UUID: usize = 0x68;
const INCOMPAT: usize = 0x60;
const SEED: usize = 0x270;
const SUM: usize = 0x3fc;

// Features: compatible, incompatible, read-only compatible.
const SPARSE_SUPER2: u32 = 0x200;
const STABLE_INODES: u32 = 0x800;
const NEEDS_RECOVERY: u32 = 4;
const JOURNAL_DEVICE: u32 = 8;
const META_BG: u32 = 0x10;
const WIDE: u32 = 0x80;
const CSUM_SEED: u32 = 0x2000;
const SPARSE_SUPER: u32 = 1;
const GDT_CSUM: u32 = 0x10;
const METADATA_CSUM: u32 = 0x400;

/// States: unmounted cleanly, errors found.
const CLEAN: u16 = 1;
const ERRORS: u16 = 2;

/// A superblock.
struct Superblock([u8; SIZE]);

impl Superblock {
    fn u16(&self, at: usize) -> u16 {
        let bytes = self.0.get(at..).and_then(|b| b.first_chunk());
        bytes.map_or(0, |bytes| u16::from_le_bytes(*bytes))
    }

    fn u32(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..).and_then(|b| b.first_chunk());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    }

    fn uuid(&self) -> [u8; 16] {
        self.0.get(UUID..).and_then(|b| b.first_chunk()).copied().unwrap_or_default()
    }

    fn is_one(&self) -> bool {
        self.u16(0x38) == 0xef53
    }

    fn has_sums(&self) -> bool {
        self.u32(0x64) & METADATA_CSUM != 0
    }

    fn sum(&self) -> u32 {
        crc32c_raw(!0, self.0.get(..SUM).unwrap_or_default())
    }

    /// With another UUID; what checksums begin with stays.
    fn renew(&mut self, seed: u32, uuid: &[u8; 16]) {
        if self.has_sums() {
            let features = self.u32(INCOMPAT);
            if features & CSUM_SEED == 0 {
                self.put(SEED, &seed.to_le_bytes());
                self.put(INCOMPAT, &(features | CSUM_SEED).to_le_bytes());
            }
        }
        self.put(UUID, uuid);
        if self.has_sums() {
            let sum = self.sum();
            self.put(SUM, &sum.to_le_bytes());
        }
    }

    fn block(&self) -> u64 {
        1024 << self.u32(0x18).min(6)
    }

    fn first_block(&self) -> u64 {
        self.u32(0x14).into()
    }

    fn groups(&self) -> u64 {
        let wide = self.u32(INCOMPAT) & WIDE != 0;
        let high = if wide { self.u32(0x150) } else { 0 };
        let blocks = u64::from(high) << 32 | u64::from(self.u32(0x04));
        let per_group = u64::from(self.u32(0x20)).max(1);
        blocks.saturating_sub(self.first_block()).div_ceil(per_group)
    }

    /// Where a group begins, in bytes.
    fn group_at(&self, group: u64) -> Option<u64> {
        let block = group.checked_mul(self.u32(0x20).into())?.checked_add(self.first_block())?;
        block.checked_mul(self.block())
    }

    /// The groups that have a copy of it.
    fn copies(&self) -> Vec<u64> {
        let groups = self.groups();
        if self.u32(0x5c) & SPARSE_SUPER2 != 0 {
            return [0x24c, 0x250]
                .map(|at| self.u32(at).into())
                .into_iter()
                .filter(|g| (1..groups).contains(g))
                .collect();
        }
        if self.u32(0x64) & SPARSE_SUPER == 0 {
            return (1..groups).collect();
        }
        let powers = |base: u64| std::iter::successors(Some(base), move |g| g.checked_mul(base));
        let powers = [3, 5, 7].into_iter().flat_map(|base| powers(base).take_while(move |g| *g < groups));
        Some(1).filter(|g| *g < groups).into_iter().chain(powers).collect()
    }

    fn descriptor_bytes(&self) -> usize {
        if self.u32(INCOMPAT) & WIDE != 0 { usize::from(self.u16(0xfe)).max(32) } else { 32 }
    }

    /// Whether descriptors have checksums of the older kind, which begin with the UUID itself.
    fn has_old_sums(&self) -> bool {
        !self.has_sums() && self.u32(0x64) & GDT_CSUM != 0
    }
}

fn read(disk: &File, area: &RootArea, at: u64) -> anyhow::Result<Superblock> {
    let mut bytes = [0; SIZE];
    Window::new(disk, area.offset, area.length).read_exact_at(at, &mut bytes)?;
    Ok(Superblock(bytes))
}

/// The UUID of the filesystem in a part of a disk, if it can get another one. What is `mounted` is replayed by the kernel.
///
/// # Errors
/// Why it cannot.
pub(super) fn renewable(disk: &File, area: &RootArea, mounted: bool) -> anyhow::Result<[u8; 16]> {
    let found = read(disk, area, FIRST).context("reading its superblock")?;
    ensure!(found.is_one(), "it is no ext4 filesystem");
    let (compat, incompat) = (found.u32(0x5c), found.u32(INCOMPAT));
    if found.has_sums() {
        ensure!(found.sum() == found.u32(SUM), "the checksum of its superblock is wrong");
    }
    let state = found.u16(0x3a);
    ensure!(state & ERRORS == 0, "the kernel has found errors in it");
    let is_clean = state & CLEAN != 0 && incompat & NEEDS_RECOVERY == 0;
    ensure!(mounted || is_clean, "it was not unmounted");
    ensure!(incompat & JOURNAL_DEVICE == 0 && found.u32(0xe4) == 0, "its journal is on another partition");
    ensure!(compat & STABLE_INODES == 0, "files in it are encrypted for this UUID");
    ensure!(found.groups() <= GROUPS_MAX && found.u32(0x20) > 0, "its superblock makes no sense");
    if found.has_old_sums() {
        ensure!(incompat & META_BG == 0, "its descriptors are spread over it");
        let length = found.groups().saturating_mul(found.descriptor_bytes() as u64);
        ensure!(length <= DESCRIPTORS_MAX, "it has too many groups");
    }
    Ok(found.uuid())
}

/// Gives an unmounted filesystem this UUID: the copies of its superblock first.
///
/// # Errors
/// Like [`renewable`], or if the disk cannot be written.
pub(super) fn renew(disk: &File, area: &RootArea, uuid: &[u8; 16]) -> anyhow::Result<()> {
    let old = renewable(disk, area, false)?;
    let mut first = read(disk, area, FIRST)?;
    let seed = if first.u32(INCOMPAT) & CSUM_SEED != 0 { first.u32(SEED) } else { fs_seed(&old) };
    for group in first.copies() {
        let Some(at) = first.group_at(group) else { continue };
        // A copy that cannot be read, or is another's, would help nobody.
        let Ok(mut copy) = read(disk, area, at) else { continue };
        if copy.is_one() && copy.uuid() == old {
            if first.has_old_sums() {
                sum_again(disk, area, &first, at, (&old, uuid), false)?;
            }
            copy.renew(seed, uuid);
            disk.write_all_at(&copy.0, area.offset + at)?;
        }
    }
    if first.has_old_sums() {
        let at = first.group_at(0).context("it is nowhere")?;
        sum_again(disk, area, &first, at, (&old, uuid), true)?;
    }
    first.renew(seed, uuid);
    disk.write_all_at(&first.0, area.offset + FIRST)?;
    disk.sync_data()?;
    Ok(())
}

/// Writes the checksums of the descriptors behind the superblock in the block at `group_at`, which began with the UUID.
fn sum_again(
    disk: &File,
    area: &RootArea,
    of: &Superblock,
    group_at: u64,
    (old, new): (&[u8; 16], &[u8; 16]),
    must_be_right: bool,
) -> anyhow::Result<()> {
    let size = of.descriptor_bytes();
    let at = group_at.checked_add(of.block()).context("it is nowhere")?;
    let mut table =
        vec![0; usize::try_from(of.groups())?.checked_mul(size).context("it has too many groups")?];
    Window::new(disk, area.offset, area.length).read_exact_at(at, &mut table)?;
    for (group, descriptor) in (0_u32..).zip(table.chunks_exact_mut(size)) {
        let place = |descriptor: &[u8]| descriptor.get(0x1e..0x20).map(<[u8]>::to_vec);
        if place(descriptor) == Some(old_sum(old, group, descriptor).to_le_bytes().to_vec()) {
            let sum = old_sum(new, group, descriptor).to_le_bytes();
            descriptor.iter_mut().skip(0x1e).zip(sum).for_each(|(to, from)| *to = from);
        } else if must_be_right {
            bail!("the checksum of its group {group} is wrong");
        }
    }
    disk.write_all_at(&table, area.offset + at)?;
    Ok(())
}

/// The checksum of a descriptor without `metadata_csum`: CRC-16 of the UUID, the group's number and the rest of it.
fn old_sum(uuid: &[u8; 16], group: u32, descriptor: &[u8]) -> u16 {
    let before = descriptor.get(..0x1e).unwrap_or_default();
    let behind = descriptor.get(0x20..).unwrap_or_default();
    let bytes =
        uuid.iter().chain(&group.to_le_bytes()).chain(before).chain(behind).copied().collect::<Vec<u8>>();
    bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u16::from(*byte), |sum, _| (sum >> 1) ^ (0xa001 & 0_u16.wrapping_sub(sum & 1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const AREA: u64 = 1 << 20;
    const NEW: [u8; 16] = *b"0123456789abcdef";

    fn run(program: &str, args: &[&str]) -> Option<String> {
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let done = Command::new(program).env("PATH", path).args(args).output().ok()?;
        let text = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        assert!(done.status.success(), "{program} {args:?}: {text}");
        Some(text)
    }

    /// Tries what mke2fs makes with these words; e2fsck and the kernel's own tools judge.
    fn try_with(options: &[&str], size: &str) -> Option<()> {
        let dir = tempfile::tempdir().unwrap();
        let fs = dir.path().join("fs");
        let path = fs.to_str().unwrap();
        run(
            "mkfs.ext4",
            &[&["-q", "-U", "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"], options, &[path, size]].concat(),
        )?;
        let length = std::fs::metadata(&fs).unwrap().len();
        let disk = tempfile::NamedTempFile::new().unwrap();
        let bytes = std::fs::read(&fs).unwrap();
        disk.as_file().set_len(AREA + length).unwrap();
        disk.as_file().write_all_at(&bytes, AREA).unwrap();
        let area = RootArea { offset: AREA, length };
        assert_eq!(renewable(disk.as_file(), &area, false).unwrap()[..4], [0xaa; 4]);
        renew(disk.as_file(), &area, &NEW).unwrap();
        let mut after = vec![0; bytes.len()];
        disk.as_file().read_exact_at(&mut after, AREA).unwrap();
        std::fs::write(&fs, &after).unwrap();
        run("e2fsck", &["-f", "-n", path]);
        let said = run("dumpe2fs", &["-h", path]).unwrap();
        assert!(said.contains("30313233-3435-3637-3839-616263646566"), "{said}");
        // Every copy alone leads to the same filesystem.
        let first = read(disk.as_file(), &area, FIRST).unwrap();
        for group in first.copies() {
            let block = first.group_at(group).unwrap() / first.block();
            let (block, size) = (block.to_string(), first.block().to_string());
            let said = run(
                "dumpe2fs",
                &["-h", "-o", &format!("superblock={block}"), "-o", &format!("blocksize={size}"), path],
            );
            assert!(said.unwrap().contains("30313233-3435"), "{options:?} group {group}");
        }
        Some(())
    }

    #[test]
    fn filesystems_of_all_kinds_get_another_uuid() {
        for (options, size) in [
            (&["-b", "4096"][..], "300M"),
            (&["-b", "1024", "-O", "^64bit"], "40M"),
            (&["-O", "^metadata_csum,uninit_bg,^64bit"], "300M"),
            (&["-O", "^metadata_csum,uninit_bg,64bit", "-b", "1024"], "40M"),
            (&["-O", "^metadata_csum"], "300M"),
            (&["-O", "metadata_csum_seed"], "64M"),
            (&["-O", "sparse_super2,^resize_inode"], "600M"),
            (&["-O", "^sparse_super,^resize_inode"], "600M"),
            (&["-O", "meta_bg,^resize_inode"], "300M"),
            (&["-O", "^has_journal"], "64M"),
        ] {
            if try_with(options, size).is_none() {
                return println!("there is no mkfs.ext4 here");
            }
        }
    }

    #[test]
    fn what_may_not_be_changed_is_left_alone() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        let length = 64 << 20;
        disk.as_file().set_len(AREA + length).unwrap();
        piman_core::hosted::ext4::format(disk.as_file(), AREA, length, 0, "root", 1).unwrap();
        let area = RootArea { offset: AREA, length };
        let good = read(disk.as_file(), &area, FIRST).unwrap().0;
        renewable(disk.as_file(), &area, false).unwrap();
        for (at, bit, word) in [
            (0x38, 1, "no ext4"),
            (0x3a, 2, "errors"),
            (0x3a, 1, "not unmounted"),
            (INCOMPAT, 4, "not unmounted"),
            (INCOMPAT, 8, "another partition"),
            (0x5d, 8, "encrypted"),
            (0x78, 1, "checksum"),
        ] {
            let mut bad = Superblock(good);
            bad.0[at] ^= bit;
            if word != "checksum" {
                let sum = bad.sum();
                bad.put(SUM, &sum.to_le_bytes());
            }
            disk.as_file().write_all_at(&bad.0, AREA + FIRST).unwrap();
            let error = renew(disk.as_file(), &area, &NEW).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
            assert_eq!(read(disk.as_file(), &area, FIRST).unwrap().0, bad.0);
        }
        // Any bytes behind the magic number.
        let mut seed = 5_u32;
        for _ in 0..2000 {
            let mut bad = Superblock(good);
            for _ in 0..6 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                bad.0[(seed >> 16) as usize % SIZE] = [0, 0xff, (seed >> 8) as u8][(seed >> 28) as usize % 3];
            }
            bad.put(0x38, &[0x53, 0xef]);
            let sum = bad.sum();
            bad.put(SUM, &sum.to_le_bytes());
            disk.as_file().write_all_at(&bad.0, AREA + FIRST).unwrap();
            let _ = renew(disk.as_file(), &area, &NEW);
        }
    }
}
