//! What a Pi is told: by what is on its disk, what is ordered for it, the policy, and what there is to install.
//!
//! What formats goes through one place, the claim: one transaction of the state that records the reason. Errors of
//! the state lead to booting or waiting.

use std::sync::Arc;

use piman_core::hash::Hash;
use piman_core::install::manifest::{self, ALL_SIZES, Manifest};
use piman_core::install::{Found, ImageOffer, Installation, More, Offer, Plan, Question, REVISION, sums};

use super::control::{ControlConnection, Own};
use super::personal::Refusal;
use crate::images::boot_from::{self, room_beside};
use crate::images::build_queue::{Availability, too_small};
use crate::images::ext4::GROWS_TO;
use crate::images::personalise::Occasion;
use crate::images::sign;
use crate::images::source::{Archive, SourceState};
use crate::provision::context::not_listed;
use crate::state::archive_facts::Content;
use crate::state::decision::{Action, Policy};
use crate::state::{Identity, Listed, OpenOrder};

/// After how many seconds a Pi should ask again while its image is being prepared.
const ASK_AGAIN: u16 = 1;
/// The same while somebody has to see to it.
const ASK_MUCH_LATER: u16 = 30;
/// The same while somebody has to decide, who then wants to see it begin.
const ASK_FOR_DECISION: u16 = 10;
/// How much of what is on a disk the reason of a wait repeats, in characters: the command that decides must fit.
const DISK_SHOWN: usize = 200;

/// What is meant for a Pi, whether or not it can be had now.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Intent {
    /// Boot what is on its disk.
    Boot,
    /// Neither: somebody has to decide, for this reason.
    Wait(String),
    /// Install: by an order, or without one by the policy that is named.
    Install(Option<String>),
}

/// What the intent for a Pi depends on.
#[derive(Clone, Copy)]
struct Case<'a> {
    question: &'a Question,
    orders: &'a [OpenOrder],
    policy: &'a Policy,
    /// How commands call the Pi.
    name: &'a str,
    /// What it says is on its disk.
    disk: &'a str,
    /// Whether Pis wait that cannot say what is on their disk by any line of ours.
    old_pis_wait: bool,
}

impl Case<'_> {
    /// What is meant for the Pi that asks.
    fn intent(self) -> Intent {
        let without_order = self.without_order();
        if !self.orders.iter().any(|order| order.allows(self.question.found, self.question.print)) {
            return without_order;
        }
        // Should the order be cancelled meanwhile, the policy still holds.
        Intent::Install(match without_order {
            Intent::Install(policy) => policy,
            Intent::Boot | Intent::Wait(_) => None,
        })
    }

    /// The same if no order allows it.
    fn without_order(self) -> Intent {
        let Question { installed, found, print, .. } = *self.question;
        let decide = format!("decide with: piman install {}", self.name);
        let Some(found) = found else {
            // It cannot say more than whether it has a system.
            return match installed {
                true => Intent::Boot,
                // Agents before revision 2 can say as little as the shell script.
                false if self.old_pis_wait => Intent::Wait(format!(
                    "an old Pi without a system, which cannot say what is on its disk (--old-pis ask); decide \
                     with: piman reinstall {}",
                    self.name
                )),
                false => Intent::Install(Some(
                    "policy: no system is reported, by a Pi that cannot say more".into(),
                )),
            };
        };
        let what = if self.disk.is_empty() {
            format!("{found} disk")
        } else {
            format!("{found} disk: {}", self.disk.chars().take(DISK_SHOWN).collect::<String>())
        };
        match self.policy.of(found) {
            Action::Install => Intent::Install(Some(format!("policy {found}=install"))),
            // An order that is for something else is a reason to look, whatever the policy says.
            _ if self.orders.iter().any(|order| order.print.is_some_and(|bound| Some(bound) != print))
                && !installed =>
            {
                Intent::Wait(format!("the order is for another content of the disk; {what}; {decide}"))
            }
            Action::Boot if installed => Intent::Boot,
            Action::Boot | Action::Wait => Intent::Wait(format!("{what}; {decide}")),
        }
    }
}

