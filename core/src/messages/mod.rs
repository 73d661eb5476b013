//! The messages service: messages of 0 to 0xF0FF_FFFF bytes, in both directions of one stream.
//!
//! | file | what lives there |
//! |---|---|
//! | `link` | one side of the talk as pure steps, [`Link`] |
//! | `drive` | the same over a byte stream, [`MessageStream`] |
//! | `mail` | whole messages in memory that grows (feature `alloc`), [`MessageBuffer`] |
//! | `plugin` | transformations of whole messages, [`Plugin`] |
//!
//! On the wire: both sides send [`GO`] at connect and expect it; then a message is its size
//! in 4 bytes (big-endian), one byte of answer from the receiver, and its bytes.
//!
//! Both sides may start at the same moment. Then the side that listened goes first: it keeps
//! its answer back until its own message is through, so at no moment do both write bodies.
//! For that one side must be [`Role::Client`] and the other [`Role::Server`].
//!
//! The answer 0 (too large) is also the first byte of a size below 16 MiB. Which of the two
//! came shows when three more bytes follow, or when for [`QUIET_MS`] nothing does; and who
//! has refused a message keeps quiet for twice as long before it starts one of its own.

mod drive;
mod link;
#[cfg(feature = "alloc")]
mod mail;
mod plugin;

pub use drive::{Body, MessageSink, MessageStream, SendError, Timeless, Timer};
pub use link::{Link, NotNow, Piece, Role, Step};
#[cfg(feature = "alloc")]
pub use mail::MessageBuffer;
pub use plugin::{Plugin, PluginError, incoming, outgoing};

/// Where the service listens, unless told otherwise.
pub const PORT: u16 = 9123;
/// The largest message, in bytes: a size never begins with a byte over 0xF0.
pub const SIZE_MAX: u32 = 0xF0FF_FFFF;
/// The largest first byte of a size; what is larger is an answer.
const SIZE_FIRST_MAX: u8 = 0xF0;
/// The greeting, and the answer to a size that is welcome.
pub const GO: u8 = 0xFF;
/// The answer to a size over the limit.
pub const TOO_LARGE: u8 = 0x00;
/// In place of the greeting: too many connections.
pub const FULL: u8 = 0xFE;
/// In place of the greeting: this peer conflicts with another, connected twice say.
pub const CONFLICT: u8 = 0xFD;
/// In place of the greeting: anything else.
pub const FAILED: u8 = 0x00;
/// Why a peer refused the connection, by the code that it sent in place of the greeting.
#[must_use]
pub const fn refusal(code: u8) -> &'static str {
    match code {
        FULL => "it has too many connections; try later",
        CONFLICT => "it has a conflict, such as this client being connected already",
        _ => "it gives no reason",
    }
}

/// How long nothing must follow a 0 that answers a size before it counts as a refusal.
pub const QUIET_MS: u32 = 1000;
