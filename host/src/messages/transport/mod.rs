//! The messages service on tokio: servers and clients of messages in both directions.
//!
//! | file | what lives there |
//! |---|---|
//! | `server` | several addresses, a limit of connections, a graceful end |
//! | `client` | connecting, with a time-out |
//! | `peer` | one connection: hooks and queue |
//! | `plugins` | transformations, with memory that grows |
//! | `incoming` | messages that come, within what all connections may hold |
//! | `ahead` | the stream as the core's driver wants it |
//!
//! Messages that do not fit the memory are for [`piman_core::messages::MessageStream`] itself, which hands them on
//! in parts.

pub(crate) mod ahead;
mod client;
mod incoming;
mod peer;
mod plugins;
mod server;

pub use client::{ConnectError, connect};
pub use incoming::Budget;
pub use peer::{Failure, Hooks, NotSent, Peer, Settings};
pub use plugins::MakePlugins;
pub use server::{Plan, Server};
