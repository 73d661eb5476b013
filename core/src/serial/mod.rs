//! Several byte streams over one line that loses, damages and invents bytes, such as a serial port.
//!
//! | file | what lives there |
//! |---|---|
//! | `frame` | frames: found again after any damage, whole or not at all |
//! | `link` | both ends of a line as pure steps: order, repetition, streams, [`Link`] |
//! | `drive` | the dialler's end on an executor: [`Line`] and its [`Stream`]s |
//!
//! One side dials, the other listens. The dialler says hello until it is welcome; from then on frames are numbered,
//! repeated until they are acknowledged, and taken in order (go back N). The dialler opens streams by the port of
//! a service; each direction of a stream has a credit, so that one that stands still holds up no other.
//!
//! A frame is its bytes and their CRC-32 in COBS, between zero bytes:
//!
//! | first byte | then | |
//! |---|---|---|
//! | 0 | session (2 bytes) | hello: everything begins anew |
//! | 1 | session | welcome |
//! | 2 | session, number, acknowledged up to, record | a record |
//! | 3 | session, acknowledged up to | no record |
//! | 4 | session, acknowledged up to | the same, and the next one is missing |
//!
//! A record is a kind, a stream and: 0 a port (the stream is opened), 1 bytes, 2 nothing (no more bytes follow),
//! 3 nothing (the stream is cut), 4 a credit in bytes. Numbers of more than a byte are big-endian.
//!
//! A dialler that has nothing to say gives a credit of 0 every ten seconds. What is not acknowledged for 30 s is
//! lost with the other end, and the dialler says hello again.
//!
//! Considered: PPP, which needs the kernel and a daemon on both sides; TCP/IP in user space over SLIP, ten times the
//! code on the Pi; GSM 07.10, whose basic mode repeats nothing; yamux, which wants a line without faults below.

mod drive;
mod frame;
mod link;

pub use drive::{Clock, Line, Stream, StreamError};
pub use frame::WIRE_MAX;
pub use link::{Event, Link, Role, STREAMS};
