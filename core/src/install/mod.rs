//! The install service: a Pi reports on the control connection, piman commands.
//!
//! | file | what lives there |
//! |---|---|
//! | `report` | what a Pi says, [`Report`] |
//! | `command` | what piman orders, [`Command`] and its block of lines |
//! | `ours` | the lines that only our own peers understand: [`Hello`], [`Offer`], [`Notice`] |
//! | `session` | piman's side, [`Session`] |
//! | `agent` | the Pi's side, [`Agent`] |
//! | `guard` | what a Pi demands of its server's lines |
//! | `trust` | who a server is, and who a Pi is: [`trust::Certificate`] (feature `trust`) |
//! | `drive` | both sides over a byte stream: [`drive::serve`], [`drive::run`] over a [`drive::Pi`] |
//! | `fetch` | ranges of archives and images on the fetch connection |
//! | `table` | the chunk table of an image |
//! | `manifest` | what is signed of an image |
//! | `personal` | what makes a card one Pi's own: a bundle of items |
//! | `sums` | the chunk hashes of an archive: their format |
//! | `summing` | the same, made and checked (feature `blake3`) |
//! | `receipt` | the proof of a finished installation, as bytes (feature `alloc`) |
//! | `mbr` | the partition table of a disk, [`mbr::Mbr`] |
//! | `gpt` | that of a large disk, [`gpt::Gpt`] |
//! | `program` | whether a program can become process 1, [`program::Program`] |
//! | `geometry` | how large a root filesystem is, and what is left in it for files |
//! | `grow` | an ext4 filesystem of ours made as large as its partition |
//! | `layout` | where the partitions of a card lie |
//!
//! Source: the wire as old peers speak it is fixed; what is ours is marked by lines that
//! begin with `PIMAN/1`, which an old peer takes for noise.

mod agent;
mod command;
pub mod drive;
pub mod fetch;
pub mod geometry;
pub mod gpt;
pub mod grow;
mod guard;
pub mod layout;
pub mod manifest;
pub mod mbr;
mod ours;
pub mod personal;
pub mod program;
#[cfg(feature = "alloc")]
pub mod receipt;
mod report;
mod session;
#[cfg(feature = "blake3")]
pub mod summing;
pub mod sums;
pub mod table;
#[cfg(feature = "trust")]
pub mod trust;

pub use agent::{Agent, Decision, Start, Step as AgentStep};
pub use command::{Command, Date};
pub(crate) use ours::MARK;
pub use ours::{
    BootPersonal, Can, Clock, Fingerprint, Found, Hello, ImageOffer, Installation, More, Notice, Offer,
    Paths, Personal, REVISION, Stage, TEXT_MAX,
};
pub use report::{Milestone, Report};
pub use session::{Event, InstallPolicy, Plan, Question, Session, Step};

/// Where an initramfs has the public key of those whose images it installs.
pub const KEY_FILE: &str = "/etc/piman/key.pub";
/// Where the control connection listens.
pub const CONTROL_PORT: u16 = 3333;
/// Where the root filesystem is sent to whoever connects.
pub const ROOTFS_PORT: u16 = 4444;
/// Where our own agents fetch ranges of archives and images.
pub const FETCH_PORT: u16 = 4445;
