//! A tree of files as a list of everything that can be seen of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// What is known of each path: one line of text that is equal if the files are.
pub type Snapshot = BTreeMap<String, String>;

/// Takes down type, permissions, owner, time, size, target, device, extended attributes, content
/// and which names are the same file. Left out: `lost+found` and `.piman-proof`, and the time
/// of the paths in `without_time`.
///
/// # Panics
/// If the tree cannot be read.
#[must_use]
pub fn snapshot(root: &Path, without_time: &[&str]) -> Snapshot {
    let mut all = Snapshot::new();
    let mut first_names = BTreeMap::new();
    let mut paths = vec![root.to_path_buf()];
    let mut names = Vec::new();
    while let Some(path) = paths.pop() {
        if fs::symlink_metadata(&path).expect("metadata").is_dir() {
            paths.extend(fs::read_dir(&path).expect("a directory").map(|e| e.expect("an entry").path()));
        }
        names.push(path);
    }
    names.sort();
    for path in names {
        let name = path.strip_prefix(root).expect("below the root").display().to_string();
        if name.starts_with("lost+found") || name == ".piman-proof" {
            continue;
        }
        let meta = fs::symlink_metadata(&path).expect("metadata");
        let kind = meta.file_type();
        let mut text = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
        if !without_time.contains(&name.as_str()) {
            text += &format!(" {}.{:09}", meta.mtime(), meta.mtime_nsec());
        }
        if kind.is_block_device() || kind.is_char_device() {
            text += &format!(" device {:x}", meta.rdev());
        }
        if kind.is_symlink() {
            text += &format!(" -> {:?}", fs::read_link(&path).expect("a target"));
        }
        if kind.is_file() {
            text += &format!(" {} bytes {}", meta.len(), content(&path));
        }
        if !kind.is_dir() {
            let first = first_names.entry((meta.dev(), meta.ino())).or_insert_with(|| name.clone());
            text += &format!(" {} links, first {first}", meta.nlink());
        }
        for (name, value) in xattrs(&path) {
            text += &format!(" {name}={}", value.escape_ascii());
        }
        all.insert(name, text);
    }
    all
}

/// Compares two snapshots.
///
/// # Panics
/// If they differ; says where, for the first few paths.
pub fn assert_same(got: &Snapshot, want: &Snapshot) {
    let differ = |path: &&String| got.get(*path) != want.get(*path);
    let paths: std::collections::BTreeSet<_> = got.keys().chain(want.keys()).collect();
    let different: Vec<_> = paths.iter().filter(|p| differ(p)).collect();
    for path in different.iter().take(10) {
        println!("{path}:\n  {:?}\n  {:?}", got.get(**path), want.get(**path));
    }
    assert!(different.is_empty(), "{} of {} paths differ", different.len(), paths.len());
}

/// Holes are not read: their zeros would take long.
fn content(path: &Path) -> String {
    let mut file = fs::File::open(path).expect("a file");
    let mut hasher = blake3::Hasher::new();
    let mut buf = vec![0; 1 << 20];
    let length = file.metadata().expect("metadata").len();
    let mut at = 0;
    while let Ok(data) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data)).unwrap_or(length);
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(data)).expect("a position");
        at = data;
        while at < hole {
            let room = usize::try_from(hole - at).unwrap_or(usize::MAX).min(buf.len());
            let n = file.read(&mut buf[..room]).expect("content");
            assert!(n > 0, "{} ends early", path.display());
            // Zeros that one filesystem stores may be a hole in another.
            for (i, block) in (0..).zip(buf[..n].chunks(4096)) {
                if block.iter().any(|b| *b != 0) {
                    hasher.update(&(at + i * 4096).to_le_bytes()).update(block);
                }
            }
            at += n as u64;
        }
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let n = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let names = names[..n].split(|b| *b == 0).filter(|n| !n.is_empty());
    names
        .map(|name| {
            let name = String::from_utf8_lossy(name).into_owned();
            let mut value = vec![0; 64 << 10];
            let n = rustix::fs::lgetxattr(path, name.as_str(), &mut value[..]).expect("a value");
            value.truncate(n);
            (name, value)
        })
        .collect()
}
