//! The telemetry service: records for as long as a connection lives, in constant memory.
//!
//! | file | what lives there |
//! |---|---|
//! | `server` | records out of pieces, [`Records`]; the driver [`serve`] over a [`Journal`] |
//! | `client` | greeting and acknowledgements, [`Client`]; the drivers [`open`] and [`send`] |
//!
//! | who | bytes |
//! |---|---|
//! | server | `Connection established` |
//! | client | a piece: some bytes |
//! | server | `data received` or `data processed`, once for every piece that it read |
//!
//! A record is a line, whatever the pieces were. Both acknowledgements mean the same to an old
//! peer. Ours says `data processed` if the piece ended with the end of a record, so that
//! everything it got has been written, and `data received` if it holds the beginning of a
//! record whose end it has not seen. So a client that sends one record a piece knows when
//! the whole of it has been written, even if the network cuts the piece.

mod client;
mod server;

pub use client::{Acks, Client, Reply, open, send};
pub use server::{Journal, Records, serve};

/// Where the service listens.
pub const PORT: u16 = 5003;

/// What the server says first, without a newline.
pub const GREETING: &[u8] = b"Connection established";
/// The acknowledgement of a piece that ends within a record.
pub const RECEIVED: &[u8] = b"data received";
/// The acknowledgement of a piece that ends with a record.
pub const PROCESSED: &[u8] = b"data processed";

/// The longest record in bytes, with its newline, that is kept in one line.
pub const RECORD_MAX: usize = 16 * 1024;
