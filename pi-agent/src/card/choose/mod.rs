//! Which disk is meant: a path, a name as udev would give it, a serial number, or a rule. Nothing here needs udev, which
//! an initramfs does not have: all of it is read from /sys.
//!
//! | file | what lives there |
//! |---|---|
//! | `present` | the disks that are there, from /sys |
//! | `names` | their names in /dev/disk/by-id |
//! | `by_path` | their names in /dev/disk/by-path |
//! | `sysfs` | a file of /sys |

mod by_path;
mod names;
mod present;
mod sysfs;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::anyhow;
use piman_core::install::Stage;

use crate::failure::{Cause, Failure};
use names::same;
use present::{Disk, Tree};

const BY_ID: &str = "/dev/disk/by-id/";
const BY_PATH: &str = "/dev/disk/by-path/";

/// How a disk is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// SD cards and eMMC.
    Mmc,
    /// NVMe.
    Nvme,
    /// A stick, or a disk in a case.
    Usb,
    /// SATA.
    Sata,
    /// Any other.
    Other,
}

impl Bus {
    const fn word(self) -> &'static str {
        match self {
            Self::Mmc => "mmc",
            Self::Nvme => "nvme",
            Self::Usb => "usb",
            Self::Sata => "sata",
            Self::Other => "other",
        }
    }
}

/// Which disk to install on. Reads a path, `auto`, `largest`, `type=mmc|nvme|usb|sata`, `serial=TEXT`, `by-id=NAME` or
/// `by-path=NAME`; the latter two also as udev's paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// This device or file.
    Path(PathBuf),
    /// The one that can be meant.
    Auto,
    /// The largest of those that can be meant.
    Largest,
    /// The only one that is connected like this.
    Bus(Bus),
    /// The one with this serial number.
    Serial(String),
    /// The one that udev calls so.
    ById(String),
    /// The one that is in this place.
    ByPath(String),
    /// The one that a rule chose, by its identity.
    Chosen(String),
    /// None, and why: what was said names no disk, or no rule has found the one. Nothing is looked for again.
    No(NoDisk),
}

impl FromStr for Which {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = |text: &str| if text.is_empty() { Err("no name of a disk") } else { Ok(text.to_owned()) };
        if let Some(id) = text.strip_prefix(BY_ID).or_else(|| text.strip_prefix("by-id=")) {
            return name(id).map(Self::ById);
        }
        if let Some(place) = text.strip_prefix(BY_PATH).or_else(|| text.strip_prefix("by-path=")) {
            return name(place).map(Self::ByPath);
        }
        if let Some(serial) = text.strip_prefix("serial=") {
            return name(serial).map(Self::Serial);
        }
        if let Some(word) = text.strip_prefix("type=") {
            let all = [Bus::Mmc, Bus::Nvme, Bus::Usb, Bus::Sata];
            let bus = all.into_iter().find(|bus| bus.word() == word);
            return bus.map(Self::Bus).ok_or("not a type of a disk: mmc, nvme, usb or sata");
        }
        match text {
            "" => Err("no disk"),
            "auto" => Ok(Self::Auto),
            "largest" => Ok(Self::Largest),
            path => Ok(Self::Path(path.into())),
        }
    }
}

impl From<PathBuf> for Which {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Auto => f.write_str("auto"),
            Self::Largest => f.write_str("largest"),
            Self::Bus(bus) => write!(f, "type={}", bus.word()),
            Self::Serial(serial) => write!(f, "serial={serial}"),
            Self::ById(id) => write!(f, "by-id={id}"),
            Self::ByPath(place) => write!(f, "by-path={place}"),
            Self::Chosen(identity) => write!(f, "the one that was chosen first ({identity})"),
            Self::No(why) => why.fmt(f),
        }
    }
}

/// Why no disk is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoDisk {
    /// None that is there is meant; one may still appear.
    None(String),
    /// Several are meant: waiting does not help.
    Several(String),
    /// What was said names no disk: somebody has to say it better.
    Unusable(String),
}

