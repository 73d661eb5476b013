//! Byte streams that are not there already as `embedded_io_async`'s traits.
//!
//! | file | what lives there |
//! |---|---|
//! | [`mod@smoltcp`] | TCP without an operating system (feature `smoltcp`) |

#[cfg(feature = "smoltcp")]
pub mod smoltcp;
