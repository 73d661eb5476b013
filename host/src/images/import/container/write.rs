//! Writes what the layers become as one tar archive: directories, each before what is in it, with the symbolic links in
//! them, then all else in the order in which the layers have it, then the further names of files.
//!
//! That order is made for GNU tar, too. It sets a directory's times as soon as something follows that is elsewhere, and
//! what it puts there later changes them: directories with files come once more at the end. Symbolic links that lead out
//! it makes last of all, and cares for the times of the directory only if that came just before.

use std::cell::Cell;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::atomic::AtomicU64;

use anyhow::{Context, ensure};
use piman_core::archive::{Entry, File, Kind, NAME_MAX, Segment, Time};
use tar::{EntryType, Header};

use super::layer::{Content, Layer};
use super::tree::{Id, Names, Node, ROOT, Source, Tree, shown};

/// The longest name or target that a header itself has.
const SHORT: usize = 100;
const BLOCK: usize = 512;

/// Writes it. The bytes of layers that are read are added to `count`.
///
/// # Errors
/// Of the layers, which are checked once more, and of writing.
pub(super) fn write(
    tree: &Tree,
    layers: &[Layer],
    room: u64,
    count: &AtomicU64,
    to: &mut dyn Write,
) -> anyhow::Result<()> {
    let names = tree.names();
    for id in &names.directories {
        directory(tree, &names, *id, to)?;
        for (name, link, entry) in tree.symlinks(*id) {
            // Further names of it are hard links.
            let first = names.first.get(link).and_then(Option::as_ref);
            if first.is_some_and(|(parent, first)| parent == id && first == name) {
                header(to, &Entry { path: names.path(link)?, ..entry.clone() }, 0, &[])?;
            }
        }
    }
    let leaf = |(id, node): (Id, &Node)| match node {
        Node::Other(source) => Some((*source, id)),
        Node::Symlink(_) | Node::Directory { .. } => None,
    };
    // In their order, since nodes are made in the order of the entries.
    let leaves = tree.nodes().iter().enumerate().filter_map(leaf);
    let mut leaves = leaves.filter(|(_, id)| names.first.get(*id).is_some_and(Option::is_some)).peekable();
    let room = Cell::new(room);
    for (number, layer) in layers.iter().enumerate() {
        if leaves.peek().is_none_or(|(source, _)| source.layer != number) {
            continue;
        }
        layer.each(&room, count, &mut |entry_number, entry, content| {
            let here = Source { layer: number, entry: entry_number };
            let Some((_, id)) = leaves.next_if(|(source, _)| *source == here) else { return Ok(()) };
            let entry = Entry { path: names.path(id)?, ..entry };
            leaf_with_content(to, &entry, content).with_context(|| shown(&entry.path))
        })?;
    }
    // Otherwise a layer was changed meanwhile, which its digest has said.
    ensure!(leaves.next().is_none(), "the layers changed while they were read");
    for (id, (parent, name)) in &names.more {
        let target = names.path(*id)?;
        let path = names.below(*parent, name)?;
        let link = Entry { kind: Kind::Hardlink(target), ..implied(path, Time::default()) };
        header(to, &link, 0, &[])?;
    }
    for id in names.directories.iter().filter(|id| tree.has_files(**id)) {
        directory(tree, &names, *id, to)?;
    }
    to.write_all(&[0; 2 * BLOCK])?;
    to.flush()?;
    Ok(())
}

fn directory(tree: &Tree, names: &Names, id: Id, to: &mut dyn Write) -> anyhow::Result<()> {
    let Some(Node::Directory { about, made, .. }) = tree.nodes().get(id) else { return Ok(()) };
    let path = [names.path(id)?, b"/".to_vec()].concat();
    match about {
        Some(about) => header(to, &Entry { path, ..(**about).clone() }, 0, &[])?,
        // What no entry describes, the reader makes as it likes.
        None if id == ROOT => {}
        None => header(to, &implied(path, *made), 0, &[])?,
    }
    Ok(())
}

impl Names {
    /// The first name of a node, from the root; that itself is `.`.
    fn path(&self, id: Id) -> anyhow::Result<Vec<u8>> {
        match self.first.get(id).and_then(Option::as_ref) {
            Some((parent, name)) => self.below(*parent, name),
            None => Ok(b".".to_vec()),
        }
    }

