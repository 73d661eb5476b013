//! `piman profile`: what Pis are to have of their own.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail, ensure};
use piman_core::install::Installation;
use piman_core::install::personal::Bundle;

use crate::cli::reinstall::operator;
use crate::cli::state_arg::StateFolder;
use crate::images::boot_from::boot_of;
use crate::images::fitness::BootFrom;
use crate::images::personalise::profile::{IdentityMode, Profile, Secret, TEXT_MAX, without_secrets};
use crate::images::personalise::template::{Facts, Template};
use crate::images::personalise::{Occasion, Subject, items, render};
use crate::images::source::Archive;
use crate::state::decision::Scope;
use crate::state::resolve::resolve;
use crate::state::{Device, Identity, Sqlite, State, StoredProfile, Written};
use crate::sys::clock::now_ms;
use crate::text::human::{columns, print, when};

/// Profiles.
#[derive(Debug, clap::Args)]
pub struct ProfileArgs {
    #[command(subcommand)]
    command: ProfileCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ProfileCommand {
    /// Set the profile of all Pis, a group or a Pi in the place of the one that was there
    #[command(
        after_help = "A Pi gets the server's profile, its group's over that, and its own over both. It is applied \
        when the Pi is installed, or by `piman personalise`; nothing is reinstalled because of it. Files that \
        it names are read now, relative to the profile's own folder, and kept in the state."
    )]
    Set {
        #[command(flatten)]
        state: StateFolder,
        #[command(flatten)]
        whom: Whom,
        /// Its TOML, or `-`: standard input
        #[arg(value_name = "FILE|-")]
        file: PathBuf,
    },
    /// Show a profile, without its secrets
    Show {
        #[command(flatten)]
        state: StateFolder,
        #[command(flatten)]
        whom: Whom,
        /// As it was set, with its secrets
        #[arg(long)]
        reveal: bool,
    },
    /// List all profiles
    List {
        #[command(flatten)]
        state: StateFolder,
    },
    /// Take a profile away; with --for also the Pi's number and host name, which another one can have then
    Remove {
        #[command(flatten)]
        state: StateFolder,
        #[command(flatten)]
        whom: Whom,
    },
    /// Say what is wrong with a profile; nothing is changed
    Check {
        /// Its TOML, or `-`: standard input
        #[arg(value_name = "FILE|-")]
        file: PathBuf,
    },
    /// Show exactly what a Pi would get with its next installation
    Render {
        #[command(flatten)]
        state: StateFolder,
        /// With the secrets
        #[arg(long)]
        reveal: bool,
        /// With this image [default: the one that it gets]
        #[arg(long, value_name = "NAME")]
        image: Option<String>,
        /// A serial number (or the beginning of one), a hardware address or an address
        #[arg(value_name = "DEVICE")]
        device: String,
    },
}

/// For whom.
#[derive(Debug, Clone, clap::Args)]
struct Whom {
    /// For this Pi
    #[arg(long = "for", value_name = "DEVICE", conflicts_with = "group")]
    device: Option<String>,
    /// For the Pis of this group (`piman group`)
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
}

impl Whom {
    fn scope(&self, state: &dyn State) -> anyhow::Result<Scope> {
        Ok(match (&self.device, &self.group) {
            (Some(device), _) => Scope::Device(resolve(device, &state.devices()?)?.name),
            (None, Some(group)) => Scope::Group(group.clone()),
            (None, None) => Scope::Server,
        })
    }
}

/// Runs `piman profile`.
///
/// # Errors
/// What is wrong with the profile, or why the state cannot be read or written.
pub fn run(args: &ProfileArgs) -> anyhow::Result<()> {
    print(&match &args.command {
        ProfileCommand::Set { state, whom, file } => set(&state.open_or_make()?, whom, file)?,
        ProfileCommand::Show { state, whom, reveal } => show(&state.open()?, whom, *reveal)?,
        ProfileCommand::List { state } => list(&state.open()?)?,
        ProfileCommand::Remove { state, whom } => remove(&state.open()?, whom)?,
        ProfileCommand::Check { file } => {
            let Written { profile, .. } = read(file)?;
            format!("{} is a sound profile: {}\n", file.display(), summary(&profile))
        }
        ProfileCommand::Render { state, reveal, image, device } => {
            let configured = state.configuration()?.and_then(|options| options.identity);
            let identity = configured.unwrap_or(IdentityMode::Renew);
            rendered(&state.open()?, identity, image.as_deref(), device, *reveal)?
        }
    })
}

