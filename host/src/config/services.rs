//! What the transfer and the telemetry service are configured with.

use std::path::PathBuf;
use std::time::Duration;

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
}
