//! Whether a disk has the room that it says it has: cards that lie about their size take
//! every write, and lose it or put it over something else.

use std::hash::{BuildHasher, RandomState};
use std::io;

use anyhow::anyhow;
use piman_core::install::Stage;

use crate::failure::{Cause, Failure};
use crate::image::{Aligned, Medium};

/// How much is written at a place, in bytes.
const BLOCK: usize = 4096;

/// The smallest memory that a card pretends with, as a power of two: 64 MiB.
const SMALLEST: u32 = 26;

/// Writes blocks near the end of the root partition and reads them back, past all caches of
/// ours; what was there is put back in any case. Nothing else must be written meanwhile.
///
/// # Errors
/// [`Cause::Disk`] if something else comes back, or the disk fails.
pub(super) fn probe(medium: &impl Medium) -> Result<(), Failure> {
    let places = places(medium.length());
    // All of them are read before one is written: two may be the same memory.
    let mut before = Vec::new();
    for at in &places {
        before.push(read(medium, *at).map_err(|e| failed("reading", *at, e))?);
    }
    let seed = RandomState::new().hash_one(places.len());
    let found = try_out(medium, &places, seed);
    let mut restored = Ok(());
    for (at, block) in places.iter().zip(&before) {
        let written = medium.write_at(*at, block.first(BLOCK)).map_err(|e| failed("restoring", *at, e));
        restored = restored.and(written);
    }
    let synced = medium.sync().map_err(|e| failed("restoring", 0, e));
    found.and(restored).and(synced)
}

fn try_out(medium: &impl Medium, places: &[u64], seed: u64) -> Result<(), Failure> {
    for at in places {
        medium.write_at(*at, pattern(seed, *at).first(BLOCK)).map_err(|e| failed("writing", *at, e))?;
    }
    medium.sync().map_err(|e| failed("writing", 0, e))?;
    for at in places {
        let block = read(medium, *at).map_err(|e| failed("reading", *at, e))?;
        if block.first(BLOCK) != pattern(seed, *at).first(BLOCK) {
            let error = anyhow!(
                "the disk does not keep what is written at byte {at} of the root partition: it has less room \
                 than it says, or is failing; take another one"
            );
            return Err(Failure { stage: Stage::Disk, cause: Cause::Disk, error });
        }
    }
    Ok(())
}

/// The last block; and one at the distance of each power of two before it, with which it would
/// be the same on a card that uses a memory of that size over and over.
fn places(length: u64) -> Vec<u64> {
    let block = BLOCK as u64;
    let Some(last) = (length / block).checked_sub(1).map(|n| n * block) else { return Vec::new() };
    let distances = (SMALLEST..u64::BITS).map(|n| 1 << n);
    let before = distances.map_while(|d| last.checked_sub(d));
    // Not the first block, which says that nothing is installed.
    std::iter::once(last).chain(before).filter(|at| *at > 0).collect()
}

/// Bytes that are nowhere by chance, nor from an earlier time.
fn pattern(seed: u64, at: u64) -> Aligned {
    let mut block = Aligned::new(BLOCK);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(&at.to_le_bytes());
    hasher.finalize_xof().fill(block.first_mut(BLOCK));
    block
}

fn read(medium: &impl Medium, at: u64) -> io::Result<Aligned> {
    let mut block = Aligned::new(BLOCK);
    medium.read_at(at, block.first_mut(BLOCK))?;
    Ok(block)
}

fn failed(what: &str, at: u64, error: io::Error) -> Failure {
    let error = anyhow!(error).context(format!("{what} byte {at} of the root partition, to try the disk"));
    Failure { stage: Stage::Disk, cause: Cause::Disk, error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Where a byte is kept, if it is, by a card that really has so many.
    type Fold = fn(u64, u64) -> Option<u64>;

    /// Says it has `says` bytes; what is written behind `bytes` is kept by `fold`.
    struct Card {
        memory: Mutex<Vec<u8>>,
        says: u64,
        fold: Fold,
    }

    impl Medium for Card {
        fn length(&self) -> u64 {
            self.says
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            let memory = self.memory.lock().unwrap();
            match (self.fold)(offset, memory.len() as u64) {
                Some(at) => buf.copy_from_slice(&memory[at as usize..at as usize + buf.len()]),
                None => buf.fill(0),
            }
            Ok(())
        }
        fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            let mut memory = self.memory.lock().unwrap();
            if let Some(at) = (self.fold)(offset, memory.len() as u64) {
                memory[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
            }
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn cards_that_lie_are_found_and_left_as_they_were() {
        let content: Vec<u8> = (0..64 << 20).map(|i: u32| (i >> 9) as u8).collect();
        let honest = |at, _| Some(at);
        let wraps = |at, has| Some(at % has);
        let drops = |at, has| (at < has).then_some(at);
        let full = content.len() as u64;
        let cards: [(Fold, u64, bool); 5] = [
            (honest, full, true),
            (wraps, 2 * full, false),
            (wraps, (1 << 30) + 8192, false),
            (drops, 2 * full, false),
            (drops, full + 4096, false),
        ];
        for (fold, says, good) in cards {
            let card = Card { memory: Mutex::new(content.clone()), says, fold };
            assert_eq!(probe(&card).is_ok(), good, "{says}");
            assert!(*card.memory.lock().unwrap() == content, "{says}: something was changed");
        }
    }
}
