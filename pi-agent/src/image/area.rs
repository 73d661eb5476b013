//! The root filesystem's place on a disk: reads and writes at a position, past the kernel's
//! cache where the disk allows it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::fs::{Advice, OFlags};
use rustix::io::Errno;

use crate::card::disk::RootArea;

/// What addresses, offsets and lengths of direct writes are a multiple of, in bytes.
const ALIGN: usize = 4096;

/// Where an image goes. Offsets count from the start of the root filesystem; offsets, lengths
/// and addresses are whole blocks of 4096 bytes.
pub trait Medium: Sync {
    /// The room, in bytes.
    fn length(&self) -> u64;

    /// Fills `buf` with what is there.
    ///
    /// # Errors
    /// What the disk says.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// What the disk says.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Returns when all that was written is on the medium.
    ///
    /// # Errors
    /// What the disk says, also about earlier writes.
    fn sync(&self) -> io::Result<()>;
}

/// The root filesystem's area of an open disk.
#[derive(Debug)]
pub struct Area<'d> {
    buffered: &'d File,
    direct: &'d File,
    is_direct: AtomicBool,
    area: RootArea,
}

impl<'d> Area<'d> {
    /// `direct` is the same disk as `buffered`, opened with `O_DIRECT`, or like it where that
    /// was refused.
    #[must_use]
    pub fn new(buffered: &'d File, direct: &'d File, area: RootArea) -> Self {
        let is_direct = rustix::fs::fcntl_getfl(direct).is_ok_and(|flags| flags.contains(OFlags::DIRECT));
        Self { buffered, direct, is_direct: AtomicBool::new(is_direct), area }
    }

    /// The place on the disk of a range of the area.
    fn place(&self, offset: u64, length: usize) -> io::Result<u64> {
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.area.length);
        end.map(|_| self.area.offset + offset)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "outside of the root partition"))
    }

    /// Some disks and filesystems take the flag and then refuse what it means.
    fn refused(&self, error: &io::Error) -> bool {
        Errno::from_io_error(error) == Some(Errno::INVAL) && self.is_direct.swap(false, Relaxed)
    }
}

impl Medium for Area<'_> {
    fn length(&self) -> u64 {
        self.area.length
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let place = self.place(offset, buf.len())?;
        if self.is_direct.load(Relaxed) {
            match self.direct.read_exact_at(buf, place) {
                Err(e) if self.refused(&e) => {}
                done => return done,
            }
        }
        self.buffered.read_exact_at(buf, place)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let place = self.place(offset, bytes.len())?;
        if self.is_direct.load(Relaxed) {
            match self.direct.write_all_at(bytes, place) {
                Err(e) if self.refused(&e) => {}
                done => return done,
            }
        }
        self.buffered.write_all_at(bytes, place)?;
        // Starts the write now instead of at the end; only a hint, so a refusal is no matter.
        let length = std::num::NonZeroU64::new(bytes.len() as u64);
        let _ = rustix::fs::fadvise(self.buffered, place, length, Advice::DontNeed);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.buffered.sync_data()
    }
}

/// A buffer that begins at an address that direct writes allow.
#[derive(Debug)]
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    /// So many bytes of zeros.
    pub(crate) fn new(length: usize) -> Self {
        let bytes = vec![0; length + ALIGN];
        // Zero is right for the one case in which there is no answer; then writes are buffered.
        let start = Some(bytes.as_ptr().align_offset(ALIGN)).filter(|s| *s < ALIGN).unwrap_or(0);
        Self { bytes, start }
    }

    /// Its first `length` bytes, or fewer if it is shorter.
    pub(crate) fn first(&self, length: usize) -> &[u8] {
        let rest = self.bytes.get(self.start..).unwrap_or_default();
        rest.get(..length).unwrap_or(rest)
    }

    /// Its first `length` bytes, or fewer if it is shorter.
    pub(crate) fn first_mut(&mut self, length: usize) -> &mut [u8] {
        let rest = self.bytes.get_mut(self.start..).unwrap_or_default();
        let length = length.min(rest.len());
        rest.get_mut(..length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned() {
        for length in [4096, 4 << 20] {
            let mut buffer = Aligned::new(length);
            assert_eq!(buffer.first(length).as_ptr().align_offset(ALIGN), 0);
            assert_eq!(buffer.first_mut(length).len(), length);
            assert_eq!(buffer.first(17).len(), 17);
        }
    }

    #[test]
    fn a_refused_direct_write_is_written_in_the_ordinary_way() {
        use std::os::unix::fs::OpenOptionsExt;
        // Beside this program, which is on a disk: not every filesystem in memory can write directly.
        let file =
            tempfile::NamedTempFile::new_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let flags = OFlags::DIRECT.bits().cast_signed();
        let direct = File::options().read(true).write(true).custom_flags(flags).open(file.path()).unwrap();
        // No disk writes at such a place directly.
        let area = Area::new(file.as_file(), &direct, RootArea { offset: 100, length: 1 << 20 });
        let mut buffer = Aligned::new(8192);
        buffer.first_mut(8192).fill(7);
        area.write_at(4096, buffer.first(8192)).unwrap();
        area.sync().unwrap();
        let mut back = Aligned::new(4096);
        area.read_at(8192, back.first_mut(4096)).unwrap();
        assert_eq!(back.first(4096), [7; 4096]);
        assert_eq!(std::fs::read(file.path()).unwrap().iter().position(|b| *b == 7), Some(4196));
    }

    #[test]
    fn nothing_outside_of_the_area_is_touched() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 10).unwrap();
        let area = Area::new(&file, &file, RootArea { offset: 8192, length: 16_384 });
        assert!(area.write_at(16_384, &[1; 4096]).is_err());
        assert!(area.write_at(u64::MAX - 4095, &[1; 4096]).is_err());
        assert!(area.read_at(12_288, &mut [0; 8192]).is_err());
        area.write_at(12_288, &[1; 4096]).unwrap();
        area.sync().unwrap();
        let mut all = vec![0; 64 << 10];
        file.read_exact_at(&mut all, 0).unwrap();
        assert!(all[20_480..24_576].iter().all(|b| *b == 1));
        assert_eq!(all.iter().filter(|b| **b != 0).count(), 4096);
    }
}
