//! Where the parts of a container image are: in a tar archive, by their places in it, or in a folder.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use anyhow::{Context, bail, ensure};
use embedded_io_adapters::std::FromStd;
use piman_core::archive::{Error, Kind, Reader, components};

/// The most parts that an image may have; Docker stops at 127 layers.
const PARTS_MAX: usize = 1 << 16;
/// After so many other entries, or bytes of them, an archive is no container image.
const STRANGERS_MAX: u64 = 64;
const STRANGER_BYTES_MAX: u64 = 64 << 20;
/// Links that lead to a part; `docker save` writes one for a layer that occurs twice.
const LINKS_MAX: usize = 8;

/// The parts of an image, by their names.
pub(in crate::images::import) enum Store {
    /// An archive that can be read at any place.
    Tar(Arc<File>, Parts),
    /// A folder, by its real path.
    Folder(PathBuf),
}

/// Where each part is in an archive.
pub(in crate::images::import) type Parts = HashMap<String, Part>;

/// What an archive has by a name.
pub(in crate::images::import) enum Part {
    /// Bytes at a place.
    Bytes { offset: u64, length: u64 },
    /// Another name.
    Link(String),
    /// A file with holes, which is nowhere in one piece.
    Holes,
}

/// One part.
#[derive(Clone)]
pub(super) struct Blob {
    file: Arc<File>,
    offset: u64,
    pub(super) length: u64,
}

/// Looks through an archive for a container image: `None` as soon as it is clear that it is something else, or is
/// damaged, which whoever reads it for what it is says better.
///
/// # Errors
/// Of reading it.
pub(in crate::images::import) fn scan(tar: impl Read) -> io::Result<Option<Parts>> {
    let read = BufReader::with_capacity(1 << 18, tar);
    // Every part has a digest: none that is cut is taken.
    let mut reader = Reader::new(FromStd::new(read)).ending_with(Arc::new(AtomicBool::new(true)));
    let (mut parts, mut strangers, mut stranger_bytes) = (Parts::new(), 0, 0);
    loop {
        let entry = match reader.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(Error::Read(e)) => return Err(e),
            Err(Error::Damaged { .. }) => return Ok(None),
        };
        let Some(name) = normal(&entry.path) else { return Ok(None) };
        if !name.is_empty() && !is_usual(&name) {
            strangers += 1;
            stranger_bytes += if let Kind::File(file) = &entry.kind { file.size } else { 0 };
            if strangers > STRANGERS_MAX || stranger_bytes > STRANGER_BYTES_MAX {
                return Ok(None);
            }
        }
        let part = match entry.kind {
            Kind::File(file) if file.sparse.is_some() => Part::Holes,
            Kind::File(file) => Part::Bytes { offset: reader.position(), length: file.size },
            Kind::Hardlink(to) => normal(&to).map_or(Part::Holes, Part::Link),
            Kind::Symlink(to) => {
                let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                str::from_utf8(&to).ok().and_then(|to| joined(folder, to)).map_or(Part::Holes, Part::Link)
            }
            _ => continue,
        };
        parts.insert(name, part);
        if parts.len() > PARTS_MAX {
            return Ok(None);
        }
    }
    // Whoever keeps what is read gets all of it.
    match reader.drain() {
        Ok(()) => Ok(Some(parts)),
        Err(Error::Read(e)) => Err(e),
        Err(Error::Damaged { .. }) => Ok(None),
    }
}

/// Whether container images have such names at their top.
fn is_usual(name: &str) -> bool {
    let top = name.split('/').next().unwrap_or_default();
    let digits = top.strip_prefix("sha256:").unwrap_or(top);
    let digits = digits.bytes().take_while(u8::is_ascii_hexdigit).count();
    digits >= 32
        || matches!(
            top,
            "blobs" | "oci-layout" | "index.json" | "manifest.json" | "repositories" | "config.json"
        )
}

/// A name without what means nothing; `None` if it leads out of the archive, or is no text.
fn normal(name: &[u8]) -> Option<String> {
    let parts: Vec<_> = components(name).ok()?.map(str::from_utf8).collect::<Result<_, _>>().ok()?;
    Some(parts.join("/"))
}

