//! A file from its beginning to its end, piece by piece. What is a hole in it is not read: it is zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::area::Area;

/// The length of a piece, in bytes.
const PIECE: usize = 1 << 20;

static ZEROS: [u8; PIECE] = [0; PIECE];

/// A file that is being read.
pub(crate) struct Pieces<'f> {
    file: &'f File,
    length: u64,
    at: u64,
    /// Where the data begin that come next, and where they end.
    data: (u64, u64),
    buf: Vec<u8>,
    /// How many bytes were read, for tests.
    read: u64,
}

impl<'f> Pieces<'f> {
    /// # Errors
    /// If the file cannot be looked at.
    pub(crate) fn of(file: &'f File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file, length, at: 0, data: (0, 0), buf: vec![0; PIECE], read: 0 })
    }

    /// Where the next piece begins, in bytes.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// The next piece; empty: the end.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn next_piece(&mut self) -> io::Result<&[u8]> {
        if self.at >= self.data.1 {
            self.data = Area::new(self.file, self.length).data(self.at, self.length);
        }
        let (start, end) = self.data;
        let is_hole = self.at < start;
        let left = if is_hole { start } else { end }.saturating_sub(self.at);
        let length = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        if is_hole {
            self.at += length as u64;
            return Ok(ZEROS.get(..length).unwrap_or_default());
        }
        let piece = self.buf.get_mut(..length).unwrap_or_default();
        let n = self.file.read_at(piece, self.at)?;
        self.at += n as u64;
        self.read += n as u64;
        Ok(self.buf.get(..n).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_count_as_zeros_and_are_not_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len((64 << 20) + 5).unwrap();
        for (bytes, at) in [(&b"begin"[..], 0), (&[1; 5000], (3 << 20) - 77), (&[2; 1], (64 << 20) + 4)] {
            file.write_all_at(bytes, at).unwrap();
        }
        let (mut hasher, mut pieces) = (blake3::Hasher::new(), Pieces::of(&file).unwrap());
        while let piece = pieces.next_piece().unwrap()
            && !piece.is_empty()
        {
            hasher.update(piece);
        }
        assert_eq!(pieces.at(), (64 << 20) + 5);
        assert!(pieces.read < 1 << 20, "{} bytes were read", pieces.read);
        let mut all = vec![0; (64 << 20) + 5];
        file.read_exact_at(&mut all, 0).unwrap();
        assert_eq!(hasher.finalize(), blake3::hash(&all));
        let empty = tempfile::tempfile().unwrap();
        assert!(Pieces::of(&empty).unwrap().next_piece().unwrap().is_empty());
    }
}
