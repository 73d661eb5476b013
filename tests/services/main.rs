//! The services over real transports: TCP, serial lines, TCP without the kernel, with the programs at the ends.

#![allow(unused_attributes, reason = "a machine may lack two things that a test needs")]

mod agent_service;
mod examples; // the programs of host/examples
mod files;
mod frames_sockets;
mod matrix; // every service over every transport; the table in the README
mod serial; // the programs at the ends of a bad cable
mod stream_server;
mod talks_sockets;
mod tap; // all services without the kernel's TCP
mod transfer_server;

// The firmware's services say what they do by the macro of this name in the root of their program.
pub(crate) use tap::say;
