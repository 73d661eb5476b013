//! Writes the archive that a kernel unpacks as its first root: "newc" of cpio.
//!
//! The crate `cpio` 0.4 writes times, owners and inode numbers of what it finds, so that the same
//! input does not give the same bytes, and has no device nodes.

use std::io::{self, Write};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A folder.
    Folder,
    /// A file with these bytes.
    File(&'a [u8]),
    /// A character device with this major and minor number.
    Device(u32, u32),
}

/// A writer of an archive. Owners are root, times are 0, numbers count up.
pub struct Cpio<W> {
    out: W,
    entries: u32,
}

impl<W: Write> Cpio<W> {
    /// Begins.
    pub fn new(out: W) -> Self {
        Self { out, entries: 0 }
    }

    /// Adds an entry; `name` has no `/` in front, `mode` are the lower 12 bits.
    ///
    /// # Errors
    /// If it cannot be written, or is larger than the format can say (4 GiB).
    pub fn add(&mut self, name: &str, mode: u32, kind: Kind<'_>) -> io::Result<()> {
        self.entries += 1;
        let (bits, bytes, device) = match kind {
            Kind::Folder => (0o040_000, &[][..], (0, 0)),
            Kind::File(bytes) => (0o100_000, bytes, (0, 0)),
            Kind::Device(major, minor) => (0o020_000, &[][..], (major, minor)),
        };
        let links = if kind == Kind::Folder { 2 } else { 1 };
        self.write(name, self.entries, bits | (mode & 0o7777), links, bytes, device)
    }

    fn write(
        &mut self,
        name: &str,
        number: u32,
        mode: u32,
        links: u32,
        bytes: &[u8],
        device: (u32, u32),
    ) -> io::Result<()> {
        let too_large = |_| io::Error::other(format!("{name} is too large for an initramfs"));
        let length = u32::try_from(bytes.len()).map_err(too_large)?;
        let name_length = u32::try_from(name.len() + 1).map_err(too_large)?;
        write!(self.out, "070701")?;
        let fields = [number, mode, 0, 0, links, 0, length, 0, 0, device.0, device.1, name_length, 0];
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(110 + name.len() + 1)?;
        self.out.write_all(bytes)?;
        self.pad(bytes.len())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        let zeros = [0; 3];
        self.out.write_all(zeros.get(..length.next_multiple_of(4) - length).unwrap_or_default())
    }

    /// Writes the end and returns what was written to.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.write("TRAILER!!!", 0, 0, 1, &[], (0, 0))?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes() {
        let mut cpio = Cpio::new(Vec::new());
        cpio.add("dev", 0o755, Kind::Folder).unwrap();
        cpio.add("dev/console", 0o600, Kind::Device(5, 1)).unwrap();
        cpio.add("init", 0o755, Kind::File(b"hello")).unwrap();
        let bytes = cpio.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let starts: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 4);
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        assert!(text.starts_with("07070100000001000041ed"), "{text}");
        assert!(
            text.contains("000021800")
                && text.contains("0000000500000001")
                && text.contains("hello\x00\x00\x00070701")
        );
    }
}
