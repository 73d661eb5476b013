//! What goes wrong: power cuts, cards that lie, agents and servers that are killed, connections that break.

#![allow(unused_attributes, reason = "a machine may lack two things that a test needs")]

mod away; // the network
mod decisions; // Pi and server are killed around a decision
mod durable; // what was acknowledged, after a power cut of the server and with its disk full
mod local; // other users of the machine, and the operator's terminal
mod no_threads; // the system gives none
mod one_host; // against all others
mod power_cut; // what a card may hold after its power was cut
mod power_cut_personal; // while a card is made one Pi's own
mod resume; // connections cut, servers killed, bits flipped
mod right_disk; // cards that lie, broken filesystems, killed agents
mod server_faults;
mod while_made; // the server ends while a Pi gets an image that it still makes
