//! A tree as the layout of an ext4 filesystem.

use std::collections::BTreeMap;

use mkext4::{FsBuilder, InodeHandle, Layout, Meta, SparseSeg, SpecialKind};
use piman_core::archive::Time;
use piman_core::hosted::ext4;
use piman_core::install::geometry::JOURNAL_MAX;
use piman_core::install::grow::Shape;
use piman_core::install::table::BLOCK;

use super::need::Need;
use super::tree::{Id, Kind, Name, Node, ROOT, Tree};
use super::{Error, PROOF};

/// Seconds that ext4 can store.
const SECONDS: (i64, i64) = (-(1 << 31), (1 << 34) - (1 << 31) - 1);
/// What one block has room for in extended attributes, in bytes.
const ATTRIBUTES_MAX: usize = 4096 - 36;

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
    pub(super) fn new(tree: &Tree) -> Result<Self, Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
