//! What piman and its Pis say to each other, and what they decide.
//!
//! No clock, no socket, no file, no allocation: sessions are pure steps, and
//! one driver runs them over any byte stream that implements
//! [`embedded_io_async`]'s traits.
//!
//! | module | what lives there |
//! |---|---|
//! | [`mod@line`] | lines out of arbitrary chunks, in the caller's buffer |
//! | [`install`] | reports, commands, both sessions of the install service |
//! | [`transfer`] | both sides of the transfer service: files up and down |
//! | [`telemetry`] | both sides of the telemetry service: records |
//! | [`messages`] | messages in both directions |
//! | [`serial`] | several byte streams over a line that loses and damages bytes |
//! | [`dhcp`] | the messages of DHCP, as a client and as a server have them |
//! | [`base64`] | bytes that are written as letters |
//! | [`hash`] | BLAKE3 hashes as values on the wire |
//! | `hosted` | what needs an operating system: archives, ext4, connections (feature `std` and one each) |
//! | [`rpc`] | calls and answers in both directions |
//! | [`drive`] | the one async driver for both sides |
//! | [`transport`] | byte streams of our own: TCP without an operating system |
//! | [`blocking`] | the same driver on a blocking stream, without an executor |
//!
//! Features (additive): `log` and `defmt` choose where log lines go; `postcard` is the codec of calls
//! between our own peers; `alloc` puts messages together in memory that grows;
//! `smoltcp` is the transport of that name.
#![no_std]
#![cfg_attr(not(feature = "dial-bluetooth"), forbid(unsafe_code))]
// Nothing that may panic: not from the wire, the disk or the command line.
#![cfg_attr(
    not(test),
    deny(
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
mod log;

pub mod base64;
pub mod blocking;
pub mod dhcp;
pub mod drive;
pub mod error;
pub mod hash;
#[cfg(feature = "std")]
pub mod hosted;
pub mod install;
pub mod line;
pub mod messages;
pub mod rpc;
pub mod serial;
pub mod telemetry;
pub mod text;
pub mod transfer;
pub mod transport;
mod window;

pub use error::Error;
