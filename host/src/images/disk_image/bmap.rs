//! What a bmap file says: which blocks of an image have content, and their checksums.
//! Source: <https://github.com/yoctoproject/bmaptool>, versions 1.0 to 2.0.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use roxmltree::{Document, Node};
use sha2::{Digest, Sha256};

/// The longest file that is read, in bytes.
const FILE_MAX: u64 = 64 << 20;

/// A bmap file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bmap {
    image_bytes: u64,
    ranges: Vec<Range>,
}

/// Blocks that have content, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
    sha256: Option<String>,
}

impl Bmap {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, is no bmap, or is damaged.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let bytes = std::fs::metadata(path).with_context(|| format!("opening {shown}"))?.len();
        ensure!(bytes <= FILE_MAX, "{shown} has {bytes} bytes: too many for a bmap");
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {shown}"))?;
        Self::parse(&text).with_context(|| format!("{shown} is not usable"))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let document = Document::parse(text).context("it is no XML")?;
        let root = document.root_element();
        ensure!(root.has_tag_name("bmap"), "it is no bmap");
        let version = root.attribute("version").unwrap_or_default();
        ensure!(
            matches!(version.split_once('.'), Some(("1", _)) | Some(("2", "0"))),
            "it is a bmap of version `{}`, which is not known here",
            version.escape_debug()
        );
        let child = |name: &str| root.children().find(|c| c.has_tag_name(name));
        let number = |name: &str| -> anyhow::Result<u64> {
            let text = child(name).and_then(|c| c.text()).unwrap_or_default().trim();
            text.parse().with_context(|| format!("its {name} is `{}`", text.escape_debug()))
        };
        let (image_bytes, block) = (number("ImageSize")?, number("BlockSize")?);
        ensure!(block.is_power_of_two() && (512..=1 << 20).contains(&block), "its blocks have {block} bytes");
        ensure!(
            number("BlocksCount")? == image_bytes.div_ceil(block),
            "its number of blocks does not belong to its size"
        );
        if let Some(kind) = child("ChecksumType").and_then(|c| c.text()) {
            ensure!(
                kind.trim() == "sha256",
                "its checksums are of the kind `{}`, which is not compared here: make it again with `bmaptool create`, \
                 or leave it away",
                kind.trim().escape_debug()
            );
        }
        ensure!(
            child("BmapFileSHA1").is_none(),
            "its checksums are SHA-1: make it again with `bmaptool create`"
        );
        own_checksum(text, child("BmapFileChecksum"))?;
        let map = child("BlockMap").context("it has no BlockMap")?;
        let mut ranges: Vec<Range> = Vec::new();
        for range in map.children().filter(|c| c.has_tag_name("Range")) {
            let text = range.text().unwrap_or_default().trim();
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let numbers = first.trim().parse::<u64>().ok().zip(last.trim().parse::<u64>().ok());
            let bytes = numbers.and_then(|(first, last)| {
                let end = last.checked_add(1)?.checked_mul(block)?;
                Some((first.checked_mul(block)?, end.min(image_bytes)))
            });
            let after = ranges.last().map_or(0, |r| r.end);
            match bytes.filter(|(start, end)| after <= *start && start < end) {
                Some((start, end)) => {
                    let sha256 = range.attribute("chksum").map(str::to_ascii_lowercase);
                    ranges.push(Range { start, end, sha256 });
                }
                None => bail!("its range `{}` is impossible", text.escape_debug()),
            }
        }
        Ok(Self { image_bytes, ranges })
    }

    /// The blocks that have content, as beginning and end in bytes, sorted.
    #[must_use]
    pub fn mapped(&self) -> Vec<(u64, u64)> {
        super::joined(self.ranges.iter().map(|r| (r.start, r.end)).collect(), usize::MAX)
    }

    /// Compares the image with it: its size, and each range that has a checksum.
    ///
    /// # Errors
    /// If they do not belong together, with the place.
    pub fn verify(&self, image: &File, length: u64) -> anyhow::Result<()> {
        ensure!(
            length == self.image_bytes,
            "the bmap is of an image of {} bytes, and this one has {length}",
            self.image_bytes
        );
        let mut buf = vec![0; 1 << 20];
        for range in &self.ranges {
            let Some(want) = &range.sha256 else { continue };
            let (mut hasher, mut at) = (Sha256::new(), range.start);
            while at < range.end {
                let length = usize::try_from(range.end - at).unwrap_or(buf.len()).min(buf.len());
                let piece = buf.get_mut(..length).unwrap_or_default();
                image.read_exact_at(piece, at).with_context(|| format!("reading {length} bytes at {at}"))?;
                hasher.update(piece);
                at += length as u64;
            }
            ensure!(
                hex(&hasher.finalize()) == *want,
                "the image is not what its bmap says: bytes {} to {} have another checksum",
                range.start,
                range.end
            );
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The checksum of the file itself, with zeros in its place.
fn own_checksum(text: &str, element: Option<Node<'_, '_>>) -> anyhow::Result<()> {
    let Some(element) = element else { return Ok(()) };
    let want = element.text().unwrap_or_default().trim();
    let range = element.range();
    let within = text.get(range.clone()).and_then(|inner| inner.find(want)).filter(|_| want.len() == 64);
    let at = range.start + within.context("its own checksum does not have 64 digits")?;
    let mut hasher = Sha256::new();
    hasher.update(text.get(..at).unwrap_or_default());
    hasher.update([b'0'; 64]);
    hasher.update(text.get(at + 64..).unwrap_or_default());
    ensure!(hex(&hasher.finalize()).eq_ignore_ascii_case(want), "it is damaged: its own checksum is wrong");
    Ok(())
}

#[cfg(test)]
mod tests;
