//! What becomes of a Pi after it was told something, as its record says it.

use piman_core::hash::Hash;
use piman_core::install::{Installation, Milestone, Stage};
use piman_core::text::shown_or_space;
use tokio::task::block_in_place;

use super::{Boot, ControlConnection};
use crate::state::Change;

/// The same, with how far the Pi is.
pub(super) fn stage(stage: &str, change: Change) -> Change {
    Change { stage: Some(stage.into()), ..change }
}

impl ControlConnection<'_> {
    /// It says that its card is whole, on a connection on which nothing was decided, or that it was installed.
    pub(super) fn committed(&mut self, id: Hash, number: Option<Installation>) {
        let pi = self.pi();
        let ordered = |number| block_in_place(|| self.service.recorder.personal_ordered_ms(&pi, number));
        match number.map(ordered).transpose().map(Option::flatten) {
            Ok(Some(ordered_ms)) => self.personalised(ordered_ms),
            Ok(None) => match self.service.recorder.is_given(&pi, id, number) {
                Ok(true) => self.installed(id, number),
                Ok(false) => {
                    let text = format!("says that it has installed image {id:.12}, which it was not given");
                    let change = self.change();
                    self.happened("committed", text, change);
                }
                Err(e) => {
                    self.alert("what it has done is not recorded", &format!("reading what it was given: {e}"))
                }
            },
            // It says so again when it asks next.
            Err(e) => {
                self.alert("what it has done is not recorded", &format!("reading what is ordered: {e}"))
            }
        }
    }

    /// What was ordered until then is done: its profile was applied to what was on its card.
    pub(super) fn personalised(&mut self, until_ms: u64) {
        self.service.recorder.personalised(&self.pi(), until_ms);
        let change = Change { stage: Some("personalised".into()), error: Some(None), ..self.change() };
        self.happened("personalised", "its profile is applied, as ordered".into(), change);
    }

    pub(super) fn installed(&mut self, id: Hash, number: Option<Installation>) {
        self.installing = None;
        let pi = self.pi();
        if self.rendered_ms() > 0 {
            self.service.recorder.personalised(&pi, self.rendered_ms());
        }
        let ordered = if self.service.recorder.complete(&pi, number) > 0 { " as ordered" } else { "" };
        let change = Change {
            stage: Some("installed".into()),
            image: Some(id),
            error: Some(None),
            progress: Some((0, 0)),
            ..self.change()
        };
        self.happened("installed", format!("installed{ordered}: image {id:.12} is on its card"), change);
    }

    pub(super) fn told_to_format(&mut self) {
        self.decided();
        self.boot = Boot::No;
        if self.said.is_none() {
            self.service.installs.told(self.address);
        }
        self.installing = Some(self.service.drain.installation());
        let ordered = if self.orders > 0 { ", as ordered" } else { "" };
        let text = format!("told to format{ordered}: {}", self.wrong);
        let waits = Some(None);
        let change = Change { image: self.own().image, progress: Some((0, 0)), waits, ..self.change() };
        self.happened("format", text, stage("formatting", change));
    }

    pub(super) fn told_to_wait(&mut self) {
        let pi = self.pi();
        let why = if self.wrong.is_empty() { None } else { Some(self.wrong.as_str().into()) };
        let text = match &why {
            Some(why) => format!("waits: {why}"),
            None => "told to wait and ask again: its image is being prepared".to_owned(),
        };
        if self.service.waiting.find(&pi.key()).is_some_and(|known| known != self.wrong) {
            self.quiet = false;
        }
        let change = Change { waits: Some(why), ..stage("waiting", self.change()) };
        self.happened("wait", text, change);
        if self.said.is_some() {
            self.service.waiting.put(pi.key(), self.wrong.clone());
        }
    }

    pub(super) fn milestone(&mut self, milestone: Milestone) {
        self.last_identity.report();
        match milestone {
            Milestone::ReceivedBoot => self.installing = None,
            Milestone::FinishedMounting if self.boot == Boot::Told => self.boot = Boot::Mounted,
            _ => {}
        }
        let words = milestone.word().to_ascii_lowercase().replace('_', " ");
        let change = stage(&words, self.change());
        self.happened("milestone", words, change);
    }

    /// It closed the connection.
    pub(super) fn gone(&mut self) {
        if self.boot == Boot::Mounted {
            let change = Change { stage: Some("booted".into()), error: Some(None), ..self.change() };
            let text = "booted, as far as can be seen: it mounted its root filesystem and hung up";
            self.happened("booted", text.into(), change);
        }
    }

    pub(super) fn failed(&mut self, at: Stage, text: &str) {
        self.installing = None;
        // From the network, for terminals.
        let text: String = text.chars().map(shown_or_space).collect();
        let text = format!("failed ({}): {text}", at.word());
        let change =
            Change { stage: Some("failed".into()), error: Some(Some(text.as_str().into())), ..self.change() };
        self.happened("failed", text, change);
    }
}
