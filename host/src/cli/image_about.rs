//! What an operator says of an image when it is added, and what was found of it.

use crate::images::boot_from::boot_of;
use crate::images::fitness::{BOOT_MAX, Boot, BootFrom};
use crate::state::About;
use crate::state::archive_facts::Content;
use crate::text::human::{self, bytes};

/// What an operator says of an image.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct AboutArgs {
    /// What it is for
    #[arg(long, value_name = "TEXT", value_parser = remark)]
    description: Option<String>,
    /// Which version of it this is
    #[arg(long, value_name = "TEXT", value_parser = remark)]
    release: Option<String>,
    /// From what cards with it boot [default: the card, if its files are enough for that]
    #[arg(long, value_name = "FROM")]
    boot: Option<BootFrom>,
    /// How large the boot partition of such a card is, as 512M, at least 64M [default: 512M where the distribution expects
    /// that, else by its boot files]
    #[arg(long, value_name = "SIZE", value_parser = boot_size)]
    boot_size: Option<u64>,
}

impl From<&AboutArgs> for About {
    fn from(args: &AboutArgs) -> Self {
        let AboutArgs { description, release, boot, boot_size } = args.clone();
        Self { description, release, boot, boot_bytes: boot_size }
    }
}

/// A line of text for a table.
fn remark(text: &str) -> Result<String, String> {
    match text.chars().any(char::is_control) || text.len() > 200 {
        true => Err("write one line of at most 200 bytes".into()),
        false => Ok(text.to_owned()),
    }
}

/// The size of a boot partition that is filled.
fn boot_size(text: &str) -> Result<u64, String> {
    let size = human::size(text)?;
    match (64 << 20..=BOOT_MAX).contains(&size) {
        true => Ok(size),
        false => Err(format!("{text} is no size of a boot partition: it has 64M to {}G", BOOT_MAX >> 30)),
    }
}

/// Of what kind an image is and from what it boots, as a line.
pub(super) fn described(content: &Content, about: &About) -> String {
    let system = &content.fitness.system;
    let Boot { missing, not_for, not_copied, .. } = &system.boot;
    let (from, partition) = boot_of(content, about);
    let mut text = format!("kind: {}; boots from the {from}", system.kind);
    match from {
        BootFrom::Card if partition > 0 => {
            text += &format!(", with a boot partition of {}", bytes(partition))
        }
        BootFrom::Card => {}
        BootFrom::Network if missing.is_empty() && not_copied.is_empty() => {}
        BootFrom::Network if missing.is_empty() => {
            text +=
                &format!(", at every boot: its boot files cannot be copied to a boot partition: {not_copied}")
        }
        BootFrom::Network => text += &format!(", at every boot: it has no {}", missing.join(", no ")),
    }
    if from == BootFrom::Card && !content.is_disk() {
        if !missing.is_empty() {
            text += &format!(", although it has no {}", missing.join(", no "));
        }
        if !not_for.is_empty() {
            text += &format!("; files are missing for: {}", not_for.join(", "));
        }
    }
    text + "\n"
}
