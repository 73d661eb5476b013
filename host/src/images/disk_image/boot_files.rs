//! Files in the boot partition of an image, a FAT filesystem. Nothing is written, and as much is read as a sound one
//! needs: its chains may lead round in circles.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};

use anyhow::{Context, ensure};
use fatfs::{FileSystem, FsOptions};

use super::area::Area;
use super::fat;
use crate::images::output::Output;

/// As much is read of it in all, in bytes.
const READ_MAX: u64 = 64 << 20;
/// As much is read when files are taken from it.
const EXTRACT_MAX: u64 = 4 << 30;
/// Folders in one another that are looked into.
const DEPTH_MAX: u32 = 8;
/// The longest file that is read, in bytes.
const FILE_MAX: u64 = 64 << 10;

/// The partition as fatfs wants it.
struct Disk<'f> {
    area: Area<'f>,
    at: u64,
    left: u64,
}

impl Read for Disk<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let length =
            buf.len().min(usize::try_from(self.area.length().saturating_sub(self.at)).unwrap_or(usize::MAX));
        self.left =
            self.left.checked_sub(length as u64).ok_or_else(|| io::Error::other("its chains have no end"))?;
        self.area.read(self.at, buf.get_mut(..length).unwrap_or_default())?;
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for Disk<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.area.length().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        // Where it may never end without reading.
        self.left = self.left.checked_sub(1).ok_or_else(|| io::Error::other("its chains have no end"))?;
        self.at = at.ok_or(ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

impl Write for Disk<'_> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `None` if it is not sound. At most `most` bytes are read of it.
fn open(partition: Area<'_>, most: u64) -> Option<FileSystem<Disk<'_>>> {
    let sound = fat::is_sound(&partition);
    sound.then(|| FileSystem::new(Disk { area: partition, at: 0, left: most }, FsOptions::new()).ok())?
}

/// Takes the files that are wanted; they are called as in the booted system, at `boot/firmware/`.
pub(super) fn extract(partition: Area<'_>, output: &mut Output<'_>) -> anyhow::Result<()> {
    let fs = open(partition, EXTRACT_MAX).context("the boot partition is damaged")?;
    let mut folders = vec![(fs.root_dir(), "boot/firmware".to_owned(), 0)];
    while let Some((folder, path, depth)) = folders.pop() {
        for entry in folder.iter() {
            let entry = entry.context("reading the boot partition")?;
            let (name, bytes) = (entry.file_name(), entry.len());
            let path = format!("{path}/{name}");
            if matches!(&*name, "." | "..") {
                continue;
            }
            if entry.is_dir() {
                ensure!(depth < DEPTH_MAX, "there are too many folders in one another in the boot partition");
                folders.push((entry.to_dir(), path, depth + 1));
            } else if let Some(to) = output.wants(&path) {
                output.put(to, bytes, &mut entry.to_file())?;
            }
        }
    }
    Ok(())
}

/// What the boot partition says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BootFiles {
    /// The names at its top, in lower case.
    pub(super) names: Vec<String>,
    /// The kernel's command line.
    pub(super) command_line: Option<String>,
}

impl BootFiles {
    /// `None` if it cannot be read.
    pub(super) fn read(partition: Area<'_>) -> Option<Self> {
        let fs = open(partition, READ_MAX)?;
        let mut files = Self::default();
        for entry in fs.root_dir().iter() {
            let entry = entry.ok()?;
            let name = entry.file_name().to_lowercase();
            if name == "cmdline.txt" && entry.is_file() && entry.len() <= FILE_MAX {
                let mut text = Vec::new();
                entry.to_file().take(FILE_MAX).read_to_end(&mut text).ok()?;
                files.command_line = Some(String::from_utf8_lossy(&text).trim().to_owned());
            }
            files.names.push(name);
        }
        Some(files)
    }

    /// Whether a Pi's firmware boots from it.
    pub(super) fn boots(&self) -> bool {
        let is_one = |name: &String| {
            matches!(&**name, "config.txt" | "cmdline.txt" | "bootcode.bin" | "tryboot.txt" | "autoboot.txt")
                || (name.starts_with("start") && name.ends_with(".elf"))
        };
        self.names.iter().any(is_one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A FAT32 filesystem in a file, filled by `fill`.
    fn made(fill: impl FnOnce(&fatfs::Dir<'_, std::fs::File>)) -> std::fs::File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(48 << 20).unwrap();
        let options =
            fatfs::FormatVolumeOptions::new().fat_type(fatfs::FatType::Fat32).bytes_per_cluster(512);
        fatfs::format_volume(&file, options).unwrap();
        let fs = FileSystem::new(file.try_clone().unwrap(), FsOptions::new()).unwrap();
        fill(&fs.root_dir());
        fs.unmount().unwrap();
        file
    }

    #[test]
    fn the_command_line_and_the_names() {
        let file = made(|root| {
            root.create_file("CMDLINE.TXT").unwrap().write_all(b"root=PARTUUID=1 resize\n").unwrap();
            root.create_file("kernel8.img").unwrap();
        });
        let files = BootFiles::read(Area::new(&file, 48 << 20)).unwrap();
        assert_eq!(files.command_line.as_deref(), Some("root=PARTUUID=1 resize"));
        assert_eq!(files.names, ["cmdline.txt", "kernel8.img"]);
        assert!(files.boots());
        assert!(!BootFiles::default().boots());
        assert_eq!(BootFiles::read(Area::new(&file, 1 << 20)), None);
    }

    #[test]
    fn a_chain_that_leads_round_in_a_circle_has_an_end_here() {
        use std::os::unix::fs::FileExt;
        let file = made(|root| {
            for i in 0..40 {
                root.create_file(&format!("a file with a long name {i}")).unwrap();
            }
        });
        let mut boot = [0; 512];
        file.read_exact_at(&mut boot, 0).unwrap();
        let [reserved, size] = [14, 36].map(|at| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]])));
        // The root directory's second cluster leads back to it.
        let mut next = [0; 4];
        file.read_exact_at(&mut next, reserved * 512 + 8).unwrap();
        let second = u64::from(u32::from_le_bytes(next) & 0x0fff_ffff);
        assert!((3..1000).contains(&second), "the directory has two clusters");
        for fat in 0..2 {
            file.write_all_at(&2_u32.to_le_bytes(), (reserved + fat * size) * 512 + second * 4).unwrap();
        }
        let area = Area::new(&file, 48 << 20);
        assert_eq!(BootFiles::read(area), None);
        // What is used is known all the same.
        assert!(!fat::used(&area).unwrap().0.is_empty());
    }
}
