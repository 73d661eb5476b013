//! A tree as the layout of an ext4 filesystem.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::thread;

use mkext4::{FsBuilder, InodeHandle, Layout, Meta, SparseSeg, SpecialKind};
use piman_core::archive::{self, Time};
use piman_core::hash::Hash;
use piman_core::hosted::ext4;
use piman_core::install::geometry::JOURNAL_MAX;
use piman_core::install::grow::Shape;
use piman_core::install::table::BLOCK;

use super::fill::fill;
use super::need::Need;
use super::pack::Built;
use super::scan::Scan;
use super::tree::{Id, Kind, Name, Node, ROOT, Tree};
use super::{Error, LOST_FOUND, PROOF, Progress, pack};
use crate::sys::lock::lock;

/// Seconds that ext4 can store.
const SECONDS: (i64, i64) = (-(1 << 31), (1 << 34) - (1 << 31) - 1);
/// What one block has room for in extended attributes, in bytes.
const ATTRIBUTES_MAX: usize = 4096 - 36;

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

/// The frozen layout, and where each entry's content goes.
pub(super) struct Plan {
    pub(super) layout: Layout,
    /// By the entry's number.
    pub(super) fills: BTreeMap<u64, Id>,
    /// By node.
    pub(super) handles: Vec<Option<InodeHandle>>,
    /// The proof's file and where it is, in bytes.
    pub(super) proof_file: InodeHandle,
    pub(super) proof: u64,
    /// What the image is of; the layout is for the largest card, and the rest of it is cut off.
    pub(super) shape: Shape,
    /// The first block that nothing is in.
    pub(super) spare: u64,
}

impl Plan {
    fn new(tree: &Tree) -> Result<Self, Error> {
        let need = Need::of(tree);
        let frame = need.frame()?;
        let epoch = tree.newest.min(now());
        let largest = frame.with_blocks(frame.blocks_max());
        let options = ext4::options(largest.bytes(), largest.inodes(), JOURNAL_MAX, epoch);
        let options = options.map_err(Error::io("making a random UUID"))?;
        let mut builder = FsBuilder::new(options)?;
        let names = tree.names();
        let mut handles = vec![None; tree.nodes.len()];
        if let Some(root) = tree.nodes.first() {
            builder.set_meta(mkext4::ROOT, meta(root, epoch))?;
        }
        if let Some(handle) = handles.first_mut() {
            *handle = Some(mkext4::ROOT);
        }
        let mut fills = BTreeMap::new();
        // Directories first: whatever else there is may have its first name in a later one.
        let is_directory = |node: &Node| matches!(node.kind, Kind::Directory(_));
        for directories in [true, false] {
            for (id, (node, names)) in tree.nodes.iter().zip(&names).enumerate() {
                if id == ROOT || is_directory(node) != directories {
                    continue;
                }
                let Some((parent, name)) = names.first() else { continue };
                let parent = handles.get(*parent).copied().flatten();
                let parent = parent.ok_or_else(|| Error::Wrong(format!("`{name}` without a directory")))?;
                let handle = declare(&mut builder, parent, name, node, epoch)?;
                if let Kind::File { entry, .. } = node.kind {
                    fills.insert(entry, id);
                }
                if let Some(place) = handles.get_mut(id) {
                    *place = Some(handle);
                }
            }
        }
        for (handle, names) in handles.iter().zip(&names) {
            for (parent, name) in names.iter().skip(1) {
                let parent = handles.get(*parent).copied().flatten();
                if let (Some(parent), Some(handle)) = (parent, *handle) {
                    builder.hardlink(parent, name, handle)?;
                }
            }
        }
        for (handle, node) in handles.iter().zip(&tree.nodes) {
            for (name, value) in &node.xattrs {
                if let Some(handle) = *handle {
                    builder.set_xattr(handle, name, value)?;
                }
            }
        }
        // The last file that is declared is the last one in the filesystem.
        let meta = Meta::new(0o444, 0, 0, (epoch, 0));
        let proof_file = builder.file(mkext4::ROOT, PROOF, meta, BLOCK)?;
        let layout = builder.seal().map_err(|e| match e {
            // Everything else was checked as it was declared: what is left are attributes, and room.
            mkext4::Error::Invalid(_) => {
                attributes_too_large(tree, &names).unwrap_or_else(|| need.too_large())
            }
            e => e.into(),
        })?;
        let place = layout.extents(proof_file).first().copied();
        let (proof, _) = place.ok_or_else(|| Error::Wrong("the proof has no place".into()))?;
        let spare = frame.next_for_files(proof / BLOCK + 1);
        let shape = need.smallest(frame, spare)?;
        Ok(Self { layout, fills, handles, proof_file, proof, shape, spare })
    }
}

