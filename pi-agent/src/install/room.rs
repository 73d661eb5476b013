//! Whether what is to be installed can have room on a disk, which is said before anything is erased, in the same
//! words for both paths.

use anyhow::anyhow;
use piman_core::install::geometry::{BLOCK, Geometry};
use piman_core::install::{Offer, Stage};

use crate::card::disk::RootArea;
use crate::failure::{Cause, Failure};
use crate::telemetry::display::size;

/// Says if an archive cannot have room, as far as the server knows how much it needs.
///
/// # Errors
/// [`Cause::TooSmall`].
pub(super) fn archive(offer: &Offer, root: &RootArea) -> Result<(), Failure> {
    let (unpacked, entries) = (offer.more.unpacked_bytes, offer.more.entries);
    // Without headers and padding.
    let needed = unpacked.saturating_sub(entries.saturating_mul(1536));
    let room = Geometry::new(root.length, entries).map_or(0, |shape| shape.free() * BLOCK);
    let place = format!("the root partition of {}", size(root.length));
    if needed <= room && room > 0 { Ok(()) } else { Err(too_small(needed, room, &place)) }
}

/// Says if an image cannot have room, as soon as its size is known.
///
/// # Errors
/// [`Cause::TooSmall`].
pub(crate) fn image(needed: u64, room: u64, whole_disk: bool) -> Result<(), Failure> {
    if needed <= room {
        return Ok(());
    }
    let place = if whole_disk { "the disk".into() } else { format!("the root partition of {}", size(room)) };
    Err(too_small(needed, room, &place))
}

fn too_small(needed: u64, room: u64, place: &str) -> Failure {
    let error = anyhow!(
        "the disk is too small for this image: it needs {} ({needed} bytes), and {place} has room \
         for {} ({room} bytes); use a larger card, or assign a smaller image to this Pi; nothing was changed",
        size(needed),
        size(room)
    );
    Failure { stage: Stage::Disk, cause: Cause::TooSmall, error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use piman_core::install::More;

    #[test]
    fn both_paths_say_the_same() {
        let root = RootArea { offset: 0, length: 400 << 20 };
        let more = More { unpacked_bytes: 450 << 20, entries: 10, ..More::default() };
        let offer = Offer { more, ..Offer::default() };
        let words = |failure: Failure| {
            assert_eq!(failure.cause, Cause::TooSmall);
            let text = failure.to_string();
            text.split(|c: char| c.is_ascii_digit() || c == '.').filter(|w| w.len() > 8).collect::<String>()
        };
        let one = words(archive(&offer, &root).unwrap_err());
        assert_eq!(one, words(image(450 << 20, root.length, false).unwrap_err()));
        // What is not known does not count.
        archive(&Offer::default(), &root).unwrap();
        image(400 << 20, root.length, false).unwrap();
    }
}
