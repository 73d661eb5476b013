//! Sends the files of the boot folder by TFTP: read only, RFC 1350, 2347, 2348, 2349 and 7440.
//!
//! [`packet`] knows the bytes, [`transfer`] decides what is sent when, [`folder`] finds files,
//! `admission` says whose turn it is, `path` which blocks reach a client, `body` and `line` read and send
//! blocks, `sending` carries one file to its client, and [`server`] puts these together.
//!
//! Crates that were looked at first: `async-tftp` 0.4.2 goes on with a transfer whose client has
//! sent an error, sends the wrong blocks again inside windows, has no limits, and picks the source
//! address by the route. `tftpd` 1.0.0 has a thread per transfer, always waits a fixed time before
//! it retransmits, answers from whichever address the route has, and follows symbolic
//! links out of the folder. Both take the decisions and the sockets in one function, so that
//! neither can be tried with lost and late packets at given times. `quinn-udp` is used for what a
//! standard socket lacks: the address that a request was sent to, and a window of blocks in one call.

mod admission;
mod body;
pub mod folder;
mod limits;
mod line;
pub mod packet;
mod path;
mod sending;
pub mod server;
mod service;
pub mod transfer;

pub use admission::Load;
pub use folder::Folder;
pub use limits::Limits;
pub use server::serve;
pub use service::{Report, Rules, Tell, What};

/// The port that clients expect.
pub const PORT: u16 = 69;
