//! The items of a bundle, carried out on an open card.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, bail};
use piman_core::install::personal::{Bundle, Item, Place};

use super::places::Places;
use super::{accounts, lines};
use crate::card::root_files::{self, Access, unless_absent};

/// The largest file of which a line is changed, in bytes.
const TEXT_MAX: u64 = 4 << 20;
/// The longest command line that is changed, in bytes: the kernel takes 2048.
pub(super) const COMMAND_LINE_MAX: u64 = 4096;
/// Where it is.
pub(super) const COMMAND_LINE: &str = "/cmdline.txt";

/// Carries out all items but those of the identity, in their order. Done again it changes nothing.
///
/// # Errors
/// The first item that cannot be carried out, by its path or its name; no text of it is said.
pub(super) fn items(places: &Places<'_>, bundle: &Bundle<'_>) -> anyhow::Result<()> {
    for item in bundle.items() {
        apply(places, &item).with_context(|| name(&item))?;
    }
    Ok(())
}

/// What carrying out an item is called.
pub(super) fn name(item: &Item<'_>) -> String {
    let at = |place: Place| if place == Place::Boot { " of the boot partition" } else { "" };
    match item {
        Item::Identity(_) => "making its identity new".into(),
        Item::Folder { place, path, .. } => format!("making the folder {path}{}", at(*place)),
        Item::File { place, path, .. } => format!("writing {path}{}", at(*place)),
        Item::Link { path, .. } => format!("making the link {path}"),
        Item::Remove { place, path } => format!("taking away {path}{}", at(*place)),
        Item::Line { place, path, key, .. } => format!("changing the line {key} of {path}{}", at(*place)),
        Item::Word { key, .. } => format!("changing the word {key} of the kernel's command line"),
        Item::User(user) => format!("making the account {}", user.name),
    }
}

fn apply(places: &Places<'_>, item: &Item<'_>) -> anyhow::Result<()> {
    match *item {
        Item::Identity(_) => Ok(()),
        Item::Folder { place, mode, owner, path } => places.folder(place, path, access(places, mode, owner)?),
        Item::File { place, mode, owner, path, content } => {
            places.write(place, path, access(places, mode, owner)?, content)
        }
        Item::Link { path, target } => link(places.root()?, path, target),
        Item::Remove { place, path } => places.remove(place, path),
        Item::Line { place, separator, path, key, text } => {
            let found = places.read(place, path, TEXT_MAX)?;
            let bytes = found.as_ref().map_or(&[][..], |text| &text.bytes);
            let new = lines::with_line(bytes, separator, key.as_bytes(), text.as_bytes());
            places.write_back(place, path, found.as_ref(), &new)
        }
        Item::Word { key, text } => {
            let found = places.read(Place::Boot, COMMAND_LINE, COMMAND_LINE_MAX)?;
            let bytes = found.as_ref().map_or(&[][..], |text| &text.bytes);
            let new = lines::with_word(bytes, key.as_bytes(), text.as_bytes());
            if new.len() as u64 > COMMAND_LINE_MAX {
                bail!("the command line would have more than {COMMAND_LINE_MAX} bytes");
            }
            places.write_back(Place::Boot, COMMAND_LINE, found.as_ref(), &new)
        }
        Item::User(user) => accounts::put(places.root()?, &user),
    }
}

fn access(places: &Places<'_>, mode: u32, owner: &str) -> anyhow::Result<Access> {
    Ok(Access { mode, owner: accounts::owner(places.root().ok(), owner)? })
}

fn link(root: &Path, path: &str, target: &str) -> anyhow::Result<()> {
    let place = root_files::place(root, Path::new(path))?;
    let there = fs::symlink_metadata(&place).ok();
    if there.as_ref().is_some_and(|meta| meta.is_symlink()) && fs::read_link(&place)? == Path::new(target) {
        return Ok(());
    }
    if there.is_some_and(|meta| meta.is_dir()) {
        bail!("there is a folder");
    }
    unless_absent(fs::remove_file(&place))?;
    Ok(symlink(target, place)?)
}