/// Declares a node under its first name.
fn declare(
    builder: &mut FsBuilder,
    parent: InodeHandle,
    name: &str,
    node: &Node,
    epoch: i64,
) -> Result<InodeHandle, Error> {
    let meta = meta(node, epoch);
    Ok(match &node.kind {
        Kind::Directory(_) => builder.mkdir(parent, name, meta)?,
        Kind::File { size, runs: None, .. } => builder.file(parent, name, meta, *size)?,
        Kind::File { size, runs: Some(runs), .. } => {
            builder.file_sparse(parent, name, meta, &parts(runs, *size))?
        }
        Kind::Symlink(target) => builder.symlink(parent, name, target, meta)?,
        Kind::CharDevice(major, minor) => {
            builder.mknod(parent, name, meta, SpecialKind::Char { major: *major, minor: *minor })?
        }
        Kind::BlockDevice(major, minor) => {
            builder.mknod(parent, name, meta, SpecialKind::Block { major: *major, minor: *minor })?
        }
        Kind::Fifo => builder.mknod(parent, name, meta, SpecialKind::Fifo)?,
    })
}

fn meta(node: &Node, epoch: i64) -> Meta {
    let Time { seconds, nanos } = node.meta.mtime.unwrap_or(Time { seconds: epoch, nanos: 0 });
    Meta::new(node.meta.mode, node.meta.uid, node.meta.gid, cut_time(seconds, nanos))
}

/// What the kernel makes of a time that ext4 cannot store.
pub(super) fn cut_time(seconds: i64, nanos: u32) -> (i64, u32) {
    match seconds.clamp(SECONDS.0, SECONDS.1) {
        cut if cut != seconds => (cut, 0),
        seconds => (seconds, nanos),
    }
}

fn parts(runs: &[(u64, u64)], size: u64) -> Vec<SparseSeg> {
    let mut parts = Vec::new();
    let mut at = 0;
    for (start, end) in runs {
        if *start > at {
            parts.push(SparseSeg::Hole(start - at));
        }
        parts.push(SparseSeg::Data(end - start));
        at = *end;
    }
    if at < size {
        parts.push(SparseSeg::Hole(size - at));
    }
    parts
}

fn now() -> i64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |t| i64::try_from(t.as_secs()).unwrap_or(i64::MAX))
}

/// The content of a file in whole blocks: between the parts that the archive stores there
/// are zeros.
pub(super) struct Blocks<'a> {
    content: &'a mut dyn Read,
    parts: Vec<archive::Segment>,
    runs: &'a [(u64, u64)],
    part: usize,
    run: usize,
    at: u64,
    /// What the archive said, before the writer makes another error of it.
    failed: Option<io::Error>,
}

impl<'a> Blocks<'a> {
    pub(super) fn new(content: &'a mut dyn Read, file: &archive::File, runs: &'a [(u64, u64)]) -> Self {
        let at = runs.first().map_or(0, |r| r.0);
        Self { content, parts: file.segments().collect(), runs, part: 0, run: 0, at, failed: None }
    }

