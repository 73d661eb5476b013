//! The server: binds the core to TCP and keeps what is known of every Pi.
//!
//! | module | what lives there |
//! |---|---|
//! | [`serve`] | a server from start to end |
//! | [`config`], [`span`], [`cli`] | what it is told |
//! | [`listen`], [`transport`], [`pace`], [`slots`], [`lanes`], [`sendfile`] | sockets: limits, time-outs, turns, threads, bytes |
//! | [`install`], [`control`], [`rootfs`], [`fetch`] | the install service and its three ports |
//! | [`service`], [`busy`] | what all connections share; what a stop waits for |
//! | [`archive`], [`content`], [`library`], [`image`], [`builds`], [`sign`] | what is installed |
//! | [`frame`] | messages in both directions: servers and clients for programs |
//! | [`messages`] | channels: what one sends, the others get; its commands |
//! | [`talks`] | calls in both directions; the Pis that are connected |
//! | [`demo`] | the main job on any machine |
//! | [`transfer`], [`stream`] | files up and down, records; servers and clients |
//! | [`files`] | both as parts of a server |
//! | [`lines`] | serial lines and Bluetooth in front of a server |
//! | [`netboot`] | from power-on to our agent: DHCP, TFTP, the folder that Pis boot from |
//! | [`doctor`] | what is wrong before a Pi finds out |
//! | [`state`], [`state_folder`] | what is remembered, and where |
//! | [`words`] | numbers, moments and tables for people |
//! | [`orders`], [`reinstall_file`], [`devices`] | the commands beside a server |
#![forbid(unsafe_code)]
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

pub mod archive;
pub mod builds;
pub mod busy;
pub mod cli;
pub mod config;
pub mod content;
pub mod control;
pub mod demo;
pub mod devices;
mod disk;
pub mod doctor;
pub mod fetch;
pub mod files;
pub mod frame;
pub mod image;
pub mod install;
pub mod lanes;
pub mod library;
pub mod lines;
pub mod listen;
mod lock;
pub mod messages;
pub mod netboot;
pub mod orders;
pub mod pace;
mod password;
mod random;
pub mod reinstall_file;
pub mod rootfs;
pub mod sendfile;
pub mod serve;
pub mod service;
pub mod sign;
pub mod slots;
pub mod span;
pub mod state;
pub mod state_folder;
pub mod stream;
pub mod talks;
pub mod tcp;
pub mod transfer;
pub mod transport;
pub mod words;
