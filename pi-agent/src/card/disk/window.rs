//! A part of a disk as a stream of its own, and for reads at a position.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

/// `length` bytes of a disk from `offset`. Reads and writes stop at its end.
#[derive(Debug)]
pub struct Window<'d> {
    file: &'d File,
    offset: u64,
    length: u64,
    at: u64,
}

impl<'d> Window<'d> {
    /// A part of a disk, in bytes.
    #[must_use]
    pub fn new(file: &'d File, offset: u64, length: u64) -> Self {
        Self { file, offset, length, at: 0 }
    }

    /// Its length, in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Reads at a position from the start of the window.
    ///
    /// # Errors
    /// The disk's; `UnexpectedEof` behind the end of the window.
    pub fn read_exact_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        match at.checked_add(buf.len() as u64) {
            Some(end) if end <= self.length => self.file.read_exact_at(buf, self.offset + at),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Writes at a position from the start of the window.
    ///
    /// # Errors
    /// The disk's; `UnexpectedEof` behind the end of the window.
    pub(crate) fn write_all_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        match at.checked_add(bytes.len() as u64) {
            Some(end) if end <= self.length => self.file.write_all_at(bytes, self.offset + at),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn room(&self, wanted: usize) -> usize {
        let left = self.length.saturating_sub(self.at);
        wanted.min(usize::try_from(left).unwrap_or(usize::MAX))
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let room = self.room(buf.len());
        let n = self.file.read_at(buf.get_mut(..room).unwrap_or_default(), self.offset + self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Write for Window<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let room = self.room(buf.len());
        let n = self.file.write_at(buf.get(..room).unwrap_or_default(), self.offset + self.at)?;
        self.at += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_where_it_ends() {
        let file = tempfile();
        file.write_all_at(b"0123456789", 0).unwrap();
        let mut window = Window::new(&file, 2, 5);
        let mut text = String::new();
        window.read_to_string(&mut text).unwrap();
        assert_eq!(text, "23456");
        window.seek(SeekFrom::End(-2)).unwrap();
        assert_eq!(window.write(b"abc").unwrap(), 2);
        assert!(window.write_all(b"c").is_err());
        assert!(window.read_exact_at(3, &mut [0; 3]).is_err());
        let mut two = [0; 2];
        window.read_exact_at(3, &mut two).unwrap();
        assert_eq!(&two, b"ab");
        assert!(window.seek(SeekFrom::Current(-100)).is_err());
    }

    fn tempfile() -> File {
        let fd = rustix::fs::memfd_create("window", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        File::from(fd)
    }
}
