//! Whom this Pi trusts, and by what it is known: its own key, and what must be true of an offer.

use anyhow::anyhow;
use piman_core::install::{More, Offer, Stage};

use super::{Plan, dial};
use crate::card::disk::Disk;
use crate::card::inspect::Card;
use crate::control::ControlConnection;
use crate::failure::{Cause, Failure};
use crate::trust::{self, Device, Key, Trust};

/// The same plan with the key of this Pi, which goes onto a card of ours that has none.
pub(super) fn with_device(plan: &Plan, disk: &Disk, card: &Card) -> Plan {
    let device = match Device::of(disk.file(), &plan.identity, plan.device.as_ref()) {
        Ok(device) => Some(device),
        Err(e) => {
            log::warn!("this Pi cannot show who it is: making a key: {e}");
            None
        }
    };
    let plan = Plan { device, ..plan.clone() };
    let is_kept = plan.device.as_ref().is_none_or(|device| device.is_kept);
    if !is_kept && matches!(card, Card::Installed(_)) {
        let kept = keep_device(&plan, disk, card.is_whole_disk().then_some(disk.bytes()));
        return Plan { device: kept, ..plan };
    }
    plan
}

/// Keeps the key of this Pi on its disk; returns it as it is kept.
pub(super) fn keep_device(plan: &Plan, disk: &Disk, of_whole_disk: Option<u64>) -> Option<Device> {
    let mut device = plan.device.clone()?;
    match device.keep(disk.file(), &plan.layout, of_whole_disk) {
        Ok(true) => {}
        Ok(false) => log::warn!(
            "something else lies on {disk} where this Pi's key is kept: the server does not know this Pi again by it"
        ),
        Err(e) => log::warn!("{disk} does not keep this Pi's key: {e}"),
    }
    Some(device)
}

/// The same plan with what was learnt of time and revocations; whether that is worth a write to a card that has a place
/// for it. What is installed anew is written to in any case.
pub(super) fn learnt(plan: &Plan, talk: &ControlConnection) -> (Plan, bool) {
    let mut plan = plan.clone();
    let is_news = plan.device.as_mut().is_some_and(|device| device.learn(talk.floor()) && device.is_kept);
    (plan, is_news)
}

impl Plan {
    /// What a connection to the server needs to know whom it talks to.
    #[must_use]
    pub fn trust(&self) -> Trust {
        Trust { root: self.key.as_ref().map(Key::root), device: self.device.clone() }
    }
}

/// The offer, if it may be installed by whoever made it.
pub(super) fn trusted(plan: &Plan, disk: &Disk, offer: Option<Offer>) -> Result<Option<Offer>, Failure> {
    let Some(key) = &plan.key else {
        log::info!("no public key is given: who made the image is not checked");
        // What nobody has signed must not count against a later image.
        return Ok(offer.map(|o| Offer { more: More { counter: 0, ..o.more }, ..o }));
    };
    let rollback_counter = trust::rollback_counter(disk.file(), disk.bytes());
    key.check(offer, &plan.identity, rollback_counter, |port| dial(plan, port)).map(Some)
}

/// Nothing of a disk image can be installed but its chunks.
pub(super) fn unsigned() -> Failure {
    let error = anyhow!(
        "the signed manifest does not name the chunks of the disk image that the server offers: sign it again with \
         `piman image sign`; nothing was changed"
    );
    Failure { stage: Stage::Disk, cause: Cause::Refused, error }
}
