//! Whether the system of an image can run on a Pi, judged as that of an archive, and what else is remarkable.

use mkext4::spec::Inode;
use mkext4::spec::inode::FileType;
use piman_core::archive::{Entry, File, Kind, Time};

use super::Part;
use super::area::Area;
use super::boot_files::BootFiles;
use super::ext4::Unread;
use super::files::Files;
use super::filesystem::FilesystemKind;
use super::system::{System, names};
use super::table::Table;
use crate::images::ext4::Error;
use crate::images::fitness::{self, Evidence, Finding, Fitness, RootAccess, Severity};

fn warning(kind: &str, text: String) -> Finding {
    Finding { severity: Severity::Warning, kind: kind.into(), text }
}

/// All findings. `whole`: partitions that are copied whole although their filesystem is known.
pub(super) fn fitness(
    image: &Area<'_>,
    table: &Table,
    parts: &[Part],
    system: &System<'_>,
    whole: &[(u8, String)],
) -> Fitness {
    let mut findings = Vec::new();
    if !table.repair.is_empty() {
        findings.push(Finding::broken_table());
    }
    for (number, why) in whole {
        findings.push(warning("copied-whole", format!("all of partition {number} is copied: {why}")));
    }
    for part in parts.iter().filter(|p| !matches!(p.filesystem, FilesystemKind::Ext | FilesystemKind::Fat)) {
        let (number, name) = (part.number, part.filesystem.name());
        findings.push(warning(
            "copied-whole",
            format!(
                "all of partition {number} is copied: which blocks of {name} are used is not understood here"
            ),
        ));
    }
    if system.boot.is_none() {
        findings.push(warning(
            "no-boot-partition",
            "it has no partition that a Pi's firmware boots from (FAT, with config.txt): such a Pi needs to boot from \
             the network"
                .into(),
        ));
    }
    let root = system.command_line.as_deref().and_then(|line| missing_root(line, parts));
    findings.extend(root);
    let unread = || fitness::System::unread(parts.iter().map(|part| part.name.as_str()), &system.boot_names);
    let judged = match (&system.files, system.root) {
        (Some(files), Some(number)) => judge(files, parts, &system.boot_names).unwrap_or_else(|e| {
            let text =
                format!("the files of partition {number} cannot all be read, so it is not judged: {e:#}");
            Fitness { findings: vec![warning("not-judged", text)], system: unread(), ..Fitness::default() }
        }),
        (_, Some(number)) => {
            let text = format!(
                "the root filesystem is partition {number}, which cannot be read here, so that nobody knows whether it \
                 can run on a Pi"
            );
            Fitness { findings: vec![warning("not-judged", text)], system: unread(), ..Fitness::default() }
        }
        (_, None) => {
            let (kind, text) = match holds_something(image, parts) {
                true => ("no-root", "no partition is found that has a root filesystem (/etc and an init)"),
                false => ("empty", "its partitions are empty"),
            };
            let severity = if kind == "empty" { Severity::Unfit } else { Severity::Warning };
            Fitness {
                findings: vec![Finding { severity, kind: kind.into(), text: text.into() }],
                system: unread(),
                ..Fitness::default()
            }
        }
    };
    findings.extend(judged.findings);
    let is_damaged = system.files.is_some() && judged.system.root != RootAccess::Writable;
    let access = root_access(parts, system, is_damaged);
    if let RootAccess::Closed(why) = &access {
        findings.push(warning(
            "closed-root",
            format!(
                "agents cannot write into its root filesystem: {why}; Pis get it only if their profile has identity = \
                 \"keep\", and nothing for that filesystem"
            ),
        ));
    }
    findings.sort_by_key(|f| std::cmp::Reverse(f.severity));
    let mut judged = Fitness { findings, ..judged };
    judged.system.root = access;
    judged.system.boot.has_place |= has_boot_partition(image, parts);
    judged
}

/// Filesystems of systems that write, which agents do not know.
const UNKNOWN_ROOTS: [&str; 4] = ["btrfs", "XFS", "F2FS", "LUKS"];
/// Filesystems that nobody writes to.
const READ_ONLY: [&str; 2] = ["SquashFS", "EROFS"];

