//! What an archive says should be there, after all its entries: as GNU tar would extract it
//! into an empty directory.

use std::collections::{BTreeMap, VecDeque};

use piman_core::archive::{self, DEPTH_MAX, Entry, Segment, Time, Xattr};
use piman_core::install::receipt::is_own;

use super::{Error, LOST_FOUND, acl};

/// A node, by its place in [`Tree::nodes`].
pub(in crate::images) type Id = usize;

/// The root directory.
pub(in crate::images) const ROOT: Id = 0;

/// The largest file that ext4 can hold, in bytes.
const FILE_MAX: u64 = (1 << 44) - 4096;

/// Symbolic links that a name may lead through.
const LINKS_MAX: u32 = 40;

/// All nodes that ever were; those that were replaced have no name any more.
#[derive(Debug)]
pub(in crate::images) struct Tree {
    pub(in crate::images) nodes: Vec<Node>,
    /// How many entries the archive has.
    pub(in crate::images) entries: u64,
    /// The newest of all times.
    pub(in crate::images) newest: i64,
}

/// A file, directory, link or device.
#[derive(Debug)]
pub(in crate::images) struct Node {
    pub(in crate::images) meta: Meta,
    /// Names in UTF-8 and values as they are stored.
    pub(in crate::images) xattrs: BTreeMap<Box<str>, Vec<u8>>,
    pub(in crate::images) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::images) struct Meta {
    pub(in crate::images) mode: u16,
    pub(in crate::images) uid: u32,
    pub(in crate::images) gid: u32,
    /// `None` for a directory that the archive only mentions as part of a name.
    pub(in crate::images) mtime: Option<Time>,
}

#[derive(Debug)]
pub(in crate::images) enum Kind {
    Directory(BTreeMap<Box<str>, Id>),
    File {
        size: u64,
        /// The runs of blocks that hold data, in bytes: offset, end. `None`: all of it.
        runs: Option<Vec<(u64, u64)>>,
        /// The number of the entry that has the content.
        entry: u64,
    },
    Symlink(Box<str>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// A name of a node: the directory and what it is called there.
pub(in crate::images) type Name<'t> = (Id, &'t str);

impl Tree {
    pub(in crate::images) fn new() -> Self {
        Self { nodes: vec![Node::implied()], entries: 0, newest: 0 }
    }

    /// Takes in the archive's next entry.
    pub(in crate::images) fn add(&mut self, entry: Entry) -> Result<(), Error> {
        let index = self.entries;
        self.entries += 1;
        self.newest = self.newest.max(entry.mtime.seconds);
        let path = entry.path.escape_ascii().to_string();
        let wrong = |why: &str| Error::Entry { name: path.clone(), why: why.into() };
        let mut parts = names(&entry.path)?;
        // Ours and ext4's own: an image has them anyway.
        if parts.front().is_some_and(|first| first == LOST_FOUND || is_own(first.as_bytes())) {
            return Ok(());
        }
        if parts.len() > DEPTH_MAX {
            return Err(wrong(&format!("is in more than {DEPTH_MAX} folders, one in another")));
        }
        // The kernel takes this number for none.
        if entry.uid == u32::MAX || entry.gid == u32::MAX {
            return Err(wrong(&format!(
                "belongs to user {} and group {}, which cannot own a file",
                entry.uid, entry.gid
            )));
        }
        let Some(last) = parts.pop_back() else {
            if !matches!(entry.kind, archive::Kind::Directory) {
                return Err(wrong("is the root, but no directory"));
            }
            return self.describe(ROOT, &entry);
        };
        let parent = self.enter(parts, true).map_err(wrong)?.ok_or_else(|| wrong("has no directory"))?;
        if parent == ROOT && is_own(last.as_bytes()) {
            return Ok(());
        }
        let existing = self.child(parent, &last);
        if let archive::Kind::Directory = entry.kind {
            let id = match existing.filter(|id| matches!(self.kind(*id), Some(Kind::Directory(_)))) {
                Some(id) => id,
                None => self.insert(parent, last, Node::implied()),
            };
            return self.describe(id, &entry);
        }
        if let Some(Kind::Directory(children)) = existing.and_then(|id| self.kind(id))
            && !children.is_empty()
        {
            return Err(wrong("replaces a directory that is not empty"));
        }
        let kind = match &entry.kind {
            archive::Kind::Hardlink(target) => {
                let mut parts = names(target)?;
                let missing =
                    || wrong(&format!("is a link to `{}`, which is missing", target.escape_ascii()));
                let name = parts.pop_back().ok_or_else(missing)?;
                let directory = self.enter(parts, false).map_err(wrong)?.ok_or_else(missing)?;
                let id = self.child(directory, &name).ok_or_else(missing)?;
                if matches!(self.kind(id), Some(Kind::Directory(_))) {
                    return Err(wrong("is a link to a directory"));
                }
                self.name(parent, last, id);
                return Ok(());
            }
            archive::Kind::File(file) => {
                if file.size > FILE_MAX {
                    return Err(Error::Unsupported(format!("`{path}` is larger than 16 TiB")));
                }
                let runs = file.sparse.as_ref().map(|segments| blocks_of(segments, file.size));
                Kind::File { size: file.size, runs, entry: index }
            }
            archive::Kind::Symlink(target) => Kind::Symlink(utf8(target)?.into()),
            archive::Kind::CharDevice { major, minor } => Kind::CharDevice(*major, *minor),
            archive::Kind::BlockDevice { major, minor } => Kind::BlockDevice(*major, *minor),
            archive::Kind::Fifo => Kind::Fifo,
            // Above.
            archive::Kind::Directory => return Ok(()),
        };
        let node = Node { kind, ..Node::implied() };
        let id = self.insert(parent, last, node);
        self.describe(id, &entry)
    }

