//! Which key a Pi has proven that it has, and who says that it is that Pi and has another one.

use std::net::IpAddr;

use piman_core::install::trust::PublicKey;

/// The key of a Pi.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedKey {
    /// The name that the Pi is kept under: its serial number, else its hardware address.
    pub device: String,
    /// The key.
    pub key: PublicKey,
    /// Since when, in milliseconds since 1970.
    pub pinned_ms: u64,
    /// By whom: `first contact`, or an operator.
    pub source: String,
}

/// Somebody who says the name of a Pi and has not proven that it is that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingKey {
    /// The name.
    pub device: String,
    /// Its key; `None`: it shows none.
    pub key: Option<PublicKey>,
    /// Where it connects from.
    pub address: IpAddr,
    /// When it was heard first, in milliseconds since 1970.
    pub first_ms: u64,
    /// When it was heard last.
    pub last_ms: u64,
}

/// The keys that matter for somebody who says who it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keys {
    /// The key of the Pi with this name.
    pub own: Option<PublicKey>,
    /// Another Pi with a key whose hardware address it says.
    pub of_mac: Option<String>,
}
