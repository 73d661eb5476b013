//! Writing items, with errors that say which one.

use piman_core::install::personal::{BadBundle, Draft, Item, Place};

use super::profile::{Blob, Owner, Profile};
use super::subject::Subject;
use super::template::{Facts, Template};
use crate::images::fitness::RootAccess;

/// Who owns what a profile says no owner of.
pub(super) const ROOT: &str = "0:0";

/// What went wrong while a profile was rendered, for people.
pub(super) type Done = Result<(), String>;

/// What is left to be done of a profile for a Pi, and the items so far.
pub(super) struct Work<'s> {
    /// What no item was written for yet.
    pub(super) rest: Profile,
    pub(super) subject: &'s Subject<'s>,
    pub(super) draft: Draft,
}

impl Work<'_> {
    pub(super) fn add(&mut self, item: &Item<'_>) -> Done {
        self.draft.add(item).map_err(|e| match (e, item) {
            (BadBundle::TooLarge, _) => format!("{e}: take files out of the profile"),
            (_, Item::File { path, .. } | Item::Folder { path, .. } | Item::Line { path, .. }) => {
                format!("{path} cannot be written so on a card")
            }
            (_, Item::User(user)) => format!("account {} cannot be made so", user.name),
            _ => e.to_string(),
        })
    }

    /// Why something cannot be set up that the image does not have, as far as is known.
    pub(super) fn lacks(&self, key: &str, what: &str) -> String {
        match &self.subject.system.root {
            RootAccess::Writable => format!("{key}: the image has {what}"),
            RootAccess::Unseen(why) => format!(
                "{key}: whether the image has what that needs cannot be seen here: {why}; take it out of the profile, and \
                 have it in the image or set it by files of the profile"
            ),
            RootAccess::Nothing(why) | RootAccess::Closed(why) => format!(
                "{key} has to be set in the root filesystem, which agents cannot write into: {why}; take it out of the \
                 profile, or use an image with ext4"
            ),
        }
    }

    /// A file of root.
    pub(super) fn file(&mut self, place: Place, path: &str, mode: u32, content: &[u8]) -> Done {
        self.add(&Item::File { place, mode, owner: ROOT, path, content })
    }

    /// A file of the root filesystem that everybody may read.
    pub(super) fn root_file(&mut self, path: &str, content: &str) -> Done {
        self.file(Place::Root, path, 0o644, content.as_bytes())
    }

    pub(super) fn remove(&mut self, path: &str) -> Done {
        self.add(&Item::Remove { place: Place::Root, path })
    }

    /// `KEY=VALUE` in a file.
    pub(super) fn setting(&mut self, place: Place, path: &str, key: &str, value: &str) -> Done {
        self.add(&Item::Line { place, separator: b'=', path, key, text: &format!("{key}={value}") })
    }

    /// Enables a unit of systemd as `systemctl enable` does.
    pub(super) fn enable(&mut self, unit: &str, target: &str) -> Done {
        let path = format!("/etc/systemd/system/multi-user.target.wants/{unit}");
        self.add(&Item::Link { path: &path, target })
    }
}

/// An owner as items have it.
pub(super) fn owner(of: Option<&Owner>) -> String {
    of.map_or_else(|| ROOT.to_owned(), Owner::whole)
}

/// A content, with the facts of the Pi in the place of their names if it is a template.
pub(super) fn filled(
    what: &str,
    content: Option<&Blob>,
    template: bool,
    facts: &Facts,
) -> Result<Vec<u8>, String> {
    let content = content.ok_or_else(|| format!("{what} has no content"))?;
    let Some(text) = content.text().filter(|_| template) else { return Ok(content.bytes().to_vec()) };
    let filled = Template::file(text).and_then(|template| template.fill(facts));
    filled.map(String::into_bytes).map_err(|e| format!("{what}: {e}"))
}
