//! The system below: files, locks, random bytes, the clock, hardware addresses.

pub mod clock;
pub(crate) mod files;
pub(crate) mod lock;
pub mod mac;
pub(crate) mod random;