    /// Every node that has a name with all its names, in the order of the nodes; a directory
    /// has exactly one, and the root none.
    pub(in crate::images) fn names(&self) -> Vec<Vec<Name<'_>>> {
        let mut names = vec![Vec::new(); self.nodes.len()];
        let mut directories = vec![ROOT];
        while let Some(parent) = directories.pop() {
            let Some(Kind::Directory(children)) = self.kind(parent) else { continue };
            for (name, id) in children {
                if let Some(names) = names.get_mut(*id) {
                    names.push((parent, &**name));
                }
                if matches!(self.kind(*id), Some(Kind::Directory(_))) {
                    directories.push(*id);
                }
            }
        }
        for names in &mut names {
            names.sort_unstable();
        }
        names
    }

    /// What a node is.
    pub(in crate::images) fn kind(&self, id: Id) -> Option<&Kind> {
        self.nodes.get(id).map(|n| &n.kind)
    }

    /// What is called so in a directory.
    pub(in crate::images) fn child(&self, directory: Id, name: &str) -> Option<Id> {
        match self.kind(directory)? {
            Kind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn insert(&mut self, parent: Id, name: String, node: Node) -> Id {
        let id = self.nodes.len();
        self.nodes.push(node);
        self.name(parent, name, id);
        id
    }

    fn name(&mut self, parent: Id, name: String, id: Id) {
        if let Some(Node { kind: Kind::Directory(children), .. }) = self.nodes.get_mut(parent) {
            children.insert(name.into(), id);
        }
    }

    /// The directory that these names lead to from the root, through symbolic links that stay
    /// below it, as extraction on a Pi follows them. What is missing is made, or `None`.
    fn enter(&mut self, mut parts: VecDeque<String>, make: bool) -> Result<Option<Id>, &'static str> {
        // The directories on the way, for links that go up.
        let mut way = Vec::new();
        let mut followed = 0;
        while let Some(part) = parts.pop_front() {
            // Names have no `..`, links may.
            if part == ".." {
                way.pop().ok_or("leads out of the root by a symbolic link")?;
                continue;
            }
            let at = way.last().copied().unwrap_or(ROOT);
            let id = match self.child(at, &part) {
                Some(id) => id,
                None if make => self.insert(at, part, Node::implied()),
                None => return Ok(None),
            };
            match self.kind(id) {
                Some(Kind::Directory(_)) if way.len() >= DEPTH_MAX => {
                    return Err("leads too deep by a symbolic link");
                }
                Some(Kind::Directory(_)) => way.push(id),
                Some(Kind::Symlink(target)) => {
                    followed += 1;
                    if target.starts_with('/') {
                        return Err("leads out of the root by a symbolic link");
                    }
                    if followed > LINKS_MAX {
                        return Err("leads round in a circle of symbolic links");
                    }
                    for part in target.split('/').rev().filter(|p| !matches!(*p, "" | ".")) {
                        parts.push_front(part.to_owned());
                    }
                }
                _ => return Err("leads through something that is no directory"),
            }
        }
        Ok(Some(way.last().copied().unwrap_or(ROOT)))
    }

    /// Gives a node what the entry says of it.
    fn describe(&mut self, id: Id, entry: &Entry) -> Result<(), Error> {
        let Some(node) = self.nodes.get_mut(id) else { return Ok(()) };
        // The mask leaves 12 bits. Symbolic links have no permissions of their own in Linux.
        let is_link = matches!(node.kind, Kind::Symlink(_));
        let mode = if is_link { 0o777 } else { (entry.mode & 0o7777) as u16 };
        node.meta = Meta { mode, uid: entry.uid, gid: entry.gid, mtime: Some(entry.mtime) };
        let takes_user = matches!(node.kind, Kind::File { .. } | Kind::Directory(_));
        for Xattr { name, value } in &entry.xattrs {
            let name = utf8(name)?;
            let wrong = || Error::Entry {
                name: entry.path.escape_ascii().to_string(),
                why: format!("has an access control list that cannot be read ({name})"),
            };
            let acl = match name {
                "system.posix_acl_access" => Some(false),
                "system.posix_acl_default" => Some(true),
                _ => None,
            };
            let stored = match (acl, name.split_once('.')) {
                (Some(is_default), _) => match acl::on_disk(value, is_default).ok_or_else(wrong)? {
                    Some(stored) => stored,
                    None => continue,
                },
                (None, Some(("security" | "trusted", rest))) if !rest.is_empty() => value.clone(),
                (None, Some(("user", rest))) if !rest.is_empty() && takes_user => value.clone(),
                // The kernel refuses these too.
                _ => {
                    tracing::debug!("`{}`: {name} cannot be stored", entry.path.escape_ascii());
                    continue;
                }
            };
            node.xattrs.insert(name.into(), stored);
        }
        Ok(())
    }
}

impl Node {
    /// A directory that the archive has not described (yet).
    fn implied() -> Self {
        let meta = Meta { mode: 0o755, uid: 0, gid: 0, mtime: None };
        Self { meta, xattrs: BTreeMap::new(), kind: Kind::Directory(BTreeMap::new()) }
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, Error> {
    str::from_utf8(bytes).map_err(|_| Error::NotUtf8 { name: bytes.escape_ascii().to_string() })
}

/// The components of an entry's name.
fn names(path: &[u8]) -> Result<VecDeque<String>, Error> {
    let parts = archive::components(path).map_err(|e| Error::Entry {
        name: path.escape_ascii().to_string(),
        why: format!("cannot be created: {e}"),
    })?;
    let whole = || Error::NotUtf8 { name: path.escape_ascii().to_string() };
    parts.map(|part| String::from_utf8(part.to_vec()).map_err(|_| whole())).collect()
}

/// The runs of blocks that hold a file's content.
pub(in crate::images) fn runs(file: &archive::File) -> Vec<(u64, u64)> {
    match &file.sparse {
        Some(segments) => blocks_of(segments, file.size),
        None if file.size > 0 => vec![(0, file.size)],
        None => Vec::new(),
    }
}

/// The runs of whole blocks (the last may be cut by the file's end) that these parts touch.
fn blocks_of(segments: &[Segment], size: u64) -> Vec<(u64, u64)> {
    const BLOCK: u64 = 4096;
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for Segment { offset, length } in segments {
        let start = offset / BLOCK * BLOCK;
        let end = (offset + length).next_multiple_of(BLOCK).min(size);
        match runs.last_mut() {
            Some((_, last)) if *last >= start => *last = end.max(*last),
            _ => runs.push((start, end)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: archive::Kind) -> Entry {
        let mtime = Time { seconds: 5, nanos: 6 };
        Entry { path: path.into(), kind, mode: 0o640, uid: 1, gid: 2, mtime, xattrs: Vec::new() }
    }

    fn file(size: u64) -> archive::Kind {
        archive::Kind::File(archive::File { size, sparse: None })
    }

    fn link(target: &str) -> archive::Kind {
        archive::Kind::Symlink(target.into())
    }

    fn hard(target: &str) -> archive::Kind {
        archive::Kind::Hardlink(target.into())
    }

    fn tree(entries: impl IntoIterator<Item = (&'static str, archive::Kind)>) -> Result<Tree, Error> {
        let mut tree = Tree::new();
        entries.into_iter().try_for_each(|(path, kind)| tree.add(entry(path, kind)))?;
        Ok(tree)
    }

    fn at(tree: &Tree, path: &str) -> Option<Id> {
        path.split('/').try_fold(ROOT, |at, name| tree.child(at, name))
    }

    #[test]
    fn later_entries_replace_earlier_ones() {
        use archive::Kind::Directory;
        let tree = tree([
            ("./", Directory),
            ("a", file(1)),
            ("b", hard("a")),
            ("a", file(2)),
            ("c/d", file(3)),
            ("c", Directory),
            ("e", Directory),
            ("e", link("c")),
            ("e/f", file(4)),
            ("g", link("c")),
            ("g", Directory),
            ("h/i", link("../c")),
            ("h/i/k", file(5)),
        ])
        .unwrap();
        let size = |path| match tree.kind(at(&tree, path)?)? {
            Kind::File { size, .. } => Some(*size),
            _ => None,
        };
        assert_eq!((size("a"), size("b"), size("c/d"), size("c/f")), (Some(2), Some(1), Some(3), Some(4)));
        assert_eq!(size("c/k"), Some(5));
        assert_eq!(tree.nodes[at(&tree, "c").unwrap()].meta.mode, 0o640);
        assert_eq!(tree.nodes[ROOT].meta.uid, 1);
        assert!(matches!(tree.kind(at(&tree, "g").unwrap()), Some(Kind::Directory(c)) if c.is_empty()));
        assert_eq!((tree.entries, tree.newest), (13, 5));
        let named = tree.names().iter().filter(|n| !n.is_empty()).count();
        assert_eq!(named, 10, "a b c c/d c/f c/k e g h h/i");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let told = [
            (vec![("a", hard("b"))], "`b`, which is missing"),
            (vec![("a/../b", file(1))], "`..`"),
            (vec![("a", file(1)), ("a/b", file(1))], "no directory"),
            (vec![("a/b", file(1)), ("a", file(1))], "not empty"),
            (vec![("a", link("/etc")), ("a/b", file(1))], "out of the root"),
            (vec![("c/a", link("../..")), ("c/a/b", file(1))], "out of the root"),
            (vec![("a", link("a")), ("a/b", file(1))], "circle"),
            (vec![("a/b", file(1)), ("c", hard("a"))], "link to a directory"),
        ];
        for (entries, want) in told {
            let error = tree(entries).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        let mut bad = entry("", file(1));
        bad.path = b"d/\xff".to_vec();
        let error = Tree::new().add(bad).unwrap_err();
        assert!(error.leaves_stream() && error.to_string().contains(r"d/\xff"), "{error}");
    }

    #[test]
    fn a_file_of_any_size_is_taken_or_refused() {
        let sparse = |size| {
            let sparse = Some(vec![Segment { offset: size - 1, length: 1 }]);
            archive::Kind::File(archive::File { size, sparse })
        };
        assert!(tree([("a", sparse(FILE_MAX))]).is_ok());
        for size in [FILE_MAX + 1, u64::MAX] {
            assert!(tree([("a", sparse(size))]).unwrap_err().to_string().contains("16 TiB"));
        }
    }

    #[test]
    fn own_names_are_left_out() {
        let tree = tree([("lost+found/x", file(1)), ("./.piman-proof", file(9)), ("x", file(2))]).unwrap();
        assert_eq!(tree.names().iter().filter(|n| !n.is_empty()).count(), 1);
        let tree = self::tree([("y", link(".")), ("y/.piman-proof", file(9))]).unwrap();
        assert_eq!(tree.names().iter().filter(|n| !n.is_empty()).count(), 1);
    }

    #[test]
    fn parts_of_sparse_files_as_blocks() {
        let part = |offset, length| Segment { offset, length };
        assert_eq!(blocks_of(&[], 9 << 30), []);
        assert_eq!(
            blocks_of(&[part(100, 10), part(4097, 1), part(12_288, 1), part(20_000, 500)], 20_500),
            [(0, 8192), (12_288, 20_500)]
        );
    }
}
