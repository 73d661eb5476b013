//! Which blocks of a disk image have to be on a card, and where the block for the proof is.

use anyhow::{Context, bail};
use piman_core::install::receipt::{GAP_MAX, Proof};

use super::area::{Area, is_zero};
use super::filesystem::FilesystemKind;
use super::ranges::{self, BLOCK, Ranges, between, common};
use super::table::Table;
use super::{Part, ext4, fat};

/// Where agents keep a counter, in bytes, and how it begins.
const COUNTER: u64 = 32768;
const COUNTER_HEADING: &[u8] = b"piman-counter ";

/// What was found.
pub(super) struct Used {
    /// Sorted, apart from each other, in whole blocks.
    pub(super) runs: Vec<(u64, u64)>,
    /// What is not in them: free for the proof.
    pub(super) proof: u64,
    /// The partitions that are copied whole although their filesystem is known: number, and why.
    pub(super) whole: Vec<(u8, String)>,
}

/// All used blocks of an image. `mapped` is what a bmap says of places that are not understood here.
pub(super) fn used(
    image: &Area<'_>,
    table: &Table,
    parts: &[Part],
    mapped: Option<&[(u64, u64)]>,
) -> anyhow::Result<Used> {
    let first = parts.iter().map(|p| p.start).min().unwrap_or(0);
    let proof = proof_place(image, table.end, first)?;
    let mut used = Ranges::default();
    let mut whole = Vec::new();
    for (start, end) in before(image, first, proof)? {
        used.add(start, end);
    }
    for part in parts {
        let area = image.part(part.start, part.length);
        let found = match part.filesystem {
            FilesystemKind::Ext => ext4::used(&area),
            FilesystemKind::Fat => fat::used(&area),
            FilesystemKind::Other(_) | FilesystemKind::Unknown => Err(anyhow::anyhow!("not understood")),
        };
        match found {
            Ok((runs, end)) => {
                for (start, end) in runs {
                    used.add(part.start + start, part.start + end.min(part.length));
                }
                // Behind the filesystem there may be something for whoever knows of it.
                for (start, end) in area.not_zero(end, part.length, BLOCK)? {
                    used.add(part.start + start, part.start + end);
                }
            }
            Err(why) => {
                if matches!(part.filesystem, FilesystemKind::Ext | FilesystemKind::Fat) {
                    whole.push((part.number, format!("{why:#}")));
                }
                let all = [(part.start, part.end())];
                let runs = mapped.map_or(all.to_vec(), |mapped| common(&all, mapped));
                runs.into_iter().for_each(|(start, end)| used.add(start, end));
            }
        }
    }
    for (start, end) in gaps(image, table, parts, first, mapped)? {
        used.add(start, end);
    }
    // A partition that begins within a block shares it with the gap.
    let runs = used.finish();
    if runs.iter().any(|(start, end)| (*start..*end).contains(&proof)) {
        bail!("the block for the proof at byte {proof} is used");
    }
    Ok(Used { runs, proof, whole })
}

/// What is used before the first partition: everything, but for the proof and an empty counter, and what was kept in
/// their places by an agent, if the image is of a card that piman has installed.
fn before(image: &Area<'_>, first: u64, proof: u64) -> anyhow::Result<Vec<(u64, u64)>> {
    let mut free = vec![(proof, proof + BLOCK)];
    if COUNTER + BLOCK <= first && is_free_for(Holder::Counter, image, COUNTER)? {
        free.push((COUNTER, COUNTER + BLOCK));
    }
    for (start, end) in image.not_zero(BLOCK, first / BLOCK * BLOCK, BLOCK)? {
        let mut at = start / BLOCK * BLOCK;
        while at < end {
            if is_free_for(Holder::Proof, image, at)? {
                free.push((at, at + BLOCK));
            }
            at += BLOCK;
        }
    }
    Ok(ranges::without(&[(0, first)], &ranges::joined(free, usize::MAX)))
}

/// Who has a block in the gap.
#[derive(Clone, Copy)]
enum Holder {
    Proof,
    Counter,
}

/// Whether a block is empty, or holds what is kept there by us and nothing else.
fn is_free_for(holder: Holder, image: &Area<'_>, at: u64) -> anyhow::Result<bool> {
    let block = image.bytes::<4096>(at)?;
    Ok(is_zero(&block)
        || match holder {
            Holder::Proof => Proof::parse(&block).is_some(),
            Holder::Counter => {
                let (sector, rest) = block.split_at(512);
                sector.starts_with(COUNTER_HEADING) && is_zero(rest)
            }
        })
}

