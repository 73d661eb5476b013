//! `piman devices add`, `remove`, `list` and `--pending`: who is served with `--only-known`.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use super::device_keys;
use super::reinstall::operator;
use crate::cli::state_arg::{DevicesArgs, StateFolder};
use crate::state::resolve::{Note, resolve};
use crate::state::{Device, Listed, ListedPi, State};
use crate::sys::clock::now_ms;
use crate::sys::mac::Mac;
use crate::text::human::{columns, when};

/// More than this is no list of Pis.
const BYTES_MAX: u64 = 4 << 20;
/// The longest label, in characters.
const LABEL_MAX: usize = 64;

/// Who is in the device list.
#[derive(Debug, clap::Subcommand)]
pub enum ListCommand {
    /// Put Pis into the device list: with --only-known, others are not served
    #[command(
        after_help = "DEVICE is a serial number (all 16 digits, or the last 8), a hardware address, or the address \
        of an old Pi, which is known by nothing else: then any Pi with that address is served. A running server \
        applies a change of the list at once."
    )]
    Add {
        /// Where the list is kept
        #[command(flatten)]
        state: StateFolder,
        /// What people call it
        #[arg(long, value_name = "TEXT", conflicts_with = "from")]
        name: Option<String>,
        /// File with a Pi in each line, and after a space what people call it; `#` begins a comment
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// Which Pis
        #[arg(value_name = "DEVICE", required_unless_present = "from")]
        devices: Vec<String>,
    },
    /// Take the key that was shown for the Pi's own, when it waits because it has another one than before
    Approve {
        /// Where the keys are kept
        #[command(flatten)]
        state: StateFolder,
        /// Which key, by its first digits, if several say that they are this Pi
        #[arg(long, value_name = "DIGITS")]
        key: Option<String>,
        /// Which Pi
        #[arg(value_name = "DEVICE")]
        device: String,
    },
    /// Forget a Pi's key: whoever says its name next is taken for it
    Forget {
        /// Where the keys are kept
        #[command(flatten)]
        state: StateFolder,
        /// Which Pi
        #[arg(value_name = "DEVICE")]
        device: String,
    },
    /// Take Pis out of the device list
    Remove(DevicesArgs),
    /// Show the device list
    List {
        /// Where the list is kept
        #[command(flatten)]
        state: StateFolder,
    },
}

/// Does what was asked for; `folder` is what was named before the command. Returns what to show.
///
/// # Errors
/// If a name can be no Pi's, the file cannot be read, or the state cannot be read or written; then nothing was changed.
pub fn run(command: ListCommand, folder: StateFolder) -> anyhow::Result<String> {
    match command {
        ListCommand::Add { state, name, from, devices } => {
            let state = state.or(folder).open_or_make()?;
            ensure!(
                name.is_none() || devices.len() == 1,
                "--name is for one Pi; with several, use --from FILE"
            );
            add(&state, name, from.as_deref(), &devices)
        }
        ListCommand::Remove(DevicesArgs { state, devices }) => remove(&state.or(folder).open()?, &devices),
        ListCommand::Approve { state, key, device } => {
            device_keys::approve(&state.or(folder).open()?, &device, key.as_deref())
        }
        ListCommand::Forget { state, device } => device_keys::forget(&state.or(folder).open()?, &device),
        ListCommand::List { state } => list(&state.or(folder).open()?),
    }
}

/// A name in the spelling of the list.
fn name_of(text: &str, seen: &[Device]) -> anyhow::Result<String> {
    let lower = text.trim().to_ascii_lowercase();
    if let Ok(ip) = lower.parse::<IpAddr>() {
        // Not who has it now: the operator said the address.
        return Ok(ip.to_canonical().to_string());
    }
    if let Ok(mac) = lower.parse::<Mac>() {
        return Ok(mac.to_string());
    }
    if seen.iter().any(|d| d.serial.as_deref() == Some(&lower)) {
        return Ok(lower);
    }
    let is_hex = lower.bytes().all(|b| b.is_ascii_hexdigit());
    ensure!(
        is_hex && matches!(lower.len(), 8 | 16),
        "`{text}` is no Pi: give a serial number (all 16 hexadecimal digits, as in /proc/cpuinfo, or the last 8), a \
         hardware address or an address; `piman devices --pending` shows those that were seen"
    );
    Ok(lower)
}

