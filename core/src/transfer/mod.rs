//! The transfer service: files up and down, one transfer per connection.
//!
//! | file | what lives there |
//! |---|---|
//! | `name` | which names a file may have, [`Name`] |
//! | `wire` | the messages as bytes, [`Message`] |
//! | `step` | what goes into a session and what comes out, the same for all three |
//! | `server` | the side that has a folder, [`Server`] |
//! | `client` | the side that asks, [`Probe`], [`Download`] and [`Upload`] |
//! | `drive` | sessions over a byte stream and a [`Storage`] |
//!
//! The operations `D` and `U` are as old peers speak them. `R` is ours. Some old servers answer nothing to an
//! operation that they do not know, never close, and turn in circles from then on. So a client first asks, on a
//! connection of its own, for something that each of them can answer ([`Probe`]); numbers are big-endian:
//!
//! | who | bytes | meaning |
//! |---|---|---|
//! | client | 256 | `D` and the name `.piman-ranges`, which no file has |
//! | server | 9 | `F`, and `ranges-1` in place of the size if it knows `R`. From an old server: `F` and 0 (there is no such file), or anything else |
//!
//! and then
//!
//! | who | bytes | meaning |
//! |---|---|---|
//! | client | 256 | `R` and the name, as in `D` and `U` |
//! | server | 1 | `R`: it knows ranges. From an old server: anything else, or the end; then the client asks again with `D` or `U` |
//!
//! and for a download:
//!
//! | who | bytes | meaning |
//! |---|---|---|
//! | client | 41 | `D`, u64 how many bytes it has, BLAKE3 of these |
//! | server | 17 | `T`, `F` or `E`; u64 size; u64 from which byte it will send: what the client has if the file begins with these very bytes, else 0 |
//! | client | 1 | `T` go on or `F` stop |
//! | server | rest | the bytes from there, then it closes |
//!
//! and for an upload:
//!
//! | who | bytes | meaning |
//! |---|---|---|
//! | client | 9 | `U`, u64 size |
//! | server | 41 | `T`, `F`, `E` or `S` (no space); u64 how many bytes of it are there already; BLAKE3 of these. With `F`: of the complete file of that name if it is as large, so that the client sees whether it is the same |
//! | client | 8 | u64 from which byte it will send: what is there if its file begins with these very bytes, else 0 |
//! | client | rest | the bytes from there |
//! | server | 1 | `T`: complete, on the disk, and visible under its name; `E` or `S`: it is not |

mod client;
mod drive;
mod name;
mod server;
mod step;
mod wire;

pub use client::{Download, Probe, Upload};
pub use drive::{Pause, Storage, advance, run};
pub use name::{BadName, NAME_MAX, Name};
pub use server::Server;
pub use step::{Ask, Body, End, Input, Machine, Step, Value};
pub use wire::{Message, Operation, PROBE, RANGES, REQUEST_LEN, Refusal, Request, Status};

/// Where the service listens.
pub const PORT: u16 = 50001;
