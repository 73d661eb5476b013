//! What is remembered of the Pis: devices, orders to reinstall, and what happened.
//!
//! The trait knows no SQL, so that several servers can share one state later.

pub mod archive_facts;
pub mod decision;
pub mod keys;
mod private;
mod recorder;
pub mod resolve;
pub mod server_lock;
mod sqlite;
mod types;

use std::path::{Path, PathBuf};

use piman_core::hash::Hash;
use piman_core::install::trust::PublicKey;
use piman_core::install::{Fingerprint, Installation};

use archive_facts::{Content, Stamp};
use decision::{Ask, Cancelled, Claimed, Policy, Rule, Scope};
use keys::{Keys, PendingKey, PinnedKey};

pub use crate::images::personalise::profile::IdentityMode;
pub use recorder::Recorder;
pub use sqlite::{FILE, Sqlite, preview};
pub use types::{
    About, Batch, Catalogue, Change, Choice, Device, DeviceEvent, Edit, Facts, Identity, Listed, ListedPi,
    OpenOrder, Order, Ordered, PersonalFacts, PersonalOrder, Preview, Registered, StoredProfile, Written,
};

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The file is no database, or a broken one.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// Which file.
        path: String,
        /// What was found.
        reason: String,
    },
    /// The folder or file cannot be written.
    #[error(
        "{path} cannot be written: {reason}; make it writable for this user, or name another folder with --state"
    )]
    ReadOnly {
        /// Which file or folder.
        path: String,
        /// What the system says.
        reason: String,
    },
    /// There is no state yet.
    #[error(
        "there is no state in {path}: start `piman serve` with this --state once, or name its folder with --state"
    )]
    Missing {
        /// Which folder.
        path: String,
    },
    /// A server serves from it.
    #[error(
        "another server uses {path} ({by}): two of them would contradict each other; stop that one, or name another folder with --state"
    )]
    Served {
        /// Which folder.
        path: String,
        /// The process.
        by: String,
    },
    /// It was made by a newer piman.
    #[error(
        "{path} was written by a newer piman (format {found}, this one knows {known}): use that one, or another --state"
    )]
    Newer {
        /// Which file.
        path: String,
        /// Its format.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// It cannot be used now, whatever is in it: the disk is full, or another program holds it.
    #[error("{path} cannot be used now: {reason}; nothing was changed")]
    Busy {
        /// Which file.
        path: String,
        /// What the system says.
        reason: String,
    },
    /// Anything else.
    #[error("{path}: {reason}")]
    Other {
        /// Which file.
        path: String,
        /// What the database says.
        reason: String,
    },
}

/// Where devices, orders and events are kept. All calls may block for a moment. The wire services
/// call [`open_orders`](Self::open_orders) and [`image_of`](Self::image_of), which wait for no writer,
/// and [`claim`](Self::claim), which ends on the disk.
pub trait State: Send + Sync {
    /// The orders that are open for exactly this Pi, by any of its names.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn open_orders(&self, pi: &Identity) -> Result<Vec<OpenOrder>, StateError>;

    /// Saves all of it or nothing.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    fn save(&self, batch: &Batch) -> Result<(), StateError>;

