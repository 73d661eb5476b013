//! Where an image's root filesystem is, what a Pi's firmware boots from, and how the root comes to fill the card.

use std::fmt;

use piman_core::install::program::INIT_PATHS;

use super::Part;
use super::area::Area;
use super::boot_files::BootFiles;
use super::ext4::Unread;
use super::files::Files;
use super::filesystem::FilesystemKind;

/// How the root filesystem comes to fill the card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Growth {
    /// The system does it at its first boot, by this.
    Own(String),
    /// The last partition, an ext4 filesystem, can be grown when it is installed.
    Last,
    /// It stays as large as it is.
    None,
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(by) => write!(f, "grows by itself at its first boot ({by})"),
            Self::Last => f.write_str("is grown when it is installed (the last partition)"),
            Self::None => f.write_str("does not grow"),
        }
    }
}

/// Files by which a root filesystem grows, and what they belong to.
const GROWERS: [(&str, &str); 8] = [
    ("/usr/bin/growpart", "cloud-init with growpart"),
    ("/usr/libexec/hassos-expand", "hassos-expand"),
    ("/usr/sbin/hassos-expand", "hassos-expand"),
    ("/boot/dietpi.txt", "DietPi"),
    ("/boot/dietpi/.installed", "DietPi"),
    ("/usr/lib/armbian/armbian-resize-filesystem", "armbian-resize-filesystem"),
    ("/etc/init.d/resize2fs_once", "resize2fs_once"),
    ("/etc/systemd/system/multi-user.target.wants/rpi-resizerootfs.service", "rpi-resizerootfs"),
];

/// What there is to boot.
pub(super) struct System<'f> {
    pub(super) root: Option<u8>,
    pub(super) boot: Option<u8>,
    pub(super) growth: Growth,
    /// The ext4 filesystems that cannot be read here, by their numbers, and why.
    pub(super) unread: Vec<(u8, Unread)>,
    /// The files of the root filesystem, if they can be read here.
    pub(super) files: Option<Files<'f>>,
    /// What the kernel's command line says, where there is one.
    pub(super) command_line: Option<String>,
    /// The names at the top of the boot partition, in lower case.
    pub(super) boot_names: Vec<String>,
}

