//! What the layers become, one over the other: which entry of which layer is at each path. Nothing is unpacked, and
//! no content is kept.

use std::cell::{Cell, OnceCell};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, anyhow, ensure};
use piman_core::archive::{self, DEPTH_MAX, Entry, Time, components};

use super::Limits;
use super::layer::Layer;
use super::whiteout::Whiteout;

/// Symbolic links that a name may lead through.
const LINKS_MAX: u32 = 40;
/// As many directories may be there that only names imply and no entry describes: one name may have hundreds.
const IMPLIED_MAX: u64 = 1 << 20;
/// As many components of names are followed, links and all, in all layers together.
const STEPS_MAX: u64 = 1 << 28;

/// A component of a path.
pub(super) type Name = Arc<[u8]>;
/// A node, by its place.
pub(super) type Id = usize;
/// The root directory.
pub(super) const ROOT: Id = 0;

/// All layers so far, one over the other.
pub(super) struct Tree {
    nodes: Vec<Node>,
    entries: u64,
    names: u64,
    steps: u64,
    implied: u64,
    limits: Limits,
}

/// What has, or had, a name.
pub(super) enum Node {
    Directory {
        children: BTreeMap<Name, Id>,
        /// The entry that describes it; its name does not count.
        about: Option<Box<Entry>>,
        /// When it was needed first, if no entry describes it.
        made: Time,
    },
    /// The entry; its name does not count.
    Symlink(Box<Entry>),
    /// What is read from the layer again.
    Other(Source),
}

/// An entry: the number of the layer, and its own in that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    pub(super) layer: usize,
    pub(super) entry: u32,
}

/// An entry of the layer that is being read.
struct Pending {
    path: Vec<u8>,
    number: u32,
    mtime: Time,
    what: What,
}

enum What {
    Directory(Box<Entry>),
    Symlink(Box<Entry>),
    Hardlink(Vec<u8>),
    Other,
}

/// The names that all nodes have in the end.
pub(super) struct Names {
    /// Directory and name in it.
    pub(super) first: Vec<Option<(Id, Name)>>,
    /// Further names of what is no directory.
    pub(super) more: Vec<(Id, (Id, Name))>,
    /// Each before those that are in it.
    pub(super) directories: Vec<Id>,
}

