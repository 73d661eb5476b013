//! What the transfer and the telemetry service are configured with.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::Settings;
use crate::net::quota::Allowance;
use crate::telemetry::Rotation;

/// What the transfer service is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferSettings {
    /// Where it listens.
    pub port: u16,
    /// What it serves.
    pub folder: PathBuf,
    /// How long a broken upload can be resumed.
    pub keep: Duration,
    /// What uploads leave free, and what they may bring.
    pub allowance: Allowance,
}

/// Settings of the telemetry service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetrySettings {
    /// Where it listens.
    pub port: u16,
    /// Where the records go.
    pub folder: PathBuf,
    /// Whether a record is on the disk before it is acknowledged.
    pub sync: bool,
    /// When the next file is begun.
    pub rotation: Rotation,
    /// What records leave free, and what they may bring.
    pub allowance: Allowance,
}

impl Settings {
    /// All addresses that the server listens on.
    #[must_use]
    pub fn own_addresses(&self) -> Vec<IpAddr> {
        let channels = self.messages.iter().flat_map(|m| m.channels.iter().flat_map(|c| c.at.iter()));
        let channels = channels.map(|(address, _)| address.ip());
        std::iter::once(self.listen).chain(channels).collect()
    }

    /// The interface on which DHCP is answered.
    #[must_use]
    pub fn dhcp_interface(&self) -> Option<&str> {
        Some(self.netboot.as_ref()?.dhcp.as_ref()?.interface.as_str())
    }
}