/// Reads a profile with the files that it names.
fn read(file: &Path) -> anyhow::Result<Written> {
    let shown = file.display();
    let mut text = String::new();
    let (from, folder): (Box<dyn Read>, _) = if file == Path::new("-") {
        (Box::new(io::stdin().lock()), Path::new("."))
    } else {
        let opened = fs::File::open(file).with_context(|| format!("opening the profile {shown}"))?;
        (Box::new(opened), file.parent().unwrap_or(Path::new(".")))
    };
    from.take(TEXT_MAX + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("reading the profile {shown}"))?;
    ensure!(text.len() as u64 <= TEXT_MAX, "the profile {shown} is longer than {} KiB", TEXT_MAX >> 10);
    let profile = Profile::parse(&text).with_context(|| format!("in the profile {shown}"))?;
    let profile = profile.take_in(folder).with_context(|| format!("in the profile {shown}"))?;
    Ok(Written { text: Secret::new(text), profile })
}

fn set(state: &Sqlite, whom: &Whom, file: &Path) -> anyhow::Result<String> {
    let scope = whom.scope(state)?;
    let written = read(file)?;
    let ordinal = written.profile.device.as_ref().and_then(|device| device.ordinal);
    ensure!(
        ordinal.is_none() || matches!(scope, Scope::Device(_)),
        "[device] is for one Pi: set this profile with --for DEVICE"
    );
    let source = format!("piman profile ({})", operator());
    let taken = state.set_profile(&scope, &written, &source);
    if let Some(other) = taken.with_context(|| format!("setting the profile of {scope}"))? {
        bail!(
            "{other} has this number, and a host name by it: give another one, or, if that Pi is gone, `piman profile \
             remove --for {other}`; nothing was changed"
        );
    }
    let mut out = format!("the profile of {scope}: {}\n", summary(&written.profile));
    for warning in twice(state)? {
        // Writing to a string does not fail.
        let _ = writeln!(out, "warning: {warning}");
    }
    out.push_str(
        "it is applied when a Pi is installed, or at the next boot after `piman personalise DEVICE`\n",
    );
    Ok(out)
}

/// What a profile has, in a line.
fn summary(profile: &Profile) -> String {
    let counted = |count: usize, what: &str| match count {
        0 => None,
        1 => Some(format!("1 {what}")),
        n => Some(format!("{n} {what}s")),
    };
    let named = |is_there: bool, what: &str| is_there.then(|| what.to_owned());
    let parts = [
        profile.hostname.as_ref().map(|pattern| format!("host name {pattern}")),
        profile.device.as_ref().and_then(|device| device.ordinal).map(|n| format!("number {n}")),
        named(profile.locale.is_some(), "locale"),
        named(profile.timezone.is_some(), "time zone"),
        named(profile.keyboard.is_some(), "keyboard"),
        named(profile.ntp.is_some(), "time servers"),
        profile.wifi.as_ref().map(|wifi| format!("Wi-Fi {}", wifi.ssid)),
        profile.ssh.map(|on| format!("SSH {}", if on { "on" } else { "off" })),
        profile.service.map(|on| format!("agent's service {}", if on { "on" } else { "off" })),
        named(profile.identity.is_some(), "identity"),
        counted(profile.users.len(), "account"),
        counted(profile.files.len(), "file"),
        counted(profile.folders.len(), "folder"),
        counted(profile.scripts.len(), "script"),
        named(profile.cloud_init.is_some(), "files for cloud-init"),
        named(profile.custom_toml.is_some(), "a custom.toml"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "nothing".into() } else { parts.join(", ") }
}

/// Host names that two of the Pis that were seen would have.
fn twice(state: &Sqlite) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<(String, String)> = Vec::new();
    for device in state.devices()? {
        let facts = state.personal_of(&identity(&device))?;
        let pattern = facts.profile.and_then(|profile| profile.hostname);
        let filled = pattern.as_deref().map(Template::host_name);
        let facts = Facts {
            serial: device.serial.clone(),
            mac: device.mac.clone(),
            group: facts.group,
            ordinal: facts.ordinal,
            hostname: None,
        };
        // One that cannot have a name at all is said when it is rendered.
        if let Some(Ok(name)) = filled.map(|template| template.and_then(|t| t.fill(&facts))) {
            names.push((name.to_ascii_lowercase(), device.key));
        }
    }
    names.sort();
    let pairs = names.iter().zip(names.iter().skip(1));
    let same = pairs.filter(|(one, next)| one.0 == next.0);
    let text = |(one, next): (&(String, String), &(String, String))| {
        format!("{} and {} would both be called {}: the second one will wait", one.1, next.1, one.0)
    };
    Ok(same.map(text).take(10).collect())
}

