//! The rpc service on tokio: calls in both directions, with old peers and our own.
//!
//! | file | what lives there |
//! |---|---|
//! | `data` | values that own what they hold, [`Data`] |
//! | `attempts` | how many wrong passwords are looked at |
//! | `login` | which protocol a client speaks, and whether it may |
//! | `join` | logging in to a server |
//! | `secure` | the protected login, on both sides |
//! | `sealed` | a stream that goes in sealed records |
//! | `engine` | what happens on a connection, and [`Functions`] |
//! | `peer` | a peer that is connected, [`Peer`] |
//! | `mail` | messages while they come in, and their limits of memory |
//! | `wire` | its bytes: pickles or frames |
//! | `client` | connecting |
//! | `server` | the port, the operator's socket |
//! | `connected` | the Pis that are connected, and what the operator may ask |
//! | `command` | `piman call`, `piman status` |
//! | `direct` | `piman call --server`: a function of a server |
//!
//! The pickle crates were looked at: `serde-pickle` and its like need an allocator, decode from a reader without
//! an end in sight and bound neither depth nor memory as a server on a network must; so the core has its own.

mod attempts;
mod client;
pub(crate) mod connected;
mod data;
pub(crate) mod direct;
mod engine;
mod join;
mod login;
mod mail;
mod peer;
mod sealed;
mod secure;
mod server;
mod wire;

pub use client::{Nothing, connect, connect_operator};
pub use connected::{ConnectedPis, SOCKET};
pub use data::Data;
pub use direct::Direct;
pub use engine::{Answer, Functions, Request};
pub use login::{RpcError, Secret};
pub use peer::{CallError, Peer};
pub use server::{Plan, Server, check_operator};