    /// Claims, in one transaction, the orders that are open for this Pi and allow to erase what is on its disk,
    /// and records the reason. `None`: there is no such order, and no policy that formats without one. What it
    /// returns is on the disk.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written: then the Pi must not be told to format.
    fn claim(&self, ask: &Ask<'_>) -> Result<Option<Claimed>, StateError>;

    /// Whether this Pi was given this image last, as this installation (`None`: it knows no such names).
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn is_given(&self, pi: &Identity, image: Hash, number: Option<Installation>) -> Result<bool, StateError>;

    /// Orders a reinstall of the Pi with exactly this name, for `source`; with a fingerprint, of what has this one
    /// alone. It is on the disk when this returns.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    fn order(&self, name: &str, source: &str, print: Option<Fingerprint>) -> Result<Ordered, StateError>;

    /// Cancels what is ordered by this name, unless a Pi was told to format because of it.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    fn cancel(&self, name: &str) -> Result<Cancelled, StateError>;

    /// `base` with the rules that the state has for this Pi: its own, else its group's, else everybody's.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn policy_of(&self, pi: &Identity, base: Policy) -> Result<Policy, StateError>;

    /// All rules of the state.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn rules(&self) -> Result<Vec<(Scope, Rule)>, StateError>;

    /// Sets rules for somebody, or with none takes away all that there are. It is on the disk when this returns.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    fn set_rules(&self, scope: &Scope, rules: &[Rule]) -> Result<(), StateError>;

    /// Whether this Pi is in the device list: by its serial number or hardware address, or by its address if it has
    /// neither.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn is_listed(&self, pi: &Identity) -> Result<Listed, StateError>;

    /// The device list.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn listed(&self) -> Result<Vec<ListedPi>, StateError>;

    /// Puts Pis into the device list, with what people call them; all or none. Returns how many are new. It is on the
    /// disk when this returns.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    fn add_listed(&self, pis: &[(String, Option<String>)], source: &str) -> Result<usize, StateError>;

    /// Takes Pis out of it; returns those that were there. It is on the disk when this returns.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    fn remove_listed(&self, names: &[String]) -> Result<Vec<String>, StateError>;

    /// The keys that matter for a Pi that says who it is.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn keys_of(&self, pi: &Identity) -> Result<Keys, StateError>;

    /// The keys of all Pis that have one.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn pinned_keys(&self) -> Result<Vec<PinnedKey>, StateError>;

    /// Pins a key to the Pi that is kept under this name; with `replaces` in the place of another one. Returns whether
    /// it is the Pi's key now. It is on the disk when this returns.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    fn pin(&self, device: &str, key: PublicKey, source: &str, replaces: bool) -> Result<bool, StateError>;

    /// Takes its key away, and what waits for it; returns whether it had one. It is on the disk when this returns.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    fn forget_key(&self, device: &str) -> Result<bool, StateError>;

    /// Who says the name of a Pi with a key, and has not shown that it is that one; the last heard first.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn pending_keys(&self) -> Result<Vec<PendingKey>, StateError>;

    /// All orders that are kept, the newest first.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn orders(&self) -> Result<Vec<Order>, StateError>;

    /// All Pis, the last seen first.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn devices(&self) -> Result<Vec<Device>, StateError>;

    /// What happened to one device, in order; `key` as in [`Device::key`].
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn events(&self, key: &str) -> Result<Vec<DeviceEvent>, StateError>;

    /// The server's own alerts that are not over, in words.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn alerts(&self) -> Result<Vec<DeviceEvent>, StateError>;

    /// All images, and who gets which.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn catalogue(&self) -> Result<Catalogue, StateError>;

    /// Changes it; returns whether there was what had to be changed. It is on the disk when this returns.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    fn edit(&self, edit: &Edit) -> Result<bool, StateError>;

    /// The archive that this Pi gets: its own, else its group's, else the default one.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn image_of(&self, pi: &Identity) -> Result<Option<PathBuf>, StateError>;

    /// What an operator says of the image at this path.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn about(&self, path: &Path) -> Result<About, StateError>;

    /// All profiles: the server's, then those of Pis, then those of groups.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn profiles(&self) -> Result<Vec<StoredProfile>, StateError>;

    /// Sets a profile in the place of the one that was there; that of a Pi may give it a number. Returns the Pi that has
    /// this number and a host name with it already: then nothing is changed. It is on the disk when this returns.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    fn set_profile(
        &self,
        scope: &Scope,
        written: &Written,
        source: &str,
    ) -> Result<Option<String>, StateError>;

    /// Takes a profile away, and a Pi's number and host name with it; returns whether there was anything. It is on the
    /// disk when this returns.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    fn remove_profile(&self, scope: &Scope) -> Result<bool, StateError>;

    /// What this Pi's bundle depends on. A Pi without a number gets one, behind those that were seen before it.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read, or the number cannot be written.
    fn personal_of(&self, pi: &Identity) -> Result<PersonalFacts, StateError>;

    /// Gives a host name to a Pi; returns the Pi that has it already: then nothing is changed.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    fn give_host_name(&self, pi: &Identity, name: &str) -> Result<Option<String>, StateError>;

    /// Orders that the Pi with exactly this name applies its profile at its next boot. It is on the disk when this
    /// returns.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    fn order_personal(&self, name: &str, source: &str) -> Result<Ordered, StateError>;

    /// Cancels that; returns whether it was ordered.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    fn cancel_personal(&self, name: &str) -> Result<bool, StateError>;

    /// All orders to apply a profile that are kept, the newest first.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn personal_orders(&self) -> Result<Vec<PersonalOrder>, StateError>;

    /// Whether this Pi is ordered to apply its profile.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn is_personal_ordered(&self, pi: &Identity) -> Result<bool, StateError>;

    /// Notes that what is ordered for this Pi is begun as this installation, and returns how it is called: as it was
    /// when it was begun first, or `number`. `None`: nothing is ordered any more.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    fn begin_personal(&self, pi: &Identity, number: Installation)
    -> Result<Option<Installation>, StateError>;

    /// What is known of the archive at this path, and of which version of it.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be read.
    fn known(&self, path: &Path) -> Result<Option<(Stamp, Content)>, StateError>;

    /// Keeps what is known of an archive.
    ///
    /// # Errors
    /// [`StateError`] if the state cannot be written.
    fn keep(&self, path: &Path, stamp: &Stamp, facts: &Content) -> Result<(), StateError>;
}
