//! The filesystem of an archive: its metadata first, then the content as the archive gives it, and behind that the chunks.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::thread;

use mkext4::build::ImageWriter;
use piman_core::archive;
use piman_core::hash::Hash;
use piman_core::hosted::ext4::SparseSink;
use piman_core::install::table::{BLOCK, Entry, Header, Scope};
use tempfile::NamedTempFile;

use super::blocks::Blocks;
use super::front::Front;
use super::pack::{self, Built, Packing};
use super::plan::Plan;
use super::scan::Scan;
use super::spool::Spool;
use super::tree::{Kind, Node, Tree};
use super::{Error, LOST_FOUND, PROOF, Progress};
use crate::sys::lock::lock;

/// What to make.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// The archive: gzip or zstd of tar.
    pub archive: &'a File,
    /// BLAKE3 of the whole archive, if it is known already.
    pub id: Option<Hash>,
    /// The folder for temporary files, with room for all that is unpacked.
    pub folder: &'a Path,
    /// How far it is.
    pub progress: &'a Progress,
    /// Ends the work soon when set.
    pub stop: &'a AtomicBool,
}

/// What no entry of an archive comes after: when all of it is written and was read back.
const ALL: u64 = u64::MAX;

/// Makes an image. Reads the archive twice; takes memory for its names but not for its
/// content, and room in the folder for what is unpacked, and for what is packed again.
///
/// # Errors
/// [`Error`]; nothing is left behind.
pub fn build(order: &Order<'_>) -> Result<Built, Error> {
    let scan = |part| Scan { archive: order.archive, progress: order.progress, part, stop: order.stop };
    let mut tree = Tree::new();
    let id = scan((0, 25)).run(|entry, _| tree.add(entry))?;
    if order.id.is_some_and(|known| known != id) {
        return Err(Error::Changed);
    }
    let file = tempfile::tempfile_in(order.folder).map_err(Error::io("making a temporary file"))?;
    let mut chunks = pack::temporary(order.folder).map_err(Error::io("making a file in the state folder"))?;
    let (header, entries) = apart(|| fill(order, (&Plan::new(&tree)?, &tree, id), &file, &mut chunks))?;
    pack::finish(header, &entries, chunks)
}

/// Does this on a thread of its own, or here if the system gives none: the layout for the largest card takes 150 MB,
/// which go back to the system with the thread.
fn apart<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    let work = Mutex::new(Some(work));
    let take = || lock(&work).take();
    let gone = || Error::Wrong("the thread that lays it out is gone".into());
    thread::scope(|scope| {
        let run = || take().map(|work| work());
        match thread::Builder::new().name("layout".into()).spawn_scoped(scope, run) {
            Ok(thread) => thread.join().ok().flatten().ok_or_else(gone)?,
            Err(_) => take().ok_or_else(gone)?(),
        }
    })
}

/// Writes what is planned to `file`, and its chunks to `chunks`.
fn fill(
    order: &Order<'_>,
    (plan, tree, id): (&Plan, &Tree, Hash),
    file: &File,
    chunks: &mut NamedTempFile,
) -> Result<(Header, Vec<Entry>), Error> {
    let spool = Spool::new(file, plan.shape)?;
    let mut sink = SparseSink::new(&spool);
    let mut writer = plan.layout.writer(&mut sink)?;
    // Nothing of the metadata changes any more, so that chunks can be made while the content is written.
    spool.cut(plan.spare)?;
    let cuts = pack::cut(plan.used(spool.used()));
    let needs = plan.needs(&cuts);
    let front = Front::default();
    let header = Header {
        total_bytes: plan.shape.bytes(),
        used_bytes: cuts.iter().map(|(_, length)| u64::from(*length)).sum(),
        archive: id,
        proof_offset: plan.proof,
        entries: tree.entries,
        ..pack::header(Scope::Root { grows: true }, &[])?
    };
    let packing = Packing {
        spool: file,
        cuts: &cuts,
        proof: None,
        ready: &|chunk| front.wait(needs.get(chunk).copied().unwrap_or(ALL)),
        early: order.progress.begin_chunks(header, chunks.as_file())?,
        progress: order.progress,
        part: (25, 100),
        stop: order.stop,
    };
    let content = || {
        let written = write(order, (plan, tree, id), &mut writer, &front);
        written.and_then(|()| check_all(&spool, &cuts, file, tree)).inspect_err(|_| front.give_up())?;
        front.reach(ALL);
        Ok(())
    };
    let entries = pack::beside(content, || pack::pack(&packing, chunks))?;
    Ok((header, entries))
}

/// Writes each entry's content as the archive gives it.
fn write(
    order: &Order<'_>,
    (plan, tree, id): (&Plan, &Tree, Hash),
    writer: &mut ImageWriter<'_, &mut SparseSink<&Spool<'_>>>,
    front: &Front,
) -> Result<(), Error> {
    // What is displayed is how far it is packed.
    let progress = Progress::new();
    let scan = Scan { archive: order.archive, progress: &progress, part: (0, 100), stop: order.stop };
    let mut index = 0;
    let again = scan.run(|entry, content| {
        let node = plan.fills.get(&index).and_then(|id| Some((tree.nodes.get(*id)?, *id)));
        index += 1;
        let Some((Node { kind: Kind::File { size, runs, .. }, .. }, id)) = node else { return Ok(()) };
        let archive::Kind::File(file) = &entry.kind else { return Err(Error::Changed) };
        let empty = runs.as_ref().map_or(*size == 0, Vec::is_empty);
        if file.size != *size {
            return Err(Error::Changed);
        }
        let handle = plan.handles.get(id).copied().flatten();
        let Some(handle) = handle.filter(|_| !empty) else { return Ok(()) };
        let whole = [(0, *size)];
        let mut content = Blocks::new(content, file, runs.as_deref().unwrap_or(&whole));
        writer.fill(handle, &mut content).map_err(|e| content.why(e))?;
        front.reach(index);
        Ok(())
    })?;
    if again != id || index != tree.entries {
        return Err(Error::Changed);
    }
    writer.fill(plan.proof_file, &mut io::repeat(b'\n'))?;
    Ok(())
}