fn find(state: &Sqlite, scope: &Scope) -> anyhow::Result<StoredProfile> {
    let found = state.profiles()?.into_iter().find(|stored| stored.scope == *scope);
    found.ok_or_else(|| anyhow!("there is no profile of {scope}; `piman profile list` shows all"))
}

fn show(state: &Sqlite, whom: &Whom, reveal: bool) -> anyhow::Result<String> {
    let written = find(state, &whom.scope(state)?)?.written;
    if reveal {
        return Ok(written.text.reveal().to_owned());
    }
    Ok(without_secrets(written.text.reveal())?)
}

fn list(state: &Sqlite) -> anyhow::Result<String> {
    let profiles = state.profiles()?;
    if profiles.is_empty() {
        return Ok("there is no profile; `piman profile set FILE` sets one\n".into());
    }
    let rows = profiles.into_iter().map(|stored| {
        let StoredProfile { scope, written, changed_ms, source } = stored;
        [scope.to_string(), summary(&written.profile), when(changed_ms, now_ms()), source]
    });
    Ok(columns(["FOR", "WHAT", "SET", "BY"], rows))
}

fn remove(state: &Sqlite, whom: &Whom) -> anyhow::Result<String> {
    let scope = whom.scope(state)?;
    let gone = state.remove_profile(&scope)?;
    ensure!(gone, "there is no profile of {scope}; `piman profile list` shows all");
    Ok(format!("the profile of {scope} is removed; what Pis have of it stays on their cards\n"))
}

fn identity(device: &Device) -> Identity {
    Identity {
        serial: device.serial.as_deref().map(Into::into),
        mac: device.mac.as_deref().map(Into::into),
        address: device.address.parse().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()),
    }
}

fn rendered(
    state: &Sqlite,
    identity_mode: IdentityMode,
    image: Option<&str>,
    device: &str,
    reveal: bool,
) -> anyhow::Result<String> {
    let devices = state.devices()?;
    let name = resolve(device, &devices)?.name;
    let is_this = |d: &&Device| {
        d.key == name || [d.serial.as_ref(), d.mac.as_ref(), Some(&d.address)].contains(&Some(&name))
    };
    let known = devices.iter().find(is_this);
    let device =
        known.with_context(|| format!("{name} was not seen yet, so nobody knows what it would get"))?;
    let pi = identity(device);
    let path = match image {
        Some(image) => {
            let found = state.catalogue()?.images.into_iter().find(|i| i.name == image);
            found.with_context(|| format!("there is no image {image}; `piman image list` shows them"))?.path
        }
        None => state.image_of(&pi)?.with_context(|| {
            format!(
                "no image of the list is meant for {name}: say --image NAME, or `piman image default NAME`"
            )
        })?,
    };
    let content = Archive::facts_of(&path, &path, state, &|_| {})?;
    let facts = state.personal_of(&pi)?;
    let system = &content.fitness.system;
    let (boot, _) = boot_of(&content, &state.about(&path)?);
    let subject = Subject {
        facts: Facts {
            serial: device.serial.clone(),
            mac: device.mac.clone(),
            group: facts.group,
            ordinal: facts.ordinal,
            hostname: None,
        },
        system,
        is_disk: content.is_disk(),
        boots_from_card: boot == BootFrom::Card,
        occasion: Occasion::Install,
        installation: Installation(0),
        identity: identity_mode,
    };
    let profile = facts.profile.unwrap_or_default();
    // Nothing that has no secret in it can show one.
    let profile = if reveal { profile } else { profile.hidden() };
    let rendered = render(&profile, &subject).map_err(|e| anyhow!("{name} would wait: {e}"))?;
    let bundle = Bundle::parse(rendered.draft.bytes()).map_err(anyhow::Error::msg)?;
    let mut out = format!(
        "# {name}, number {}, with {} ({}, boots from the {boot})\n",
        facts.ordinal,
        path.display(),
        system.kind
    );
    let items = items(&bundle);
    out.push_str(if items.is_empty() { "nothing is changed\n" } else { &items });
    Ok(out)
}
