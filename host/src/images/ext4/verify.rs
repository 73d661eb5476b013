//! A filesystem compared with an archive, entry by entry, without mounting it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;

use mkext4::reader::{DirEntry, FileExtent, Fs, ReadAt};
use mkext4::spec::inode::FileType;
use mkext4::spec::{Inode, ROOT_INO};
use piman_core::archive::{self, Time};
use piman_core::hash::Hash;
use piman_core::hosted::ext4::reader;
use piman_core::install::table::BLOCK;

use super::blocks::Blocks;
use super::plan::cut_time;
use super::scan::Scan;
use super::tree::{Id, Kind, Node, ROOT, Tree};
use super::{Error, LOST_FOUND, PROOF, Progress};

/// Differences that are told; the others are only counted.
const TOLD_MAX: usize = 20;
/// Bytes of a file that are read at once.
const PIECE: usize = 1 << 20;
/// The most bytes that a name takes in its directory.
const NAME_MAX: u64 = 264;

/// What a comparison found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    /// BLAKE3 of the archive.
    pub archive: Hash,
    /// Names that were compared.
    pub names: u64,
    /// Files whose content was compared.
    pub files: u64,
    /// Bytes of content that were compared, without holes.
    pub bytes: u64,
    /// How many differences there are.
    pub differences: u64,
    /// The first differences, in words.
    pub told: Vec<String>,
}

impl Comparison {
    fn differ(&mut self, what: String) {
        self.differences += 1;
        if self.told.len() < TOLD_MAX {
            self.told.push(what);
        }
    }
}

/// Compares every file, directory, link and device of the filesystem that begins `offset`
/// bytes into `disk` with what the archive says: type, content (BLAKE3), permissions, owner,
/// time, extended attributes, which names are the same file, device numbers. Left out: the
/// proof, `lost+found`, and the times of directories that the archive does not describe.
///
/// # Errors
/// [`Error::Archive`], [`Error::Entry`] or [`Error::NotUtf8`] for an archive that is no
/// image's; [`Error::Io`] if the disk or the archive cannot be read, or the disk holds
/// no ext4 filesystem there.
pub fn compare(
    disk: &File,
    offset: u64,
    archive: &File,
    progress: &Progress,
    stop: &AtomicBool,
) -> Result<Comparison, Error> {
    let mut tree = Tree::new();
    let mut contents = BTreeMap::new();
    let scan = Scan { archive, progress, part: (0, 60), stop };
    let id = scan.run(|entry, content| {
        if let archive::Kind::File(file) = &entry.kind {
            let index = tree.entries;
            let runs = super::tree::runs(file);
            let mut blocks = Blocks::new(content, file, &runs);
            let hash = hash_of(&mut blocks).map_err(|e| blocks.io_error(e))?;
            contents.insert(index, hash);
        }
        tree.add(entry)
    })?;
    let read = |e| Error::io("reading the filesystem")(io::Error::other(e));
    let fs = reader::open(Place { disk, offset }).map_err(read)?;
    let mut walk = Walk {
        fs: &fs,
        tree: &tree,
        contents: &contents,
        inodes: BTreeMap::new(),
        found: Comparison { archive: id, ..Comparison::default() },
    };
    let total = tree.nodes.len() as u64;
    let mut directories = vec![(ROOT, ROOT_INO, String::new())];
    while let Some((id, inode, path)) = directories.pop() {
        walk.node(id, inode, if path.is_empty() { "." } else { &path }).map_err(read)?;
        walk.directory(id, inode, &path, &mut directories).map_err(read)?;
        progress.set((60, 100), walk.found.names, total);
    }
    Ok(walk.found)
}

/// A filesystem inside of a disk.
struct Place<'a> {
    disk: &'a File,
    offset: u64,
}

impl ReadAt for Place<'_> {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let place = self.offset.checked_add(offset).ok_or(io::ErrorKind::UnexpectedEof)?;
        FileExt::read_exact_at(self.disk, buf, place)
    }
}

