//! The used parts of a filesystem as chunks: cut, compressed on all cores, hashed.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use piman_core::hash::Hash;
use piman_core::install::table::{BLOCK, CHUNK_MAX, Entry, Header, Scope, Table};
use rustix::fs::{FlockOperation, flock};
use tempfile::NamedTempFile;
use zstd::bulk::Compressor;

use super::{Early, Error, Progress};
use crate::sys::files::as_its_folder;
use crate::sys::lock::lock;

/// What the names of unfinished files in the state folder begin with.
pub(super) const UNFINISHED: &str = ".unfinished-";
/// Free space between used blocks is taken along up to this length, in bytes.
const GAP_MAX: u64 = 64 << 10;
/// And all of it together up to this part of what is used.
const GAPS_MAX: u64 = 100;
/// Compression: decoding is as fast at any level; higher ones take the server much longer.
const LEVEL: i32 = 3;
/// A chunk that does not shrink by at least this part of it is stored as it is.
const GAIN_MIN: usize = 64;

/// A file in the folder that will be part of an image; locked, as a sign that it is not
/// abandoned.
pub(in crate::images) fn temporary(folder: &Path) -> io::Result<NamedTempFile> {
    let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder)?;
    as_its_folder(file.as_file(), folder)?;
    flock(file.as_file(), FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Cuts used ranges (beginning and end in bytes) into chunks (offset and length). Windows of
/// the chunk's size are kept whole, so that writes are large.
pub(in crate::images) fn cut(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u32)> {
    ranges.sort_unstable();
    let used: u64 = ranges.iter().map(|(start, end)| end - start).sum();
    let mut budget = used / GAPS_MAX;
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        match merged.last_mut() {
            Some((_, last)) if start <= *last => *last = end.max(*last),
            Some((_, last)) if start - *last <= GAP_MAX.min(budget) => {
                budget -= start - *last;
                *last = end;
            }
            _ => merged.push((start, end)),
        }
    }
    let window = u64::from(CHUNK_MAX);
    let mut cuts = Vec::new();
    for (mut start, end) in merged {
        while start < end {
            let stop = (start / window * window + window).min(end);
            // At most a window.
            cuts.push((start, (stop - start) as u32));
            start = stop;
        }
    }
    cuts
}

/// An image that was made: its table, and its chunks in a temporary file.
#[derive(Debug)]
pub struct Built {
    /// The chunk table.
    pub table: Vec<u8>,
    /// The chunks, on the medium but not under their name.
    pub chunks: NamedTempFile,
}

/// What a header says of these chunks; the rest is to be filled in.
pub(in crate::images) fn header(scope: Scope, entries: &[Entry]) -> Result<Header, Error> {
    Ok(Header {
        scope,
        whole: true,
        chunks: u32::try_from(entries.len()).map_err(|e| Error::Wrong(e.to_string()))?,
        total_bytes: 0,
        used_bytes: entries.iter().map(|e| u64::from(e.length)).sum(),
        stored_bytes: entries.iter().map(|e| u64::from(e.stored)).sum(),
        archive: Hash([0; 32]),
        proof_offset: 0,
        entries: 0,
    })
}

/// The table of all chunks that were packed, which is checked, and they are brought to the disk.
pub(in crate::images) fn finish(
    header: Header,
    entries: &[Entry],
    chunks: NamedTempFile,
) -> Result<Built, Error> {
    let sums = self::header(header.scope, entries)?;
    let header = Header {
        chunks: sums.chunks,
        used_bytes: sums.used_bytes,
        stored_bytes: sums.stored_bytes,
        ..header
    };
    let mut table = header.encode().to_vec();
    table.extend(entries.iter().flat_map(Entry::encode));
    Table::parse(&table).map_err(|e| Error::Wrong(e.to_string()))?;
    chunks.as_file().sync_all().map_err(Error::io("bringing the chunks to the disk"))?;
    Ok(Built { table, chunks })
}

/// The next chunk to be written out, and the entries so far.
struct Written<'f> {
    out: &'f mut NamedTempFile,
    entries: Vec<Entry>,
    position: u64,
    failed: Option<Error>,
}

