//! The option by which commands find the state of a server.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use nix::unistd::{Uid, User};
use rustix::fs::{Access, access};
use rustix::io::Errno;

use crate::config::{Options, ROOT_STATE, state_folder};
use crate::state::{FILE, Sqlite};

/// Where the state is.
#[derive(Debug, Clone, Args)]
pub struct StateFolder {
    /// The server's state folder [default: /var/lib/piman for root, else ~/.local/state/piman]
    #[arg(long = "state", value_name = "DIR")]
    folder: Option<PathBuf>,
    /// The server's configuration file, which names it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl StateFolder {
    /// What was said here, or else there.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { folder: self.folder.or(other.folder), config: self.config.or(other.config) }
    }

    /// Where it is.
    ///
    /// # Errors
    /// If the configuration cannot be read.
    pub fn path(&self) -> anyhow::Result<PathBuf> {
        let configured = self.config.as_deref().map(Options::read).transpose()?.and_then(|file| file.state);
        let folder = self.folder.clone().or(configured).unwrap_or_else(state_folder);
        may_use(&folder)?;
        Ok(folder)
    }

    /// The configuration that was named.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn configuration(&self) -> anyhow::Result<Option<Options>> {
        self.config.as_deref().map(Options::read).transpose()
    }

    /// Opens the state in it, for a command beside a server.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn open(&self) -> anyhow::Result<Sqlite> {
        let folder = self.path()?;
        let opened = Sqlite::command(&folder);
        if opened.is_err()
            && !folder.join(FILE).exists()
            && self.is_default()
            && Path::new(ROOT_STATE).is_dir()
        {
            let hint = format!(
                "a server that runs as root keeps its state in {ROOT_STATE}: try this command with sudo"
            );
            return opened.context(hint);
        }
        Ok(opened?)
    }

    fn is_default(&self) -> bool {
        self.folder.is_none() && self.config.is_none()
    }

    /// The same, for a command that may come before the first server: begins a state if there is none.
    ///
    /// # Errors
    /// If it cannot be read, or begun.
    pub fn open_or_make(&self) -> anyhow::Result<Sqlite> {
        let folder = self.path()?;
        Ok(if folder.join(FILE).exists() { Sqlite::command(&folder)? } else { Sqlite::serve(&folder)? })
    }
}

/// Whether this user may: the state is its owner's alone, and what else it fails with names a file of SQLite.
fn may_use(folder: &Path) -> anyhow::Result<()> {
    let denied = |path: &Path, how| access(path, how) == Err(Errno::ACCESS);
    if !denied(folder, Access::READ_OK | Access::EXEC_OK)
        && !denied(&folder.join(FILE), Access::READ_OK | Access::WRITE_OK)
    {
        return Ok(());
    }
    let owner = match fs::metadata(folder) {
        Ok(found) => User::from_uid(Uid::from_raw(found.uid()))
            .ok()
            .flatten()
            .map_or_else(|| format!("#{}", found.uid()), |user| user.name),
        Err(_) => "root".to_owned(),
    };
    bail!(
        "the state folder {} is for {owner} alone, whose server it is: run this command as that user \
         (`sudo -u {owner} piman ...`), or name another folder with --state",
        folder.display()
    )
}

/// Pis that a command changes something about, and the state that keeps it.
#[derive(Debug, Clone, Args)]
pub struct DevicesArgs {
    /// Where it is
    #[command(flatten)]
    pub(super) state: StateFolder,
    /// Which Pis
    #[arg(value_name = "DEVICE", required = true)]
    pub(super) devices: Vec<String>,
}
