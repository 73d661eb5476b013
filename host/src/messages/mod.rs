//! The messages service as a part of a server, and its commands.
//!
//! | file | what lives there |
//! |---|---|
//! | `hub` | channels on their ports: a server from start to end |
//! | `channel` | what one member sends, the others get; chat |
//! | `settings` | channels as they are written in options |
//! | `plugins` | transformations of messages, by name |
//! | [`messages`](crate::cli::messages) | `piman messages listen`, `send`, `chat` |
//!
//! One connection, its queue and its hooks are in [`frame`](crate::messages::transport).

mod channel;
mod hub;
mod plugins;
mod settings;
pub mod transport;

pub use hub::{Bound, Running};
pub use plugins::Plugin;
pub use settings::{Channel, Kind, MAIN, Named, Settings};
