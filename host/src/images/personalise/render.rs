//! A profile and the facts of a Pi to a bundle. Nothing is read and nothing is random: the same input gives the same
//! bytes.

use std::fmt;

use piman_core::install::personal::{Bundle, Draft, Item, Place, Renew};

use super::draft::Work;
use super::profile::{IdentityMode, Profile};
use super::reach::can_be_done;
use super::subject::{Occasion, Subject};
use super::template::Template;
use super::{cloud_init, custom_toml, dietpi, home_assistant, plain, user_conf};
use crate::images::fitness::{Kind, RootAccess};

/// The largest cluster of a boot partition of up to 8 GiB, in bytes.
const CLUSTER: u64 = 4096;

/// A bundle, and what it says of the Pi.
#[derive(Clone)]
pub struct Rendered {
    /// The bundle.
    pub draft: Draft,
    /// The host name that the Pi gets, if the profile says one.
    pub hostname: Option<String>,
}

impl Rendered {
    /// The room that its files need on a boot partition, in bytes.
    #[must_use]
    pub fn boot_bytes(&self) -> u64 {
        let Ok(bundle) = Bundle::parse(self.draft.bytes()) else { return 0 };
        let size = |item: Item<'_>| match item {
            // With a name, and while the one before it is still there.
            Item::File { place: Place::Boot, content, .. } => content.len() as u64 + CLUSTER,
            Item::Folder { place: Place::Boot, .. }
            | Item::Line { place: Place::Boot, .. }
            | Item::Word { .. } => CLUSTER,
            _ => 0,
        };
        bundle.items().map(size).sum()
    }
}

/// Its size alone: passwords are in it.
impl fmt::Debug for Rendered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rendered({:?}, {:?})", self.hostname, self.draft)
    }
}

/// Renders a profile for a Pi.
///
/// # Errors
/// What of it cannot be done for this Pi or with this image, for people.
pub fn render(profile: &Profile, subject: &Subject<'_>) -> Result<Rendered, String> {
    let mut subject = subject.clone();
    let pattern = profile.hostname.as_deref().map(Template::host_name).transpose()?;
    let hostname = pattern.map(|pattern| pattern.fill(&subject.facts)).transpose()?;
    subject.facts.hostname.clone_from(&hostname);
    let mut work = Work { rest: profile.clone(), subject: &subject, draft: Draft::default() };
    identity(&mut work)?;
    check_verbatim(profile, subject.system.kind)?;
    match subject.system.kind {
        Kind::Plain => {}
        Kind::CloudInit => cloud_init::write(&mut work)?,
        Kind::CustomToml => custom_toml::write(&mut work)?,
        Kind::UserConf => user_conf::write(&mut work)?,
        Kind::DietPi => dietpi::write(&mut work)?,
        Kind::HomeAssistant => {
            home_assistant::write(&mut work)?;
            can_be_done(&work.draft, &subject)?;
            return Ok(Rendered { draft: work.draft, hostname });
        }
    }
    plain::write(&mut work)?;
    can_be_done(&work.draft, &subject)?;
    Ok(Rendered { draft: work.draft, hostname })
}

fn identity(work: &mut Work<'_>) -> Result<(), String> {
    let subject = work.subject;
    let mode = work.rest.identity.take().unwrap_or(subject.identity);
    // Home Assistant OS makes its own, and its boot loader finds its partitions by identifiers that nobody may change.
    let is_wanted = mode == IdentityMode::Renew
        && subject.occasion == Occasion::Install
        && subject.system.kind != Kind::HomeAssistant;
    if !is_wanted || matches!(subject.system.root, RootAccess::Nothing(_)) {
        return Ok(());
    }
    work.add(&Item::Identity(Renew { machine: true, host_keys: true, disk: true }))
}

/// Files as they are belong to the kind of system that reads them.
fn check_verbatim(profile: &Profile, kind: Kind) -> Result<(), String> {
    let is_wrong = |is_there: bool, reader| is_there && kind != reader;
    for (key, is_there, reader) in [
        ("cloud-init", profile.cloud_init.is_some(), Kind::CloudInit),
        ("custom-toml", profile.custom_toml.is_some(), Kind::CustomToml),
    ] {
        if is_wrong(is_there, reader) {
            return Err(format!("{key}: the image is of the kind `{kind}`, which does not read that"));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "render/tests.rs"]
mod tests;
