//! Raw disk images, kept as what is used of them: unpacked once into a file with holes in the state folder. The same
//! image gets the same identity however it was packed, and whatever is in its free blocks.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustix::fs::{FallocateFlags, fallocate, fstatvfs};

use super::{Imported, Kept, UNPACKED_MAX};
use crate::images::disk_image::{Bmap, DiskImage, is_zero, write_trailer};
use crate::images::import::Form;
use crate::sys::files::is_full;
use crate::text::human;

/// As much is read at once; zeros are left out in blocks.
const PIECE: usize = 1 << 20;
const BLOCK: u64 = piman_core::install::table::BLOCK;

/// Endings of packed files.
const PACKED: [&str; 6] = ["xz", "gz", "zst", "zstd", "bz2", "zip"];

/// What a copy of a disk image is made with.
#[derive(Clone, Copy)]
pub(super) struct Order<'a> {
    /// What is copied, in words.
    pub(super) shown: &'a str,
    pub(super) state: &'a Path,
    pub(super) name: &'a str,
    pub(super) bmap: Option<&'a Bmap>,
}

/// The bmap beside a file, as `x.img.bmap` or `x.bmap` for `x.img.xz`.
pub(super) fn bmap_beside(file: &Path) -> anyhow::Result<Option<Bmap>> {
    let mut stem = file.to_path_buf();
    if stem.extension().is_some_and(|e| PACKED.iter().any(|packed| e.eq_ignore_ascii_case(packed))) {
        stem.set_extension("");
    }
    let mut whole = stem.clone().into_os_string();
    whole.push(".bmap");
    let found = [PathBuf::from(whole), stem.with_extension("bmap")].into_iter().find(|path| path.is_file());
    found.map(|path| Bmap::open(&path)).transpose()
}

impl Order<'_> {
    /// Takes in what `from` gives, a whole image.
    pub(super) fn unpack(&self, from: &mut dyn Read) -> anyhow::Result<Imported> {
        let kept = self.make()?;
        let (mut buf, mut total) = (vec![0; PIECE], 0);
        loop {
            let length = fill(from, &mut buf).with_context(|| format!("{} is not usable", self.shown))?;
            let piece = buf.get(..length).unwrap_or_default();
            if piece.is_empty() {
                break;
            }
            kept.write(piece, total)?;
            total += length as u64;
            ensure!(
                total <= UNPACKED_MAX,
                "{} unpacks to more than {UNPACKED_MAX} bytes, which no card holds; nothing was added",
                self.shown
            );
        }
        kept.file.file().set_len(total).map_err(|e| kept.file.unwritten(&e))?;
        let image = self.read(kept.file.file(), total)?;
        kept.finish(self, &image, total)
    }

    /// Copies what is used of an image that can be read at any place: a file, or a disk.
    pub(super) fn copy(&self, from: &File, length: u64, progress: &dyn Fn(u64)) -> anyhow::Result<Imported> {
        ensure!(
            length <= UNPACKED_MAX,
            "{} has more than {UNPACKED_MAX} bytes, which no card holds; nothing was added",
            self.shown
        );
        let before = from.metadata().and_then(|m| m.modified()).ok();
        let image = self.read(from, length)?;
        let kept = self.make()?;
        let mut buf = vec![0; PIECE];
        let mut done = 0;
        for (start, end) in &image.used {
            let mut at = *start;
            while at < (*end).min(length) {
                let room = usize::try_from(end.min(&length) - at).unwrap_or(PIECE).min(PIECE);
                let piece = buf.get_mut(..room).unwrap_or_default();
                from.read_exact_at(piece, at)
                    .with_context(|| format!("reading {} at byte {at}", self.shown))?;
                kept.write(piece, at)?;
                at += room as u64;
                done += room as u64;
                progress(done);
            }
        }
        let after = from.metadata().and_then(|m| m.modified()).ok();
        ensure!(before == after, "{} was changed while it was being copied; nothing was added", self.shown);
        kept.finish(self, &image, length)
    }

    /// What is on the image, compared with its bmap.
    fn read(&self, file: &File, length: u64) -> anyhow::Result<DiskImage> {
        let unusable = || format!("{} is not usable", self.shown);
        if let Some(bmap) = self.bmap {
            bmap.verify(file, length).with_context(unusable)?;
        }
        let mapped = self.bmap.map(Bmap::mapped);
        DiskImage::read(file, length, mapped.as_deref()).with_context(unusable)
    }

    fn make(&self) -> anyhow::Result<Copy> {
        let file = Kept::new(self.state, self.name, ".img")?;
        let free = fstatvfs(file.file()).map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize));
        Ok(Copy { file, free })
    }
}

