//! What the transfer and the telemetry service are configured with.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::Settings;
use crate::net::quota::Quotas;
use crate::sys::reserve::Reserve;
use crate::telemetry::Rotation;
use crate::transfer::UploadLimits;

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
    pub limits: UploadLimits,
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
    /// What stays free on the disk.
    pub reserve: Reserve,
    /// What addresses may bring.
    pub quotas: Quotas,
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
