//! Files in the root filesystem of an image, read without mounting it. It may be damaged on purpose: every list has a
//! limit.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;

use anyhow::{Context, bail, ensure};
use mkext4::reader::FileExtent;
use mkext4::spec::extent::{self, Extent, ExtentHeader, ExtentIdx};
use mkext4::spec::inode::FileType;
use mkext4::spec::{DirentIter, Inode, ROOT_INO};

use super::area::Area;
use super::ext4::{Unread, Volume};
use crate::images::output::Output;

/// As many blocks describe where one file is.
const MAP_MAX: usize = 4096;
/// As long a directory may be, in bytes.
const DIRECTORY_MAX: u64 = 64 << 20;
/// Symbolic links that a path may lead through.
const LINKS_MAX: u32 = 40;
/// Folders in one another.
const DEPTH_MAX: usize = 128;
/// As many names are looked at.
const NAMES_MAX: usize = 4 << 20;
/// As many bytes of directories are read, and of paths kept, in all: a directory may be in itself.
const BYTES_MAX: u64 = 1 << 30;

/// The files of a filesystem.
pub(super) struct Files<'f> {
    fs: Volume<'f>,
    /// How much may still be read.
    left: Cell<u64>,
}

impl<'f> Files<'f> {
    /// Opens it, or says why it cannot be read here.
    pub(super) fn open(partition: Area<'f>) -> Result<Self, Unread> {
        Ok(Self { fs: Volume::open(partition)?, left: Cell::new(BYTES_MAX) })
    }

    fn spend(&self, bytes: u64) -> anyhow::Result<()> {
        let left = self.left.get().checked_sub(bytes);
        self.left.set(left.context("there is more in its directories than any system has")?);
        Ok(())
    }

    pub(super) fn inode(&self, number: u32) -> anyhow::Result<Inode> {
        self.fs.inode(number)
    }

    /// Where a file's content is.
    fn map(&self, inode: &Inode) -> anyhow::Result<Vec<FileExtent>> {
        let mut map = Vec::new();
        let Some(root) = inode.extent_root() else { return Ok(map) };
        let mut nodes = VecDeque::from([root.to_vec()]);
        let mut blocks = 0;
        while let Some(node) = nodes.pop_front() {
            let header = ExtentHeader::decode(&node)?;
            let room = (node.len() - ExtentHeader::LEN) / ExtentHeader::ENTRY_LEN;
            ensure!(usize::from(header.entries) <= room && header.depth <= 5, "a map of extents is wrong");
            for index in 0..usize::from(header.entries) {
                let entry = extent::entry(&node, index);
                if header.depth > 0 {
                    blocks += 1;
                    ensure!(blocks <= MAP_MAX, "a file is in too many pieces");
                    nodes.push_back(self.fs.read_block(ExtentIdx::decode(entry).leaf)?);
                } else {
                    let extent = Extent::decode(entry);
                    map.push(FileExtent {
                        logical: extent.logical,
                        physical: extent.start,
                        len: extent.len(),
                        unwritten: extent.is_unwritten(),
                    });
                }
            }
        }
        map.sort_unstable_by_key(|extent| extent.logical);
        let end = |extent: &FileExtent| u64::from(extent.logical) + u64::from(extent.len);
        let apart = map.is_sorted_by(|a, b| end(a) <= u64::from(b.logical));
        ensure!(apart, "parts of a file overlap");
        Ok(map)
    }

    /// Takes the files that are wanted.
    pub(super) fn extract(&self, output: &mut Output<'_>) -> anyhow::Result<()> {
        self.walk(|path, _, inode| {
            let wanted = std::str::from_utf8(path).ok().filter(|_| inode.file_type() == FileType::Regular);
            let Some(name) = wanted.and_then(|path| output.wants(path)) else { return Ok(()) };
            output.put_made(name, inode.size, &mut || {
                let most = usize::try_from(inode.size).map_err(io::Error::other)?;
                self.head(inode, most).map_err(io::Error::other)
            })
        })
    }

