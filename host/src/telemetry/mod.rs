//! The stream service: a file of records for each client, and the client that follows a file.
//!
//! | file | what lives there |
//! |---|---|
//! | `book` | one client's file: whole records appended, rotated by size and age |
//! | `shelf` | all files: who writes to which |
//! | `serve` | one connection: time-outs, and waiting while the disk is full |
//! | `follow` | records out of a growing file, like `tail -F`, or of standard input |
//! | [`telemetry`](crate::cli::telemetry) | `piman stream` |
//! | `client` | sends records and waits for each to be written, over reconnects |

mod book;
mod client;
mod follow;
mod serve;
mod shelf;

pub use book::Rotation;
pub use client::{Client, Waits};
pub use follow::{Follow, Mark, Next};
pub use serve::{Served, Streams, run};
pub use shelf::Shelf;
