//! A second reader of a card's filesystem, which others wrote for another purpose (`ext4-view`): what only the
//! kernel or our own reader makes sense of is no good filesystem.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ext4_view::{Ext4, Ext4Read, FileType};

use crate::tree::{Facts, Tree, hash_of};

/// A filesystem that begins at this byte of a disk.
struct Part {
    disk: File,
    offset: u64,
}

impl Ext4Read for Part {
    fn read(&mut self, at: u64, to: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.disk.read_exact_at(to, self.offset + at)?)
    }
}

/// Compares the filesystem that begins at this byte of a disk, which need not be mounted, with what an archive
/// holds: names, types, permissions, owners, times, links and every byte of the files; both ways, so that there is
/// nothing else either. Extended attributes and device numbers are not read.
///
/// # Panics
/// If it cannot be read, or differs; says where.
#[track_caller]
pub fn assert_reads(disk: &Path, offset: u64, want: &Tree) {
    let part = Part { disk: File::open(disk).expect("the card"), offset };
    let fs = Ext4::load(Box::new(part)).unwrap_or_else(|e| panic!("{}: {e}", disk.display()));
    let mut found = 0;
    let mut todo = vec![b"/".to_vec()];
    while let Some(path) = todo.pop() {
        let shown = path.escape_ascii().to_string();
        let name = path[1..].to_vec();
        if name == b"lost+found" || name == b".piman-proof" {
            continue;
        }
        let facts = want.get(&name).unwrap_or_else(|| panic!("{shown}: it is not in the archive"));
        assert_entry(&fs, &path, facts).unwrap_or_else(|e| panic!("{shown}: {e}"));
        found += 1;
        if facts.mode & 0o170_000 != 0o040_000 {
            continue;
        }
        for entry in fs.read_dir(&path[..]).unwrap_or_else(|e| panic!("{shown}: {e}")) {
            let entry = entry.unwrap_or_else(|e| panic!("{shown}: {e}"));
            let name = entry.file_name();
            let name: &[u8] = name.as_ref();
            if name != b"." && name != b".." {
                let folder = if path.len() > 1 { &path[..] } else { b"" };
                todo.push([folder, b"/", name].concat());
            }
        }
    }
    assert_eq!(found, want.len(), "something of the archive is missing on {}", disk.display());
}

#[track_caller]
fn assert_entry(fs: &Ext4, path: &[u8], facts: &Facts) -> Result<(), Box<dyn Error>> {
    let shown = path.escape_ascii().to_string();
    let meta = fs.symlink_metadata(path)?;
    let kind = match facts.mode & 0o170_000 {
        0o010_000 => FileType::Fifo,
        0o020_000 => FileType::CharacterDevice,
        0o040_000 => FileType::Directory,
        0o060_000 => FileType::BlockDevice,
        0o100_000 => FileType::Regular,
        0o120_000 => FileType::Symlink,
        _ => FileType::Socket,
    };
    assert_eq!((meta.file_type(), u32::from(meta.mode())), (kind, facts.mode & 0o7777), "{shown}");
    assert_eq!((meta.uid(), meta.gid()), facts.owner, "{shown}");
    let modified = (meta.modified().seconds(), i64::from(meta.modified().nanoseconds()));
    assert_eq!(modified, facts.mtime, "{shown}");
    if kind == FileType::Symlink {
        assert_eq!(AsRef::<[u8]>::as_ref(&fs.read_link(path)?), facts.target, "{shown}");
    }
    if kind == FileType::Regular {
        assert_eq!(meta.len(), facts.size, "{shown}");
        assert_eq!(Some(hash_of(&fs.read(path)?)), facts.hash, "{shown}: its content");
    }
    Ok(())
}