fn label_of(text: &str) -> anyhow::Result<String> {
    let text = text.trim();
    ensure!(
        !text.is_empty() && text.chars().count() <= LABEL_MAX && text.chars().all(piman_core::text::is_shown),
        "`{}` cannot be what a Pi is called: use 1 to {LABEL_MAX} characters that can be shown",
        text.escape_debug()
    );
    Ok(text.to_owned())
}

fn add(
    state: &dyn State,
    label: Option<String>,
    from: Option<&Path>,
    devices: &[String],
) -> anyhow::Result<String> {
    let seen = state.devices()?;
    let label = label.as_deref().map(label_of).transpose()?;
    let mut source = format!("piman devices add ({})", operator());
    let mut wrong = Vec::new();
    let mut pis = Vec::new();
    for text in devices {
        match name_of(text, &seen) {
            Ok(name) => pis.push((name, label.clone())),
            Err(e) => wrong.push(e.to_string()),
        }
    }
    if let Some(file) = from {
        let shown = file.display();
        let _ = write!(source, " from {shown}");
        for (number, line) in (1..).zip(read(file)?.lines()) {
            match parse(line, &seen) {
                Ok(pi) => pis.extend(pi),
                Err(e) => wrong.push(format!("{shown}:{number}: {e}")),
            }
        }
    }
    ensure!(wrong.is_empty(), "{}\nnothing was changed", wrong.join("\n"));
    ensure!(!pis.is_empty(), "there is no Pi in that file; nothing was changed");
    let new = state.add_listed(&pis, &source)?;
    let mut out = String::new();
    for (name, _) in pis.iter().filter(|_| from.is_none()) {
        let has = if seen.iter().any(|d| is(d, name)) { "" } else { "; it was not seen yet" };
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name} is in the device list{has}");
    }
    if from.is_some() {
        let _ = writeln!(out, "{} Pis are in the device list, {new} of them new", pis.len());
    }
    Ok(out)
}

fn read(file: &Path) -> anyhow::Result<String> {
    let shown = file.display();
    let bytes = fs::metadata(file).with_context(|| format!("reading {shown}"))?.len();
    ensure!(bytes <= BYTES_MAX, "{shown} has more than {BYTES_MAX} bytes, so it is no list of Pis");
    fs::read_to_string(file).with_context(|| format!("reading {shown}"))
}

/// One line: a Pi and perhaps its label, nothing, or a comment.
fn parse(line: &str, seen: &[Device]) -> anyhow::Result<Option<(String, Option<String>)>> {
    // An editor on Windows begins a file with this mark.
    let text = line.trim_start_matches('\u{feff}').split('#').next().unwrap_or_default().trim();
    if text.is_empty() {
        return Ok(None);
    }
    let (name, label) = text.split_once(|c: char| c.is_whitespace() || c == ',').unwrap_or((text, ""));
    let label = Some(label.trim()).filter(|l| !l.is_empty()).map(label_of).transpose()?;
    Ok(Some((name_of(name, seen)?, label)))
}

fn remove(state: &dyn State, devices: &[String]) -> anyhow::Result<String> {
    let (seen, listed) = (state.devices()?, state.listed()?);
    let mut names = Vec::new();
    for text in devices {
        let name = match listed_as(text, &listed)? {
            Some(pi) => pi.name.clone(),
            None => {
                let named = resolve(text, &seen)?;
                match named.note {
                    Some(Note::HasNow(address)) if listed.iter().any(|pi| pi.name == address) => address,
                    _ => named.name,
                }
            }
        };
        ensure!(
            listed.iter().any(|pi| pi.name == name),
            "{name} is not in the device list; nothing was changed; `piman devices list` shows it"
        );
        names.push(name);
    }
    let gone = state.remove_listed(&names)?;
    let mut out = String::new();
    for name in gone {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name} is not in the device list any more");
    }
    if out.is_empty() {
        bail!("somebody else has removed them meanwhile");
    }
    Ok(out)
}

/// The Pi that is listed under this name, or else called so.
fn listed_as<'l>(text: &str, listed: &'l [ListedPi]) -> anyhow::Result<Option<&'l ListedPi>> {
    let (text, name) = (text.trim(), text.trim().to_ascii_lowercase());
    if let Some(pi) = listed.iter().find(|pi| pi.name == name) {
        return Ok(Some(pi));
    }
    let called: Vec<_> = listed.iter().filter(|pi| pi.label.as_deref() == Some(text)).collect();
    let names = || called.iter().map(|pi| pi.name.as_str()).collect::<Vec<_>>().join(", ");
    ensure!(
        called.len() < 2,
        "`{text}` is what several Pis are called: {}; name one of them; nothing was changed",
        names()
    );
    Ok(called.first().copied())
}

