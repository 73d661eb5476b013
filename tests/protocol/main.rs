//! The core in memory, on simulated time: every service, both sides, at every way to cut the bytes.

#![allow(unused_attributes, reason = "a machine may lack two things that a test needs")]

mod archive; // the parser of archives
mod codecs; // what is kept and signed
mod install;
mod messages;
mod pickle;
mod rpc;
mod rpc_secure; // the login that protects what follows
mod serial_link; // both ends of a bad line
mod smoltcp; // its transport
mod telemetry;
mod transfer;
