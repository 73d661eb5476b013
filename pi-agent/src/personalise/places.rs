//! The two places of a card where files are put: its root filesystem, and what the firmware boots from.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use piman_core::install::personal::Place;

use crate::card::disk::RootArea;
use crate::card::fat::{Fat, Kind};
use crate::card::root_files::{self, Access, set_access};
use crate::card::root_path::resolve;

/// Where a booted system has what the firmware boots from, the newer place first.
pub(super) const BOOT_FOLDERS: [&str; 2] = ["/boot/firmware", "/boot"];
/// By these the firmware, or a boot loader behind it, is known.
const FIRMWARE: [&str; 8] = [
    "config.txt",
    "cmdline.txt",
    "autoboot.txt",
    "bootcode.bin",
    "start.elf",
    "start4.elf",
    "kernel8.img",
    "boot.scr",
];
/// Files outside of the boot folder that name disks.
const TEXTS: [&str; 10] = [
    "/etc/fstab",
    "/etc/crypttab",
    "/etc/default/grub",
    "/etc/default/raspi-firmware",
    "/etc/default/raspi-extra-cmdline",
    "/etc/default/u-boot",
    "/etc/kernel/cmdline",
    "/etc/initramfs-tools/conf.d/resume",
    "/etc/flash-kernel/db",
    "/etc/default/flash-kernel",
];
/// How files below the boot folder end that may.
const ENDINGS: [&str; 5] = ["txt", "cfg", "conf", "cmd", "scr"];
/// How deep below the boot folder they are.
const DEPTH: usize = 3;
/// How many entries are looked at there.
const ENTRIES_MAX: usize = 20_000;

/// A card that is open.
pub(super) struct Places<'d> {
    root: Option<&'d Path>,
    fats: Vec<Fat<'d>>,
    boot: Boot,
}

/// Where [`Place::Boot`] is.
enum Boot {
    /// On one of the FAT filesystems.
    Fat(usize),
    /// In this folder of the root filesystem.
    Folder(&'static str),
    /// Nowhere, and why.
    Nowhere(String),
}

/// A text that is there.
pub(super) struct Text {
    pub(super) bytes: Vec<u8>,
    access: Option<Access>,
}

/// Whether all these FAT filesystems can be read and changed.
pub(super) fn are_readable(disk: &File, areas: &[RootArea]) -> bool {
    areas.iter().all(|area| Fat::open(disk, area).is_ok())
}

impl<'d> Places<'d> {
    /// `root` is where the root filesystem is mounted, if it is; `areas` have FAT filesystems that nobody uses.
    pub(super) fn new(disk: &'d File, areas: &[RootArea], root: Option<&'d Path>) -> Self {
        let (mut fats, mut damage) = (Vec::new(), None);
        for area in areas {
            match Fat::open(disk, area) {
                Ok(fat) => fats.push(fat),
                Err(e) => {
                    log::warn!("{e:#}");
                    damage = Some(format!("{e:#}"));
                }
            }
        }
        let names: Vec<Vec<String>> = fats.iter().map(|fat| fat.names("/").unwrap_or_default()).collect();
        let is_firmware = |name: &String| FIRMWARE.iter().any(|known| name.eq_ignore_ascii_case(known));
        let bootable = names.iter().position(|names| names.iter().any(is_firmware));
        let used = || names.iter().position(|names| !names.is_empty());
        let is_folder = |path: &str| {
            root.is_some_and(|root| resolve(root, Path::new(path)).is_ok_and(|path| path.is_dir()))
        };
        let folder = || BOOT_FOLDERS.into_iter().find(|path| is_folder(path));
        let boot = match (bootable.or_else(used), damage, folder()) {
            (Some(index), ..) => Boot::Fat(index),
            (None, Some(damage), _) => Boot::Nowhere(damage),
            (None, None, Some(folder)) => Boot::Folder(folder),
            (None, None, None) => {
                Boot::Nowhere("the card has neither a boot partition nor a folder /boot".into())
            }
        };
        Self { root, fats, boot }
    }

    /// The root filesystem.
    pub(super) fn root(&self) -> anyhow::Result<&'d Path> {
        self.root.context("the root filesystem of this card is not one that this agent can write to")
    }

