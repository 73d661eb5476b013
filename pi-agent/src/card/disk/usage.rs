//! What the kernel knows of a disk: who uses it (mounts, swap, device mappers, loop devices), and what it calls itself.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Where the kernel describes a block device.
pub(super) fn sysfs(device: u64) -> PathBuf {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

/// What a disk calls itself: an SD card's CID, or a serial number. `device` is the number of its node.
pub(super) fn id(device: u64) -> Option<String> {
    in_folder(&sysfs(device))
}

fn in_folder(folder: &Path) -> Option<String> {
    let read = |name| fs::read_to_string(folder.join(name)).ok();
    let text = read("device/cid").or_else(|| read("device/serial")).or_else(|| read("serial"))?;
    Some(text.trim_matches(['\0', '\n', ' ']).to_owned()).filter(|t| !t.is_empty())
}

/// Who uses a disk, as the beginning of a sentence; `None` if nobody does.
pub(super) fn user_of(path: &Path, device: bool) -> anyhow::Result<Option<String>> {
    let meta = fs::metadata(path).context("there is no such disk")?;
    Ok(if device { user_in(&sysfs(meta.rdev())) } else { loop_on(path) })
}

/// Who uses the disk that the kernel describes in this folder, as the beginning of a sentence; `None` if nobody does.
pub(crate) fn user_in(disk: &Path) -> Option<String> {
    let mut parts = vec![disk.to_owned()];
    for entry in fs::read_dir(disk).into_iter().flatten().flatten() {
        if entry.path().join("partition").exists() {
            parts.push(entry.path());
        }
    }
    for part in parts {
        let number = fs::read_to_string(part.join("dev")).unwrap_or_default();
        let number = number.trim();
        let name =
            fs::canonicalize(&part).ok().and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
        let name = name.unwrap_or_else(|| number.to_owned());
        if let Some(place) = mounted_at(number, &name) {
            return Some(format!("/dev/{name} is mounted at {place}"));
        }
        if swaps(&name) {
            return Some(format!("/dev/{name} is used as swap"));
        }
        if let Some(holder) = fs::read_dir(part.join("holders")).ok().and_then(|mut d| d.next()?.ok()) {
            return Some(format!("/dev/{name} is used by {}", holder.file_name().display()));
        }
    }
    None
}

/// Where a device with the number `major:minor` and this name is mounted. Some filesystems, as btrfs, have a number of
/// their own, and name the device only.
fn mounted_at(number: &str, name: &str) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let node = format!("/dev/{name}");
    mounts.lines().find_map(|line| {
        let (what, from) = line.split_once(" - ")?;
        let mut words = what.split(' ');
        let is_it = words.nth(2)? == number || from.split(' ').nth(1) == Some(&node);
        is_it.then(|| words.nth(1).unwrap_or("?").to_owned())
    })
}

fn swaps(name: &str) -> bool {
    let device = format!("/dev/{name}");
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    swaps.lines().skip(1).any(|l| l.split_whitespace().next() == Some(&device))
}

/// The loop device that is made of a file.
fn loop_on(path: &Path) -> Option<String> {
    let path = fs::canonicalize(path).ok()?;
    for entry in fs::read_dir("/sys/block").ok()?.flatten() {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(backing.trim_end_matches('\n')) == path {
            return Some(format!("/dev/{} is made of it", entry.file_name().display()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_card_calls_itself() {
        let folder = std::env::temp_dir().join(format!("card-{}", std::process::id()));
        fs::create_dir_all(folder.join("device")).unwrap();
        assert_eq!(in_folder(&folder), None);
        fs::write(folder.join("serial"), "disk 1\n").unwrap();
        assert_eq!(in_folder(&folder).as_deref(), Some("disk 1"));
        fs::write(folder.join("device/cid"), "02544d53413136471087f2b1c0011700\n").unwrap();
        assert_eq!(in_folder(&folder).as_deref(), Some("02544d53413136471087f2b1c0011700"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