/// A copy that is being made.
struct Copy {
    file: Kept,
    /// How many bytes were free when it was begun.
    free: u64,
}

impl Copy {
    /// Writes what is not zero.
    fn write(&self, bytes: &[u8], at: u64) -> anyhow::Result<()> {
        let mut start = 0;
        let block = usize::try_from(BLOCK).unwrap_or(PIECE);
        // From the first block that is not zero to the next that is.
        for (index, part) in bytes.chunks(block).enumerate() {
            if is_zero(part) {
                self.put(bytes.get(start..index * block).unwrap_or_default(), at + start as u64)?;
                start = index * block + part.len();
            }
        }
        self.put(bytes.get(start..).unwrap_or_default(), at + start as u64)
    }

    fn put(&self, bytes: &[u8], at: u64) -> anyhow::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.file.file().write_all_at(bytes, at).map_err(|e| {
            if is_full(&e) {
                let (free, path) = (human::bytes(self.free), self.file.path().display());
                return anyhow::anyhow!(
                    "writing {path}: {e}: the image needs more than the {free} that were free there: free some space, \
                     or use another --state; nothing was added"
                );
            }
            self.file.unwritten(&e)
        })
    }

    /// Makes a hole of all that is not used, and brings it to the disk.
    fn finish(self, order: &Order<'_>, image: &DiskImage, length: u64) -> anyhow::Result<Imported> {
        let file = self.file.file();
        // Whole blocks are read of it.
        let whole = length.max(image.bytes).next_multiple_of(BLOCK);
        // Where it changes nothing, as with filesystems that say themselves what they use, the copy is the same without.
        let changes =
            |_: &&Bmap| DiskImage::read(file, length, None).map_or(true, |plain| plain.used != image.used);
        let bmap = order.bmap.filter(changes);
        let finish = || -> io::Result<()> {
            file.set_len(whole)?;
            for (at, bytes) in &image.repair {
                file.write_all_at(bytes, *at)?;
            }
            let mut at = 0;
            for (start, end) in image.used.iter().copied().chain([(whole, whole)]) {
                punch(file, at, start)?;
                at = end;
            }
            match bmap {
                Some(bmap) => write_trailer(file, whole, &bmap.mapped()),
                None => Ok(()),
            }
        };
        finish().map_err(|e| self.file.unwritten(&e))?;
        self.file.sync()?;
        let repaired = image.fitness.findings.iter().filter(|f| f.is_repaired());
        let notes = repaired.map(ToString::to_string).collect();
        Ok(Imported {
            path: self.file.path().into(),
            form: Form::DiskImage,
            what: None,
            kept: Some(self.file),
            notes,
        })
    }
}

