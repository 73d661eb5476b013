//! Free space on a disk, and how much of it peers leave for the state.

use std::io;
use std::os::fd::AsFd;

/// What is kept free if nobody says how much: so many bytes, and of a small disk a twentieth.
const USUAL: u64 = 512 << 20;
const SHARE: u64 = 20;

/// How much stays free whatever peers bring, in bytes; `None`: 512 MiB, or a twentieth of a small disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reserve(pub Option<u64>);

/// What is free on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    /// For peers, in bytes.
    pub bytes: u64,
    /// What is kept from them, in bytes.
    pub reserve: u64,
}

impl Reserve {
    /// Nothing is kept free.
    pub const NONE: Self = Self(Some(0));

    /// What is free for peers on the disk that this is on.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn free(self, on: impl AsFd) -> io::Result<Free> {
        let disk = rustix::fs::fstatvfs(on)?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        let reserve = self.0.unwrap_or_else(|| USUAL.min(bytes(disk.f_blocks) / SHARE));
        Ok(Free { bytes: bytes(disk.f_bavail).saturating_sub(reserve), reserve })
    }
}

impl Free {
    /// An error that says that there are fewer than `needed` bytes.
    #[must_use]
    pub fn too_little(self, needed: u64) -> io::Error {
        let mib = |bytes: u64| bytes >> 20;
        let (free, reserve) = (mib(self.bytes), mib(self.reserve));
        let text = format!(
            "{} MiB more are needed and {free} MiB are free, beside {reserve} MiB that are kept free for the state: \
             make room, or set --reserve-mib",
            mib(needed).max(1)
        );
        io::Error::new(io::ErrorKind::StorageFull, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_not_free() {
        let file = tempfile::tempfile().unwrap();
        let all = Reserve::NONE.free(&file).unwrap();
        assert_eq!(all.reserve, 0);
        assert_eq!(Reserve(Some(u64::MAX)).free(&file).unwrap().bytes, 0);
        let usual = Reserve::default().free(&file).unwrap();
        assert!((1..=USUAL).contains(&usual.reserve), "{usual:?}");
        let text = Free { bytes: 1, reserve: 2 << 20 }.too_little(5).to_string();
        assert!(
            text.contains("1 MiB more") && text.contains("2 MiB that") && text.contains("--reserve-mib"),
            "{text}"
        );
    }
}
