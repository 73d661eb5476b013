//! From an archive to a card that boots: images, orders, signatures, and what is on the card in the end.

#![allow(unused_attributes, reason = "a machine may lack two things that a test needs")]

mod cards; // what is on a card, and what becomes of it
mod container; // layers of container images, and what is wrong with them
mod decisions; // the table of all that may happen with a disk
mod disk_image; // raw images of disks, by the tools of others
mod ext4;
mod ext4_reader; // filesystems that say what cannot be
mod extract; // path A against GNU tar, and its faults
mod field; // archives as they are found: access control lists, no end marker
mod fitness; // what cannot boot is refused before a card is touched
mod forms; // tar in all that it is packed in, a folder, a pipe
mod image;
mod manifest; // images: what is known, told and sent of them
mod nth_call; // a state that fails in the middle of a decision
mod old_peers;
mod only_known; // nobody but the Pis of the device list
mod orders; // to reinstall, exactly once
mod original_servers; // in Python, as they were
mod our_agent;
mod partition;
mod personalise; // what makes a card one Pi's own, and able to boot by itself
mod profiles; // what makes a card one Pi's own, on the server
mod programs;
mod signature; // of images; also against the minisign tool
mod while_made; // a Pi begins with an image that the server still makes
mod who_is_who; // names, and the keys that belong to them