/// Where a link in a folder leads; `None` out of the archive.
fn joined(folder: &str, to: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').collect();
    for part in to.split('/') {
        match part {
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    normal(parts.join("/").as_bytes()).filter(|_| !to.starts_with('/'))
}

impl Store {
    /// What is in a folder.
    ///
    /// # Errors
    /// If it cannot be found.
    pub(in crate::images::import) fn folder(path: &Path) -> anyhow::Result<Self> {
        let real = path.canonicalize().with_context(|| format!("opening {}", path.display()))?;
        Ok(Self::Folder(real))
    }

    /// A part; `None` if it is missing.
    ///
    /// # Errors
    /// If its name leads out of the image, or it is no file, or cannot be opened.
    pub(super) fn blob(&self, name: &str) -> anyhow::Result<Option<Blob>> {
        let shown = name.escape_debug();
        let Some(name) = normal(name.as_bytes()).filter(|name| !name.is_empty()) else {
            bail!("`{shown}` is no name of a part of it");
        };
        match self {
            Self::Tar(file, parts) => {
                let mut part = parts.get(&name);
                for _ in 0..LINKS_MAX {
                    match part {
                        None => return Ok(None),
                        Some(Part::Link(to)) => part = parts.get(to),
                        Some(Part::Holes) => {
                            bail!(
                                "`{shown}` is stored with holes, or leads out of it: pack it without --sparse"
                            )
                        }
                        Some(Part::Bytes { offset, length }) => {
                            return Ok(Some(Blob {
                                file: Arc::clone(file),
                                offset: *offset,
                                length: *length,
                            }));
                        }
                    }
                }
                bail!("`{shown}` leads round in a circle of links")
            }
            Self::Folder(folder) => {
                let opening = || format!("opening `{shown}`");
                let path = match folder.join(&name).canonicalize() {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                    path => path.with_context(opening)?,
                };
                ensure!(path.starts_with(folder), "`{shown}` is a link out of the folder");
                // A pipe would be waited for.
                ensure!(fs::metadata(&path).with_context(opening)?.is_file(), "`{shown}` is not a file");
                let file = File::open(path).with_context(opening)?;
                let length = file.metadata().with_context(opening)?.len();
                Ok(Some(Blob { file: Arc::new(file), offset: 0, length }))
            }
        }
    }

    /// Whether it has such a part.
    pub(super) fn has(&self, name: &str) -> bool {
        matches!(self.blob(name), Ok(Some(_)))
    }
}

impl Blob {
    /// Its bytes, which are counted.
    pub(super) fn read<'b>(&'b self, count: &'b AtomicU64) -> BlobReader<'b> {
        BlobReader { blob: self, at: 0, count }
    }
}

/// Reads a part at an offset of its own.
pub(super) struct BlobReader<'b> {
    blob: &'b Blob,
    at: u64,
    count: &'b AtomicU64,
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.blob.length - self.at).unwrap_or(usize::MAX);
        let length = buf.len().min(left);
        let buf = buf.get_mut(..length).unwrap_or_default();
        let n = self.blob.file.read_at(buf, self.blob.offset + self.at)?;
        self.at += n as u64;
        self.count.fetch_add(n as u64, Relaxed);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_links_lead() {
        for (folder, to, want) in [
            ("abc", "../def/layer.tar", Some("def/layer.tar")),
            ("abc", "layer.tar", Some("abc/layer.tar")),
            ("", "blobs/x", Some("blobs/x")),
            ("abc", "../../x", None),
            ("abc", "/etc/passwd", None),
        ] {
            assert_eq!(joined(folder, to).as_deref(), want, "{folder} {to}");
        }
    }

    #[test]
    fn names_of_images_and_of_systems() {
        let hex = "0123456789abcdef0123456789abcdef";
        for usual in ["blobs/sha256/x", "index.json", &format!("{hex}/layer.tar"), &format!("sha256:{hex}")] {
            assert!(is_usual(usual), "{usual}");
        }
        for other in ["etc/passwd", "bin", "deadbeef", "index.json.bak"] {
            assert!(!is_usual(other), "{other}");
        }
    }
}
