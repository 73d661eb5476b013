//! What is sent: a file as it is, or as text with the ends of lines that netascii wants.

use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut};
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use super::folder::{Folder, NoFile};
use super::packet::{Mode, Request};

/// The largest file that is sent as text, for which it is kept in memory.
const TEXT_MAX: u64 = 1 << 20;

/// The bytes to be sent.
pub(super) enum Body {
    File(File, u64),
    Text(Vec<u8>),
}

impl Body {
    /// `image`: which one is meant for whoever asks.
    pub(super) fn open(
        folder: &Folder,
        request: &Request,
        image: Option<&str>,
    ) -> Result<(Self, String), NoFile> {
        let found = folder.open(&request.name, image)?;
        match request.mode {
            Mode::Octet => Ok((Self::File(found.file, found.length), found.name)),
            Mode::Netascii if found.length > TEXT_MAX => {
                Err(NoFile::Unreadable(io::Error::other("too large for netascii: ask for octet")))
            }
            Mode::Netascii => {
                let mut bytes = vec![0; usize::try_from(found.length).unwrap_or(0)];
                found.file.read_exact_at(&mut bytes, 0)?;
                Ok((Self::Text(netascii(&bytes)), found.name))
            }
        }
    }

    pub(super) fn length(&self) -> u64 {
        match self {
            Self::File(_, length) => *length,
            Self::Text(text) => text.len() as u64,
        }
    }

    /// Fills all of these, one after another, with the bytes from `offset` on.
    ///
    /// # Errors
    /// If there are not so many, or they cannot be read.
    pub(super) fn read(&self, mut offset: u64, into: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        match self {
            Self::File(file, _) => read_all(file, offset, into),
            Self::Text(text) => {
                for piece in into {
                    let from = usize::try_from(offset).unwrap_or(usize::MAX);
                    let bytes = text.get(from..).and_then(|t| t.get(..piece.len()));
                    piece.copy_from_slice(bytes.ok_or(ErrorKind::UnexpectedEof)?);
                    offset += piece.len() as u64;
                }
                Ok(())
            }
        }
    }
}

/// A whole window in one call.
fn read_all(file: &File, mut offset: u64, mut into: &mut [IoSliceMut<'_>]) -> io::Result<()> {
    IoSliceMut::advance_slices(&mut into, 0);
    while !into.is_empty() {
        match rustix::io::preadv(file, into, offset) {
            Ok(0) => return Err(io::Error::other("the file became shorter while it was sent")),
            Ok(n) => {
                offset += n as u64;
                IoSliceMut::advance_slices(&mut into, n);
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Lines end with CR LF, and a lone CR is CR NUL (RFC 764).
fn netascii(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len() + bytes.len() / 16);
    for &b in bytes {
        match b {
            b'\n' => text.extend_from_slice(b"\r\n"),
            b'\r' => text.extend_from_slice(b"\r\0"),
            b => text.push(b),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_became_shorter_is_no_endless_loop() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"abcdef", 0).unwrap();
        let (mut one, mut two, mut none) = ([0; 2], [0; 3], [0; 0]);
        let mut both = [&mut one[..], &mut none[..], &mut two[..]].map(IoSliceMut::new);
        Body::File(file.try_clone().unwrap(), 6).read(1, &mut both).unwrap();
        assert_eq!((one, two), (*b"bc", *b"def"));
        let mut both = [&mut one[..], &mut two[..]].map(IoSliceMut::new);
        assert!(Body::File(file, 9).read(4, &mut both).is_err());
        let mut both = [&mut one[..], &mut two[..]].map(IoSliceMut::new);
        let text = Body::Text(b"123456".to_vec());
        text.read(1, &mut both).unwrap();
        assert!(text.read(2, &mut [IoSliceMut::new(&mut [0; 5])]).is_err());
        assert_eq!((one, two), (*b"23", *b"456"));
    }

    #[test]
    fn text_has_its_own_ends_of_lines() {
        assert_eq!(netascii(b"a\nb\rc"), b"a\r\nb\r\0c");
    }
}