/// Packs on a thread of its own while the content is written, or after it if the system gives none.
///
/// # Errors
/// What went wrong with the content, else with the packing.
pub(in crate::images) fn beside<T: Send>(
    content: impl FnOnce() -> Result<(), Error>,
    pack: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    let pack = Mutex::new(Some(pack));
    let run = || {
        let pack = lock(&pack).take();
        pack.map_or_else(|| Err(Error::Wrong("it was packed before".into())), |pack| pack())
    };
    let gone = || Error::Wrong("the thread that packs is gone".into());
    thread::scope(|scope| match thread::Builder::new().name("pack".into()).spawn_scoped(scope, run) {
        Ok(thread) => {
            let written = content();
            let packed = thread.join().unwrap_or_else(|_| Err(gone()));
            written.and(packed)
        }
        Err(_) => content().and_then(|()| run()),
    })
}

/// What is packed.
pub(in crate::images) struct Packing<'a> {
    /// What the chunks are read out of.
    pub(in crate::images) spool: &'a File,
    /// Their offsets and lengths.
    pub(in crate::images) cuts: &'a [(u64, u32)],
    /// The block that is filled with line ends, if it is not so there.
    pub(in crate::images) proof: Option<u64>,
    /// Waits until all of a chunk is there; false if it will not be.
    pub(in crate::images) ready: &'a (dyn Fn(usize) -> bool + Sync),
    /// Who is told of each chunk.
    pub(in crate::images) early: &'a Early,
    pub(in crate::images) progress: &'a Progress,
    /// From which percentage to which it goes.
    pub(in crate::images) part: (u32, u32),
    /// Ends it soon when set.
    pub(in crate::images) stop: &'a AtomicBool,
}

