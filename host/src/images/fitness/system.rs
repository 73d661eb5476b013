//! What kind of system it is, as far as it matters for making a card one Pi's own, and whether it boots by itself.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::boot_folder::BootFolder;
use super::evidence::Evidence;
use super::lookup::lookup;
use crate::sys::models::MODELS;

/// The size of a boot partition where a distribution expects a large one, in bytes.
const BOOT_LARGE: u64 = 512 << 20;
/// The smallest one that is filled, in bytes.
const BOOT_SMALL: u64 = 64 << 20;
/// The largest one, in bytes.
pub const BOOT_MAX: u64 = 16 << 30;
/// What the size of a partition is a multiple of, in bytes.
const BOOT_GRAIN: u64 = 4 << 20;

/// By what a system makes itself one Pi's own at its first boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// By nothing that is known here: its files are written directly.
    #[default]
    Plain,
    /// cloud-init, as Ubuntu has it, and Raspberry Pi OS since Trixie.
    CloudInit,
    /// `custom.toml`, as Raspberry Pi OS Bookworm has it.
    CustomToml,
    /// `userconf.txt`, `ssh` and `wpa_supplicant.conf`, as Raspberry Pi OS had them before.
    UserConf,
    /// `dietpi.txt`.
    DietPi,
    /// The folder `CONFIG` of Home Assistant OS.
    HomeAssistant,
}

/// What it is called.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::CloudInit => "cloud-init",
            Self::CustomToml => "custom.toml",
            Self::UserConf => "userconf.txt",
            Self::DietPi => "DietPi",
            Self::HomeAssistant => "Home Assistant OS",
        })
    }
}

/// A part of a system that decides how something is set in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Has {
    Systemd,
    NetworkManager,
    Networkd,
    WpaSupplicant,
    Timesyncd,
    Chrony,
    /// Its SSH server is started by `ssh.service`.
    Ssh,
    /// Its SSH server is started by `sshd.service`.
    Sshd,
    /// The agent of piman, as a program and a unit.
    Agent,
    /// The user `pi`.
    PiHome,
}

/// By which files a part is recognised; one of them is enough.
const PARTS: [(Has, &[&str]); 10] = [
    (Has::Systemd, &["/usr/lib/systemd/systemd", "/lib/systemd/systemd"]),
    (Has::NetworkManager, &["/usr/sbin/NetworkManager", "/usr/bin/NetworkManager"]),
    (Has::Networkd, &["/usr/lib/systemd/systemd-networkd", "/lib/systemd/systemd-networkd"]),
    (Has::WpaSupplicant, &["/usr/sbin/wpa_supplicant", "/sbin/wpa_supplicant", "/usr/bin/wpa_supplicant"]),
    (Has::Timesyncd, &["/usr/lib/systemd/systemd-timesyncd", "/lib/systemd/systemd-timesyncd"]),
    (Has::Chrony, &["/usr/sbin/chronyd", "/usr/bin/chronyd"]),
    (Has::Ssh, &["/usr/lib/systemd/system/ssh.service", "/lib/systemd/system/ssh.service"]),
    (Has::Sshd, &["/usr/lib/systemd/system/sshd.service", "/lib/systemd/system/sshd.service"]),
    (Has::Agent, &["/usr/local/sbin/pi-agent"]),
    (Has::PiHome, &["/home/pi"]),
];

/// From what a card with it boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum BootFrom {
    /// The card: it has firmware or its configuration, a kernel and what belongs to it.
    Card,
    /// The network, at every boot.
    Network,
}

impl BootFrom {
    /// The word in commands and in the state.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Card => "card",
            Self::Network => "network",
        }
    }

    /// The one with this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Card, Self::Network].into_iter().find(|from| from.word() == word)
    }
}

/// The word.
impl fmt::Display for BootFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What there is to boot from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Boot {
    /// What no Pi boots without and what is not there, in words; empty: it boots from the card.
    pub missing: Vec<String>,
    /// The models that it does not boot, each with the files that are missing.
    pub not_for: Vec<String>,
    /// How large a boot partition for it should be, in bytes.
    pub partition_bytes: u64,
    /// How large a boot partition has to be for the boot files of an archive, in bytes; 0: there are none.
    pub least_bytes: u64,
    /// Why agents cannot copy the boot files of an archive to a boot partition; empty: they can.
    pub not_copied: String,
    /// Whether a card with it has a place for files to boot from, beside a boot partition that an agent fills: a FAT
    /// partition of a disk image, or the folder `/boot`.
    pub has_place: bool,
}

