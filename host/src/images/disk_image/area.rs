//! A part of a disk image, read at offsets from its own beginning; nothing outside of it can be read.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use anyhow::{Context, bail};
use piman_core::install::table::CHUNKS_MAX;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// As much is read at once.
const PIECE: usize = 1 << 20;
/// The most runs of one kind: each becomes a chunk.
const RUNS_MAX: usize = CHUNKS_MAX as usize;

const ZEROS: [u8; 4096] = [0; 4096];

/// Whether all of it is zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|piece| ZEROS.get(..piece.len()) == Some(piece))
}

/// A run of bytes of a file: a whole image, or one of its partitions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area<'f> {
    file: &'f File,
    start: u64,
    length: u64,
}

impl<'f> Area<'f> {
    pub(super) fn new(file: &'f File, length: u64) -> Self {
        Self { file, start: 0, length }
    }

    /// A part of this one; what lies beyond its end cannot be read.
    pub(super) fn part(&self, start: u64, length: u64) -> Self {
        let (start, left) = (start.min(self.length), self.length.saturating_sub(start));
        Self { file: self.file, start: self.start + start, length: length.min(left) }
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Fills `buf` from `at` on.
    pub(super) fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(buf.len() as u64).filter(|end| *end <= self.length);
        end.ok_or(ErrorKind::UnexpectedEof)?;
        self.file.read_exact_at(buf, self.start + at)
    }

    /// The same, with the place in the error.
    pub(super) fn bytes<const N: usize>(&self, at: u64) -> anyhow::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(at, &mut bytes)
            .with_context(|| format!("reading {N} bytes at {}", self.start.saturating_add(at)))?;
        Ok(bytes)
    }

    /// The blocks of `size` bytes between `from` and `to` in which something is not zero, merged to runs. What is a
    /// hole in the file is not read.
    pub(super) fn not_zero(&self, from: u64, to: u64, size: u64) -> anyhow::Result<Vec<(u64, u64)>> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut buf = vec![0; PIECE];
        let (mut at, to) = (from, to.min(self.length));
        while at < to {
            let (data, end) = self.data(at, to);
            at = data.max(at) / size * size;
            at = at.max(from);
            while at < end {
                let length = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
                let piece = buf.get_mut(..length).unwrap_or_default();
                self.read(at, piece).with_context(|| format!("reading {length} bytes at {at}"))?;
                let mut start = at;
                for block in piece.chunks(usize::try_from(size).unwrap_or(PIECE)) {
                    let past = start + block.len() as u64;
                    if !is_zero(block) {
                        let is_full = runs.len() >= RUNS_MAX;
                        match runs.last_mut() {
                            Some((_, last)) if *last == start => *last = past,
                            _ if !is_full => runs.push((start, past)),
                            _ => bail!(
                                "before byte {start} there are more than {RUNS_MAX} runs of bytes that are not zero, and \
                                 each is at least one chunk: no agent takes so many; give a bmap of the image"
                            ),
                        }
                    }
                    start = past;
                }
                at += length as u64;
            }
            at = end;
        }
        Ok(runs)
    }

    /// Where the next bytes are that the file has, at `at` or later, and where they end; `(to, to)` if there are none.
    pub(super) fn data(&self, at: u64, to: u64) -> (u64, u64) {
        let data = match seek(self.file, SeekFrom::Data(self.start + at)) {
            Ok(data) => data.saturating_sub(self.start),
            Err(Errno::NXIO) => return (to, to),
            // A disk, or a filesystem that knows no holes.
            Err(_) => return (at, to),
        };
        let hole = seek(self.file, SeekFrom::Hole(self.start + data)).map_or(to, |hole| hole - self.start);
        (data.min(to), hole.min(to).max(data.min(to)))
    }
}

impl mkext4::reader::ReadAt for Area<'_> {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read(offset, buf)
    }
}

/// A little-endian number in a structure; 0 if it is too short for it.
pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    field(bytes, at).map_or(0, u16::from_le_bytes)
}

/// The same with four bytes.
pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    field(bytes, at).map_or(0, u32::from_le_bytes)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_is_read_and_holes_are_passed_over() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"x", 5000).unwrap();
        file.write_all_at(&[1; 8192], 32 << 20).unwrap();
        let whole = Area::new(&file, 64 << 20);
        let runs = whole.not_zero(0, u64::MAX, 4096).unwrap();
        assert_eq!(runs, [(4096, 8192), (32 << 20, (32 << 20) + 8192)]);
        assert_eq!(whole.not_zero(4608, 9000, 512).unwrap(), [(4608, 5120)]);
        let part = whole.part(4096, 4096);
        assert_eq!(part.bytes::<1>(904).unwrap(), *b"x");
        assert!(part.bytes::<2>(4095).is_err() && part.bytes::<1>(u64::MAX).is_err());
        assert_eq!(whole.part(1 << 40, 1).length(), 0);
    }
}
