//! The services over real transports: TCP, serial lines, TCP without the kernel, with the programs at the ends.

#![allow(unused_attributes, reason = "a machine may lack two things that a test needs")]

mod agent_service;
mod examples; // the programs of host/examples
mod files;
mod matrix; // every service over every transport; the table in the README
mod messages; // the hub and its commands; the old library's chat and file transfer
mod messages_sockets;
mod old_rpc; // old TCPTalks peers, in both roles
mod old_rpc_peers; // the old library in Python, and a thousand of them
mod output; // what the programs print
mod rpc_sockets;
mod serial; // the programs at the ends of a bad cable
mod tap; // all services without the kernel's TCP
mod telemetry_server;
mod transfer_server;

// The firmware's services say what they do by the macro of this name in the root of their program.
pub(crate) use tap::say;
