//! From an archive to a card that boots: images, orders, signatures, and what is on the card in the end.

#![allow(unused_attributes, reason = "a machine may lack two things that a test needs")]

mod cards; // what is on a card, and what becomes of it
mod decisions; // the table of all that may happen with a disk
mod ext4;
mod extract; // path A against GNU tar, and its faults
mod fitness; // what cannot boot is refused before a card is touched
mod image;
mod manifest; // images: what is known, told and sent of them
mod old_peers;
mod orders; // to reinstall, exactly once
mod original_servers; // in Python, as they were
mod our_agent;
mod partition;
mod programs;
mod signature; // of images; also against the minisign tool
