//! The system below: files, locks, random bytes, the clock, hardware addresses; the models of Pis.

pub mod clock;
pub(crate) mod files;
pub(crate) mod lock;
pub mod mac;
pub mod models;
pub(crate) mod random;