impl Tree {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            nodes: vec![Node::directory(Time::default())],
            entries: 0,
            names: 0,
            steps: 0,
            implied: 0,
            limits,
        }
    }

    /// Puts the next layer on top. No more than `room` is unpacked, and taken from it; what is read is added to `count`
    /// and told to `progress`.
    ///
    /// # Errors
    /// Of the layer, with its name; what cannot be put there.
    pub(super) fn apply(
        &mut self,
        number: usize,
        layer: &Layer,
        room: &Cell<u64>,
        count: &AtomicU64,
        progress: &dyn Fn(u64),
    ) -> anyhow::Result<()> {
        let (mut pending, mut whiteouts) = (Vec::new(), Vec::new());
        layer.each(room, count, &mut |entry_number, entry, _| {
            progress(count.load(Relaxed));
            self.entries += 1;
            let Limits { entries, names, .. } = self.limits;
            ensure!(self.entries <= entries, "all layers together have more than {entries} entries");
            let path = entry.path.clone();
            match Whiteout::of(&path).with_context(|| shown(&path))? {
                Some(whiteout) => {
                    self.names += path.len() as u64;
                    whiteouts.push((path, whiteout));
                }
                None => {
                    let entry = Pending::new(entry_number, entry);
                    self.names += entry.bytes();
                    pending.push(entry);
                }
            }
            ensure!(self.names <= names, "the names in all layers together have more than {names} bytes");
            Ok(())
        })?;
        let put = || -> anyhow::Result<()> {
            // First all that hide something: what the layer adds itself they do not touch, wherever they stand.
            let own = Own { pending: &pending, paths: OnceCell::new() };
            for (path, whiteout) in &whiteouts {
                self.hide(whiteout, &own).map_err(|why| anyhow!("{} {why}", shown(path)))?;
            }
            for entry in pending {
                let path = shown(&entry.path);
                self.put(number, entry).map_err(|why| anyhow!("{path} {why}"))?;
            }
            Ok(())
        };
        put().with_context(|| layer.label.clone())
    }

    fn hide(&mut self, whiteout: &Whiteout, own: &Own<'_>) -> Result<(), String> {
        let (path, name) = match whiteout {
            Whiteout::Bookkeeping => return Ok(()),
            Whiteout::Opaque(path) => (path, None),
            Whiteout::Hides(path, name) => (path, Some(name)),
        };
        let parts = split(path)?;
        // A link in place of which the layer has something of its own has nothing below it to be hidden.
        let mut at = ROOT;
        let mut so_far = Vec::new();
        for part in &parts {
            so_far.extend_from_slice(part);
            match self.child(at, part) {
                None => return Ok(()),
                Some(id) if matches!(self.nodes.get(id), Some(Node::Symlink(..))) => {
                    if own.has(&so_far) {
                        return Ok(());
                    }
                    break;
                }
                Some(id) => at = id,
            }
            so_far.push(b'/');
        }
        // What is not there, or no directory, hides nothing.
        let Ok(Some(directory)) = self.enter(parts, None) else { return Ok(()) };
        if let Some(Node::Directory { children, .. }) = self.nodes.get_mut(directory) {
            match name {
                Some(name) => drop(children.remove(&name[..])),
                None => children.clear(),
            }
        }
        Ok(())
    }

    fn put(&mut self, layer: usize, entry: Pending) -> Result<(), String> {
        let mut parts = split(&entry.path)?;
        let source = Source { layer, entry: entry.number };
        let Some(last) = parts.pop_back() else {
            let What::Directory(about) = entry.what else {
                return Err("is the root, but no directory".into());
            };
            self.describe(ROOT, about);
            return Ok(());
        };
        let parent = self.enter(parts, Some(entry.mtime))?.ok_or("has no directory")?;
        let node = match entry.what {
            What::Directory(about) => {
                let existing = self.child(parent, &last);
                let id = match existing.filter(|id| self.is_directory(*id)) {
                    Some(id) => id,
                    None => self.insert(parent, last, Node::directory(entry.mtime)),
                };
                self.describe(id, about);
                return Ok(());
            }
            What::Hardlink(target) => {
                let missing = || format!("is a link to {}, which is missing", shown(&target));
                let mut parts = split(&target)?;
                let name = parts.pop_back().ok_or_else(missing)?;
                let directory = self.enter(parts, None)?.ok_or_else(missing)?;
                let id = self.child(directory, &name).ok_or_else(missing)?;
                if self.is_directory(id) {
                    return Err("is a link to a directory".into());
                }
                self.name(parent, last, id);
                return Ok(());
            }
            What::Symlink(entry) => Node::Symlink(entry),
            What::Other => Node::Other(source),
        };
        // Whatever was there, with all that was in it.
        self.insert(parent, last, node);
        Ok(())
    }

    /// Whether nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self.nodes.get(ROOT), Some(Node::Directory { children, .. }) if children.is_empty())
    }

    /// Whether a directory has something in it beside directories.
    pub(super) fn has_files(&self, directory: Id) -> bool {
        match self.nodes.get(directory) {
            Some(Node::Directory { children, .. }) => children.values().any(|id| !self.is_directory(*id)),
            _ => false,
        }
    }

    /// The symbolic links in a directory.
    pub(super) fn symlinks(&self, directory: Id) -> impl Iterator<Item = (&Name, Id, &Entry)> {
        let children = match self.nodes.get(directory) {
            Some(Node::Directory { children, .. }) => Some(children),
            _ => None,
        };
        children.into_iter().flatten().filter_map(|(name, id)| match self.nodes.get(*id) {
            Some(Node::Symlink(entry)) => Some((name, *id, &**entry)),
            _ => None,
        })
    }

    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All names in the end, in their order.
    pub(super) fn names(&self) -> Names {
        let mut names =
            Names { first: vec![None; self.nodes.len()], more: Vec::new(), directories: Vec::new() };
        let mut left = vec![ROOT];
        while let Some(parent) = left.pop() {
            let Some(Node::Directory { children, .. }) = self.nodes.get(parent) else { continue };
            names.directories.push(parent);
            for (name, id) in children {
                let full = (parent, Name::clone(name));
                match names.first.get_mut(*id) {
                    Some(first @ None) => *first = Some(full),
                    _ => names.more.push((*id, full)),
                }
            }
            left.extend(children.values().rev().filter(|id| self.is_directory(**id)));
        }
        names
    }

    fn is_directory(&self, id: Id) -> bool {
        matches!(self.nodes.get(id), Some(Node::Directory { .. }))
    }

    fn child(&self, directory: Id, name: &[u8]) -> Option<Id> {
        match self.nodes.get(directory)? {
            Node::Directory { children, .. } => children.get(name).copied(),
            _ => None,
        }
    }

    fn insert(&mut self, parent: Id, name: Name, node: Node) -> Id {
        self.nodes.push(node);
        let id = self.nodes.len() - 1;
        self.name(parent, name, id);
        id
    }

    fn name(&mut self, parent: Id, name: Name, id: Id) {
        if let Some(Node::Directory { children, .. }) = self.nodes.get_mut(parent) {
            children.insert(name, id);
        }
    }

    fn describe(&mut self, id: Id, entry: Box<Entry>) {
        if let Some(Node::Directory { about, .. }) = self.nodes.get_mut(id) {
            *about = Some(entry);
        }
    }

    /// The directory that these names lead to, through symbolic links as in the system itself, whose root is the
    /// tree's: that is how Docker and containerd apply layers, too. What is missing is made at this time, or `None`.
    fn enter(&mut self, mut parts: VecDeque<Name>, make: Option<Time>) -> Result<Option<Id>, &'static str> {
        let (mut way, mut followed) = (Vec::new(), 0);
        while let Some(part) = parts.pop_front() {
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return Err("leads through too many links and directories, with those of all other names");
            }
            if &*part == b".." {
                // Above the root there is the root.
                way.pop();
                continue;
            }
            let at = way.last().copied().unwrap_or(ROOT);
            let id = match (self.child(at, &part), make) {
                (Some(id), _) => id,
                (None, Some(time)) => {
                    self.implied += 1;
                    if self.implied > IMPLIED_MAX {
                        return Err(
                            "is in a directory that no entry describes, as more than a million others are",
                        );
                    }
                    self.insert(at, part, Node::directory(time))
                }
                (None, None) => return Ok(None),
            };
            match self.nodes.get(id) {
                Some(Node::Directory { .. }) if way.len() >= DEPTH_MAX => return Err("is too deep"),
                Some(Node::Directory { .. }) => way.push(id),
                Some(Node::Symlink(entry)) => {
                    let target = target(entry);
                    followed += 1;
                    if followed > LINKS_MAX {
                        return Err("leads round in a circle of symbolic links");
                    }
                    if target.first() == Some(&b'/') {
                        way.clear();
                    }
                    for part in target.split(|b| *b == b'/').rev().filter(|p| !matches!(*p, b"" | b".")) {
                        parts.push_front(part.into());
                    }
                }
                _ => return Err("leads through something that is no directory"),
            }
        }
        Ok(Some(way.last().copied().unwrap_or(ROOT)))
    }
}