/// Reads the chunks and appends them to `out`, in their order; gives their entries.
pub(in crate::images) fn pack(packing: &Packing<'_>, out: &mut NamedTempFile) -> Result<Vec<Entry>, Error> {
    let Packing { spool, cuts, proof, ready, early, progress, part, stop } = *packing;
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let total = cuts.len() as u64;
    let entries = Vec::with_capacity(cuts.len());
    let written = Mutex::new(Written { out, entries, position: 0, failed: None });
    let turn = Condvar::new();
    let next = Mutex::new(0..cuts.len());
    let work = || -> Result<(), Error> {
        let compressor = Compressor::new(LEVEL).map_err(Error::io("preparing to compress"));
        let mut compressor = compressor?;
        let mut plain = vec![0; CHUNK_MAX as usize];
        loop {
            let taken = lock(&next).next();
            let Some((index, (offset, length))) = taken.and_then(|i| Some((i, *cuts.get(i)?))) else {
                return Ok(());
            };
            if !ready(index) || stop.load(Relaxed) {
                return Err(Error::Stopped);
            }
            let plain = plain.get_mut(..length as usize).unwrap_or_default();
            spool.read_exact_at(plain, offset).map_err(Error::io("reading the filesystem back"))?;
            if let Some(block) = proof.and_then(|at| usize::try_from(at.checked_sub(offset)?).ok())
                && let Some(block) = plain.get_mut(block..block.saturating_add(BLOCK as usize))
            {
                block.fill(b'\n');
            }
            let hash = Hash(*blake3::hash(plain).as_bytes());
            let packed = compressor.compress(plain).map_err(Error::io("compressing"))?;
            let stored = if packed.len() < plain.len() - plain.len() / GAIN_MIN { &packed } else { &*plain };
            let stored_hash = Hash(*blake3::hash(stored).as_bytes());
            // In their order.
            let mut written = lock(&written);
            while written.entries.len() < index && written.failed.is_none() {
                written = turn.wait(written).unwrap_or_else(PoisonError::into_inner);
            }
            if written.failed.is_some() {
                return Ok(());
            }
            written.out.write_all(stored).map_err(Error::io("writing the chunks"))?;
            let position = written.position;
            // At most the length.
            let stored = stored.len() as u32;
            let entry = Entry { offset, length, stored, position, stored_hash, hash };
            written.entries.push(entry);
            early.add(entry);
            written.position += u64::from(stored);
            progress.set(part, index as u64 + 1, total);
            turn.notify_all();
        }
    };
    let work = || {
        if let Err(e) = work() {
            lock(&written).failed.get_or_insert(e);
            turn.notify_all();
        }
    };
    thread::scope(|scope| {
        // This thread is one of them, and does it alone if the system gives no other.
        for _ in 1..threads {
            if let Err(e) = thread::Builder::new().name("chunks".into()).spawn_scoped(scope, work) {
                tracing::warn!("compressing with fewer threads than there are processors: {e}");
                break;
            }
        }
        work();
    });
    let written = written.into_inner().unwrap_or_else(PoisonError::into_inner);
    written.failed.map_or(Ok(written.entries), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u64 = CHUNK_MAX as u64;

    /// Packs all of them at once.
    fn packed(
        spool: &File,
        cuts: &[(u64, u32)],
        proof: Option<u64>,
        out: &mut NamedTempFile,
        is_stopped: bool,
    ) -> Result<Vec<Entry>, Error> {
        let (progress, stop) = (Progress::new(), AtomicBool::new(is_stopped));
        let header = header(Scope::Root { grows: true }, &[])?;
        let early = progress.begin_chunks(header, out.as_file())?;
        let (progress, stop) = (&progress, &stop);
        let ready = &|_| true;
        let packing = Packing { spool, cuts, proof, ready, early, progress, part: (0, 100), stop };
        pack(&packing, out)
    }

    #[test]
    fn chunks_keep_to_their_windows() {
        let cuts = cut(vec![(2 * WINDOW - 4096, 3 * WINDOW + 4096), (0, 8192), (8192, 12_288)]);
        assert_eq!(
            cuts,
            [(0, 12_288), (2 * WINDOW - 4096, 4096), (2 * WINDOW, CHUNK_MAX), (3 * WINDOW, 4096)]
        );
    }

    #[test]
    fn small_gaps_are_taken_along_within_bounds() {
        let near = cut(vec![(0, WINDOW - 8192), (WINDOW - 4096, WINDOW)]);
        assert_eq!(near, [(0, CHUNK_MAX)]);
        let far = cut(vec![(0, WINDOW), (WINDOW + (128 << 10), 2 * WINDOW)]);
        assert_eq!(far.len(), 2);
        // Every second block is used: bridging all would double what is written.
        let every_second: Vec<_> = (0..2000).map(|i| (i * 8192, i * 8192 + 4096)).collect();
        let total: u64 = cut(every_second).iter().map(|(_, length)| u64::from(*length)).sum();
        assert!(total <= 2000 * 4096 * 102 / 100, "{total}");
    }

    #[test]
    fn the_proof_is_full_of_line_ends() {
        let spool = tempfile::tempfile().unwrap();
        spool.set_len(WINDOW + 8192).unwrap();
        for (at, index, place) in [(4096, 0, 4096), (WINDOW + 4096, 1, 4096), (WINDOW, 1, 0)] {
            let cuts = [(0, CHUNK_MAX), (WINDOW, 8192)];
            let mut out = NamedTempFile::new().unwrap();
            let entries = packed(&spool, &cuts, Some(at), &mut out, false).unwrap();
            for (i, (entry, (_, length))) in entries.iter().zip(cuts).enumerate() {
                let mut plain = vec![0; length as usize];
                if i == index {
                    plain[place..place + 4096].fill(b'\n');
                }
                assert_eq!(blake3::hash(&plain).as_bytes(), &entry.hash.0);
            }
        }
    }

    #[test]
    fn packed_and_back() {
        let spool = tempfile::tempfile().unwrap();
        let mut noise = blake3::Hasher::new().update(b"noise").finalize_xof();
        let mut bytes = vec![0; 3 * CHUNK_MAX as usize];
        noise.fill(&mut bytes[..CHUNK_MAX as usize + 8192]);
        spool.write_all_at(&bytes, 0).unwrap();
        let mut out = NamedTempFile::new().unwrap();
        let cuts = [(0, CHUNK_MAX), (WINDOW, CHUNK_MAX), (2 * WINDOW, 4096)];
        let entries = packed(&spool, &cuts, None, &mut out, false).unwrap();
        let stored = std::fs::read(out.path()).unwrap();
        assert_eq!(entries[0].stored, CHUNK_MAX, "noise is stored as it is");
        assert!(entries[1].stored < 10_000 && entries[2].stored < 100);
        for (entry, (offset, length)) in entries.iter().zip(cuts) {
            let part = &stored[entry.position as usize..][..entry.stored as usize];
            assert_eq!(blake3::hash(part).as_bytes(), &entry.stored_hash.0);
            let plain = &bytes[offset as usize..][..length as usize];
            assert_eq!(blake3::hash(plain).as_bytes(), &entry.hash.0);
            if entry.stored < entry.length {
                assert_eq!(zstd::bulk::decompress(part, length as usize).unwrap(), plain);
            }
        }
        let stopped = packed(&spool, &cuts, None, &mut out, true);
        assert!(matches!(stopped, Err(Error::Stopped)));
    }
}
