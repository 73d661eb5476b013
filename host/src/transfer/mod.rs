//! The transfer service: a folder served to many clients, and the client's side of it.
//!
//! | file | what lives there |
//! |---|---|
//! | `folder` | the folder: what may be seen, what is under way, what is really free |
//! | `part` | one upload on the disk, from its temporary name to its own |
//! | `storage` | one connection's view of the folder, as the core's storage |
//! | `hashing` | hashing for clients: whose turn it is, and what is known already |
//! | `serve` | one connection of the server: time-outs, and the bytes moved the quick way |
//! | `service` | the listener, its connections, and the broom |
//! | [`transfer`](crate::cli::transfer) | `piman get` and `piman put` |
//! | `client` | getting and putting a file over a blocking socket |
//! | `local` | the client's file, as the core's storage |

mod client;
mod folder;
mod hashing;
mod local;
mod serve;
mod service;
mod storage;
mod upload;

pub use client::{Deadlines, Outcome, Progress, TransferError, get, put};
pub use folder::{FileRefusal, Folder};
pub use local::Target;
pub use serve::{Served, Timeouts, Transfers};
pub use service::run;