impl ControlConnection<'_> {
    /// Decides for one report.
    pub(super) fn decide_once(&mut self, question: &Question) -> Plan {
        self.wrong.clear();
        (self.orders, self.installation) = (0, None);
        *self.own() = Own::default();
        let pi = self.pi();
        // It is not known who this is: whatever is meant for a Pi is not meant for this one.
        if let Some(reason) = self.refusal() {
            self.wrong = reason;
            return Plan::Wait { seconds: ASK_FOR_DECISION, percent: 0 };
        }
        if let Some(e) = self.unread.clone() {
            self.alert("nothing is decided", &format!("reading what is known of it: {e}"));
            return without_state(question);
        }
        let settings = self.service.settings();
        let recorder = &self.service.recorder;
        if settings.only_known {
            match recorder.is_listed(&pi) {
                Ok(Listed::Yes) => self.service.refused.remove(&pi.key()),
                Ok(Listed::LastSeenHere | Listed::No) => return self.refuse(question, &pi),
                Err(e) => {
                    self.alert("nothing is decided", &format!("reading the device list: {e}"));
                    return without_state(question);
                }
            }
        }
        let known = recorder
            .open_orders(&pi)
            .and_then(|orders| Ok((orders, recorder.policy_of(&pi, settings.policy)?)));
        let (orders, policy) = match known {
            Ok(known) => known,
            Err(e) => {
                self.alert("nothing is decided", &format!("reading what is ordered: {e}"));
                return without_state(question);
            }
        };
        let case = Case {
            question,
            orders: &orders,
            policy: &policy,
            name: &pi.key(),
            disk: &self.disk,
            old_pis_wait: settings.old_pis_wait,
        };
        match case.intent() {
            Intent::Boot => {
                if question.found == Some(Found::Damaged) {
                    let text = format!("boots a damaged installation: {}", self.disk);
                    self.alert("its disk", &text);
                }
                self.boot()
            }
            Intent::Wait(reason) => {
                self.wrong = reason;
                Plan::Wait { seconds: ASK_FOR_DECISION, percent: 0 }
            }
            Intent::Install(policy) => self.install(question, policy.as_deref()),
        }
    }

    /// It is not in the device list: nothing of it is erased, and nothing is sent to it. One of ours waits and says
    /// why. An old one that reports a system boots that, which takes nothing from here; without a system it gets no
    /// answer: what it does when its connection is closed is not known.
    fn refuse(&mut self, question: &Question, pi: &Identity) -> Plan {
        self.wrong = not_listed(pi);
        self.service.refuse(pi, &self.wrong);
        if question.installed && !question.hello {
            return Plan::Boot;
        }
        Plan::Wait { seconds: ASK_FOR_DECISION, percent: 0 }
    }

    /// Installs if there is something to install, and if that is on record.
    fn install(&mut self, question: &Question, policy: Option<&str>) -> Plan {
        let wanted = match self.wanted() {
            Ok(wanted) => wanted,
            Err(refusal) => return self.without_profile(question, refusal),
        };
        let (archive, id) = match self.meant(question) {
            Ok(Some(meant)) => meant,
            Ok(None) => return self.claim(question, policy, None).unwrap_or(Plan::Format(None)),
            Err(plan) => return *plan,
        };
        // It has them as long as it is good.
        let Some(content) = archive.facts().cloned() else {
            return self.impossible(
                question,
                "nothing can be installed",
                "the archive is not known any more",
            );
        };
        // Before anything is made for it that it could not get.
        if self.boot_bytes(&content) > 0
            && let Some(reason) = boot_from::refusal(&content, &self.own().about, 0)
        {
            return self.impossible(question, "nothing can be installed", &reason);
        }
        let checked = wanted.as_ref().map_or(Ok(()), |w| self.check(w, &content, Occasion::Install));
        if let Err(refusal) = checked {
            return self.without_profile(question, refusal);
        }
        let image = match self.available(question, &archive, id) {
            Ok(image) => image,
            Err(plan) => return *plan,
        };
        if let Some(plan) = self.claim(question, policy, Some(id)) {
            return plan;
        }
        self.own().image = Some(id);
        if !question.hello {
            return Plan::Format(None);
        }
        let number = self.installation.unwrap_or(Installation(0));
        let personal = wanted.map(|wanted| self.bundle(&wanted, &content, Occasion::Install, number));
        let personal = match personal.transpose() {
            Ok(personal) => personal.flatten(),
            Err(refusal) => return self.without_profile(question, refusal),
        };
        let boot_bytes = self.boot_bytes(&content);
        let more = More { erase: question.print, personal, boot_bytes, ..self.more(&archive) };
        let (rootfs_port, fetch_port) = (self.service.rootfs_port, self.service.fetch_port);
        Plan::Format(Some(Offer { id, bytes: archive.bytes(), rootfs_port, fetch_port, image, more }))
    }

    /// What makes its card its own cannot be made: a system that is there boots, another one is not installed without.
    fn without_profile(&mut self, question: &Question, refusal: Refusal) -> Plan {
        match refusal {
            Refusal::Reason(reason) => self.impossible(question, "its profile cannot be applied", &reason),
            Refusal::State(e) => {
                self.alert("nothing is installed", &format!("reading or writing what is its own: {e}"));
                without_state(question)
            }
        }
    }

    /// Whether it can begin with an image that is still being made.
    fn is_early(&self) -> bool {
        self.said.as_ref().is_some_and(|said| said.early)
    }

    /// How large the boot partition is that its agent fills, in bytes; 0: it knows of none, or the image has its own.
    fn boot_bytes(&self, content: &Content) -> u64 {
        if self.said.as_ref().is_none_or(|said| !said.personal) {
            return 0;
        }
        self.boot_of(content).1
    }

    /// The room for a root filesystem on its card with this image, in bytes; 0: it does not say.
    fn root_bytes(&self, archive: &Archive) -> u64 {
        let boot = archive.facts().map_or(0, |content| self.boot_bytes(content));
        self.said.as_ref().map_or(0, |said| room_beside(boot, said.disk_bytes, said.root_bytes))
    }

    /// What it would get. `None`: an old Pi without a system, whose download waits for a good archive. An error is
    /// the plan as long as there is nothing.
    fn meant(&mut self, question: &Question) -> Result<Option<(Arc<Archive>, Hash)>, Box<Plan>> {
        let old_and_empty = !question.hello && !question.installed;
        let source = match self.service.catalog.meant_for(&self.pi()) {
            Ok(source) => source,
            Err(reason) => {
                return Err(Box::new(self.impossible(question, "nothing can be installed", &reason)));
            }
        };
        let (archive, id) = match source.servable() {
            SourceState::Good(archive, id) => (archive, id),
            SourceState::Checking(_) | SourceState::Bad(_) if old_and_empty => return Ok(None),
            SourceState::Checking(percent) if question.hello => {
                return Err(Box::new(Plan::Wait { seconds: ASK_AGAIN, percent }));
            }
            SourceState::Checking(_) => {
                self.alert("a reinstall is ordered, later", "the archive is still being checked");
                return Err(Box::new(Plan::Boot));
            }
            SourceState::Bad(reason) => {
                return Err(Box::new(self.impossible(question, "nothing can be installed", &reason)));
            }
        };
        match self.service.catalog.about(&archive) {
            Ok(about) => self.own().about = about,
            Err(e) => {
                self.alert("nothing is installed", &format!("reading what is said of its image: {e}"));
                return Err(Box::new(without_state(question)));
            }
        }
        Ok(Some((archive, id)))
    }

    /// The image that it would get, if that is not the archive itself. An error is the plan as long as there is none.
    fn available(
        &mut self,
        question: &Question,
        archive: &Arc<Archive>,
        id: Hash,
    ) -> Result<Option<ImageOffer>, Box<Plan>> {
        match self.prepare(archive, id) {
            Availability::Ready(image) => Ok(Some(image)),
            Availability::Archive => Ok(None),
            // Who has something to lose waits until there is a whole image.
            Availability::Begun(image, _) if !question.installed && self.is_early() => Ok(Some(image)),
            Availability::Making(percent) | Availability::Begun(_, percent) => {
                Err(Box::new(Plan::Wait { seconds: ASK_AGAIN, percent }))
            }
            Availability::Impossible(reason) => {
                Err(Box::new(self.impossible(question, "nothing can be installed", &reason)))
            }
            Availability::TooSmall(reason) => {
                let plan = self.impossible(question, "nothing can be installed on this card", &reason);
                let is_wait = matches!(plan, Plan::Wait { .. });
                Err(Box::new(if is_wait { Plan::Never { seconds: ASK_MUCH_LATER } } else { plan }))
            }
        }
    }

    /// Nothing can be installed: a system that is there boots, and keeps what is ordered for it open.
    fn impossible(&mut self, question: &Question, what: &str, reason: &str) -> Plan {
        if question.installed {
            self.alert("a reinstall is ordered but not possible", reason);
            return Plan::Boot;
        }
        self.alert(what, reason);
        Plan::Wait { seconds: ASK_MUCH_LATER, percent: 0 }
    }

    /// Puts the reason on record; without that nothing is formatted, and what happens in its place is returned.
    fn claim(&mut self, question: &Question, policy: Option<&str>, image: Option<Hash>) -> Option<Plan> {
        let pi = self.pi();
        // Waits until it is on the disk; meanwhile other threads decide.
        let claimed = tokio::task::block_in_place(|| {
            self.service.recorder.claim(&pi, question, &self.disk, (policy, image))
        });
        match claimed {
            Ok(Some(claimed)) => {
                (self.orders, self.installation) = (claimed.orders, Some(claimed.number));
                self.wrong = claimed.reason;
                None
            }
            // It was cancelled between two looks.
            Ok(None) if question.installed => Some(Plan::Boot),
            Ok(None) => {
                self.wrong = "its order was cancelled".into();
                Some(Plan::Wait { seconds: ASK_AGAIN, percent: 0 })
            }
            Err(e) => {
                self.alert("nothing is installed", &format!("recording why: {e}"));
                Some(without_state(question))
            }
        }
    }

    /// What there is for this Pi beside the archive itself.
    fn prepare(&self, archive: &Arc<Archive>, id: Hash) -> Availability {
        if archive.is_disk() {
            return self.prepare_disk(archive, id);
        }
        let root_bytes = self.root_bytes(archive);
        match &self.said {
            Some(said) if said.root_bytes > 0 && root_bytes == 0 => Availability::TooSmall(format!(
                "{} boots from the card, and its boot partition leaves no room for it: use a larger card, or add it with \
                 --boot network",
                archive.path().display()
            )),
            // An image has to be made as large as the partition, which not every agent can.
            Some(said) if !said.image || !said.grows || root_bytes == 0 => Availability::Archive,
            // Only an archive fills a larger partition.
            Some(said) if said.stream && root_bytes > GROWS_TO => Availability::Archive,
            // It takes what is signed, and no image that is made only now.
            Some(said) if said.signed => {
                self.signed_image(archive, id, root_bytes).unwrap_or(Availability::Archive)
            }
            Some(_) => self.service.builds.prepare(archive, id, root_bytes),
            None => Availability::Archive,
        }
    }

    /// What there is for this Pi of the image of a whole disk: that is the same for all, and comes in chunks only.
    fn prepare_disk(&self, archive: &Arc<Archive>, id: Hash) -> Availability {
        let shown = archive.path().display();
        let Some(disk) = archive.disk() else {
            return Availability::Impossible(format!("{shown} is no disk image any more: add it again"));
        };
        let said = match &self.said {
            Some(said) if said.whole_disk => said,
            other => {
                let who = if other.is_some() { "the agent on this Pi" } else { "an old Pi" };
                return Availability::Impossible(format!(
                    "{shown} is the image of a whole disk, which {who} cannot write: let the Pi netboot an agent of this \
                     version (without piman.path=archive), or assign an archive to it"
                ));
            }
        };
        if said.disk_bytes < disk.bytes {
            return Availability::TooSmall(too_small(archive, disk.bytes, said.disk_bytes));
        }
        if !said.signed {
            return self.service.builds.prepare(archive, id, said.disk_bytes);
        }
        let signed = self.signed_image(archive, id, said.disk_bytes);
        let unsigned = || format!("{shown} is not signed, which this Pi wants: `piman image sign` does that");
        signed.unwrap_or_else(|| Availability::Impossible(unsigned()))
    }

    /// The signed image of an archive or a whole disk for a place of so many bytes, if it is made.
    fn signed_image(&self, archive: &Archive, id: Hash, room: u64) -> Option<Availability> {
        let signed = sign::signed(&self.service.settings().state, id)?;
        let manifest = manifest::split(&signed).and_then(|(_, text)| Manifest::parse(text))?;
        let mut tables = manifest.tables().filter(|(size, _)| *size == ALL_SIZES);
        tables.find_map(|(_, table)| self.service.builds.find(table, archive, room))
    }

    /// What a Pi is told of an archive beyond revision 0.
    fn more(&self, archive: &Archive) -> More {
        let Some(facts) = archive.facts() else { return More::default() };
        let signed = sign::signed(&self.service.settings().state, facts.id).unwrap_or_default();
        let manifest = manifest::split(&signed).and_then(|(_, text)| Manifest::parse(text));
        More {
            revision: REVISION,
            manifest_bytes: u32::try_from(signed.len()).unwrap_or(0),
            counter: manifest.map_or(0, |m| m.counter),
            sums_chunk: if sums::table_bytes(archive.bytes()).is_some() { sums::CHUNK } else { 0 },
            unpacked_bytes: facts.unpacked_bytes,
            entries: facts.entries,
            installation: self.installation,
            ..More::default()
        }
    }
}

/// What a Pi does while the state cannot be read or written.
const fn without_state(question: &Question) -> Plan {
    if question.installed { Plan::Boot } else { Plan::Wait { seconds: ASK_MUCH_LATER, percent: 0 } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_say_what_is_on_its_disk_is_asked_for_where_that_is_wanted() {
        let intent = |hello, installed, old_pis_wait| {
            let question = Question { installed, hello, found: None, print: None };
            let (policy, question) = (Policy::default(), &question);
            Case { question, orders: &[], policy: &policy, name: "10.0.0.7", disk: "", old_pis_wait }.intent()
        };
        for hello in [false, true] {
            assert_eq!(intent(hello, true, true), Intent::Boot);
            assert!(matches!(intent(hello, false, false), Intent::Install(Some(_))));
            let Intent::Wait(why) = intent(hello, false, true) else { panic!("{hello}: it is formatted") };
            assert!(why.ends_with("piman reinstall 10.0.0.7"), "{why}");
        }
    }
}
