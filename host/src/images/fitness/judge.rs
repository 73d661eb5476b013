//! What is wrong with a system, as far as its archive shows.

use piman_core::install::program::{INIT_PATHS, Machine};

use super::boot_folder::BootFolder;
use super::evidence::{Content, Evidence, Executable};
use super::lookup::lookup;
use super::{Finding, Fitness, MISSING_OWN_DISK, MISSING_ROOT, NO_INIT, Severity, System};
use crate::images::ext4::tree::{Id, Kind, ROOT};

/// How many kernels are named.
const KERNELS_MAX: usize = 32;
/// How many mounts of missing disks are reported.
const MOUNTS_MAX: usize = 8;

impl Evidence {
    /// What is wrong with it.
    pub(crate) fn judge(&self) -> Fitness {
        judge(self, None)
    }

    /// The same for the system of a disk image with these names, in lower case, in its boot partition.
    pub(crate) fn judge_disk(&self, boot: &[String]) -> Fitness {
        judge(self, Some(boot))
    }
}

/// Everything that is wrong, the most serious first.
fn judge(evidence: &Evidence, boot: Option<&[String]>) -> Fitness {
    let mut findings = Vec::new();
    let mut machine = None;
    match init(evidence) {
        Ok(found) => machine = found,
        // What it is instead explains it; only if nothing does, the missing init is the finding.
        Err(text) => {
            let advice = match evidence.disks {
                Some(_) => "it is no system for a Raspberry Pi",
                None => "pack a whole system for a Raspberry Pi, with `tar -C ROOT -czf rootfs.tgz .`",
            };
            let no_init = || unfit(NO_INIT, format!("{text}: {advice}"));
            findings.push(instead(evidence).unwrap_or_else(no_init));
        }
    }
    let kernels = kernels(evidence);
    findings.extend(kernel(evidence, &kernels));
    findings.extend(mounts(evidence));
    findings.extend(command_line(evidence));
    findings.sort_by_key(|f| std::cmp::Reverse(f.severity));
    let system = System::of(evidence, boot);
    Fitness { findings, machine: machine.map(|m: Machine| m.0), kernels, system }
}

fn unfit(kind: &str, text: String) -> Finding {
    Finding { severity: Severity::Unfit, kind: kind.to_owned(), text }
}

fn warning(kind: &str, text: String) -> Finding {
    Finding { severity: Severity::Warning, kind: kind.to_owned(), text }
}

/// The processor of the first init that can run on a Pi. `None`: it depends on what is not known here.
///
/// # Errors
/// What is wrong with each candidate.
fn init(evidence: &Evidence) -> Result<Option<Machine>, String> {
    let mut wrong = Vec::new();
    for path in INIT_PATHS {
        match program(evidence, path, 0) {
            Ok(machine) if machine.is_none_or(Machine::is_a_pi) => return Ok(machine),
            Ok(Some(machine)) => {
                wrong.push(format!("{path} is a program for {machine}, which no Raspberry Pi is"));
            }
            Ok(None) => {}
            Err(why) => wrong.push(format!("{path} {why}")),
        }
    }
    let is_there = |text: &&String| !INIT_PATHS.iter().any(|path| **text == format!("{path} does not exist"));
    let mut shown: Vec<_> = wrong.iter().filter(is_there).cloned().collect();
    if shown.is_empty() {
        shown.push(format!("none of {} exists", INIT_PATHS.join(", ")));
    }
    Err(format!("no program can become process 1 ({})", shown.join("; ")))
}

