//! The server: binds the core to TCP and keeps what is known of every Pi.
//!
//! | module | what lives there |
//! |---|---|
//! | [`cli`] | the command line: every command |
//! | [`config`] | options, the configuration file, the checked settings |
//! | [`server`] | a server from start to end: its services, serial lines and Bluetooth |
//! | [`provision`] | the install service and its three ports |
//! | [`images`] | what is installed: archives, images, signatures |
//! | [`state`] | what is remembered of Pis, orders and archives |
//! | [`netboot`] | from power-on to our agent: DHCP, TFTP, the folder that Pis boot from |
//! | [`telemetry`] | records that Pis send: server, files, client |
//! | [`transfer`] | files up and down: server and client |
//! | [`rpc`] | calls in both directions; the Pis that are connected |
//! | [`messages`] | messages in both directions: servers and clients for programs |
//! | [`net`] | sockets: limits, timeouts, turns, threads, bytes |
//! | [`text`] | sizes, times, tables, durations and passwords as people write them |
//! | [`sys`] | files, locks, random bytes, the clock, hardware addresses |
#![forbid(unsafe_code)]
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

pub mod cli;
pub mod config;
pub mod images;
pub mod logging;
pub mod messages;
pub mod net;
pub mod netboot;
pub mod provision;
pub mod rpc;
pub mod server;
pub mod state;
pub mod sys;
pub mod telemetry;
pub mod text;
pub mod transfer;
