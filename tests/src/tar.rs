//! Writing tar archives by hand, also such as no archiver would write.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A tar archive in the making.
#[derive(Debug, Clone, Default)]
pub struct Tar(pub Vec<u8>);

/// The fields of a header; what is not given is that of an ordinary ustar file.
#[derive(Debug, Clone)]
pub struct Header<'a> {
    /// The name, up to 100 bytes.
    pub name: &'a [u8],
    /// The type of entry.
    pub kind: u8,
    /// The target of a link, up to 100 bytes.
    pub link: &'a [u8],
    /// Permissions.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// The size, which need not be that of the content.
    pub size: u64,
    /// Seconds.
    pub mtime: u64,
    /// Device numbers.
    pub device: (u32, u32),
    /// Magic and version.
    pub magic: &'a [u8; 8],
}

impl Default for Header<'_> {
    fn default() -> Self {
        Self {
            name: b"file",
            kind: b'0',
            link: b"",
            mode: 0o644,
            owner: (1000, 1001),
            size: 0,
            mtime: 1_700_000_000,
            device: (0, 0),
            magic: b"ustar\x0000",
        }
    }
}

impl Tar {
    /// An archive with nothing in it, not even an end.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a header block, with a right checksum.
    pub fn header(&mut self, header: &Header<'_>) -> &mut Self {
        self.0.extend_from_slice(&header.block());
        self
    }

    /// Adds bytes, padded to whole blocks.
    pub fn content(&mut self, content: &[u8]) -> &mut Self {
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// Adds an entry: `kind` is its type (`b'0'` a file, `b'5'` a directory, `b'1'` and `b'2'` links to
    /// `link`).
    pub fn push(&mut self, name: &[u8], kind: u8, link: &[u8], content: &[u8]) -> &mut Self {
        let mode = if kind == b'5' { 0o755 } else { 0o644 };
        let size = content.len() as u64;
        self.header(&Header { name, kind, link, mode, size, ..Header::default() }).content(content)
    }

    /// Adds a file.
    pub fn file(&mut self, name: &[u8], content: &[u8]) -> &mut Self {
        self.push(name, b'0', b"", content)
    }

    /// Adds an entry without content.
    pub fn entry(&mut self, name: &[u8], kind: u8, link: &[u8]) -> &mut Self {
        self.push(name, kind, link, b"")
    }

    /// Adds a pax header of `kind` (`x` or `g`).
    pub fn pax(&mut self, kind: u8, records: &[(&str, &[u8])]) -> &mut Self {
        let records: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        let size = records.len() as u64;
        self.header(&Header { name: b"pax", kind, size, ..Header::default() }).content(&records)
    }

    /// Adds the end marker.
    #[must_use]
    pub fn end(&self) -> Vec<u8> {
        let mut out = self.0.clone();
        out.resize(out.len() + 1024, 0);
        out
    }

    /// All of it with the end marker, packed with zstd, in a file.
    ///
    /// # Panics
    /// If the file cannot be written.
    #[must_use]
    pub fn packed(&self) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        let end = [0; 1024];
        let packed = zstd::encode_all(std::io::Read::chain(&self.0[..], &end[..]), 1).expect("packing");
        file.write_all(&packed).expect("writing");
        file
    }
}

/// An archive of 768 MiB in files of which each is whole soon: a server makes its image for a while.
///
/// # Panics
/// If it cannot be written.
#[must_use]
pub fn slow(folder: &Path) -> PathBuf {
    let path = folder.join("slow.tar.zst");
    let mut packed = zstd::Encoder::new(File::create(&path).expect("a file"), 1).expect("packing");
    let mut put = |tar: &Tar| packed.write_all(&tar.0).expect("writing");
    let mut tar = Tar::new();
    for folder in ["etc/", "sbin/"] {
        tar.entry(folder.as_bytes(), b'5', b"");
    }
    put(tar.file(b"sbin/init", b"#!/bin/sh\n"));
    let content = vec![b'x'; 8 << 20];
    for number in 0..96 {
        put(Tar::new().file(format!("etc/{number}").as_bytes(), &content));
    }
    packed.write_all(&[0; 1024]).expect("writing");
    packed.finish().expect("writing");
    path
}

/// A packed archive of one file of so many bytes that no packer makes smaller.
///
/// # Panics
/// If it cannot be written.
#[must_use]
pub fn of_bytes(bytes: usize) -> tempfile::NamedTempFile {
    let mut content = vec![0; bytes];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    Tar::new().file(b"content", &content).packed()
}

impl Header<'_> {
    /// The header block.
    #[must_use]
    pub fn block(&self) -> [u8; 512] {
        let mut block = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, self.name);
        put(100, format!("{:07o}\0", self.mode).as_bytes());
        put(108, format!("{:07o}\0", self.owner.0).as_bytes());
        put(116, format!("{:07o}\0", self.owner.1).as_bytes());
        put(124, &size(self.size));
        put(136, format!("{:011o}\0", self.mtime).as_bytes());
        put(156, &[self.kind]);
        put(157, self.link);
        put(257, self.magic);
        put(329, format!("{:07o}\0", self.device.0).as_bytes());
        put(337, format!("{:07o}\0", self.device.1).as_bytes());
        seal(&mut block);
        block
    }
}

/// Makes the checksum of a header block right.
pub fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Octal as far as it goes, then base 256.
#[must_use]
pub fn size(size: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if size < 1 << 33 {
        field.copy_from_slice(format!("{size:011o}\0").as_bytes());
    } else {
        field[0] = 0x80;
        field[4..].copy_from_slice(&size.to_be_bytes());
    }
    field
}

/// One record of a pax header, with its own length in front.
#[must_use]
pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}
