//! What the firmware and the measurements share.
#![no_std]

pub mod pi;
pub mod probe;
pub mod services;
pub mod sizes;

pub use piman_board::semihosting;
