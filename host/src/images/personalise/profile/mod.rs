//! Profiles: what Pis are to have of their own, as an operator writes it.
//!
//! | file | what lives there |
//! |---|---|
//! | `fields` | values that are checked where they are read |
//! | `secret` | values that are not shown |
//! | `read` | a profile out of its TOML, with the files that it names |
//! | `merge` | the server's, a group's and a Pi's profile as one |
//! | `shown` | the same without secrets |

mod fields;
mod merge;
mod read;
mod secret;
mod shown;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use fields::{
    CardPath, Country, Host, Keyboard, Line, Locale, Mode, Name, Owner, Pattern, SshKey, Ssid, TimeZone,
};
pub use read::{ProfileError, TEXT_MAX, hash_password};
pub use secret::{Blob, HIDDEN, Secret};
pub use shown::without_secrets;

/// What Pis are to have of their own. All of it may be missing: then it stays as the image has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Profile {
    /// The host name, or a pattern of it.
    pub hostname: Option<Pattern>,
    /// The language and character set.
    pub locale: Option<Locale>,
    /// The time zone.
    pub timezone: Option<TimeZone>,
    /// The keyboard layout.
    pub keyboard: Option<Keyboard>,
    /// Time servers.
    pub ntp: Option<Vec<Host>>,
    /// Whether one can log in by SSH.
    pub ssh: Option<bool>,
    /// Whether the agent runs as a service, if it is there.
    pub service: Option<bool>,
    /// What of the image's identity is made new.
    pub identity: Option<IdentityMode>,
    /// Files for cloud-init as they are.
    pub cloud_init: Option<Verbatim>,
    /// A `custom.toml` as it is.
    pub custom_toml: Option<Verbatim>,
    /// What is for one Pi alone.
    pub device: Option<DeviceFields>,
    /// A Wi-Fi network.
    pub wifi: Option<Wifi>,
    /// Accounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<User>,
    /// Files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
    /// Folders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub folders: Vec<Folder>,
    /// Scripts that run once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scripts: Vec<Script>,
}

/// What is done about what no two Pis may share: machine-id, host keys, identifiers of disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum IdentityMode {
    /// It is made new.
    Renew,
    /// It stays as the image has it: all Pis are clones in this.
    Keep,
}

/// What is for one Pi alone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DeviceFields {
    /// Its number, in place of the one that it got at its first contact.
    #[serde(deserialize_with = "fields::ordinal", default)]
    pub ordinal: Option<u32>,
}

/// A Wi-Fi network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Wifi {
    /// Its name.
    pub ssid: Ssid,
    /// Its password (8 to 63 bytes), or the key made of it (64 hexadecimal digits); none: it is open.
    pub psk: Option<Secret>,
    /// Where it is used: what the radio may do there.
    pub country: Option<Country>,
    /// Whether it does not say its name.
    #[serde(default)]
    pub hidden: bool,
}

/// Whether an account may become root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(untagged, expecting = "write true, false or \"without-password\"")]
pub enum Sudo {
    /// `true`: it may, with its password; `false`: it may not.
    With(bool),
    /// `"without-password"`.
    Without(WithoutPassword),
    /// It is not said.
    #[default]
    #[serde(skip)]
    Unsaid,
}

/// A word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WithoutPassword {
    /// It may become root without a password.
    WithoutPassword,
}

/// An account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct User {
    /// Its name.
    pub name: Name,
    /// For people.
    pub full_name: Option<Line>,
    /// Its number.
    pub uid: Option<u32>,
    /// Its password, hashed as in `/etc/shadow`.
    pub password_hash: Option<Secret>,
    /// A file of the server with its password, which is hashed when the profile is set.
    #[serde(skip_serializing)]
    pub password_file: Option<PathBuf>,
    /// Who may log in as it by SSH.
    #[serde(default)]
    pub ssh_keys: Vec<SshKey>,
    /// Further groups.
    #[serde(default)]
    pub groups: Vec<Name>,
    /// Whether it may become root.
    #[serde(default, skip_serializing_if = "Sudo::is_unsaid")]
    pub sudo: Sudo,
    /// Its shell.
    pub shell: Option<CardPath>,
    /// Whether nobody can log in with a password.
    #[serde(default)]
    pub locked: bool,
}

impl Sudo {
    fn is_unsaid(&self) -> bool {
        *self == Self::Unsaid
    }

    /// Whether the account may become root.
    #[must_use]
    pub fn is_allowed(self) -> bool {
        matches!(self, Self::With(true) | Self::Without(_))
    }
}

/// Where a file belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum At {
    /// The root filesystem.
    #[default]
    Root,
    /// What the firmware boots from.
    Boot,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct File {
    /// Where it is to be.
    pub path: CardPath,
    /// On which filesystem.
    #[serde(default)]
    pub at: At,
    /// What is in it.
    pub content: Option<Blob>,
    /// The file of the server that has its content.
    #[serde(skip_serializing)]
    pub from: Option<PathBuf>,
    /// Whose it is; `root` if it is not said.
    pub owner: Option<Owner>,
    /// Its permissions; `0644` if they are not said, `0600` for what is secret.
    pub mode: Option<Mode>,
    /// Whether `{{serial}}` and the like in it stand for facts of the Pi.
    #[serde(default)]
    pub template: bool,
    /// Whether its content is not shown.
    #[serde(default)]
    pub secret: bool,
}

/// A folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Folder {
    /// Where it is to be.
    pub path: CardPath,
    /// On which filesystem.
    #[serde(default)]
    pub at: At,
    /// A folder of the server: all that is in it is taken over, with its permissions.
    #[serde(skip_serializing)]
    pub from: Option<PathBuf>,
    /// Whose it is, and what is in it; `root` if it is not said.
    pub owner: Option<Owner>,
    /// Its permissions; `0755` if they are not said.
    pub mode: Option<Mode>,
}

/// A script that runs once, when the system has started for the first time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Script {
    /// How it is called.
    pub name: Name,
    /// What it does; it begins with `#!`.
    pub content: Option<Blob>,
    /// The file of the server that has it.
    #[serde(skip_serializing)]
    pub from: Option<PathBuf>,
    /// Whether `{{serial}}` and the like in it stand for facts of the Pi.
    #[serde(default)]
    pub template: bool,
}

/// Files that go to a Pi as they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "write the path of a file or folder of the server in quotes")]
pub enum Verbatim {
    /// Where they are on the server, until the profile is set.
    Path(PathBuf),
    /// By name.
    Files(BTreeMap<String, Blob>),
}

impl Verbatim {
    /// The files, by name.
    pub fn files(&self) -> impl Iterator<Item = (&str, &Blob)> {
        let files = match self {
            Self::Path(_) => None,
            Self::Files(files) => Some(files),
        };
        files.into_iter().flatten().map(|(name, content)| (name.as_str(), content))
    }
}