/// What agents can do with the root filesystem of an image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootAccess {
    /// They write into it.
    #[default]
    Writable,
    /// They write into it, but what is in it cannot be read here, for this reason.
    Unseen(String),
    /// There is none that is known here, or nobody writes into it, for this reason: nothing in it is a Pi's own.
    Nothing(String),
    /// They cannot write into it, for this reason.
    Closed(String),
}

impl Boot {
    /// From what it boots.
    #[must_use]
    pub fn from(&self) -> BootFrom {
        let is_whole = self.missing.is_empty() && self.not_copied.is_empty();
        if is_whole { BootFrom::Card } else { BootFrom::Network }
    }

    /// Of a disk image, which brings its boot partition: how it boots is its own affair.
    fn of_disk(names: &[String]) -> Self {
        let mut boot = Self::of(&names.iter().map(|name| (name.clone(), 0)).collect::<Vec<_>>(), true);
        boot.missing = match names.iter().any(|name| is_firmware(name)) {
            true => Vec::new(),
            false => vec!["boot partition with firmware or its config.txt".to_owned()],
        };
        boot
    }

    /// Out of the names and sizes of boot files. `is_expected`: the distribution has a large partition for them.
    fn of(files: &[(String, u64)], is_expected: bool) -> Self {
        let has = |name: &str| files.iter().any(|(file, _)| file == name);
        let any = |is: &dyn Fn(&str) -> bool| files.iter().any(|(file, _)| is(file));
        let is_kernel =
            |name: &str| name.starts_with("kernel") && name.ends_with(".img") || name.starts_with("vmlinuz");
        let is_firmware = |name: &str| {
            matches!(name, "config.txt" | "bootcode.bin")
                || name.starts_with("start") && name.ends_with(".elf")
        };
        let needed: [(&str, bool); 4] = [
            ("kernel (kernel8.img)", any(&is_kernel)),
            ("firmware and no config.txt", any(&|name| is_firmware(name))),
            ("device trees (*.dtb)", any(&|name| name.ends_with(".dtb"))),
            ("cmdline.txt", has("cmdline.txt")),
        ];
        let missing = needed.into_iter().filter(|(_, is_there)| !is_there).map(|(what, _)| what.to_owned());
        let not_for = MODELS.iter().filter_map(|(model, needs)| {
            let lacks: Vec<&str> = needs.iter().copied().filter(|file| !has(file)).collect();
            (!lacks.is_empty()).then(|| format!("{model} ({})", lacks.join(", ")))
        });
        let content: u64 = files.iter().fold(0, |sum, (_, size)| sum.saturating_add(*size));
        // As much again, for a second kernel and its initramfs.
        let by_content = content.saturating_mul(2).max(BOOT_SMALL);
        let bytes = if is_expected { by_content.max(BOOT_LARGE) } else { by_content };
        let partition_bytes = bytes.checked_next_multiple_of(BOOT_GRAIN).unwrap_or(BOOT_MAX).min(BOOT_MAX);
        let (missing, not_for) = (missing.collect(), not_for.collect());
        Self { missing, not_for, partition_bytes, ..Self::default() }
    }

    /// Of the boot files of an archive.
    fn of_folder(folder: BootFolder, is_expected: bool) -> Self {
        let boot = Self::of(&folder.files, is_expected);
        Self {
            partition_bytes: boot.partition_bytes.max(folder.least_bytes),
            least_bytes: folder.least_bytes,
            not_copied: folder.not_copied,
            has_place: folder.is_there,
            ..boot
        }
    }
}

/// Whether a boot file is firmware, or says how firmware boots.
fn is_firmware(name: &str) -> bool {
    matches!(name, "config.txt" | "bootcode.bin") || name.starts_with("start") && name.ends_with(".elf")
}

/// What is known of a system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct System {
    /// By what it makes itself one Pi's own.
    pub kind: Kind,
    /// Its parts.
    pub has: BTreeSet<Has>,
    /// What there is to boot from.
    pub boot: Boot,
    /// What agents can do with its root filesystem.
    pub root: RootAccess,
}

impl System {
    /// Whether it has this part.
    #[must_use]
    pub fn has(&self, part: Has) -> bool {
        self.has.contains(&part)
    }

    /// Of an archive or the root filesystem of a disk image. `boot`: the names in the boot partition of an image that
    /// brings one, in lower case.
    pub(crate) fn of(evidence: &Evidence, boot: Option<&[String]>) -> Self {
        let is_there = |path: &str| lookup(&evidence.tree, path).is_ok();
        let has: BTreeSet<Has> = PARTS
            .into_iter()
            .filter(|(_, paths)| paths.iter().any(|path| is_there(path)))
            .map(|(part, _)| part)
            .collect();
        let folder = BootFolder::of(evidence);
        let of_disk = boot.map(|names| names.iter().map(|name| (name.clone(), 0)).collect::<Vec<_>>());
        let kind = kind(&is_there, of_disk.as_ref().unwrap_or(&folder.files));
        let is_expected = folder.path == "/boot/firmware" || kind != Kind::Plain;
        let has_place = folder.is_there;
        let boot = match boot {
            Some(names) => Boot { has_place, ..Boot::of_disk(names) },
            None => Boot::of_folder(folder, is_expected),
        };
        Self { kind, has, boot, root: RootAccess::Writable }
    }