    /// The first bytes of a file, at most this many.
    pub(super) fn head(&self, inode: &Inode, most: usize) -> anyhow::Result<Vec<u8>> {
        let length = usize::try_from(inode.size).unwrap_or(most).min(most);
        let mut content = vec![0; length];
        let read = self.fs.read_file(inode, &self.map(inode)?, &mut content)?;
        content.truncate(read);
        Ok(content)
    }

    pub(super) fn target(&self, inode: &Inode) -> anyhow::Result<Vec<u8>> {
        match inode.fast_symlink_target() {
            Some(target) => Ok(target.to_vec()),
            None => self.head(inode, 4096),
        }
    }

    /// The names in a directory, without `.` and `..`.
    pub(super) fn names(&self, inode: &Inode) -> anyhow::Result<Vec<(Vec<u8>, u32)>> {
        ensure!(inode.file_type() == FileType::Dir, "it is no directory");
        ensure!(inode.size <= DIRECTORY_MAX, "a directory is too long");
        self.spend(inode.size)?;
        let mut names = Vec::new();
        for extent in self.map(inode)? {
            for block in 0..u64::from(extent.len) {
                if (u64::from(extent.logical) + block) * self.fs.block() >= inode.size {
                    break;
                }
                let content = self.fs.read_block(extent.physical.saturating_add(block))?;
                for entry in DirentIter::new(&content) {
                    let entry = entry?;
                    if !matches!(entry.name, b"." | b"..") {
                        names.push((entry.name.to_vec(), entry.inode));
                    }
                }
            }
        }
        Ok(names)
    }

    /// What is at a path, links followed.
    pub(super) fn find(&self, path: &str) -> anyhow::Result<Inode> {
        let mut parts: VecDeque<Vec<u8>> = path.split('/').map(|part| part.as_bytes().to_vec()).collect();
        let mut way = vec![ROOT_INO];
        let mut links = 0;
        while let Some(part) = parts.pop_front() {
            match &*part {
                b"" | b"." => continue,
                b".." => {
                    if way.len() > 1 {
                        way.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let folder = self.inode(way.last().copied().unwrap_or(ROOT_INO))?;
            let names = self.names(&folder)?;
            let Some((_, number)) = names.into_iter().find(|(name, _)| *name == part) else {
                bail!("{path} does not exist");
            };
            let inode = self.inode(number)?;
            if inode.file_type() != FileType::Symlink {
                way.push(number);
                continue;
            }
            links += 1;
            ensure!(links <= LINKS_MAX, "{path} leads round in a circle");
            let target = self.target(&inode)?;
            if target.starts_with(b"/") {
                way.truncate(1);
            }
            target.split(|b| *b == b'/').rev().for_each(|part| parts.push_front(part.to_vec()));
        }
        self.inode(way.last().copied().unwrap_or(ROOT_INO))
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.find(path).is_ok()
    }

    /// Gives every name with its inode, folders before what is in them; paths have no slash in front.
    pub(super) fn walk(
        &self,
        mut each: impl FnMut(&[u8], u32, &Inode) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut folders = vec![(Vec::new(), ROOT_INO, 0)];
        let mut count = 0;
        while let Some((path, number, depth)) = folders.pop() {
            let folder = self.inode(number)?;
            for (name, child) in self.names(&folder)? {
                count += 1;
                ensure!(count <= NAMES_MAX, "there are too many names");
                let mut full = path.clone();
                if !full.is_empty() {
                    full.push(b'/');
                }
                full.extend(name);
                let inode = self.inode(child)?;
                each(&full, child, &inode)?;
                if inode.file_type() == FileType::Dir {
                    self.spend(full.len() as u64)?;
                    ensure!(depth < DEPTH_MAX, "there are too many folders in one another");
                    folders.push((full, child, depth + 1));
                }
            }
        }
        Ok(())
    }
}