/// What is not zero between partitions and behind them.
fn gaps(
    image: &Area<'_>,
    table: &Table,
    parts: &[Part],
    first: u64,
    mapped: Option<&[(u64, u64)]>,
) -> anyhow::Result<Vec<(u64, u64)>> {
    let mut taken: Vec<(u64, u64)> = parts.iter().map(|p| (p.start, p.end())).collect();
    taken.push((0, first));
    // The agent writes this one, at the end of the card.
    taken.extend(table.backup);
    let mut found = Vec::new();
    for (start, end) in between(&ranges::joined(taken, usize::MAX), image.length()) {
        found.extend(image.not_zero(start, end, super::table::SECTOR)?);
    }
    let found = ranges::joined(found, usize::MAX);
    Ok(mapped.map_or_else(|| found.clone(), |mapped| common(&found, mapped)))
}

/// The last block of zeros between the table and the first partition that nobody else keeps anything in.
fn proof_place(image: &Area<'_>, table_end: u64, first: u64) -> anyhow::Result<u64> {
    // As far back as an agent looks for it.
    let lowest = (table_end.div_ceil(BLOCK).max(1) * BLOCK).max(first.saturating_sub(GAP_MAX));
    let mut at = first / BLOCK * BLOCK;
    while at >= lowest + BLOCK {
        at -= BLOCK;
        let is_free = is_free_for(Holder::Proof, image, at).context("looking for a place for the proof")?;
        if at != COUNTER && is_free {
            return Ok(at);
        }
    }
    bail!(
        "no room before the first partition for the proof of an installation: between the table, which ends at byte \
         {table_end}, and the partition at byte {first}, there is no block of 4096 zeros; images for SD cards leave room \
         there, up to 1 or 4 MiB"
    );
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn the_place_for_the_proof() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let image = Area::new(&file, 1 << 20);
        let place = |table, first| proof_place(&image, table, first).ok();
        assert_eq!(place(512, 1 << 20), Some((1 << 20) - 4096));
        assert_eq!(place(512, 8192), Some(4096));
        assert_eq!(place(512, 63 * 512), Some(28672 - 4096));
        // Not where the counter is, and not in the table.
        assert_eq!(place(512, 36864), Some(28672));
        assert_eq!((place(34 * 512, 20480), place(512, 8191), place(512, 512)), (None, None, None));
        assert_eq!(place(34 * 512, 24576), Some(20480));
        file.write_all_at(b"x", 20480 + 4095).unwrap();
        assert_eq!(place(34 * 512, 24576), None);
        let e = proof_place(&image, 34 * 512, 24576).unwrap_err().to_string();
        assert!(e.starts_with("no room before the first partition for the proof"), "{e}");
    }

    #[test]
    fn all_before_the_first_partition_is_used_but_for_two_blocks() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let image = Area::new(&file, 1 << 20);
        assert_eq!(before(&image, 65536, 61440).unwrap(), [(0, 32768), (36864, 61440)]);
        file.write_all_at(b"x", COUNTER).unwrap();
        assert_eq!(before(&image, 65536, 61440).unwrap(), [(0, 61440)]);
        assert_eq!(before(&image, 63 * 512, 24576).unwrap(), [(0, 24576), (28672, 32256)]);
    }

    #[test]
    fn what_an_agent_kept_on_a_card_is_not_the_image_s() {
        use piman_core::hash::Hash;
        use piman_core::install::More;
        use piman_core::install::receipt::Way;
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let image = Area::new(&file, 1 << 20);
        let proof = Proof::now(Hash([7; 32]), Way::Image, More::default()).encode();
        file.write_all_at(&proof, 61440).unwrap();
        file.write_all_at(&proof, 8192).unwrap();
        file.write_all_at(b"piman-counter 1\nsomething", COUNTER).unwrap();
        assert_eq!(proof_place(&image, 512, 65536).unwrap(), 61440);
        let used = [(0, 8192), (12288, COUNTER), (COUNTER + 4096, 61440)];
        assert_eq!(before(&image, 65536, 61440).unwrap(), used);
        // Something else behind it in the block.
        file.write_all_at(b"x", COUNTER + 600).unwrap();
        assert_eq!(before(&image, 65536, 61440).unwrap()[1], (12288, 61440));
    }
}
