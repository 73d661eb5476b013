//! Another proof in the place of one, in the gap of a whole disk's image. A disk writes sector by sector: a power cut may
//! leave any part of a block old and the rest new. At every moment the old proof or the new one is whole.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, anyhow};
use piman_core::install::receipt::{GAP_MAX, Proof, SIZE};

use super::whole_disk::proofs_at;

/// The smallest part of a disk that is written whole or not at all, in bytes.
const SECTOR: usize = 512;

/// Where no table reaches, in bytes: one of a GPT with sectors of 4096 bytes has the first six blocks.
const TABLE_END: u64 = 6 * 4096;

/// Something to write, all of which is on the medium before the next one begins.
type Step = (u64, Vec<u8>);

/// Writes another proof in place of the one that is there.
///
/// # Errors
/// If the disk has no proof, or cannot be read or written.
pub(crate) fn replace_proof(disk: &File, bytes: u64, proof: &Proof) -> anyhow::Result<()> {
    let found = proofs_at(disk, bytes).map_err(|wrong| anyhow!("{wrong}"))?;
    let (at, others) = found.split_first().context("the disk has no proof of an installation")?;
    let mut old = [0; SIZE];
    disk.read_exact_at(&mut old, *at)?;
    let aside = match others.first() {
        // This was broken off before.
        Some(aside) => Some(*aside),
        None => free_block(disk, *at)?,
    };
    let rest = others.iter().skip(1).map(|at| (*at, vec![0; SIZE]));
    for (at, bytes) in steps(&old, &proof.encode(), *at, aside).into_iter().chain(rest) {
        disk.write_all_at(&bytes, at)?;
        disk.sync_data()?;
    }
    Ok(())
}

/// What is written in which order. The last proof in the gap counts, so one `aside`, before it, counts while there is none
/// in its place.
fn steps(old: &[u8], new: &[u8], at: u64, aside: Option<u64>) -> Vec<Step> {
    let (Some((_, old_rest)), Some((first, rest))) =
        (old.split_at_checked(SECTOR), new.split_at_checked(SECTOR))
    else {
        return Vec::new();
    };
    let in_place = (at, first.to_vec());
    let clear = aside.map(|aside| (aside, vec![0; SIZE]));
    match aside {
        _ if old_rest == rest => [Some(in_place), clear].into_iter().flatten().collect(),
        None => vec![(at, new.to_vec())],
        Some(aside) => {
            let copy = (aside, new.to_vec());
            let gone = (at, vec![0; SECTOR]);
            let rest = (at + SECTOR as u64, rest.to_vec());
            [Some(copy), Some(gone), Some(rest), Some(in_place), clear].into_iter().flatten().collect()
        }
    }
}

/// The last block before `at` that nobody uses as far as can be seen: it is empty.
fn free_block(disk: &File, at: u64) -> io::Result<Option<u64>> {
    let mut block = [0; SIZE];
    let mut place = at;
    // The first blocks are the table's, whichever kind and sectors it has.
    while let Some(before) = place.checked_sub(SIZE as u64)
        && before >= TABLE_END
        && at - before < GAP_MAX / 2
    {
        disk.read_exact_at(&mut block, before)?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(Some(before));
        }
        place = before;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::content::source::{DiskSource, Region};
    use crate::card::whole_disk::last_proof;
    use piman_core::hash::Hash;
    use piman_core::install::Installation;
    use piman_core::install::More;
    use piman_core::install::receipt::{DiskMarks, PartMark, Way};

    fn proof(parts: u32, personal: Option<u8>) -> Proof {
        let part = |number| PartMark { number, offset: 4 << 30, content: u64::from(number) << 40 };
        let disk = Some(DiskMarks { root: 2, parts: (1..=parts).map(part).collect() });
        let installation = personal.map(|n| Installation(u64::from(n) << 50));
        let personal = personal.map(|n| Hash([n; 32]));
        Proof { disk, personal, installation, ..Proof::now(Hash([7; 32]), Way::Image, More::default()) }
    }

    /// The gap of a disk whose first partition begins at 1 MiB.
    const GAP: usize = 1 << 20;

    fn counts(gap: &[u8]) -> Option<Proof> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(gap, 0).unwrap();
        let source = DiskSource { file: &file, bytes: GAP as u64, sector: 512 };
        last_proof(&Region::whole(&source), GAP as u64).unwrap().map(|(_, proof)| proof)
    }

    #[test]
    fn whenever_the_power_is_cut_the_old_or_the_new_proof_is_there() {
        let at = 40 * SIZE as u64;
        for parts in [1, 2, 12, 32] {
            let (old, new) = (proof(parts, None), proof(parts, Some(9)));
            assert_eq!(parts > 9, old.encode()[SECTOR..] != [b'\n'; SIZE - SECTOR]);
            let mut gap = vec![0; GAP];
            gap[at as usize..][..SIZE].copy_from_slice(&old.encode());
            let steps = steps(&old.encode(), &new.encode(), at, Some(at - SIZE as u64));
            for (place, bytes) in &steps {
                let sectors = bytes.len() / SECTOR;
                // Any of its sectors may be there, in any order.
                let chosen = (0..1_u32 << sectors).filter(|set| sectors < 4 || set.count_ones() % 3 == 1);
                for set in chosen {
                    let mut torn = gap.clone();
                    for sector in (0..sectors).filter(|sector| set & (1 << sector) != 0) {
                        let from = sector * SECTOR;
                        torn[*place as usize + from..][..SECTOR].copy_from_slice(&bytes[from..][..SECTOR]);
                    }
                    let counts = counts(&torn).expect("it counts as not installed");
                    assert!(counts == old || counts == new, "{parts} parts: {counts:?}");
                }
                gap[*place as usize..][..bytes.len()].copy_from_slice(bytes);
            }
            assert_eq!(counts(&gap), Some(new));
            assert!(gap[..at as usize].iter().all(|byte| *byte == 0), "nothing else is left");
        }
    }

    #[test]
    fn a_free_block_is_empty_and_no_tables() {
        let file = tempfile::tempfile().unwrap();
        let mut gap = vec![1; GAP];
        file.write_all_at(&gap, 0).unwrap();
        let at = 40 * SIZE as u64;
        assert_eq!(free_block(&file, at).unwrap(), None);
        gap[..6 * SIZE].fill(0);
        file.write_all_at(&gap, 0).unwrap();
        assert_eq!(free_block(&file, at).unwrap(), None);
        gap[20 * SIZE..21 * SIZE].fill(0);
        file.write_all_at(&gap, 0).unwrap();
        assert_eq!(free_block(&file, at).unwrap(), Some(20 * SIZE as u64));
        assert_eq!(free_block(&file, 0).unwrap(), None);
    }
}