/// Makes zeros of these bytes that take no room, if the filesystem can.
fn punch(file: &File, start: u64, end: u64) -> io::Result<()> {
    if start >= end {
        return Ok(());
    }
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, hole, start, end - start) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP) => {
            let zeros = vec![0; PIECE];
            let mut at = start;
            while at < end {
                let length = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
                file.write_all_at(zeros.get(..length).unwrap_or_default(), at)?;
                at += length as u64;
            }
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

/// Reads until the buffer is full or there is no more.
fn fill(from: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = buf.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(length)
}

/// A disk or card reader: read only, and while nobody writes to it.
pub(super) fn open_card(path: &Path) -> anyhow::Result<(File, u64)> {
    use std::io::{Seek, SeekFrom};
    use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
    let shown = path.display();
    let opening = || format!("opening {shown}");
    let mut file = File::open(path).with_context(opening)?;
    let meta = file.metadata().with_context(opening)?;
    if !meta.file_type().is_block_device() {
        bail!(
            "{shown} is no disk: name the card reader, such as /dev/sdX, or add a file without --from-card"
        );
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("reading what is mounted")?;
    if let Some(place) = devices(meta.rdev()).iter().find_map(|device| written_at(&mounts, device)) {
        bail!(
            "a partition of {shown} is mounted at {place} and may be written to: unmount it first, with `umount {place}`"
        );
    }
    // The kernel knows who else has it, or a partition of it. Who mounts it only to read changes nothing.
    let exclusive = rustix::fs::OFlags::EXCL.bits().cast_signed();
    match File::options().read(true).custom_flags(exclusive).open(path) {
        Ok(alone) => file = alone,
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => ensure!(
            devices(meta.rdev()).iter().any(|device| is_mounted(&mounts, device)),
            "{shown} is in use, by swap, a RAID, LVM, an encrypted or a btrfs filesystem, or outside of this container: \
             end that first"
        ),
        Err(e) => return Err(e).with_context(opening),
    }
    let length = file.seek(SeekFrom::End(0)).with_context(|| format!("finding the size of {shown}"))?;
    Ok((file, length))
}

/// The numbers of a disk and its partitions, as `major:minor`.
fn devices(disk: u64) -> Vec<String> {
    let number = format!("{}:{}", rustix::fs::major(disk), rustix::fs::minor(disk));
    let folder = format!("/sys/dev/block/{number}");
    let mut devices = vec![number];
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if let Ok(number) = std::fs::read_to_string(entry.path().join("dev")) {
            devices.push(number.trim().to_owned());
        }
    }
    devices
}

fn is_mounted(mounts: &str, device: &str) -> bool {
    mounts.lines().any(|line| line.split(' ').nth(2) == Some(device))
}

/// Where this device is mounted so that it may be written to, by what the kernel says of mounts.
fn written_at<'m>(mounts: &'m str, device: &str) -> Option<&'m str> {
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let is_writable = fields.last()?.split(',').any(|option| option == "rw");
        (*fields.get(2)? == device && is_writable).then(|| fields.get(4).copied())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_write_to_a_disk() {
        let mounts = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
                      37 35 98:1 / /ro ro - ext4 /dev/b ro\n38 35 98:2 / /bind ro - ext4 /dev/c rw\n";
        assert_eq!(written_at(mounts, "98:0"), Some("/mnt2"));
        assert_eq!(written_at(mounts, "98:1"), None);
        assert_eq!(written_at(mounts, "98:2"), Some("/bind"));
        assert_eq!(written_at(mounts, "98:3"), None);
    }

    #[test]
    fn zeros_take_no_room() {
        let state = tempfile::tempdir().unwrap();
        let order = Order { shown: "x", state: state.path(), name: "x", bmap: None };
        let copy = order.make().unwrap();
        let mut bytes = vec![0; 3 << 20];
        bytes[5000] = 1;
        bytes[(2 << 20) + 4095] = 2;
        bytes.push(3);
        copy.write(&bytes, 4096).unwrap();
        let mut back = vec![0; bytes.len()];
        copy.file.file().read_exact_at(&mut back, 4096).unwrap();
        assert!(back == bytes);
        use std::os::unix::fs::MetadataExt;
        assert!(copy.file.file().metadata().unwrap().blocks() <= 64);
        punch(copy.file.file(), 8192, 12288).unwrap();
        copy.file.file().read_exact_at(&mut back, 4096).unwrap();
        assert_eq!(back[5000], 0);
    }

    #[test]
    fn where_a_bmap_is_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert_eq!(bmap_beside(&path("a.img.xz")).unwrap(), None);
        std::fs::write(path("a.bmap"), "x").unwrap();
        for name in ["a.img.xz", "a.img"] {
            assert!(format!("{:#}", bmap_beside(&path(name)).unwrap_err()).contains("a.bmap is not usable"));
        }
        std::fs::write(path("a.img.bmap"), "x").unwrap();
        assert!(format!("{:#}", bmap_beside(&path("a.img.xz")).unwrap_err()).contains("a.img.bmap"));
        assert_eq!(bmap_beside(&path("b.img")).unwrap(), None);
    }
}