    fn below(&self, parent: Id, name: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut parts = vec![name];
        let mut at = parent;
        while let Some((parent, name)) = self.first.get(at).and_then(Option::as_ref) {
            parts.push(name);
            at = *parent;
        }
        parts.reverse();
        let path = parts.join(&b'/');
        // With the slash of a directory.
        ensure!(path.len() < NAME_MAX, "{} is longer than the {NAME_MAX} bytes of a path", shown(&path));
        Ok(path)
    }
}

/// A directory that no entry describes.
fn implied(path: Vec<u8>, mtime: Time) -> Entry {
    Entry { path, kind: Kind::Directory, mode: 0o755, uid: 0, gid: 0, mtime, xattrs: Vec::new() }
}

/// Writes an entry that is no directory.
fn leaf_with_content(to: &mut dyn Write, entry: &Entry, content: &mut Content<'_>) -> anyhow::Result<()> {
    let Kind::File(file) = &entry.kind else { return Ok(header(to, entry, 0, &[])?) };
    let stored: u64 = file.segments().map(|s| s.length).sum();
    let (map, records) = match &file.sparse {
        Some(segments) => sparse(file, segments, &entry.path),
        None => Default::default(),
    };
    header(to, entry, map.len() as u64 + stored, &records)?;
    to.write_all(&map)?;
    let mut left = stored;
    loop {
        let piece = content.content()?;
        let length = piece.len();
        if length == 0 {
            break;
        }
        to.write_all(piece)?;
        left = left.saturating_sub(length as u64);
        content.consume(length);
    }
    ensure!(left == 0, "its content is not whole");
    pad(to, stored)?;
    Ok(())
}

