//! Byte streams that nobody else has with `embedded_io_async`'s traits.
//!
//! | file | what lives there |
//! |---|---|
//! | `smoltcp` | TCP without an operating system (feature `smoltcp`) |

#[cfg(feature = "smoltcp")]
pub mod smoltcp;
