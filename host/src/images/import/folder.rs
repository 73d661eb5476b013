//! Packing a folder.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};

/// GNU tar over a folder: it knows owners, ACLs, attributes, links and holes.
pub(super) struct Tar(Child);

impl Tar {
    pub(super) fn of(folder: &Path) -> anyhow::Result<Self> {
        let child = Command::new("tar")
            .args([
                "--create",
                "--file=-",
                "--numeric-owner",
                "--sort=name",
                "--sparse",
                "--acls",
                "--xattrs",
            ])
            .args(["--xattrs-include=*", "--one-file-system", "--warning=no-file-ignored", "--directory"])
            .arg(folder)
            .arg(".")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        match child {
            Ok(child) => Ok(Self(child)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                bail!("packing a folder needs GNU tar, which is not installed (apt install tar)")
            }
            Err(e) => Err(e).context("starting tar"),
        }
    }

    pub(super) fn stdout(&mut self) -> anyhow::Result<impl Read + use<>> {
        self.0.stdout.take().context("tar has no output")
    }

    /// What tar could not read it names itself, on standard error.
    pub(super) fn finish(mut self, shown: &str) -> anyhow::Result<()> {
        let status = self.0.wait().context("waiting for tar")?;
        ensure!(
            status.success(),
            "{shown} could not be packed whole ({status}); tar says above what it could not read; nothing was added"
        );
        Ok(())
    }
}

impl Drop for Tar {
    fn drop(&mut self) {
        // Already over, as a rule; if not, nobody reads what it packs any more.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
