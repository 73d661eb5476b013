//! For what a bundle is rendered.

use piman_core::install::Installation;

use super::profile::IdentityMode;
use super::template::Facts;
use crate::images::fitness::System;

/// When a bundle is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// With an installation: the system has never started on this card.
    Install,
    /// Once more, on a system that has been running.
    Again,
}

/// For what a bundle is.
#[derive(Debug, Clone)]
pub struct Subject<'s> {
    /// What is known of the Pi; without a host name.
    pub facts: Facts,
    /// What kind of system it gets.
    pub system: &'s System,
    /// Whether that comes as the image of a whole disk, with partitions of its own.
    pub is_disk: bool,
    /// Whether the card boots by itself.
    pub boots_from_card: bool,
    /// When it is carried out.
    pub occasion: Occasion,
    /// How the installation is called: the same one gives the same bundle.
    pub installation: Installation,
    /// What is done about the identity if the profile does not say it.
    pub identity: IdentityMode,
}