/// For which processor the program at `path` is, through scripts and loaders.
fn program(evidence: &Evidence, path: &str, depth: u32) -> Result<Option<Machine>, String> {
    let tree = &evidence.tree;
    let id = lookup(tree, path).map_err(|missing| missing.to_string())?;
    let Some(node) = tree.nodes.get(id) else { return Err("does not exist".into()) };
    let Kind::File { entry, size, .. } = node.kind else { return Err("is not a file".into()) };
    if node.meta.mode & 0o111 == 0 {
        return Err("is not executable".into());
    }
    if size == 0 {
        return Err("is empty".into());
    }
    let needs = |other: &str| {
        if depth > 3 {
            return Err("is a script that scripts run in a circle".into());
        }
        program(evidence, other, depth + 1).map_err(|why| format!("needs {other}, which {why}"))
    };
    match evidence.executables.get(&entry) {
        Some(Executable::Script(interpreter)) => needs(interpreter),
        Some(Executable::Elf(machine, None)) => Ok(Some(*machine)),
        Some(Executable::Elf(machine, Some(loader))) => needs(loader).map(|_| Some(*machine)),
        Some(Executable::Not(why)) => Err(why.to_string()),
        // A file with holes: its content was not looked at.
        None => Ok(None),
    }
}

/// What an archive without an init is instead.
fn instead(evidence: &Evidence) -> Option<Finding> {
    let tree = &evidence.tree;
    let Some(Kind::Directory(top)) = tree.kind(ROOT) else { return None };
    if let Ok(manifest) = lookup(tree, "/manifest.json")
        && text(evidence, manifest).is_some_and(|text| text.contains("\"Layers\""))
    {
        return Some(unfit(
            "container-image",
            "this is a container image as `docker save` writes it, not a root filesystem: `piman image add` makes one of \
             its layers"
                .into(),
        ));
    }
    if lookup(tree, "/oci-layout").is_ok() {
        return Some(unfit(
            "container-image",
            "this is a container image (OCI layout), not a root filesystem: `piman image add` makes one of its layers"
                .into(),
        ));
    }
    let inside = top.values().filter_map(|id| match tree.kind(*id) {
        Some(Kind::File { entry, .. }) => evidence.top.get(entry),
        _ => None,
    });
    for (name, content) in inside {
        let what = match content {
            Content::DiskImage => "a disk image",
            Content::Filesystem => "the image of a filesystem",
            Content::Packed if top.len() <= 3 => "another packed file",
            Content::Packed => continue,
        };
        return Some(unfit(
            "image-inside",
            format!(
                "there is {what} inside (`{}`), not a root filesystem: mount its root partition and pack what is in \
                 it, with `tar --xattrs -C MOUNTPOINT -czf rootfs.tgz .`",
                name.escape_debug()
            ),
        ));
    }
    if top.len() == 1
        && let Some((name, id)) = top.iter().next()
        && matches!(tree.kind(*id), Some(Kind::Directory(_)))
        && INIT_PATHS.iter().any(|init| lookup(tree, &format!("{name}{init}")).is_ok())
    {
        let name = name.escape_debug();
        return Some(unfit(
            "folder-on-top",
            format!(
                "everything is in one folder, `{name}`, so the Pi would have /{name}/sbin/init in place of /sbin/init: \
                 pack what is in it, with `tar --xattrs -C {name} -czf rootfs.tgz .`"
            ),
        ));
    }
    None
}

/// The kernels that there are modules for.
fn kernels(evidence: &Evidence) -> Vec<String> {
    let Ok(modules) = lookup(&evidence.tree, "/lib/modules") else { return Vec::new() };
    let Some(Kind::Directory(releases)) = evidence.tree.kind(modules) else { return Vec::new() };
    let is_directory = |id: &Id| matches!(evidence.tree.kind(*id), Some(Kind::Directory(_)));
    releases
        .iter()
        .filter(|(_, id)| is_directory(id))
        .map(|(name, _)| name.to_string())
        .take(KERNELS_MAX)
        .collect()
}