impl fmt::Display for NoDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::None(text) | Self::Several(text) | Self::Unusable(text)) = self;
        f.write_str(text)
    }
}

impl Which {
    /// Whether which disk it is depends on which others are there.
    #[must_use]
    pub const fn is_rule(&self) -> bool {
        matches!(self, Self::Auto | Self::Largest | Self::Bus(_))
    }

    /// The path of the disk that is meant. A path is taken as it is, whether there is anything or not. A rule never
    /// gives a disk that somebody uses: least of all the one that this system runs from.
    ///
    /// # Errors
    /// [`NoDisk`] with a list of those that are there.
    pub fn find(&self) -> Result<PathBuf, NoDisk> {
        self.find_in(&Tree::default())
    }

    /// The same, for an attempt to install.
    ///
    /// # Errors
    /// [`Cause::Disk`] if none is meant, [`Cause::Refused`] if several are, or what was said names no disk.
    pub fn open_path(&self) -> Result<PathBuf, Failure> {
        self.find().map_err(|e| {
            let cause = if matches!(e, NoDisk::None(_)) { Cause::Disk } else { Cause::Refused };
            Failure { stage: Stage::Disk, cause, error: anyhow!("{e}; nothing was changed") }
        })
    }

    /// What is looked for from now on: of a rule the very disk that it chooses at this moment. So one that comes or goes
    /// later does not make it another disk.
    ///
    /// # Errors
    /// [`NoDisk`] as from [`Self::find`], of a rule.
    pub fn settled(&self) -> Result<Self, NoDisk> {
        self.settled_in(&Tree::default())
    }

    fn settled_in(&self, tree: &Tree) -> Result<Self, NoDisk> {
        if self.is_rule() { Ok(Self::Chosen(self.one_in(tree)?.identity())) } else { Ok(self.clone()) }
    }

    fn find_in(&self, tree: &Tree) -> Result<PathBuf, NoDisk> {
        match self {
            Self::Path(path) => Ok(path.clone()),
            Self::No(why) => Err(why.clone()),
            _ => Ok(self.one_in(tree)?.path),
        }
    }

    fn one_in(&self, tree: &Tree) -> Result<Disk, NoDisk> {
        let disks = tree.disks();
        let mut fitting: Vec<&Disk> = disks.iter().filter(|disk| self.fits(disk)).collect();
        if *self == Self::Largest {
            let most = fitting.iter().map(|disk| disk.bytes).max();
            fitting.retain(|disk| Some(disk.bytes) == most);
        }
        match fitting[..] {
            [one] => Ok(one.clone()),
            [] => Err(NoDisk::None(format!("no disk is {self}; {}", list(&disks)))),
            _ => {
                let many = fitting.len();
                Err(NoDisk::Several(format!("{many} disks are {self}: name one of them; {}", list(&disks))))
            }
        }
    }

    fn fits(&self, disk: &Disk) -> bool {
        match self {
            Self::Path(path) => *path == disk.path,
            Self::Auto | Self::Largest => disk.unfit.is_none(),
            Self::Bus(bus) => disk.bus == *bus && disk.unfit.is_none(),
            Self::Serial(serial) => disk.serials.iter().any(|own| same(own, serial)),
            Self::ById(id) => disk.ids.iter().any(|own| same(own, id)),
            Self::ByPath(place) => disk.place.as_deref().is_some_and(|own| by_path::same(own, place)),
            Self::Chosen(identity) => disk.unfit.is_none() && disk.identity() == *identity,
            Self::No(_) => false,
        }
    }
}

/// What tells whether the disks that are there have changed.
#[must_use]
pub fn those_present() -> Vec<(PathBuf, u64)> {
    Tree::default().disks().into_iter().map(|disk| (disk.path, disk.bytes)).collect()
}

fn list(disks: &[Disk]) -> String {
    if disks.is_empty() {
        return "there is no disk at all (is a card in the slot?)".into();
    }
    let disks: Vec<String> = disks.iter().map(ToString::to_string).collect();
    format!("there are: {}", disks.join("; "))
}

#[cfg(test)]
mod tests;
