//! What this Pi reports about itself.
//!
//! | module | what lives there |
//! |---|---|
//! | [`metrics`] | CPU, memory, disk and temperature as records |
//! | [`machine`] | where these are read |
//! | [`log_buffer`] | what was logged, sent to the server when it is done |
//! | [`progress`], [`display`] | how far an installation is, and showing it |

pub mod display;
pub mod log_buffer;
pub mod machine;
pub mod metrics;
pub mod progress;