/// Everything is where it was planned, and can be read back.
fn check_all(spool: &Spool<'_>, cuts: &[(u64, u32)], file: &File, tree: &Tree) -> Result<(), Error> {
    if !covers(cuts, &spool.used()) {
        return Err(Error::Wrong("something was written where no chunk is".into()));
    }
    check(file, tree)
}

/// Reads the filesystem back by another way than it was written: all checksums and
/// structures.
fn check(spool: &File, tree: &Tree) -> Result<(), Error> {
    let wrong = |e: mkext4::Error| Error::Wrong(e.to_string());
    let fs = mkext4::reader::Fs::open(spool).map_err(wrong)?;
    if let Some(issue) = fs.verify().map_err(wrong)?.first() {
        return Err(Error::Wrong(issue.what.clone()));
    }
    let root = fs.read_dir(mkext4::spec::ROOT_INO).map_err(wrong)?;
    let Some(Node { kind: Kind::Directory(children), .. }) = tree.nodes.first() else { return Ok(()) };
    // `.`, `..` and the two of ours.
    let whole = root.len() == children.len() + 4
        && [PROOF, LOST_FOUND].iter().all(|own| root.iter().any(|e| e.name == own.as_bytes()));
    if whole { Ok(()) } else { Err(Error::Wrong("the root directory is not whole".into())) }
}

/// Whether these chunks, in ascending order, hold all of these ranges.
fn covers(cuts: &[(u64, u32)], ranges: &[(u64, u64)]) -> bool {
    ranges.iter().all(|(start, end)| {
        let mut at = *start;
        for (offset, length) in
            overlapping(cuts, *start, *end).and_then(|range| cuts.get(range)).unwrap_or_default()
        {
            if *offset > at {
                return false;
            }
            at = offset + u64::from(*length);
        }
        at >= *end
    })
}

/// Which of the chunks hold something of a range.
fn overlapping(cuts: &[(u64, u32)], start: u64, end: u64) -> Option<std::ops::Range<usize>> {
    let first = cuts.partition_point(|(offset, length)| offset + u64::from(*length) <= start);
    let behind = cuts.partition_point(|(offset, _)| *offset < end);
    (first <= behind).then_some(first..behind)
}

impl Plan {
    /// The metadata and where the content will be: beginning and end in bytes, whole blocks.
    fn used(&self, mut metadata: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
        let files = self.fills.values().filter_map(|id| self.handles.get(*id).copied().flatten());
        for file in files.chain([self.proof_file]) {
            let extents = self.layout.extents(file);
            metadata.extend(extents.iter().map(|(at, bytes)| (*at, at + bytes.next_multiple_of(BLOCK))));
        }
        metadata
    }

    /// How many entries of the archive are written when all of each chunk is there.
    fn needs(&self, cuts: &[(u64, u32)]) -> Vec<u64> {
        let mut needs = vec![0; cuts.len()];
        let files = self
            .fills
            .iter()
            .filter_map(|(entry, id)| Some((entry + 1, self.handles.get(*id).copied().flatten()?)));
        for (entries, file) in files.chain([(ALL, self.proof_file)]) {
            for (at, bytes) in self.layout.extents(file) {
                let chunks = overlapping(cuts, at, at + bytes).and_then(|range| needs.get_mut(range));
                for need in chunks.into_iter().flatten() {
                    *need = entries.max(*need);
                }
            }
        }
        needs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_hold_what_lies_in_them() {
        let cuts = [(0, 8192), (8192, 4096), (20_480, 4096)];
        assert_eq!(overlapping(&cuts, 4096, 12_288), Some(0..2));
        assert_eq!(overlapping(&cuts, 12_288, 20_480), Some(2..2));
        assert_eq!(overlapping(&cuts, 24_576, 28_672), Some(3..3));
        assert!(covers(&cuts, &[(0, 12_288), (20_480, 24_576), (4096, 8192)]));
        assert!(!covers(&cuts, &[(8192, 16_384)]));
        assert!(!covers(&cuts, &[(12_288, 24_576)]));
        assert!(!covers(&cuts, &[(24_576, 28_672)]));
        assert!(!covers(&[], &[(0, 4096)]));
    }

    #[test]
    fn what_packs_ends_when_the_content_does() {
        let front = Front::default();
        let content = || {
            front.reach(1);
            front.give_up();
            Err(Error::Changed)
        };
        let packer = || if front.wait(1) && !front.wait(2) { Err::<(), _>(Error::Stopped) } else { Ok(()) };
        assert!(matches!(pack::beside(content, packer), Err(Error::Changed)));
    }
}
