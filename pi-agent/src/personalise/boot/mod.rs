//! A card that boots by itself, from the boot files of its root filesystem: the firmware reads FAT alone.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustix::fs::OFlags;

use super::apply::{COMMAND_LINE, COMMAND_LINE_MAX};
use super::lines;
use super::places::BOOT_FOLDERS;
use crate::card::disk::RootArea;
use crate::card::fat::Fat;
use crate::card::root_files::{self, Access};
use crate::card::root_path::resolve;
use crate::telemetry::display::size;

/// Names in the boot folder that are copied at most.
const ENTRIES_MAX: usize = 20_000;
/// How deep its folders may be.
const DEPTH_MAX: usize = 16;
/// The largest table of filesystems, in bytes.
const FSTAB_MAX: u64 = 1 << 20;
/// The command line of a system that brings none.
const DEFAULT_LINE: &[u8] = b"console=serial0,115200 console=tty1 rootfstype=ext4 fsck.repair=yes rootwait\n";

/// What is to be copied: where from, the path on the boot partition, and its length in bytes, if it is a file.
type Entry = (PathBuf, String, Option<u64>);

/// Copies the boot files of the system at `root` to the new FAT filesystem in `area`, and has the command line and the
/// table of filesystems name the partitions, `boot` and then `main`, by their identifiers.
///
/// # Errors
/// If there are no boot files, they have no room, or something cannot be read or written.
pub(super) fn fill(
    disk: &File,
    area: &RootArea,
    root: &Path,
    (boot, main): (&str, &str),
) -> anyhow::Result<()> {
    let (inside, folder) = source(root)?;
    let mut entries = Vec::new();
    list(root, &folder, "", DEPTH_MAX, &mut entries)?;
    let fat = Fat::to_fill(disk, area)?;
    let needed: u64 =
        entries.iter().map(|(.., length)| length.unwrap_or(1).next_multiple_of(fat.cluster())).sum();
    let room = fat.free()?;
    ensure!(
        needed <= room,
        "the boot files in {inside} have {}, and the boot partition has room for {}: give the image a larger boot \
         partition",
        size(needed),
        size(room)
    );
    for (source, path, length) in &entries {
        let what = || format!("copying {inside}{path} to the boot partition");
        match length {
            None => fat.folder(path),
            Some(_) => {
                let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
                let mut file =
                    OpenOptions::new().read(true).custom_flags(flags).open(source).with_context(what)?;
                fat.copy(path, &mut file)
            }
        }
        .with_context(what)?;
    }
    let line = fat.read(COMMAND_LINE, COMMAND_LINE_MAX).context("reading the kernel's command line")?;
    let line = line.as_deref().filter(|line| !line.trim_ascii().is_empty()).unwrap_or(DEFAULT_LINE);
    let word = format!("root=PARTUUID={main}");
    fat.write(COMMAND_LINE, &lines::with_word(line, b"root", word.as_bytes()))?;
    fat.close().context("writing to the boot partition")?;
    mounts(root, inside, (boot, main)).context("writing /etc/fstab")
}

/// The folder with the boot files: its path in the system, and outside of it.
fn source(root: &Path) -> anyhow::Result<(&'static str, PathBuf)> {
    for inside in BOOT_FOLDERS {
        if let Ok(folder) = resolve(root, Path::new(inside))
            && folder.is_dir()
            && fs::read_dir(&folder)?.next().is_some()
        {
            return Ok((inside, folder));
        }
    }
    bail!("the image is to boot from the card, and has no boot files in /boot/firmware or /boot")
}

/// All that is in a folder. Links are followed: FAT has none.
fn list(root: &Path, folder: &Path, at: &str, depth: usize, entries: &mut Vec<Entry>) -> anyhow::Result<()> {
    ensure!(
        depth > 0,
        "the folder with the boot files has too many folders in each other, or links in a ring"
    );
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            bail!("{} has a name that is no text", entry.path().display())
        };
        let path = format!("{at}/{name}");
        ensure!(entries.len() < ENTRIES_MAX, "there are more than {ENTRIES_MAX} boot files");
        let inside = Path::new("/").join(entry.path().strip_prefix(root)?);
        let Ok(real) = resolve(root, &inside) else {
            log::warn!("{path} is not copied to the boot partition: it is a link that leads nowhere");
            continue;
        };
        let meta = fs::symlink_metadata(&real)?;
        if meta.is_dir() {
            entries.push((real.clone(), path.clone(), None));
            list(root, &real, &path, depth - 1, entries)?;
        } else if meta.is_file() {
            entries.push((real, path, Some(meta.len())));
        } else {
            log::warn!("{path} is not copied to the boot partition: it is no file");
        }
    }
    Ok(())
}

fn mounts(root: &Path, inside: &str, (boot, main): (&str, &str)) -> anyhow::Result<()> {
    let path = Path::new("/etc/fstab");
    let found = root_files::read(root, path, FSTAB_MAX)?;
    let (bytes, access) = match &found {
        Some(found) => (found.bytes.as_slice(), found.access),
        None => (&[][..], Access::own(0o644)),
    };
    let main = format!("PARTUUID={main}");
    let table = lines::with_mount(bytes, &main, "/", ("ext4", "defaults,noatime\t0\t1"));
    let table = lines::with_mount(&table, &format!("PARTUUID={boot}"), inside, ("vfat", "defaults\t0\t2"));
    let file = match found {
        Some(found) => found.file,
        None => root_files::place(root, path)?,
    };
    Ok(root_files::write(&file, access, &table)?)
}

#[cfg(test)]
mod tests;
