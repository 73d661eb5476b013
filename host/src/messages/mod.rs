//! The messages service as a part of a server, and its commands.
//!
//! | file | what lives there |
//! |---|---|
//! | `hub` | channels on their ports: a server from start to end |
//! | `channel` | what one member sends, the others get; chat |
//! | `settings` | channels as they are written in options |
//! | `plugins` | transformations of messages, by name |
//! | [`cli`] | `piman messages listen`, `send`, `chat` |
//!
//! One connection, its queue and its hooks are in [`frame`](crate::frame).

mod channel;
pub mod cli;
mod hub;
mod plugins;
mod settings;

pub use hub::{Bound, Running};
pub use plugins::Plugin;
pub use settings::{Channel, Kind, MAIN, Named, Settings};
