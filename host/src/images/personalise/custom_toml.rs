//! `custom.toml`, which Raspberry Pi OS Bookworm reads at its first boot: a program that runs as the init of that boot,
//! if the kernel's command line says so. A Pi that goes on from the network into its new system has another command line,
//! so only a file that somebody gives is used; a profile is applied as for older systems, whose ways this one still has.

use piman_core::install::personal::{Item, Place};

use super::draft::{Done, Work};
use super::subject::Occasion;
use super::user_conf;

/// The program of that first boot.
const INIT: &str = "init=/usr/lib/raspberrypi-sys-mods/firstboot";

pub(super) fn write(work: &mut Work<'_>) -> Done {
    if let Some(verbatim) = work.rest.custom_toml.take() {
        // It reads nothing on a system that has been running, nor where the command line is not the card's.
        if !work.subject.is_disk || work.subject.occasion != Occasion::Install {
            return Err("custom-toml: this is read at the first boot of a disk image only".into());
        }
        for (name, content) in verbatim.files() {
            work.file(Place::Boot, &format!("/{name}"), 0o600, content.bytes())?;
        }
        work.add(&Item::Word { key: "init", text: INIT })?;
    }
    // Of an archive nobody knows where its boot partition is while it runs: its files are written directly.
    if work.subject.is_disk { user_conf::write(work) } else { Ok(()) }
}