/// The map that stands before the content of a file with holes, and the records that say so (GNU tar's format 1.0).
fn sparse(file: &File, segments: &[Segment], path: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut map = String::new();
    // Writing to a string does not fail. The last part, which is empty, marks the end.
    let _ = writeln!(map, "{}", segments.len() + 1);
    for Segment { offset, length } in segments.iter().chain(&[Segment { offset: file.size, length: 0 }]) {
        let _ = write!(map, "{offset}\n{length}\n");
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    let mut records = Vec::new();
    record(&mut records, b"GNU.sparse.major", b"1");
    record(&mut records, b"GNU.sparse.minor", b"0");
    record(&mut records, b"GNU.sparse.name", path);
    record(&mut records, b"GNU.sparse.realsize", file.size.to_string().as_bytes());
    (map, records)
}

/// Writes the headers of an entry of which so many bytes follow.
fn header(to: &mut dyn Write, entry: &Entry, stored: u64, more: &[u8]) -> io::Result<()> {
    let mut records = more.to_vec();
    let (seconds, nanos) = (entry.mtime.seconds, entry.mtime.nanos);
    if nanos != 0 || seconds < 0 {
        record(&mut records, b"mtime", time(entry.mtime).as_bytes());
    }
    for xattr in &entry.xattrs {
        let mut key = b"SCHILY.xattr.".to_vec();
        for byte in &xattr.name {
            match byte {
                // As GNU tar has them.
                b'%' => key.extend_from_slice(b"%25"),
                b'=' => key.extend_from_slice(b"%3D"),
                byte => key.push(*byte),
            }
        }
        record(&mut records, &key, &xattr.value);
    }
    if !records.is_empty() {
        special(to, EntryType::XHeader, b"pax", &records)?;
    }
    let (kind, link, (major, minor)) = match &entry.kind {
        Kind::File(_) => (EntryType::Regular, &[][..], (0, 0)),
        Kind::Directory => (EntryType::Directory, &[][..], (0, 0)),
        Kind::Symlink(target) => (EntryType::Symlink, &target[..], (0, 0)),
        Kind::Hardlink(target) => (EntryType::Link, &target[..], (0, 0)),
        Kind::CharDevice { major, minor } => (EntryType::Char, &[][..], (*major, *minor)),
        Kind::BlockDevice { major, minor } => (EntryType::Block, &[][..], (*major, *minor)),
        Kind::Fifo => (EntryType::Fifo, &[][..], (0, 0)),
    };
    if link.len() > SHORT {
        special(to, EntryType::GNULongLink, b"././@LongLink", &[link, &[0]].concat())?;
    }
    if entry.path.len() > SHORT {
        special(to, EntryType::GNULongName, b"././@LongLink", &[&entry.path[..], &[0]].concat())?;
    }
    // More than Linux's numbers fit into the fields.
    if major >= 1 << 21 || minor >= 1 << 21 {
        return Err(io::Error::other(format!("Linux has no device {major}:{minor}")));
    }
    let mut header = new(kind, &entry.path, link, stored);
    header.set_mode(entry.mode);
    header.set_uid(entry.uid.into());
    header.set_gid(entry.gid.into());
    header.set_mtime(u64::try_from(seconds).unwrap_or(0));
    header.set_device_major(major)?;
    header.set_device_minor(minor)?;
    header.set_cksum();
    to.write_all(header.as_bytes())
}

/// Writes an entry that says something about the next one.
fn special(to: &mut dyn Write, kind: EntryType, name: &[u8], content: &[u8]) -> io::Result<()> {
    let mut header = new(kind, name, b"", content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    to.write_all(header.as_bytes())?;
    to.write_all(content)?;
    pad(to, content.len() as u64)
}

fn new(kind: EntryType, name: &[u8], link: &[u8], size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size);
    let old = header.as_old_mut();
    old.name.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
    old.linkname.iter_mut().zip(link).for_each(|(to, from)| *to = *from);
    header
}

fn pad(to: &mut dyn Write, stored: u64) -> io::Result<()> {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let length = usize::try_from(stored.wrapping_neg() % BLOCK as u64).unwrap_or_default();
    to.write_all(ZEROS.get(..length).unwrap_or_default())
}

/// A record of a pax header, which begins with its own length.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    for part in [key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

/// A moment as decimal fraction of seconds.
fn time(Time { seconds, nanos }: Time) -> String {
    if seconds >= 0 {
        return format!("{seconds}.{nanos:09}");
    }
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let (whole, part) = (total.unsigned_abs() / 1_000_000_000, total.unsigned_abs() % 1_000_000_000);
    format!("-{whole}.{part:09}")
}

#[cfg(test)]
mod tests {
    use embedded_io_adapters::std::FromStd;
    use piman_core::archive::{Reader, Xattr};

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let long = b"d/".repeat(80);
        let xattrs = vec![
            Xattr { name: b"user.a=b%c".to_vec(), value: b"\0\n=x".to_vec() },
            Xattr { name: b"user.long".to_vec(), value: vec![7; 1000] },
        ];
        let at = |seconds, nanos| Time { seconds, nanos };
        let with = |path: &[u8], kind, mtime| Entry {
            mode: 0o4755,
            uid: u32::MAX - 1,
            gid: 1 << 22,
            xattrs: xattrs.clone(),
            kind,
            ..implied(path.to_vec(), mtime)
        };
        let entries = [
            with(&long, Kind::Directory, at(5, 6)),
            with(&[b'n'; 100], Kind::Symlink(long.clone()), at(-2, 500_000_000)),
            with(&[b'n'; 101], Kind::Hardlink(b"x//./y/".to_vec()), at(-7, 0)),
            with(b"c", Kind::CharDevice { major: 4095, minor: 1 << 20 }, at(1 << 40, 1)),
            with(b"b", Kind::BlockDevice { major: 8, minor: 1 }, at(0, 0)),
            with(b"\xff\n", Kind::Fifo, at(1_700_000_000, 0)),
        ];
        let mut tar = Vec::new();
        for entry in &entries {
            header(&mut tar, entry, 0, &[]).unwrap();
        }
        let segments = vec![Segment { offset: 512, length: 3 }, Segment { offset: 9 << 33, length: 2 }];
        let file = File { size: 10 << 33, sparse: Some(segments.clone()) };
        let (map, records) = sparse(&file, &segments, b"holes");
        let holes = with(b"holes", Kind::File(file), at(3, 4));
        header(&mut tar, &holes, map.len() as u64 + 5, &records).unwrap();
        tar.extend_from_slice(&map);
        tar.extend_from_slice(b"abcde");
        pad(&mut tar, 5).unwrap();
        tar.extend_from_slice(&[0; 1024]);
        let mut reader = Reader::new(FromStd::new(&tar[..]));
        for entry in &entries {
            assert_eq!(&reader.next_entry().unwrap().unwrap(), entry);
        }
        assert_eq!(reader.next_entry().unwrap().unwrap(), holes);
        let mut content = String::new();
        io::Read::read_to_string(&mut reader, &mut content).unwrap();
        assert_eq!(content, "abcde");
        assert!(reader.next_entry().unwrap().is_none());
        let far = with(b"c", Kind::CharDevice { major: 1 << 21, minor: 0 }, at(0, 0));
        assert!(header(&mut tar, &far, 0, &[]).is_err());
    }
}
