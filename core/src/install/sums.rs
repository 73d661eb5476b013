//! The chunk hashes of an archive, by which each chunk is checked before its bytes are unpacked.
//!
//! BLAKE3 is a tree: the hash of a whole file is computed from the hashes (chaining values) of
//! its aligned parts. The table is those of all chunks of [`CHUNK`] bytes (the last one may
//! be shorter), 32 bytes each, one after another, without anything around them. So it needs
//! no hash or signature of its own: merged as BLAKE3 merges subtrees they give the
//! archive's id, or the table is wrong. And who checked all chunks has checked the whole.
//!
//! An archive of one chunk or less has an empty table: the chunk's hash is the id.
//!
//! The fetch port sends it as `fetch sums ID OFFSET LENGTH`, with the archive's id, where the
//! offer says `sums=1048576`; the chunks themselves are ranges of `fetch archive`.

use core::ops::Range;

/// The size of a chunk, in bytes: a power of two of BLAKE3's own chunks of 1024 bytes.
pub const CHUNK: u32 = 1 << 20;

/// The size of one hash, in bytes.
pub const SUM: usize = 32;

/// The most chunks of an archive: 1 TiB, whose table has 32 MiB.
pub const CHUNKS_MAX: u32 = 1 << 20;

/// How many chunks an archive of so many bytes has; `None` if there are too many.
#[must_use]
pub fn chunks(archive_bytes: u64) -> Option<u32> {
    u32::try_from(archive_bytes.div_ceil(CHUNK.into())).ok().filter(|n| *n <= CHUNKS_MAX)
}

/// The size of its table, in bytes; `None` if there are too many chunks.
#[must_use]
pub fn table_bytes(archive_bytes: u64) -> Option<u32> {
    chunks(archive_bytes).map(|n| if n > 1 { n * SUM as u32 } else { 0 })
}

/// Where in the archive a chunk lies, in bytes; empty behind its end.
#[must_use]
pub fn range(index: u32, archive_bytes: u64) -> Range<u64> {
    let end = |n: u64| (n * u64::from(CHUNK)).min(archive_bytes);
    end(index.into())..end(u64::from(index) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let mib = u64::from(CHUNK);
        for (bytes, n, table) in [(0, 0, 0), (1, 1, 0), (mib, 1, 0), (mib + 1, 2, 64), (9 * mib, 9, 288)] {
            assert_eq!((chunks(bytes), table_bytes(bytes)), (Some(n), Some(table)), "{bytes}");
        }
        assert_eq!(chunks(mib << 20), Some(CHUNKS_MAX));
        assert_eq!((chunks((mib << 20) + 1), table_bytes(u64::MAX)), (None, None));
    }

    #[test]
    fn ranges() {
        let mib = u64::from(CHUNK);
        assert_eq!([range(0, 5), range(1, 5)], [0..5, 5..5]);
        assert_eq!([range(1, 2 * mib + 1), range(2, 2 * mib + 1)], [mib..2 * mib, 2 * mib..2 * mib + 1]);
        assert_eq!(range(u32::MAX, u64::MAX), (u64::from(u32::MAX) * mib)..((1 << 32) * mib));
    }
}