impl<'f> System<'f> {
    pub(super) fn find(image: &Area<'f>, parts: &[Part]) -> Self {
        let area = |part: &Part| image.part(part.start, part.length);
        let of = |kind| parts.iter().filter(move |p| p.filesystem == kind);
        let read = |part: &Part| Some((part.number, BootFiles::read(area(part))?));
        let (boot, boot_files) =
            of(FilesystemKind::Fat).filter_map(read).find(|(_, files)| files.boots()).unzip();
        let boot_files: BootFiles = boot_files.unwrap_or_default();
        let (mut roots, mut unread) = (Vec::<(u8, Files<'f>)>::new(), Vec::new());
        for part in of(FilesystemKind::Ext) {
            match Files::open(area(part)) {
                Ok(files) if is_root(&files) => roots.push((part.number, files)),
                Ok(_) => {}
                Err(why) => unread.push((part.number, why)),
            }
        }
        // Of two systems the one that is booted.
        let named = boot_files.command_line.as_deref().and_then(|line| named_root(line, parts));
        let place = roots.iter().position(|(number, _)| Some(*number) == named);
        let (root, files) = match place {
            Some(place) => Some(roots.swap_remove(place)),
            None if named.is_some() && roots.is_empty() => None,
            None => roots.into_iter().next(),
        }
        .unzip();
        let growth = growth(parts, &boot_files, files.as_ref());
        let BootFiles { names: boot_names, command_line } = boot_files;
        // One that only the kernel can read.
        let only = match &*unread {
            [(number, _)] => Some(*number),
            _ => None,
        };
        Self { root: root.or(named).or(only), boot, unread, growth, files, command_line, boot_names }
    }
}

fn is_root(files: &Files<'_>) -> bool {
    files.exists("/etc") && INIT_PATHS.iter().any(|init| files.exists(init))
}

/// What `root=` of a command line means, as a number.
fn named_root(line: &str, parts: &[Part]) -> Option<u8> {
    let root = line.split_whitespace().filter_map(|word| word.strip_prefix("root=")).next_back()?;
    parts.iter().find(|part| names(part).any(|name| name.eq_ignore_ascii_case(root))).map(|part| part.number)
}

/// What a partition is called by command lines and mount tables, on a card or a disk in its place.
pub(super) fn names(part: &Part) -> impl Iterator<Item = String> {
    let tags =
        [("PARTUUID", &part.id), ("UUID", &part.uuid), ("LABEL", &part.label), ("PARTLABEL", &part.name)];
    let tags = tags.into_iter().filter(|(_, value)| !value.is_empty());
    let tags: Vec<String> = tags.map(|(tag, value)| format!("{tag}={value}")).collect();
    let folders =
        [("partuuid", &part.id), ("uuid", &part.uuid), ("label", &part.label), ("partlabel", &part.name)];
    let folders = folders.into_iter().filter(|(_, value)| !value.is_empty());
    let folders: Vec<String> = folders.map(|(by, value)| format!("/dev/disk/by-{by}/{value}")).collect();
    let disks = ["mmcblk0p", "mmcblk1p", "sda", "sdb", "nvme0n1p"];
    let number = part.number;
    tags.into_iter().chain(folders).chain(disks.map(|disk| format!("/dev/{disk}{number}")))
}

fn growth(parts: &[Part], boot: &BootFiles, files: Option<&Files<'_>>) -> Growth {
    let words = boot.command_line.as_deref().unwrap_or_default().split_whitespace();
    for word in words {
        let is_init = word
            .strip_prefix("init=")
            .is_some_and(|init| init.ends_with("/firstboot") || init.ends_with("/init_resize.sh"));
        if word == "resize" || is_init {
            return Growth::Own(format!("`{}` on its command line", word.escape_debug()));
        }
    }
    if parts.iter().any(|part| part.name.starts_with("hassos-")) {
        return Growth::Own("hassos-expand".into());
    }
    if boot.names.iter().any(|name| name == "dietpi.txt") {
        return Growth::Own("DietPi".into());
    }
    if let Some(files) = files {
        let found = GROWERS.iter().find(|(path, what)| {
            files.exists(path) && (!what.starts_with("cloud-init") || files.exists("/etc/cloud"))
        });
        if let Some((_, what)) = found {
            return Growth::Own((*what).into());
        }
    }
    let last = parts.iter().max_by_key(|part| part.start);
    if last.is_some_and(|part| part.filesystem == FilesystemKind::Ext) { Growth::Last } else { Growth::None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: u8, filesystem: FilesystemKind) -> Part {
        Part {
            number,
            start: u64::from(number) << 20,
            length: 1 << 20,
            filesystem,
            label: format!("label{number}"),
            id: format!("5f5d7a31-{number:02}"),
            uuid: format!("E0A{number}-1234"),
            name: String::new(),
        }
    }

    #[test]
    fn the_root_of_a_command_line() {
        let parts = [part(1, FilesystemKind::Fat), part(2, FilesystemKind::Unknown)];
        for (line, root) in [
            ("console=tty1 root=PARTUUID=5F5D7A31-02 rootwait", Some(2)),
            ("root=/dev/mmcblk0p1 root=/dev/mmcblk0p2", Some(2)),
            ("root=LABEL=label1", Some(1)),
            ("root=UUID=e0a2-1234", Some(2)),
            ("root=/dev/disk/by-uuid/E0A2-1234", Some(2)),
            ("root=/dev/mmcblk0p3", None),
            ("rootwait", None),
        ] {
            assert_eq!(named_root(line, &parts), root, "{line}");
        }
    }

    #[test]
    fn how_it_grows() {
        let boot =
            |line: &str, name: &str| BootFiles { names: vec![name.into()], command_line: Some(line.into()) };
        let ends = [part(1, FilesystemKind::Fat), part(2, FilesystemKind::Ext)];
        let own = |by: &str| Growth::Own(by.into());
        let init = "`init=/usr/lib/raspberrypi-sys-mods/firstboot` on its command line";
        for (files, want) in [
            (boot("quiet resize", ""), own("`resize` on its command line")),
            (boot("init=/usr/lib/raspberrypi-sys-mods/firstboot", ""), own(init)),
            (boot("noresize init=/sbin/init", ""), Growth::Last),
            (boot("", "dietpi.txt"), own("DietPi")),
        ] {
            assert_eq!(growth(&ends, &files, None), want);
        }
        assert_eq!(
            growth(&[ends[1].clone(), part(3, FilesystemKind::Fat)], &boot("", ""), None),
            Growth::None
        );
        let hassos = Part { name: "hassos-data".into(), ..part(8, FilesystemKind::Ext) };
        assert_eq!(growth(&[hassos], &boot("", ""), None), own("hassos-expand"));
    }
}
