//! The boot files of an archive, as an agent copies them to a boot partition: links are followed, which FAT has not.

use piman_core::text::is_fat_name;

use super::evidence::Evidence;
use super::lookup::lookup;
use crate::images::ext4::tree::{Id, Kind, Tree};

/// Where they are, the first that is there.
const FOLDERS: [&str; 2] = ["/boot/firmware", "/boot"];
/// As many files and folders an agent copies.
const ENTRIES_MAX: usize = 20_000;
/// As many folders in one another.
const DEPTH_MAX: usize = 16;
/// The largest cluster of a boot partition of up to 8 GiB, in bytes.
const CLUSTER: u64 = 4096;
/// What a filesystem has beside its clusters and its tables, in bytes.
const BESIDE: u64 = 1 << 20;
/// A boot partition is a multiple of this, in bytes.
const GRAIN: u64 = 4 << 20;

/// What there is to boot from in an archive.
#[derive(Debug, Default)]
pub(super) struct BootFolder {
    /// Where it is; empty: nowhere.
    pub(super) path: &'static str,
    /// Whether there is such a folder, with or without files.
    pub(super) is_there: bool,
    /// The names at its top in lower case, and their sizes in bytes; a folder counts with all that is in it.
    pub(super) files: Vec<(String, u64)>,
    /// How large a partition for them has to be, in bytes; 0: there are none.
    pub(super) least_bytes: u64,
    /// Why an agent cannot copy them; empty: it can.
    pub(super) not_copied: String,
}

impl BootFolder {
    pub(super) fn of(evidence: &Evidence) -> Self {
        let tree = &evidence.tree;
        let folder = |path: &&'static str| {
            let id = lookup(tree, path).ok()?;
            matches!(tree.kind(id), Some(Kind::Directory(_))).then_some((*path, id))
        };
        let folders: Vec<_> = FOLDERS.iter().filter_map(folder).collect();
        let is_there = !folders.is_empty();
        let is_filled = |id: Id| matches!(tree.kind(id), Some(Kind::Directory(names)) if !names.is_empty());
        let Some((path, id)) = folders.into_iter().find(|(_, id)| is_filled(*id)) else {
            return Self { is_there, ..Self::default() };
        };
        let mut copied = Copied { tree, entries: 0, clusters: 0 };
        let listed = copied.list(id, path, DEPTH_MAX);
        let (files, not_copied) = match listed {
            Ok(files) => (files, String::new()),
            Err(why) => (top(tree, id), format!("{path}{why}")),
        };
        let bytes = copied.clusters.saturating_mul(CLUSTER);
        // The tables have two times 4 bytes for each cluster, and clusters are 512 bytes at least.
        let least = bytes.saturating_add(bytes / 50).saturating_add(BESIDE);
        let least_bytes = least.checked_next_multiple_of(GRAIN).unwrap_or(least);
        Self { path, is_there, files, least_bytes, not_copied }
    }
}

/// The names at the top, where what is below them cannot be copied.
fn top(tree: &Tree, id: Id) -> Vec<(String, u64)> {
    let Some(Kind::Directory(names)) = tree.kind(id) else { return Vec::new() };
    names.keys().map(|name| (name.to_ascii_lowercase(), 0)).collect()
}

/// What is copied so far.
struct Copied<'t> {
    tree: &'t Tree,
    entries: usize,
    /// How many clusters that takes.
    clusters: u64,
}

impl Copied<'_> {
    /// Takes in the folder at `path`: its names and the sizes of what they stand for.
    ///
    /// # Errors
    /// Why it cannot be copied, to be said behind the path of the folder.
    fn list(&mut self, id: Id, path: &str, depth: usize) -> Result<Vec<(String, u64)>, String> {
        let tree = self.tree;
        let Some(Kind::Directory(names)) = tree.kind(id) else { return Ok(Vec::new()) };
        if depth == 0 {
            return Err(" has too many folders in each other, or links in a ring".into());
        }
        let (mut files, mut bytes) = (Vec::new(), 64);
        for (name, child) in names {
            let target = match tree.kind(*child) {
                Some(Kind::Symlink(_)) => lookup(tree, &format!("{path}/{name}")).ok(),
                _ => Some(*child),
            };
            // What leads nowhere and what is no file is passed over.
            let Some(target) = target else { continue };
            let size = match tree.kind(target) {
                Some(Kind::File { size, .. }) => {
                    self.clusters = self.clusters.saturating_add(size.div_ceil(CLUSTER));
                    *size
                }
                Some(Kind::Directory(_)) => {
                    let inside = self.list(target, &format!("{path}/{name}"), depth - 1);
                    let inside = inside.map_err(|why| format!("/{}{why}", name.escape_debug()))?;
                    inside.iter().fold(0, |sum: u64, (_, size)| sum.saturating_add(*size))
                }
                _ => continue,
            };
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                return Err(format!(" has more than {ENTRIES_MAX} files"));
            }
            if !is_fat_name(name) {
                return Err(format!("/{} has a name that FAT cannot have", name.escape_debug()));
            }
            // An entry for each 13 characters, and one more.
            bytes += 32 * (name.len() as u64).div_ceil(13).saturating_add(1);
            files.push((name.to_ascii_lowercase(), size));
        }
        self.clusters = self.clusters.saturating_add(bytes.div_ceil(CLUSTER));
        Ok(files)
    }
}
