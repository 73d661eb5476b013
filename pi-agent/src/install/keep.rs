//! The partition behind the root filesystem that an installation makes once, and that no later one touches.

use std::str::FromStr;

use anyhow::anyhow;
use piman_core::hosted::size::parse_size;
use piman_core::install::Stage;
use piman_core::install::layout::SECTOR;

use super::Plan;
use crate::card::content::filesystem::detect;
use crate::card::content::source::{DiskSource, Region};
use crate::card::disk::{Disk, RootArea, data_in_table};
use crate::card::inspect::{Card, Found};
use crate::failure::{Cause, Failure};
use crate::telemetry::display::size;

/// The longest label that an ext4 filesystem can have, in bytes.
const LABEL_MAX: usize = 16;

/// What is wanted of such a partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Keep {
    /// Nothing was said: there is to be none, and one that is there is not erased.
    #[default]
    Unsaid,
    /// There is to be none, whatever is there.
    None,
    /// There is to be one.
    Data {
        /// Its size, in bytes.
        bytes: u64,
        /// Its label.
        label: String,
    },
}

/// Reads `none`, or a size and perhaps a label, as `2G,work`.
impl FromStr for Keep {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            return Ok(Self::None);
        }
        let (bytes, label) = text.split_once(',').unwrap_or((text, "data"));
        let bytes = parse_size(bytes).ok_or("not none, a size, or a size and a label as 2G,data")?;
        if bytes < 16 << 20 {
            return Err("a partition of less than 16M holds no filesystem");
        }
        let plain = label.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if label.is_empty() || label.len() > LABEL_MAX || !plain {
            return Err("a label has 1 to 16 letters, digits, dots, dashes and underlines");
        }
        Ok(Self::Data { bytes, label: label.to_owned() })
    }
}

impl Keep {
    /// How many sectors of 512 bytes a layout has to leave for it.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        match self {
            Self::Data { bytes, .. } => bytes.div_ceil(SECTOR),
            _ => 0,
        }
    }

    /// Its label, if there is to be one.
    #[must_use]
    pub fn label(&self) -> Option<&str> {
        if let Self::Data { label, .. } = self { Some(label) } else { None }
    }
}

/// Says whether an installation leaves alone what an earlier one made to be kept.
///
/// # Errors
/// [`Cause::Refused`] if it would not.
pub(super) fn check(plan: &Plan, disk: &Disk, found: &Found) -> Result<(), Failure> {
    let refuse = |text: String| {
        let error = anyhow!("{text}; nothing was changed");
        Err(Failure { stage: Stage::Disk, cause: Cause::Refused, error })
    };
    let wanted = disk.data_area(&plan.layout)?;
    let there = data_in_table(disk.file(), disk.bytes());
    if wanted.is_some() && wanted == there || plan.keep == Keep::None {
        return Ok(());
    }
    let ours = matches!(found.card, Card::Installed(_) | Card::Damaged { .. } | Card::Incomplete);
    let holds = |area: &RootArea| Content::of(disk, area);
    if let Some(there) = there {
        let content = holds(&there);
        let named = content.label.is_some() && content.label.as_deref() == plan.keep.label();
        if !(ours || named) {
            return Ok(());
        }
        let place = format!(
            "partition 3 of {disk}, {} at byte {}, {}",
            size(there.length),
            there.offset,
            content.text
        );
        let remedy = "piman.keep_data=none (--keep-data none) lets it be erased";
        return refuse(match wanted {
            None => format!(
                "{place}, is none that this installation would make or keep: say piman.keep_data=SIZE,LABEL \
                 (--keep-data) with the size that it was made with to keep it; {remedy}"
            ),
            Some(wanted) => format!(
                "{place}, is not where --keep-data expects what is to be kept ({} at byte {}): say the size that it was \
                 made with, or move what it holds elsewhere; {remedy}",
                size(wanted.length),
                wanted.offset
            ),
        });
    }
    // An installation that was broken off may have made a filesystem that no table names yet.
    let Some(wanted) = wanted.filter(|_| ours && found.card != Card::Incomplete) else { return Ok(()) };
    let content = holds(&wanted);
    if content.label.is_some() && content.label.as_deref() == plan.keep.label() {
        return refuse(format!(
            "where --keep-data expects what is to be kept, at byte {} of {disk}, there is {}, but the partition table does \
             not name it: put it back into the table as partition 3 ({} bytes), or give the new one another label",
            wanted.offset, content.text, wanted.length
        ));
    }
    Ok(())
}

struct Content {
    text: String,
    label: Option<String>,
}

impl Content {
    fn of(disk: &Disk, area: &RootArea) -> Self {
        let source = DiskSource { file: disk.file(), bytes: disk.bytes(), sector: disk.sector() };
        match detect(&Region::whole(&source).part(area.offset, area.length)) {
            Ok(Some(found)) => {
                Self { text: format!("{} \"{}\"", found.kind, found.label), label: Some(found.label) }
            }
            Ok(None) => Self { text: "with nothing that is recognised".into(), label: None },
            Err(wrong) => Self { text: format!("which cannot be read ({wrong})"), label: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let data = |bytes, label: &str| Ok(Keep::Data { bytes, label: label.into() });
        assert_eq!("none".parse(), Ok(Keep::None));
        assert_eq!("2G".parse(), data(2 << 30, "data"));
        assert_eq!("64M,var-lib.x_1".parse(), data(64 << 20, "var-lib.x_1"));
        for bad in ["", "2X", "1M", "2G,", "2G,a b", "2G,seventeen-letters", "2G,a,b", "2G,\u{e4}"] {
            assert!(bad.parse::<Keep>().is_err(), "{bad}");
        }
        assert_eq!(Keep::Unsaid.sectors(), 0);
        assert_eq!("16M".parse::<Keep>().unwrap().sectors(), 32_768);
    }
}