    /// The FAT filesystem that is meant, or else the path in the root filesystem.
    fn find(&self, place: Place, path: &str) -> anyhow::Result<Result<&Fat<'d>, String>> {
        match (place, &self.boot) {
            (Place::Root, _) => Ok(Err(path.to_owned())),
            (Place::Boot, Boot::Folder(folder)) => Ok(Err(format!("{folder}{path}"))),
            (Place::Boot, Boot::Fat(index)) => Ok(Ok(self.fats.get(*index).context("no such partition")?)),
            (Place::Boot, Boot::Nowhere(why)) => Err(anyhow!("there is nothing to boot from: {why}")),
        }
    }

    /// A text of at most `max` bytes, if it is there.
    pub(super) fn read(&self, place: Place, path: &str, max: u64) -> anyhow::Result<Option<Text>> {
        match self.find(place, path)? {
            Ok(fat) => Ok(fat.read(path, max)?.map(|bytes| Text { bytes, access: None })),
            Err(path) => {
                let found = root_files::read(self.root()?, Path::new(&path), max)?;
                Ok(found.map(|found| Text { bytes: found.bytes, access: Some(found.access) }))
            }
        }
    }

    /// Writes a text where it was read, with the access that it had, or as one of root that all may read.
    pub(super) fn write_back(
        &self,
        place: Place,
        path: &str,
        was: Option<&Text>,
        bytes: &[u8],
    ) -> anyhow::Result<()> {
        if was.is_some_and(|text| text.bytes == bytes) {
            return Ok(());
        }
        match self.find(place, path)? {
            Ok(fat) => fat.write(path, bytes),
            Err(path) => {
                let (root, path) = (self.root()?, Path::new(&path));
                let access = was.and_then(|text| text.access).unwrap_or_else(|| Access::own(0o644));
                // A link is followed as it was read.
                let file = match resolve(root, path) {
                    Ok(file) => file,
                    Err(_) => root_files::place(root, path)?,
                };
                Ok(root_files::write(&file, access, bytes)?)
            }
        }
    }

    /// Writes a file; a link in its place goes.
    pub(super) fn write(&self, place: Place, path: &str, access: Access, bytes: &[u8]) -> anyhow::Result<()> {
        match self.find(place, path)? {
            Ok(fat) => fat.write(path, bytes),
            Err(path) => {
                let file = root_files::place(self.root()?, Path::new(&path))?;
                Ok(root_files::write(&file, access, bytes)?)
            }
        }
    }

    /// Makes a folder, or sets the access of one that is there.
    pub(super) fn folder(&self, place: Place, path: &str, access: Access) -> anyhow::Result<()> {
        match self.find(place, path)? {
            Ok(fat) => fat.folder(path),
            Err(path) => {
                let folder = root_files::folder(self.root()?, Path::new(&path))?;
                let folder = File::open(folder)?;
                if !folder.metadata()?.is_dir() {
                    bail!("it is no folder");
                }
                Ok(set_access(&folder, access)?)
            }
        }
    }

    /// Takes away a file, a link, or a whole folder, if it is there.
    pub(super) fn remove(&self, place: Place, path: &str) -> anyhow::Result<()> {
        match self.find(place, path)? {
            Ok(fat) => fat.remove(path),
            Err(path) => {
                let Some(found) = root_files::existing(self.root()?, Path::new(&path))? else {
                    return Ok(());
                };
                // No link is followed.
                let is_folder = fs::symlink_metadata(&found)?.is_dir();
                Ok(if is_folder { fs::remove_dir_all(found) } else { fs::remove_file(found) }?)
            }
        }
    }

    /// Has `change` change all texts that name disks; it returns whether it did.
    pub(super) fn each_text(
        &self,
        max: u64,
        change: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> anyhow::Result<()> {
        let mut left = ENTRIES_MAX;
        if let Some(root) = self.root {
            let mut texts: Vec<String> = TEXTS.map(String::from).to_vec();
            // What is no system may be what one of them mounts at /boot, or elsewhere.
            let is_system = resolve(root, Path::new("/etc")).is_ok_and(|path| path.is_dir());
            let folder = if is_system { "/boot" } else { "" };
            list_root(root, folder, DEPTH, &mut left, &mut texts)?;
            for path in texts {
                self.change(None, &path, max, change)?;
            }
        }
        for fat in &self.fats {
            let mut texts = Vec::new();
            list_fat(fat, "", DEPTH, &mut left, &mut texts)?;
            for path in texts {
                self.change(Some(fat), &path, max, change)?;
            }
        }
        Ok(())
    }

    fn change(
        &self,
        fat: Option<&Fat<'d>>,
        path: &str,
        max: u64,
        change: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> anyhow::Result<()> {
        let what = || format!("putting new identifiers into {path}");
        let found = match fat {
            Some(fat) => fat.read(path, max).map(|bytes| bytes.map(|bytes| Text { bytes, access: None })),
            None => self.read(Place::Root, path, max),
        };
        // What is no text, or a very long one, names no disk.
        let Ok(Some(mut text)) = found else { return Ok(()) };
        let mut bytes = std::mem::take(&mut text.bytes);
        if !change(&mut bytes) {
            return Ok(());
        }
        match fat {
            Some(fat) => fat.write(path, &bytes).with_context(what),
            None => self.write_back(Place::Root, path, Some(&text), &bytes).with_context(what),
        }
    }

    /// Writes what is only in memory.
    pub(super) fn close(self) -> anyhow::Result<()> {
        for fat in self.fats {
            fat.close().context("writing to the boot partition")?;
        }
        Ok(())
    }
}

fn is_text(name: &str) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, ending)| ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

fn list_root(
    root: &Path,
    folder: &str,
    depth: usize,
    left: &mut usize,
    texts: &mut Vec<String>,
) -> anyhow::Result<()> {
    let inside = Path::new("/").join(folder.trim_start_matches('/'));
    let Ok(real) = resolve(root, &inside) else { return Ok(()) };
    if !real.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(real)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|_| *left > 0) else { continue };
        *left -= 1;
        let path = format!("{folder}/{name}");
        if kind.is_dir() && depth > 1 {
            list_root(root, &path, depth - 1, left, texts)?;
        } else if kind.is_file() && is_text(name) {
            texts.push(path);
        }
    }
    Ok(())
}

fn list_fat(
    fat: &Fat<'_>,
    folder: &str,
    depth: usize,
    left: &mut usize,
    texts: &mut Vec<String>,
) -> anyhow::Result<()> {
    for name in fat.names(folder)? {
        if *left == 0 {
            break;
        }
        *left -= 1;
        let path = format!("{folder}/{name}");
        match fat.kind(&path)? {
            Some(Kind::Folder) if depth > 1 => list_fat(fat, &path, depth - 1, left, texts)?,
            Some(Kind::File) if is_text(&name) => texts.push(path),
            _ => {}
        }
    }
    Ok(())
}
