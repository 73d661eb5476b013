//! What makes a card one Pi's own, on the server: rendered when a Pi is told to install or to boot, and kept until it is
//! fetched.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use piman_core::hash::Hash;
use piman_core::install::layout::{Layout, SECTOR};
use piman_core::install::personal::Bundle;
use piman_core::install::{BootPersonal, Installation, Personal, Plan};
use tokio::task::block_in_place;

use super::control::ControlConnection;
use crate::images::fitness::BootFrom;
use crate::images::personalise::profile::Profile;
use crate::images::personalise::template::Facts;
use crate::images::personalise::{Occasion, Rendered, Subject, render};
use crate::state::archive_facts::Content;
use crate::state::{About, Identity, StateError};
use crate::sys::clock::now_ms;
use crate::sys::lock::lock;

/// As many bytes of bundles are kept, and as many bundles: the oldest go first. Who comes too late asks again.
const KEPT_BYTES: usize = 256 << 20;
const KEPT: usize = 20_000;
/// What the root partition begins at a multiple of, in bytes.
const ROOT_GRAIN: u64 = 4 << 20;

/// The bundles that Pis were offered.
#[derive(Debug, Default)]
pub struct Bundles(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    by_hash: HashMap<Hash, (Owners, Arc<[u8]>)>,
    /// The oldest first.
    order: VecDeque<Hash>,
    bytes: usize,
}

/// Whose a bundle is: many Pis have the same one if nothing in it is about a Pi.
#[derive(Default)]
struct Owners {
    names: HashSet<String>,
    addresses: HashSet<IpAddr>,
}

impl Owners {
    fn add(&mut self, pi: &Identity) {
        // Of so many those come first again that still want it: they ask for a decision again.
        if self.names.len() >= KEPT {
            *self = Self::default();
        }
        self.names.insert(pi.key());
        self.addresses.insert(pi.address);
    }

    fn has(&self, pi: &Identity) -> bool {
        self.names.contains(&pi.key()) || self.addresses.contains(&pi.address)
    }
}

/// How many: passwords are in them.
impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bundles of {} bytes", self.order.len(), self.bytes)
    }
}

impl Bundles {
    /// Keeps one for a Pi, and returns what the Pi is told of it.
    pub fn keep(&self, pi: &Identity, bundle: &[u8]) -> Personal {
        let hash = Hash(*blake3::hash(bundle).as_bytes());
        let mut kept = lock(&self.0);
        match kept.by_hash.get_mut(&hash) {
            Some((owners, _)) => owners.add(pi),
            None => {
                let mut owners = Owners::default();
                owners.add(pi);
                kept.by_hash.insert(hash, (owners, bundle.into()));
                kept.order.push_back(hash);
                kept.bytes += bundle.len();
            }
        }
        while kept.bytes > KEPT_BYTES || kept.order.len() > KEPT {
            let Some(oldest) = kept.order.pop_front() else { break };
            let gone = kept.by_hash.remove(&oldest).map_or(0, |(_, bundle)| bundle.len());
            kept.bytes = kept.bytes.saturating_sub(gone);
        }
        Personal { hash, bytes: u32::try_from(bundle.len()).unwrap_or(0) }
    }

    /// The one with this hash, if it is for this Pi.
    #[must_use]
    pub fn find(&self, pi: &Identity, hash: Hash) -> Option<Arc<[u8]>> {
        let kept = lock(&self.0);
        let (owners, bundle) = kept.by_hash.get(&hash)?;
        owners.has(pi).then(|| Arc::clone(bundle))
    }
}

/// From what a card with this image boots, and how large the boot partition is that an agent fills for it, in bytes;
/// 0: none is filled.
#[must_use]
pub fn boot_of(content: &Content, about: &About) -> (BootFrom, u64) {
    let found = &content.fitness.system.boot;
    let from = about.boot.unwrap_or(found.from());
    let is_filled = from == BootFrom::Card && !content.is_disk();
    (from, if is_filled { about.boot_bytes.unwrap_or(found.partition_bytes) } else { 0 })
}

/// How many bytes a boot partition of this size takes from the root filesystem of a card as agents lay it out.
#[must_use]
pub fn taken_by_boot(boot_bytes: u64) -> u64 {
    if boot_bytes == 0 {
        return 0;
    }
    let start = (Layout::DEFAULT.boot_start * SECTOR).saturating_add(boot_bytes);
    let root = start.checked_next_multiple_of(ROOT_GRAIN).unwrap_or(u64::MAX);
    root.saturating_sub(Layout::DEFAULT.root_start * SECTOR)
}

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
        let is_withheld = said.signed && is_meant;
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
                "a Pi with a key takes from an unsigned profile nothing but a new identity",
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
        Ok((!is_empty).then(|| self.service.bundles.keep(&self.pi(), bundle)))
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
        if self.said.as_ref().is_some_and(|said| said.signed) {
            return Err(Refusal::Reason("a Pi with a key takes no unsigned profile".into()));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pi(serial: &str, host: u8) -> Identity {
        Identity { serial: Some(serial.into()), ..Identity::of([10, 0, 0, host].into()) }
    }

    #[test]
    fn a_bundle_is_for_its_pi() {
        let bundles = Bundles::default();
        let told = bundles.keep(&pi("1", 1), b"x");
        assert_eq!(told.bytes, 1);
        assert!(bundles.find(&pi("1", 2), told.hash).is_some(), "it has another address now");
        assert!(bundles.find(&Identity::of([10, 0, 0, 1].into()), told.hash).is_some());
        assert!(bundles.find(&pi("2", 2), told.hash).is_none());
        // Another Pi has the same one: the first still gets it.
        assert_eq!(bundles.keep(&pi("2", 2), b"x"), told);
        assert!(
            bundles.find(&pi("1", 1), told.hash).is_some() && bundles.find(&pi("2", 2), told.hash).is_some()
        );
        assert!(bundles.find(&pi("3", 3), told.hash).is_none());
        assert!(bundles.find(&pi("1", 1), Hash([0; 32])).is_none());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let bundles = Bundles::default();
        let hashes: Vec<_> = (0..40_u8).map(|n| bundles.keep(&pi("1", 1), &vec![n; 8 << 20]).hash).collect();
        assert!(bundles.find(&pi("1", 1), hashes[0]).is_none());
        assert!(bundles.find(&pi("1", 1), hashes[39]).is_some());
        assert_eq!(
            format!("{bundles:?}"),
            "Bundles(Mutex { data: 32 bundles of 268435456 bytes, poisoned: false, .. })"
        );
        for n in 0..=KEPT {
            bundles.keep(&pi("1", 1), &n.to_le_bytes());
        }
        assert!(lock(&bundles.0).order.len() <= KEPT && lock(&bundles.0).by_hash.len() <= KEPT);
    }

    #[test]
    fn how_much_a_boot_partition_takes() {
        assert_eq!(taken_by_boot(0), 0);
        assert_eq!(taken_by_boot(512 << 20), (516 - 48) << 20);
        assert!(taken_by_boot(u64::MAX) > 1 << 60);
    }
}
