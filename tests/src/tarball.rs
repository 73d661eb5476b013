//! Small archives made by hand, for what no tool would put into one.

use std::io::Write;

/// A tar archive that grows, in memory.
#[derive(Debug, Default)]
pub struct Tarball(Vec<u8>);

impl Tarball {
    /// An archive without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an entry in ustar's format: `kind` is its type (`b'0'` a file, `b'5'` a
    /// directory, `b'1'` and `b'2'` links to `link`).
    pub fn push(&mut self, name: &[u8], kind: u8, link: &[u8], content: &[u8]) -> &mut Self {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name);
        put(100, b"0000644\0");
        put(108, b"0001750\0");
        put(116, b"0001751\0");
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(136, b"14530000000\0");
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link);
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(header);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// The archive with its end marker.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        [&self.0[..], &[0; 1024]].concat()
    }

    /// The archive with its end marker, packed with zstd, in a file.
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

/// An archive of one file of so many bytes that no packer makes smaller.
///
/// # Panics
/// If it cannot be written.
#[must_use]
pub fn of_bytes(bytes: usize) -> tempfile::NamedTempFile {
    let mut content = vec![0; bytes];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    Tarball::new().push(b"content", b'0', b"", &content).packed()
}
