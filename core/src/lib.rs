// Its examples are of three services.
#![cfg_attr(all(feature = "install", feature = "transfer", feature = "rpc"), doc = include_str!("../README.md"))]
//! ## Modules
//!
//! | module | what lives there |
//! |---|---|
//! | `install` | reports, commands, both sessions of the install service, and their drivers |
//! | `transfer` | both sides of the transfer service: files up and down |
//! | `telemetry` | both sides of the telemetry service: records |
//! | `messages` | messages in both directions |
//! | `rpc` | calls and answers in both directions |
//! | `serial` | several byte streams over a line that loses and damages bytes |
//! | `dhcp` | the messages of DHCP, as a client and as a server have them |
//! | `archive` | entries out of a tar archive: pax, GNU, sparse files (feature `archive`) |
//! | [`mod@line`] | lines out of arbitrary chunks, in the caller's buffer |
//! | [`base64`] | bytes that are written as letters |
//! | [`hash`] | BLAKE3 hashes as values on the wire |
//! | [`stream`] | writing to a byte stream, as every driver does |
//! | [`transport`] | byte streams of our own: TCP without an operating system (feature `smoltcp`) |
//! | [`blocking`] | the same drivers on a blocking stream, without an executor |
//! | `hosted` | what needs an operating system: unpacking, ext4, connections (feature `std` and one each) |
//!
//! The first seven are features of the same names, on by default.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![no_std]
#![cfg_attr(not(feature = "dial-bluetooth"), forbid(unsafe_code))]
// Nothing that may panic: not from the wire, the disk or the command line.
#![cfg_attr(
    not(test),
    deny(
        clippy::disallowed_methods,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::todo,
        clippy::unimplemented,
        clippy::indexing_slicing,
        clippy::string_slice
    )
)]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(feature = "std")]
#[macro_use]
extern crate std;
#[cfg(all(test, not(feature = "std")))]
extern crate std;

#[macro_use]
#[allow(unused_macros, reason = "not every service logs, and not at every level")]
mod log;

#[cfg(feature = "archive")]
pub mod archive;
pub mod base64;
pub mod blocking;
#[cfg(feature = "dhcp")]
pub mod dhcp;
pub mod error;
pub mod hash;
#[cfg(feature = "std")]
pub mod hosted;
#[cfg(feature = "install")]
pub mod install;
pub mod line;
#[cfg(feature = "messages")]
pub mod messages;
#[cfg(feature = "rpc")]
pub mod rpc;
#[cfg(feature = "serial")]
pub mod serial;
pub mod stream;
#[cfg(feature = "telemetry")]
pub mod telemetry;
#[cfg_attr(
    not(feature = "install"),
    allow(dead_code, reason = "numbers and pieces are for the lines of that service")
)]
pub mod text;
#[cfg(feature = "transfer")]
pub mod transfer;
pub mod transport;
#[cfg_attr(not(feature = "rpc"), allow(dead_code, reason = "not every service looks at all of it"))]
mod window;

pub use error::Error;
