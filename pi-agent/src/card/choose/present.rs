//! The disks that are there, as /sys describes them.

use std::fmt;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::sysfs::read;
use super::{Bus, by_path, names};
use crate::card::disk::user_in;
use crate::telemetry::display::size;

/// Where the kernel describes its devices, and where their nodes are.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    pub(super) sys: PathBuf,
    pub(super) dev: PathBuf,
}

impl Default for Tree {
    fn default() -> Self {
        Self { sys: "/sys".into(), dev: "/dev".into() }
    }
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) path: PathBuf,
    /// Its size.
    pub(super) bytes: u64,
    pub(super) bus: Bus,
    pub(super) model: String,
    /// What it calls itself: the first is for people.
    pub(super) serials: Vec<String>,
    /// What udev calls it in /dev/disk/by-id: the first is for people.
    pub(super) ids: Vec<String>,
    /// What udev calls its place in /dev/disk/by-path.
    pub(super) place: Option<String>,
    /// Why no rule may choose it.
    pub(super) unfit: Option<String>,
}

impl Disk {
    /// What tells it from any other, in one line: its size and what it calls itself, since one on USB that comes back
    /// may have another path. One that has no name is known by its path and its place.
    pub(super) fn identity(&self) -> String {
        let mut text = format!("{} bytes", self.bytes);
        if self.serials.is_empty() {
            let place = self.place.as_deref().unwrap_or_default();
            text = format!("{text}, {} {place}", self.path.display());
        }
        for serial in &self.serials {
            text = format!("{text}, {serial}");
        }
        text
    }
}

/// `/dev/sda 57.3 GiB usb "Ultra Fit", serial 4C53, by-id=usb-...`
impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.path.display(), size(self.bytes), self.bus.word())?;
        if !self.model.is_empty() {
            write!(f, " \"{}\"", self.model)?;
        }
        if let Some(serial) = self.serials.first() {
            write!(f, ", serial {serial}")?;
        }
        if let Some(id) = self.ids.first() {
            write!(f, ", by-id={id}")?;
        }
        if let Some(why) = &self.unfit {
            write!(f, " ({why})")?;
        }
        Ok(())
    }
}

/// How the names of disks begin, beside those of cards. Others are made of something else: loop devices, RAIDs, memory.
const DISKS: [&str; 5] = ["nvme", "sd", "vd", "xvd", "hd"];

fn is_disk(name: &str) -> bool {
    // The boot partitions of an eMMC are disks of their own, and no place for a system.
    let is_number = |rest: &str| rest.bytes().all(|b| b.is_ascii_digit());
    match name.strip_prefix("mmcblk") {
        Some(rest) => is_number(rest),
        None => DISKS.iter().any(|start| name.starts_with(start)),
    }
}

impl Tree {
    /// All disks, in the order of their names.
    pub(super) fn disks(&self) -> Vec<Disk> {
        let entries = fs::read_dir(self.sys.join("block")).into_iter().flatten().flatten();
        let mut names: Vec<String> = Vec::new();
        for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
            if is_disk(&name) {
                // There are few; to sort them takes more code.
                let before = |known: &&String| (known.len(), *known) < (name.len(), &name);
                names.insert(names.iter().filter(before).count(), name);
            }
        }
        names.iter().filter_map(|name| self.disk(name)).collect()
    }

    fn disk(&self, name: &str) -> Option<Disk> {
        // The folder itself: its path says how the disk is connected.
        let folder = fs::canonicalize(self.sys.join("block").join(name)).ok()?;
        // A path to a disk that has several, and no node.
        if read(&folder, "hidden").as_deref() == Some("1") {
            return None;
        }
        let sectors: u64 = read(&folder, "size").and_then(|size| size.parse().ok()).unwrap_or(0);
        let path = self.dev.join(name);
        let bus = bus(name, &folder);
        let unfit = self.unfit(&folder, &path, sectors);
        Some(Disk {
            bus,
            bytes: sectors.saturating_mul(512),
            model: names::model(&folder),
            serials: names::serials(&folder),
            ids: names::ids(&folder, bus),
            place: by_path::of(&folder, &self.sys),
            unfit,
            path,
        })
    }

    fn unfit(&self, folder: &Path, path: &Path, sectors: u64) -> Option<String> {
        if sectors == 0 {
            return Some("no medium".into());
        }
        if read(folder, "ro").as_deref() == Some("1") {
            return Some("read-only".into());
        }
        if let Some(user) = user_in(folder) {
            return Some(user);
        }
        // What is mounted elsewhere, as outside of a container, the kernel alone knows.
        let exclusive = rustix::fs::OFlags::EXCL.bits().cast_signed();
        match fs::OpenOptions::new().read(true).custom_flags(exclusive).open(path) {
            Ok(_) => None,
            Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => Some("in use".into()),
            Err(e) => Some(e.to_string()),
        }
    }
}

/// How a disk is connected, by where its folder lies.
fn bus(name: &str, folder: &Path) -> Bus {
    let numbered =
        |part: &str, start| part.strip_prefix(start).is_some_and(|rest| rest.parse::<u32>().is_ok());
    let above = |start| folder.iter().any(|part| part.to_str().is_some_and(|part| numbered(part, start)));
    match name {
        _ if name.starts_with("mmcblk") => Bus::Mmc,
        _ if name.starts_with("nvme") => Bus::Nvme,
        _ if above("usb") => Bus::Usb,
        _ if above("ata") => Bus::Sata,
        _ => Bus::Other,
    }
}