/// Whether a Pi is listed under this name.
fn is(device: &Device, name: &str) -> bool {
    let by_last = |serial: &str| name.len() == 8 && serial.len() == 16 && serial.ends_with(name);
    device.serial.as_deref().is_some_and(|s| s == name || by_last(s))
        || device.mac.as_deref() == Some(name)
        || device.serial.is_none() && device.mac.is_none() && device.address == name
}

fn list(state: &dyn State) -> anyhow::Result<String> {
    let (seen, listed) = (state.devices()?, state.listed()?);
    if listed.is_empty() {
        return Ok("the device list is empty; `piman devices add DEVICE` puts a Pi into it\n".into());
    }
    let rows = listed.into_iter().map(|pi| {
        let last = seen.iter().filter(|d| is(d, &pi.name)).map(|d| d.last_seen_ms).max();
        [
            pi.name,
            pi.label.unwrap_or_else(|| "-".into()),
            when(pi.added_ms, now_ms()),
            pi.source,
            last.map_or("never".into(), |at| when(at, now_ms())),
        ]
    });
    Ok(columns(["DEVICE", "NAME", "ADDED", "BY", "LAST SEEN"], rows))
}

/// The Pis that were seen and are not in the list, and the command that lets each in.
///
/// # Errors
/// If the state cannot be read.
pub fn pending(state: &dyn State) -> anyhow::Result<String> {
    let strange = device_keys::pending(state)?;
    let mut rows = Vec::new();
    for device in state.devices()? {
        let Ok(address) = device.address.parse() else { continue };
        let pi = crate::state::Identity {
            serial: device.serial.as_deref().map(Into::into),
            mac: device.mac.as_deref().map(Into::into),
            address,
        };
        if state.is_listed(&pi)? != Listed::Yes {
            let command = format!("piman devices add {}", device.key);
            rows.push([device.key, device.address, when(device.last_seen_ms, now_ms()), command]);
        }
    }
    let strange = strange.map(|text| text + "\n").unwrap_or_default();
    if rows.is_empty() {
        return Ok(strange + "every Pi that was seen is in the device list\n");
    }
    Ok(strange + &columns(["DEVICE", "ADDRESS", "LAST SEEN", "LET IT IN WITH"], rows.into_iter()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_file() {
        let of = |line: &str| parse(line, &[]);
        let pi = |name: &str, label: Option<&str>| Some((name.to_owned(), label.map(str::to_owned)));
        for (line, want) in [
            ("", None),
            ("  # all", None),
            ("\u{feff}10000000ABCDEF01", pi("10000000abcdef01", None)),
            ("abcdef01\tby the window # yes", pi("abcdef01", Some("by the window"))),
            ("B8-27-EB-00-00-01, second row", pi("b8:27:eb:00:00:01", Some("second row"))),
            ("10.0.0.7", pi("10.0.0.7", None)),
        ] {
            assert_eq!(of(line).unwrap(), want, "{line}");
        }
        for bad in
            ["abcdef0", "10000000abcdefg1", "10000000abcdef01a", "pi", "10.0.0", "b8:27:eb", "abcdef01 \u{7}"]
        {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
    #[test]
    fn a_label_of_two_pis_names_neither() {
        let listed = |name: &str, label: &str| ListedPi {
            name: name.into(),
            label: Some(label.into()),
            added_ms: 0,
            source: String::new(),
        };
        let all = [listed("abcdef01", "Window"), listed("abcdef02", "door"), listed("abcdef03", "Window")];
        let found = |text| listed_as(text, &all).map(|pi| pi.map(|pi| pi.name.as_str()));
        assert_eq!(found("door").unwrap(), Some("abcdef02"));
        assert_eq!(found(" ABCDEF03 ").unwrap(), Some("abcdef03"));
        assert_eq!(found("window").unwrap(), None);
        let error = found("Window").unwrap_err().to_string();
        assert!(error.contains("abcdef01, abcdef03") && error.contains("nothing was changed"), "{error}");
    }
}
