//! `piman install`: decides for a Pi that waits, after showing what is erased.

use std::io::{IsTerminal as _, Write as _, stderr, stdin};

use anyhow::{Context as _, bail, ensure};
use piman_core::install::{Fingerprint, Found};
use piman_core::text::Escaped;

use super::reinstall::operator;
use crate::cli::state_arg::StateFolder;
use crate::state::resolve::resolve;
use crate::state::{Device, Ordered, State};
use crate::sys::clock::now_ms;
use crate::text::human::{bytes, when};

/// Orders an installation that erases what a Pi found on its disk.
#[derive(Debug, clap::Args)]
pub struct InstallArgs {
    #[command(flatten)]
    state: StateFolder,
    /// Do not ask: for scripts
    #[arg(long)]
    yes: bool,
    /// A serial number (or the beginning of one), a hardware address or an address
    #[arg(value_name = "DEVICE")]
    device: String,
}

/// Shows, asks and orders; returns what to show.
///
/// # Errors
/// If no Pi is called so, it has not said what is on its disk, nobody agreed, or the state cannot be written.
pub fn run(args: &InstallArgs) -> anyhow::Result<String> {
    let state = args.state.open()?;
    let devices = state.devices()?;
    let name = resolve(&args.device, &devices)?.name;
    let called = |d: &&Device| {
        [d.serial.as_deref(), d.mac.as_deref(), Some(&d.address)].contains(&Some(&name)) || d.key == name
    };
    let Some(device) = devices.iter().find(called) else {
        bail!(
            "{name} was not seen yet, so nobody knows what is on its disk; `piman reinstall {name}` installs it if \
             that is nothing or an installation of piman"
        )
    };
    let print = print_of(device)?;
    let source = format!("piman install ({})", operator());
    if !args.yes {
        ensure!(stdin().is_terminal(), "{}; say --yes to order that it is erased", what_is_erased(device));
        ensure!(agreed(device)?, "nothing was ordered");
    }
    let again = match state.order(&name, &source, print)? {
        Ordered::New => "an installation is ordered",
        Ordered::Already { rebound: true, .. } => "the order that was there is for this content now",
        Ordered::Already { claimed: true, .. } => "an installation was ordered already, and has begun",
        Ordered::Already { .. } => "an installation was ordered already",
    };
    Ok(format!(
        "{name}: {again}\n  it erases: {}\n  a Pi that waits asks again within a minute; with another disk in it, it \
         waits and says so\n",
        what_is_erased(device)
    ))
}

/// The content that may be erased. What is somebody's, or cannot be read, needs a fingerprint.
fn print_of(device: &Device) -> anyhow::Result<Option<Fingerprint>> {
    let print = device.print.as_deref().and_then(Fingerprint::parse);
    let found = device.found.as_deref().and_then(Found::from_word);
    ensure!(
        print.is_some() || !matches!(found, Some(Found::Foreign | Found::Unreadable)),
        "{}: its disk is {}, and its agent sent no fingerprint of it, so no order can be for this disk alone; wipe the \
         disk, or start the agent with --erase",
        device.key,
        found.map_or("unknown", Found::word)
    );
    Ok(print)
}

fn what_is_erased(device: &Device) -> String {
    let size =
        if device.disk_bytes == 0 { String::new() } else { format!(" ({})", bytes(device.disk_bytes)) };
    let found = device.found.as_deref().unwrap_or("not reported");
    let disk = device.disk.as_ref().map_or(String::new(), |disk| format!(": {disk}"));
    format!(
        "the disk{size} of {}, last seen {}: {found}{disk}",
        device.key,
        when(device.last_seen_ms, now_ms())
    )
}

fn agreed(device: &Device) -> anyhow::Result<bool> {
    // Standard output is for what was done.
    write!(stderr(), "This erases {}.\nErase it? [y/N] ", Escaped(&what_is_erased(device)))
        .context("asking")?;
    let mut answer = String::new();
    stdin().read_line(&mut answer).context("reading the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