/// What agents can do with the root filesystem. `is_damaged`: not all its files can be read.
fn root_access(parts: &[Part], system: &System<'_>, is_damaged: bool) -> RootAccess {
    let closed = |part: &Part| {
        format!("partition {} is {}, and they know ext4 only", part.number, part.filesystem.name())
    };
    let root = parts.iter().find(|part| Some(part.number) == system.root);
    let is_one_of = |part: &Part, names: &[&str]| names.contains(&part.filesystem.name());
    match root {
        Some(part) if part.filesystem == FilesystemKind::Ext => {
            let number = part.number;
            match system.unread.iter().find(|(unread, _)| *unread == number) {
                Some((_, Unread::Unknown(why))) => RootAccess::Unseen(format!("partition {number} {why}")),
                None if !is_damaged => RootAccess::Writable,
                _ => RootAccess::Closed(format!("partition {number} is damaged")),
            }
        }
        Some(part) if is_one_of(part, &READ_ONLY) => RootAccess::Nothing(format!(
            "partition {} is {}, which nobody can write to",
            part.number,
            part.filesystem.name()
        )),
        Some(part) => RootAccess::Closed(closed(part)),
        None => match parts.iter().find(|part| is_one_of(part, &UNKNOWN_ROOTS)) {
            Some(part) => RootAccess::Closed(closed(part)),
            None => RootAccess::Nothing("no root filesystem is found".into()),
        },
    }
}

/// Whether an agent finds a partition for boot files: a FAT one with something in it.
fn has_boot_partition(image: &Area<'_>, parts: &[Part]) -> bool {
    let fats = parts.iter().filter(|part| part.filesystem == FilesystemKind::Fat);
    let mut read = fats.filter_map(|part| BootFiles::read(image.part(part.start, part.length)));
    read.any(|files| !files.names.is_empty())
}

/// Whether any partition begins with something.
fn holds_something(image: &Area<'_>, parts: &[Part]) -> bool {
    let begins = |part: &Part| {
        let head = image.part(part.start, part.length).not_zero(0, 1 << 20, super::BLOCK);
        head.map_or(true, |runs| !runs.is_empty())
    };
    parts.iter().any(begins)
}

/// A command line that names a partition that is not there.
fn missing_root(line: &str, parts: &[Part]) -> Option<Finding> {
    let root = line.split_whitespace().filter_map(|word| word.strip_prefix("root=")).next_back()?;
    let is_there = root == "/dev/root"
        || parts.iter().any(|part| names(part).any(|name| name.eq_ignore_ascii_case(root)));
    let is_local = root.starts_with("/dev/") || root.contains('=');
    (is_local && !is_there && root != "/dev/nfs" && root != "/dev/ram0").then(|| {
        let root = root.escape_debug();
        warning("missing-root", format!("its command line says root={root}, which none of its partitions is"))
    })
}

fn judge(files: &Files<'_>, parts: &[Part], boot: &[String]) -> anyhow::Result<Fitness> {
    let mut evidence = Evidence::of_disk(parts.iter().flat_map(names).collect());
    files.walk(|path, _, inode| {
        let Some(kind) = kind(files, inode)? else { return Ok(()) };
        let entry = Entry {
            path: path.to_vec(),
            kind,
            mode: u32::from(inode.mode & 0o7777),
            uid: inode.uid,
            gid: inode.gid,
            mtime: Time { seconds: 0, nanos: 0 },
            xattrs: Vec::new(),
        };
        let head = |most| files.head(inode, most).map_err(|e| Error::Wrong(format!("{e:#}")));
        match evidence.note(entry, head) {
            // Names that an archive cannot have do no harm here.
            Err(Error::NotUtf8 { .. } | Error::Entry { .. }) => Ok(()),
            noted => Ok(noted?),
        }
    })?;
    Ok(evidence.judge_disk(boot))
}

fn kind(files: &Files<'_>, inode: &Inode) -> anyhow::Result<Option<Kind>> {
    let (major, minor) = inode.dev_numbers().unwrap_or_default();
    Ok(Some(match inode.file_type() {
        FileType::Regular => Kind::File(File { size: inode.size.min(1 << 43), sparse: None }),
        FileType::Dir => Kind::Directory,
        FileType::Symlink => Kind::Symlink(files.target(inode)?),
        FileType::CharDev => Kind::CharDevice { major, minor },
        FileType::BlockDev => Kind::BlockDevice { major, minor },
        FileType::Fifo => Kind::Fifo,
        FileType::Socket | FileType::Unknown => return Ok(None),
    }))
}
