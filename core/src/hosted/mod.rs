//! What needs an operating system, or at least `std`: for the programs on computers.
//!
//! | module | feature | what lives there |
//! |---|---|---|
//! | `unpack` | `unpack` | archives that are packed by gzip or zstd |
//! | `ext4` | `ext4` | empty ext4 filesystems without mounting, and a reader of what others made |
//! | `backoff` | `std` | waits before trying again |
//! | `causes` | `std` | an error and its causes as one line |
//! | `size` | `std` | sizes as people write them |
//! | `dial` | `dial` | connections: TCP, a serial line (`dial-serial`), Bluetooth (`dial-bluetooth`) |

pub mod backoff;
pub mod causes;
#[cfg(feature = "dial")]
pub mod dial;
#[cfg(feature = "ext4")]
pub mod ext4;
pub mod size;
#[cfg(feature = "unpack")]
pub mod unpack;