    /// Whose fault a failed read was.
    pub(super) fn io_error(&mut self, e: io::Error) -> Error {
        self.why(e.into())
    }

    /// Whose fault a failed fill was.
    pub(super) fn why(&mut self, e: mkext4::Error) -> Error {
        match self.failed.take() {
            Some(e) => match e.downcast::<archive::Error<io::Error>>() {
                Ok(damage) => damage.into(),
                Err(e) => archive::Error::Read(e).into(),
            },
            None => e.into(),
        }
    }
}

impl Read for Blocks<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some((_, mut end)) = self.runs.get(self.run).copied() else { return Ok(0) };
        while self.at >= end {
            self.run += 1;
            let Some((start, next)) = self.runs.get(self.run).copied() else { return Ok(0) };
            (self.at, end) = (start, next);
        }
        while self.parts.get(self.part).is_some_and(|p| p.offset + p.length <= self.at) {
            self.part += 1;
        }
        let (is_data, until) = match self.parts.get(self.part) {
            Some(part) if part.offset <= self.at => (true, part.offset + part.length),
            Some(part) => (false, part.offset),
            None => (false, end),
        };
        let room = usize::try_from(until.min(end) - self.at).unwrap_or(usize::MAX).min(buf.len());
        let buf = buf.get_mut(..room).unwrap_or_default();
        let n = if is_data {
            match self.content.read(buf) {
                Ok(n) => n,
                Err(e) => {
                    let kind = e.kind();
                    self.failed = Some(e);
                    return Err(kind.into());
                }
            }
        } else {
            buf.fill(0);
            room
        };
        self.at += n as u64;
        Ok(n)
    }
}

/// If attributes of a file take more than a block has room for. (Some lie in its inode, so they may take more.)
fn attributes_too_large(tree: &Tree, names: &[Vec<Name<'_>>]) -> Option<Error> {
    let bytes = |node: &Node| -> usize {
        let sizes = node.xattrs.iter().map(|(name, value)| (name.len(), value.len()));
        sizes.map(|(name, value)| 16 + name.next_multiple_of(4) + value.next_multiple_of(4)).sum()
    };
    let (node, names) = tree.nodes.iter().zip(names).find(|(node, _)| bytes(node) > ATTRIBUTES_MAX)?;
    let why = format!("has extended attributes of {} bytes: ext4 has room for {ATTRIBUTES_MAX}", bytes(node));
    Some(Error::Entry { name: names.first().map_or("/", |(_, name)| name).to_owned(), why })
}

/// Reads the filesystem back by another way than it was written: all checksums and
/// structures.
pub(super) fn check(spool: &File, tree: &Tree) -> Result<(), Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fill_up_with_zeros() {
        let segment = |offset, length| archive::Segment { offset, length };
        let file = archive::File { size: 20_500, sparse: Some(vec![segment(10, 5), segment(20_490, 10)]) };
        let mut stored: &[u8] = b"helloworldworld";
        let mut blocks = Blocks::new(&mut stored, &file, &[(0, 4096), (16_384, 20_500)]);
        let mut all = Vec::new();
        blocks.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 4096 + 4116);
        assert_eq!((&all[..10], &all[10..15], &all[15..20]), (&[0; 10][..], &b"hello"[..], &[0; 5][..]));
        assert_eq!(&all[4096 + 4106..], b"worldworld");
    }

    #[test]
    fn times_are_cut_to_what_can_be_stored() {
        let mut tree = Tree::new();
        for (seconds, want) in [
            (0, (0, 7)),
            (i64::MAX, (0x3_7fff_ffff, 0)),
            (0x3_7fff_ffff, (0x3_7fff_ffff, 7)),
            (i64::MIN, (-0x8000_0000, 0)),
            (-5, (-5, 7)),
        ] {
            tree.nodes[0].meta.mtime = Some(Time { seconds, nanos: 7 });
            assert_eq!(meta(&tree.nodes[0], 9).mtime, want);
        }
    }
}
