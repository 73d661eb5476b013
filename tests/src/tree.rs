//! What is below a directory, in all that an archive can say of it, to be compared.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write as _};
use std::fs::{File, read_dir};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{SeekFrom, lgetxattr, llistxattr, seek};

/// Every entry below a directory, the directory itself included (as an empty name).
pub type Tree = BTreeMap<Vec<u8>, Facts>;

/// What is known of an entry.
#[derive(Clone, PartialEq, Eq)]
pub struct Facts {
    /// Type and permissions, as `st_mode` has them.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds of the last change.
    pub mtime: (i64, i64),
    /// Size of files and links, in bytes.
    pub size: u64,
    /// Device number of devices.
    pub device: u64,
    /// How many names it has, and the first of them in the tree (of what is no directory).
    pub names: Option<(u64, Vec<u8>)>,
    /// Where a symbolic link leads.
    pub target: Vec<u8>,
    /// Extended attributes, sorted.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// BLAKE3 of a file's content.
    pub hash: Option<blake3::Hash>,
    /// The parts of a file that are no holes, as offset and end, if asked for.
    pub data: Vec<(u64, u64)>,
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:o} {:?} {:?} size {} device {:x} names {:?} -> {} {:?} {:?} {:?}",
            self.mode,
            self.owner,
            self.mtime,
            self.size,
            self.device,
            self.names.as_ref().map(|(n, first)| (n, first.escape_ascii().to_string())),
            self.target.escape_ascii(),
            self.xattrs
                .iter()
                .map(|(k, v)| format!("{}={}", k.escape_ascii(), v.escape_ascii()))
                .collect::<Vec<_>>(),
            self.hash.map(|h| h.to_hex().chars().take(8).collect::<String>()),
            self.data
        )
    }
}

/// Looks at everything below `root`. With `holes` also at where files have holes, which only
/// filesystems of the same kind can be compared by.
///
/// # Errors
/// Of reading.
pub fn tree(root: &Path, holes: bool) -> io::Result<Tree> {
    let mut tree = Tree::new();
    let mut links: HashMap<u64, Vec<u8>> = HashMap::new();
    let mut todo = vec![Vec::new()];
    while let Some(name) = todo.pop() {
        let path = root.join(std::ffi::OsString::from_vec(name.clone()));
        let meta = path.symlink_metadata()?;
        if meta.is_dir() {
            for entry in read_dir(&path)? {
                let mut below = name.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(entry?.file_name().as_bytes());
                todo.push(below);
            }
        } else {
            let first = links.entry(meta.ino()).or_insert_with(|| name.clone());
            if name < *first {
                first.clone_from(&name);
            }
        }
        let kind = meta.file_type();
        let facts = Facts {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            size: if kind.is_dir() { 0 } else { meta.size() },
            device: if kind.is_char_device() || kind.is_block_device() { meta.rdev() } else { 0 },
            names: (!kind.is_dir()).then(|| (meta.nlink(), meta.ino().to_ne_bytes().to_vec())),
            target: if kind.is_symlink() {
                path.read_link()?.into_os_string().into_vec()
            } else {
                Vec::new()
            },
            xattrs: xattrs(&path)?,
            hash: if kind.is_file() { Some(hash(&path)?) } else { None },
            data: if holes && kind.is_file() { data(&path, meta.size())? } else { Vec::new() },
        };
        tree.insert(name, facts);
    }
    for facts in tree.values_mut() {
        if let Some((_, first)) = &mut facts.names {
            let ino = first.as_slice().try_into().map(u64::from_ne_bytes).unwrap_or_default();
            first.clone_from(links.get(&ino).unwrap_or(&Vec::new()));
        }
    }
    Ok(tree)
}

/// What differs between two trees, one line for each entry, at most a few dozen lines.
#[must_use]
pub fn differences(ours: &Tree, theirs: &Tree) -> String {
    let mut out = String::new();
    let names: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    for name in names {
        let (a, b) = (ours.get(name), theirs.get(name));
        if a != b && out.len() < 20_000 {
            let name = name.escape_ascii();
            let _ = writeln!(out, "{name}\n  ours   {a:?}\n  theirs {b:?}");
        }
    }
    out
}

/// What an installation has put below a mount point: without what the filesystem and the agent have
/// there of their own.
///
/// # Panics
/// If it cannot be read.
#[must_use]
pub fn installed(root: &Path) -> Tree {
    let mut tree = tree(root, false).expect("a tree of files");
    tree.retain(|name, _| !name.starts_with(b"lost+found") && name != b".piman-proof");
    tree
}

/// Forgets the times of these entries.
#[must_use]
pub fn without_times(mut tree: Tree, names: &[&str]) -> Tree {
    for name in names {
        tree.entry(name.as_bytes().to_vec()).and_modify(|facts| facts.mtime = (0, 0));
    }
    tree
}

/// Compares two trees.
///
/// # Panics
/// If they differ; says where.
#[track_caller]
pub fn assert_same(ours: &Tree, theirs: &Tree) {
    let difference = differences(ours, theirs);
    assert!(difference.is_empty(), "{difference}");
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0_u8; 64 << 10];
    let length = llistxattr(path, &mut names[..])?;
    let mut out = BTreeMap::new();
    for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0_u8; 64 << 10];
        let length = lgetxattr(path, name, &mut value[..])?;
        value.truncate(length);
        out.insert(name.to_vec(), value);
    }
    Ok(out)
}

fn data(path: &Path, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let file = File::open(path)?;
    let (mut out, mut at) = (Vec::new(), 0);
    while at < size {
        let Ok(start) = seek(&file, SeekFrom::Data(at)) else { break };
        at = seek(&file, SeekFrom::Hole(start))?;
        out.push((start, at));
    }
    Ok(out)
}

/// The hash of a content that is in memory, as [`Facts::hash`] has it.
#[must_use]
pub fn hash_of(content: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    update(&mut hasher, 0, content);
    hasher.finalize()
}

/// Adds bytes that are at this place. Zeros that one filesystem stores may be a hole in another.
fn update(hasher: &mut blake3::Hasher, at: u64, bytes: &[u8]) {
    for (i, block) in (0..).zip(bytes.chunks(4096)) {
        if block.iter().any(|b| *b != 0) {
            hasher.update(&(at + i * 4096).to_le_bytes()).update(block);
        }
    }
}

/// Reads only what is data: a sparse file of many gigabytes is a matter of moments.
fn hash(path: &Path) -> io::Result<blake3::Hash> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    let mut buf = vec![0; 1 << 20];
    for (start, end) in data(path, size)? {
        seek(&file, SeekFrom::Start(start))?;
        let mut at = start;
        while at < end {
            let room = usize::try_from(end - at).unwrap_or(usize::MAX).min(buf.len());
            file.read_exact(&mut buf[..room])?;
            update(&mut hasher, at, &buf[..room]);
            at += room as u64;
        }
    }
    Ok(hasher.finalize())
}
