//! The telemetry service: a file of records for each client, and the client that follows a file.
//!
//! | file | what lives there |
//! |---|---|
//! | `file` | one client's file: whole records appended, rotated by size and age |
//! | `store` | all files: who writes to which |
//! | `serve` | one connection: time-outs, and waiting while the disk is full |
//! | `follow` | records out of a growing file, like `tail -F`, or of standard input |
//! | [`telemetry`](crate::cli::telemetry) | `piman telemetry` |
//! | `client` | sends records and waits for each to be written, over reconnects |

mod client;
mod follow;
mod record_file;
mod record_store;
mod serve;

pub use client::{Client, Waits};
pub use follow::{Follow, Mark, Next};
pub use record_file::Rotation;
pub use record_store::RecordStore;
pub use serve::{Named, Served, TelemetryServer, run};