/// A kernel of its own, which boots from the card, without its modules.
fn kernel(evidence: &Evidence, kernels: &[String]) -> Option<Finding> {
    let tree = &evidence.tree;
    let Ok(boot) = lookup(tree, "/boot") else { return None };
    let Some(Kind::Directory(files)) = tree.kind(boot) else { return None };
    let missing: Vec<_> = files
        .keys()
        .filter_map(|name| name.strip_prefix("vmlinuz-"))
        .filter(|release| !kernels.iter().any(|k| k == release))
        .map(|release| release.escape_debug().to_string())
        .take(MOUNTS_MAX)
        .collect();
    (!missing.is_empty()).then(|| {
        warning(
            "kernel-without-modules",
            format!(
                "/boot has kernels without modules in /lib/modules: {}; a Pi that boots one of them may be without \
                 network or file systems",
                missing.join(", ")
            ),
        )
    })
}

fn text(evidence: &Evidence, id: Id) -> Option<&str> {
    let Some(Kind::File { entry, .. }) = evidence.tree.kind(id) else { return None };
    evidence.texts.get(entry).map(|text| &**text)
}

/// What a reference to a disk means on a card of ours.
fn on_the_card(evidence: &Evidence, device: &str) -> bool {
    if let Some(names) = &evidence.disks {
        return device == "/dev/root" || names.iter().any(|name| name.eq_ignore_ascii_case(device));
    }
    // Two partitions, without labels, with identifiers of their own; nothing else is known to be there.
    let partition = |prefix: &str| matches!(device.strip_prefix(prefix), Some("1" | "2"));
    partition("/dev/mmcblk0p") || partition("/dev/mmcblk1p") || partition("/dev/sda") || device == "/dev/root"
}

fn is_disk(device: &str) -> bool {
    let tag = device.split_once('=').map(|(tag, _)| tag.to_ascii_uppercase());
    device.starts_with("/dev/")
        || tag.is_some_and(|t| matches!(&*t, "UUID" | "PARTUUID" | "LABEL" | "PARTLABEL"))
}

/// Mounts of `/etc/fstab` that a card of ours has no disk for.
fn mounts(evidence: &Evidence) -> Vec<Finding> {
    let Some(fstab) = lookup(&evidence.tree, "/etc/fstab").ok().and_then(|id| text(evidence, id)) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    for line in fstab.lines() {
        let mut fields = line.split_whitespace();
        let (Some(device), Some(at)) = (fields.next(), fields.next()) else { continue };
        if device.starts_with('#') || !is_disk(device) || on_the_card(evidence, device) {
            continue;
        }
        let options = fields.nth(1).unwrap_or_default();
        if options.split(',').any(|o| matches!(o, "nofail" | "noauto")) || findings.len() >= MOUNTS_MAX {
            continue;
        }
        let at = at.strip_suffix('/').filter(|at| !at.is_empty()).unwrap_or(at);
        let is_own = evidence.disks.is_none() && (at == "/" || at == BootFolder::of(evidence).path);
        let kind = if is_own { MISSING_OWN_DISK } else { "missing-disk" };
        let (device, at) = (device.escape_debug(), at.escape_debug());
        findings.push(warning(
            kind,
            format!(
                "/etc/fstab mounts {device} at {at}, which will not exist on the card: the boot may stop and wait for \
                 it; remove the line, write /dev/mmcblk0p1 (boot) or /dev/mmcblk0p2 (root), or add `nofail`"
            ),
        ));
    }
    findings
}

/// A root on the kernel's command line that a card of ours has no disk for.
fn command_line(evidence: &Evidence) -> Option<Finding> {
    for path in ["/boot/firmware/cmdline.txt", "/boot/cmdline.txt"] {
        let Some(line) = lookup(&evidence.tree, path).ok().and_then(|id| text(evidence, id)) else {
            continue;
        };
        let root = line.split_whitespace().filter_map(|word| word.strip_prefix("root=")).next_back();
        if let Some(root) = root.filter(|root| is_disk(root) && !on_the_card(evidence, root)) {
            return Some(warning(
                MISSING_ROOT,
                format!(
                    "{path} says root={}, which will not exist on the card: it does not matter for a Pi that boots \
                     from the network; to boot from the card write root=/dev/mmcblk0p2",
                    root.escape_debug()
                ),
            ));
        }
    }
    None
}