fn hash_of(content: &mut impl Read) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut buf = vec![0; PIECE];
    loop {
        match content.read(&mut buf)? {
            0 => return Ok(*hasher.finalize().as_bytes()),
            n => hasher.update(buf.get(..n).unwrap_or_default()),
        };
    }
}

struct Walk<'a> {
    fs: &'a Fs<Place<'a>>,
    tree: &'a Tree,
    contents: &'a BTreeMap<u64, [u8; 32]>,
    /// The inode of each node that was met.
    inodes: BTreeMap<Id, u32>,
    found: Comparison,
}

impl Walk<'_> {
    /// Compares the names in a directory, and what they name but for directories, which go
    /// on the list.
    fn directory(
        &mut self,
        id: Id,
        inode: u32,
        path: &str,
        directories: &mut Vec<(Id, u32, String)>,
    ) -> mkext4::Result<()> {
        let Some(Node { kind: Kind::Directory(children), .. }) = self.tree.nodes.get(id) else {
            return Ok(());
        };
        let own = |e: &DirEntry| id == ROOT && [PROOF, LOST_FOUND].iter().any(|n| e.name == n.as_bytes());
        let mut there: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        // A large directory has at least a quarter of its blocks full.
        let most = reader::BYTES_MAX.max(children.len() as u64 * NAME_MAX * 4);
        reader::small(self.fs, inode, most)?;
        for entry in self.fs.read_dir(inode)? {
            if entry.inode != 0 && entry.name != b"." && entry.name != b".." && !own(&entry) {
                there.insert(entry.name, entry.inode);
            }
        }
        for (name, child) in children {
            let path = format!("{path}{}{name}", if path.is_empty() { "" } else { "/" });
            self.found.names += 1;
            let Some(inode) = there.remove(name.as_bytes()) else {
                self.found.differ(format!("{path}: missing"));
                continue;
            };
            match self.inodes.get(child) {
                Some(known) if *known == inode => continue,
                Some(_) => {
                    self.found.differ(format!("{path}: not the same file as its other names"));
                    continue;
                }
                None => self.inodes.insert(*child, inode),
            };
            let is_directory =
                matches!(self.tree.nodes.get(*child), Some(Node { kind: Kind::Directory(_), .. }));
            if is_directory && self.fs.inode(inode)?.file_type() == FileType::Dir {
                directories.push((*child, inode, path));
            } else {
                self.node(*child, inode, &path)?;
            }
        }
        for name in there.keys() {
            self.found.differ(format!("{path}/{}: not in the archive", name.escape_ascii()));
        }
        Ok(())
    }

    fn node(&mut self, id: Id, inode: u32, path: &str) -> mkext4::Result<()> {
        let Some(node) = self.tree.nodes.get(id) else { return Ok(()) };
        let found = self.fs.inode(inode)?;
        let kind = match node.kind {
            Kind::Directory(_) => FileType::Dir,
            Kind::File { .. } => FileType::Regular,
            Kind::Symlink(_) => FileType::Symlink,
            Kind::CharDevice(..) => FileType::CharDev,
            Kind::BlockDevice(..) => FileType::BlockDev,
            Kind::Fifo => FileType::Fifo,
        };
        if found.file_type() != kind {
            self.found.differ(format!("{path}: {:?} instead of {kind:?}", found.file_type()));
            return Ok(());
        }
        let mut check = |what: &str, there: String, archive: String| {
            if there != archive {
                self.found.differ(format!("{path}: {what} {there} instead of {archive}"));
            }
        };
        let (mode, owner) = (found.mode & 0o7777, (found.uid, found.gid));
        check("mode", format!("{mode:o}"), format!("{:o}", node.meta.mode));
        check("owner", format!("{owner:?}"), format!("{:?}", (node.meta.uid, node.meta.gid)));
        if let Some(Time { seconds, nanos }) = node.meta.mtime {
            let there = Inode::timestamp(found.mtime, found.mtime_extra);
            check("time", format!("{there:?}"), format!("{:?}", cut_time(seconds, nanos)));
        }
        let mut xattrs = BTreeMap::new();
        for xattr in self.fs.xattrs(inode)? {
            let name = xattr.full_name().unwrap_or(xattr.name);
            xattrs.insert(String::from_utf8_lossy(&name).into_owned(), xattr.value);
        }
        let wanted: BTreeMap<_, _> = node.xattrs.iter().map(|(n, v)| (n.to_string(), v.clone())).collect();
        check("attributes", format!("{xattrs:?}"), format!("{wanted:?}"));
        match &node.kind {
            Kind::Symlink(target) => {
                reader::small(self.fs, inode, BLOCK)?;
                let there = self.fs.symlink_target(inode)?;
                check(
                    "target",
                    there.escape_ascii().to_string(),
                    target.as_bytes().escape_ascii().to_string(),
                );
            }
            Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
                let there = found.dev_numbers().unwrap_or_default();
                check("device", format!("{there:?}"), format!("{:?}", (major, minor)));
            }
            Kind::File { size, runs, entry } => {
                if found.size != *size {
                    self.found.differ(format!("{path}: {} bytes instead of {size}", found.size));
                    return Ok(());
                }
                let whole = [(0, *size)];
                let runs = runs.as_deref().unwrap_or(if *size > 0 { &whole } else { &[] });
                let extents = reader::extents(self.fs, inode, &found)?;
                let content = Runs { fs: self.fs, inode: &found, extents: &extents, runs, at: 0 };
                self.found.files += 1;
                self.found.bytes += runs.iter().map(|(start, end)| end - start).sum::<u64>();
                let there = hash_of(&mut { content })?;
                if Some(&there) != self.contents.get(entry) || !self.holes_are_zero(&found, &extents, runs)? {
                    self.found.differ(format!("{path}: other content"));
                }
            }
            Kind::Directory(_) | Kind::Fifo => {}
        }
        Ok(())
    }

    /// Whether all that is mapped outside of `runs` reads as zeros.
    fn holes_are_zero(
        &self,
        inode: &Inode,
        extents: &[FileExtent],
        runs: &[(u64, u64)],
    ) -> mkext4::Result<bool> {
        let mut buf = vec![0; PIECE];
        for extent in extents {
            let mut at = u64::from(extent.logical) * BLOCK;
            let end = (at + u64::from(extent.len) * BLOCK).min(inode.size);
            while at < end {
                let next = runs.partition_point(|(_, run_end)| *run_end <= at);
                let until = match runs.get(next) {
                    Some((start, run_end)) if *start <= at => {
                        at = *run_end;
                        continue;
                    }
                    Some((start, _)) => end.min(*start),
                    None => end,
                };
                let length = usize::try_from(until - at).unwrap_or(usize::MAX).min(PIECE);
                let piece = buf.get_mut(..length).unwrap_or_default();
                self.fs.read_file_at(inode, extents, at, piece)?;
                if piece.iter().any(|b| *b != 0) {
                    return Ok(false);
                }
                at += length as u64;
            }
        }
        Ok(true)
    }
}

/// The content of a file in the given runs, one after the other.
struct Runs<'a> {
    fs: &'a Fs<Place<'a>>,
    inode: &'a Inode,
    extents: &'a [FileExtent],
    runs: &'a [(u64, u64)],
    /// Bytes of the first run that were read.
    at: u64,
}

impl Read for Runs<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(((start, end), rest)) = self.runs.split_first() else { return Ok(0) };
        let left = end - start - self.at;
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let piece = buf.get_mut(..length).unwrap_or_default();
        let n = self.fs.read_file_at(self.inode, self.extents, start + self.at, piece);
        let n = n.map_err(io::Error::other)?;
        self.at += n as u64;
        if n as u64 == left || n == 0 {
            (self.runs, self.at) = (rest, 0);
        }
        Ok(n)
    }
}
