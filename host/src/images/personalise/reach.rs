//! Whether agents can write where the items of a bundle are to go: asked before a card is erased.

use piman_core::install::personal::{Bundle, Draft, Item, Place, Renew};

use super::draft::Done;
use super::subject::Subject;
use crate::images::fitness::RootAccess;

/// Finds the first item that no agent could carry out on a card with this image.
pub(super) fn can_be_done(draft: &Draft, subject: &Subject<'_>) -> Done {
    let bundle = Bundle::parse(draft.bytes()).map_err(|e| e.to_string())?;
    bundle.items().try_for_each(|item| can_be_carried_out(&item, subject))
}

fn can_be_carried_out(item: &Item<'_>, subject: &Subject<'_>) -> Done {
    let (what, place) = match item {
        Item::Identity(renew) => return identity(*renew, subject),
        Item::Folder { place, path, .. }
        | Item::File { place, path, .. }
        | Item::Remove { place, path }
        | Item::Line { place, path, .. } => ((*path).to_owned(), *place),
        Item::Link { path, .. } => ((*path).to_owned(), Place::Root),
        Item::Word { key, .. } => (format!("the word {key} of the kernel's command line"), Place::Boot),
        Item::User(user) => (format!("the account {}", user.name), Place::Root),
    };
    if place == Place::Boot {
        let has_partition = subject.boots_from_card && !subject.is_disk;
        return match has_partition || subject.system.boot.has_place {
            true => Ok(()),
            false => Err(format!(
                "{what} belongs to the boot files, and the image has neither a boot partition nor a folder /boot: take it \
                 out of the profile, or use an image that has one"
            )),
        };
    }
    let (RootAccess::Nothing(why) | RootAccess::Closed(why)) = &subject.system.root else { return Ok(()) };
    Err(format!(
        "{what} has to be written into the root filesystem, which agents cannot do: {why}; take it out of the profile, or \
         use an image with ext4"
    ))
}

/// What a system makes for itself would be the same on every card.
fn identity(renew: Renew, subject: &Subject<'_>) -> Done {
    match &subject.system.root {
        RootAccess::Closed(why) if renew.machine || renew.host_keys => Err(format!(
            "a new identity (machine-id, SSH host keys) has to be written into the root filesystem, which agents cannot do: \
             {why}; use an image with ext4, or say identity = \"keep\" in the Pi's profile if that does not matter"
        )),
        _ => Ok(()),
    }
}