    /// Of a disk image whose root filesystem cannot be read here: by the names of its partitions and of its boot files.
    pub(crate) fn unread<'p>(mut partitions: impl Iterator<Item = &'p str>, boot: &[String]) -> Self {
        let files: Vec<_> = boot.iter().map(|name| (name.clone(), 0)).collect();
        let kind = match partitions.any(|name| name.starts_with("hassos-")) {
            true => Kind::HomeAssistant,
            false => kind(&|_| false, &files),
        };
        let root = RootAccess::Closed("it is not read".into());
        Self { kind, has: BTreeSet::new(), boot: Boot::of_disk(boot), root }
    }
}

fn kind(is_there: &dyn Fn(&str) -> bool, boot: &[(String, u64)]) -> Kind {
    let all = |paths: &[&str]| paths.iter().all(|path| is_there(path));
    if boot.iter().any(|(name, _)| name == "dietpi.txt") {
        Kind::DietPi
    } else if all(&["/usr/bin/cloud-init", "/etc/cloud"]) && !is_there("/etc/cloud/cloud-init.disabled") {
        Kind::CloudInit
    } else if all(&["/usr/lib/raspberrypi-sys-mods/init_config", "/usr/lib/raspberrypi-sys-mods/firstboot"]) {
        Kind::CustomToml
    } else if all(&["/usr/bin/raspi-config"]) || is_there("/usr/lib/userconf-pi/userconf") {
        Kind::UserConf
    } else {
        Kind::Plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<(String, u64)> {
        names.iter().map(|name| ((*name).to_owned(), 1 << 20)).collect()
    }

    #[test]
    fn what_boots_from_the_card() {
        let all =
            ["kernel8.img", "config.txt", "cmdline.txt", "start4.elf", "fixup4.dat", "bcm2711-rpi-4-b.dtb"];
        let boot = Boot::of(&files(&all), false);
        assert_eq!((boot.from(), boot.partition_bytes), (BootFrom::Card, BOOT_SMALL));
        assert_eq!(boot.not_for.len(), 2);
        assert!(boot.not_for[1].starts_with("Pi 5 (bcm2712"), "{:?}", boot.not_for);
        for (without, says) in
            [(0, "kernel"), (2, "cmdline.txt"), (5, "device trees")].map(|(n, says)| (all[n], says))
        {
            let rest: Vec<&str> = all.into_iter().filter(|name| *name != without).collect();
            let boot = Boot::of(&files(&rest), false);
            assert!(boot.from() == BootFrom::Network && boot.missing[0].contains(says), "{without}");
        }
        assert_eq!(Boot::of(&files(&all), true).partition_bytes, BOOT_LARGE);
        assert_eq!(Boot::of(&[("kernel8.img".into(), 301 << 20)], true).partition_bytes, 604 << 20);
        assert_eq!(Boot::of(&[("x".into(), u64::MAX)], true).partition_bytes, BOOT_MAX);
        assert_eq!(Boot::of(&[], false).missing.len(), 4);
    }

    #[test]
    fn kinds_by_their_files() {
        let of = |paths: &[&str], boot: &[&str]| kind(&|path| paths.contains(&path), &files(boot));
        let cloud = ["/usr/bin/cloud-init", "/etc/cloud", "/usr/bin/raspi-config"];
        let bookworm = [
            "/usr/lib/raspberrypi-sys-mods/init_config",
            "/usr/lib/raspberrypi-sys-mods/firstboot",
            "/usr/bin/raspi-config",
        ];
        assert_eq!(of(&cloud, &[]), Kind::CloudInit);
        assert_eq!(of(&[&cloud[..], &["/etc/cloud/cloud-init.disabled"]].concat(), &[]), Kind::UserConf);
        assert_eq!(of(&bookworm, &[]), Kind::CustomToml);
        assert_eq!(of(&bookworm, &["dietpi.txt"]), Kind::DietPi);
        assert_eq!(of(&[], &["config.txt"]), Kind::Plain);
        let unread = System::unread(["", "hassos-boot"].into_iter(), &["config.txt".into()]);
        assert_eq!(unread.kind, Kind::HomeAssistant);
    }
}
