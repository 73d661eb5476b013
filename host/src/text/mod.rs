//! Text that people read or write.
//!
//! | module | what lives there |
//! |---|---|
//! | [`human`] | sizes, times and tables |
//! | [`duration`] | durations as the command line and the configuration have them |
//! | `password` | passwords in files |

pub mod duration;
pub mod human;
pub(crate) mod password;
