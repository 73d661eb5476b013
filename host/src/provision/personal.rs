//! What makes a card one Pi's own, on the server: rendered when a Pi is told to install or to boot.

use piman_core::install::personal::Bundle;
use piman_core::install::{BootPersonal, Installation, Personal, Plan};
use tokio::task::block_in_place;

use super::control::ControlConnection;
use crate::images::boot_from;
use crate::images::fitness::BootFrom;
use crate::images::personalise::profile::Profile;
use crate::images::personalise::template::Facts;
use crate::images::personalise::{Occasion, Rendered, Subject, render};
use crate::state::StateError;
use crate::state::archive_facts::Content;
use crate::sys::clock::now_ms;

/// What a Pi is to get of its own, before it is known as which installation.
pub(super) struct Wanted {
    profile: Profile,
    facts: Facts,
    /// Whether there is a profile that it does not take, as it has a key.
    is_withheld: bool,
}

/// Why a Pi does not get what is meant for it.
pub(super) enum Refusal {
    /// The state cannot be read or written.
    State(StateError),
    /// Somebody has to see to it, for this reason.
    Reason(String),
}

impl From<StateError> for Refusal {
    fn from(e: StateError) -> Self {
        Self::State(e)
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::Reason(reason)
    }
}

impl ControlConnection<'_> {
    /// What is meant for this Pi, whatever its image; `None`: nothing that its agent could do and that has to be done.
    pub(super) fn wanted(&self) -> Result<Option<Wanted>, Refusal> {
        let pi = self.pi();
        let known = block_in_place(|| self.service.recorder.personal_of(&pi))?;
        let profile = known.profile.filter(|profile| !profile.is_empty());
        let is_meant = profile.is_some();
        let Some(said) = self.said.as_ref().filter(|said| said.personal) else {
            if !is_meant {
                return Ok(None);
            }
            let who =
                if self.said.is_some() { "the agent on this Pi is too old" } else { "an old Pi is unable" };
            return Err(Refusal::Reason(format!(
                "a profile is meant for it, which {who} to apply: let the Pi netboot an agent of this version, or remove \
                 the profile"
            )));
        };
        let mut profile = profile.unwrap_or_default();
        // Who can write into a system needs no other key to it.
        let is_withheld = said.signed && is_meant && !self.signs();
        if is_withheld {
            profile = Profile { identity: profile.identity, ..Profile::default() };
        }
        let facts = Facts {
            serial: pi.serial.as_deref().map(str::to_owned),
            mac: pi.mac.as_deref().map(str::to_owned),
            group: known.group,
            ordinal: known.ordinal,
            hostname: None,
        };
        Ok(Some(Wanted { profile, facts, is_withheld }))
    }

    /// Finds all that can be wrong with it for this image, before anything is erased, and takes its host name.
    pub(super) fn check(
        &mut self,
        wanted: &Wanted,
        content: &Content,
        occasion: Occasion,
    ) -> Result<(), Refusal> {
        let rendered = self.render(wanted, content, occasion, Installation(0))?;
        if occasion == Occasion::Install {
            let more = rendered.boot_bytes();
            if let Some(reason) = boot_from::refusal(content, &self.own().about, more) {
                return Err(Refusal::Reason(reason));
            }
        }
        if let Some(name) = &rendered.hostname {
            let pi = self.pi();
            let other = block_in_place(|| self.service.recorder.give_host_name(&pi, name))?;
            if let Some(other) = other {
                return Err(Refusal::Reason(format!(
                    "its host name would be {name}, which {other} has: give one of them another number or host name \
                     (`piman profile set --for DEVICE`), or, if that Pi is gone, `piman profile remove --for {other}`"
                )));
            }
        }
        if wanted.is_withheld {
            self.alert(
                "its profile is not applied",
                "a Pi with a public key takes from a server without a certificate nothing but a new identity (`piman key certify`)",
            );
        }
        Ok(())
    }

    fn render(
        &self,
        wanted: &Wanted,
        content: &Content,
        occasion: Occasion,
        installation: Installation,
    ) -> Result<Rendered, Refusal> {
        let subject = Subject {
            facts: wanted.facts.clone(),
            system: &content.fitness.system,
            is_disk: content.is_disk(),
            boots_from_card: self.boot_of(content).0 == BootFrom::Card,
            occasion,
            installation,
            identity: self.service.settings().identity,
        };
        Ok(render(&wanted.profile, &subject)?)
    }

    /// The bundle as this installation, kept for the Pi to fetch it.
    pub(super) fn bundle(
        &mut self,
        wanted: &Wanted,
        content: &Content,
        occasion: Occasion,
        installation: Installation,
    ) -> Result<Option<Personal>, Refusal> {
        self.own().rendered_ms = now_ms();
        let rendered = self.render(wanted, content, occasion, installation)?;
        let bundle = rendered.draft.bytes();
        let is_empty = Bundle::parse(bundle).is_ok_and(|bundle| bundle.items().next().is_none());
        if is_empty {
            return Ok(None);
        }
        // Names and passwords are nobody else's business; a Pi without a key can open nothing.
        let sealed = match self.key() {
            Some(key) => {
                let sealed = self.service.keys.now().seal(key, bundle);
                Some(sealed.ok_or_else(|| "the key that it shows is none".to_owned())?)
            }
            None => None,
        };
        Ok(Some(self.service.bundles.keep(sealed.as_deref().unwrap_or(bundle))))
    }

    /// A Pi boots what is on its card; if that is ordered, its profile is applied before.
    pub(super) fn boot(&mut self) -> Plan {
        let pi = self.pi();
        match self.service.recorder.is_personal_ordered(&pi) {
            Ok(false) => Plan::Boot,
            Ok(true) => self.personalise().unwrap_or_else(|refusal| {
                let reason = match refusal {
                    Refusal::State(e) => format!("the state: {e}"),
                    Refusal::Reason(reason) => reason,
                };
                self.alert("its profile is not applied, as is ordered", &reason);
                Plan::Boot
            }),
            // The order waits for the next boot.
            Err(e) => {
                self.alert("its profile is not applied", &format!("reading what is ordered: {e}"));
                Plan::Boot
            }
        }
    }

    fn personalise(&mut self) -> Result<Plan, Refusal> {
        let pi = self.pi();
        let card = self.said.as_ref().and_then(|said| said.card);
        let card = card.ok_or_else(|| "it does not say which image is on its card".to_owned())?;
        if self.said.as_ref().is_some_and(|said| said.signed) && !self.signs() {
            let reason = "a Pi with a public key takes no profile from a server without a certificate (`piman key certify`)";
            return Err(Refusal::Reason(reason.into()));
        }
        let archive = self.service.catalog.by_id(card);
        let is_checking = archive.is_none() && self.service.catalog.is_checking();
        if let Some(archive) = &archive {
            self.own().about = self.service.catalog.about(archive)?;
        }
        let content = archive.and_then(|archive| archive.facts().cloned()).ok_or_else(|| {
            if is_checking {
                return "the images are still being checked".to_owned();
            }
            format!(
                "image {card:.12}, which is on its card, is not in the list of images any more, so that nobody knows what \
                 kind of system it is; `piman reinstall` installs the Pi anew"
            )
        })?;
        let wanted = self.wanted()?;
        let wanted = wanted.ok_or_else(|| "the agent on this Pi is too old to apply one".to_owned())?;
        self.check(&wanted, &content, Occasion::Again)?;
        let begun = block_in_place(|| self.service.recorder.begin_personal(&pi))?;
        // It was cancelled between two looks.
        let Some(number) = begun else { return Ok(Plan::Boot) };
        if self.said.as_ref().is_some_and(|said| said.installation == Some(number)) {
            // Its report was lost.
            self.service.recorder.personalised(&pi, now_ms());
            return Ok(Plan::Boot);
        }
        let Some(personal) = self.bundle(&wanted, &content, Occasion::Again, number)? else {
            self.service.recorder.personalised(&pi, self.rendered_ms());
            return Err(Refusal::Reason("there is nothing in its profile, so the order is done".into()));
        };
        self.installation = Some(number);
        self.own().is_applied = true;
        let fetch_port = self.service.fetch_port;
        Ok(Plan::Personalise(BootPersonal { personal, fetch_port, installation: Some(number) }))
    }
}
