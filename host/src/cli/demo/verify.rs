//! The proof that a card holds what it should: by our own reader, and by e2fsck where it is.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail};
use pi_agent::card::disk::{RootArea, root_in_table};
use pi_agent::card::inspect::{self, Card};
use piman_core::hash::Hash;
use piman_core::install::layout::Layout;

use crate::images::ext4::{Progress, compare};
use crate::text::human;

/// Proves everything about `card`, a line for each proof.
///
/// # Errors
/// The first thing that is wrong.
pub(super) fn all(card: &Path, archive: &Path, image: Hash) -> anyhow::Result<()> {
    let file = File::open(card)?;
    let bytes = file.metadata()?.len();

    let root = root_in_table(&file, bytes).context("there is no partition table on the card")?;
    if root != RootArea::of(&Layout::default(), bytes)? {
        bail!("the root partition is not where it should be");
    }
    good("partitions", &format!("root from {} to the end of the card", root.offset))?;

    match inspect::check(card)? {
        Card::Installed(p) if p.image == image => {
            good("proof", &format!("image {image:.16} by agent {}", p.agent))?
        }
        other => bail!("the card does not count as installed: {other}"),
    }

    match e2fsck(card, &root) {
        Ok(Some(summary)) => good("e2fsck -fn", &summary)?,
        Ok(None) => human::print("  - e2fsck -fn    not installed here, left out\n")?,
        Err(e) => return Err(e),
    }

    let archive = File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
    let found = compare(&file, root.offset, &archive, &Progress::new(), &AtomicBool::new(false))?;
    if found.archive != image {
        bail!("the archive changed meanwhile");
    }
    if found.differences > 0 {
        bail!("{} entries differ from the archive:\n{}", found.differences, found.told.join("\n"));
    }
    good(
        "content",
        &format!(
            "{} names, {} files, {} bytes: all as in the archive",
            found.names, found.files, found.bytes
        ),
    )
}

fn good(what: &str, detail: &str) -> anyhow::Result<()> {
    human::print(&format!("  ✓ {what:<13} {detail}\n"))
}

/// What e2fsck sums up; `None` where there is none.
fn e2fsck(card: &Path, root: &RootArea) -> anyhow::Result<Option<String>> {
    let area = format!("{}?offset={}", card.display(), root.offset);
    // An ordinary user may not have it on the path.
    let programs = ["e2fsck", "/sbin/e2fsck", "/usr/sbin/e2fsck"];
    let Some(output) =
        programs.iter().find_map(|p| Command::new(p).args(["-fn", &area]).env("LC_ALL", "C").output().ok())
    else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("e2fsck finds the root filesystem wrong:\n{text}{}", String::from_utf8_lossy(&output.stderr));
    }
    let summary = text.lines().last().unwrap_or_default();
    Ok(Some(format!("clean:{}", summary.split_once(':').map_or(summary, |(_, rest)| rest))))
}