impl Node {
    fn directory(made: Time) -> Self {
        Self::Directory { children: BTreeMap::new(), about: None, made }
    }
}

impl Pending {
    fn new(number: u32, mut entry: Entry) -> Self {
        let (path, mtime) = (std::mem::take(&mut entry.path), entry.mtime);
        let what = match entry.kind {
            archive::Kind::Directory => What::Directory(Box::new(entry)),
            archive::Kind::Symlink(_) => What::Symlink(Box::new(entry)),
            archive::Kind::Hardlink(target) => What::Hardlink(target),
            _ => What::Other,
        };
        Self { path, number, mtime, what }
    }

    /// How much is kept of it.
    fn bytes(&self) -> u64 {
        let more = match &self.what {
            What::Directory(entry) | What::Symlink(entry) => {
                let xattrs: usize = entry.xattrs.iter().map(|x| x.name.len() + x.value.len()).sum();
                xattrs + target(entry).len()
            }
            What::Hardlink(target) => target.len(),
            What::Other => 0,
        };
        (self.path.len() + more) as u64
    }
}

/// The paths that a layer has entries for.
struct Own<'p> {
    pending: &'p [Pending],
    paths: OnceCell<HashSet<Vec<u8>>>,
}

impl Own<'_> {
    fn has(&self, path: &[u8]) -> bool {
        let paths = self.paths.get_or_init(|| {
            let normal = |p: &Pending| Some(components(&p.path).ok()?.collect::<Vec<_>>().join(&b'/'));
            self.pending.iter().filter_map(normal).collect()
        });
        paths.contains(path)
    }
}

/// Where a symbolic link leads.
fn target(link: &Entry) -> &[u8] {
    match &link.kind {
        archive::Kind::Symlink(target) => target,
        _ => &[],
    }
}

/// The components of an entry's name.
fn split(path: &[u8]) -> Result<VecDeque<Name>, String> {
    Ok(components(path).map_err(|e| e.why().to_owned())?.map(Name::from).collect())
}

/// A name in an archive, for people.
pub(super) fn shown(path: &[u8]) -> String {
    format!("`{}`", path.escape_ascii())
}
