//! Sockets: limits, timeouts, turns, threads, bytes.
//!
//! | module | what lives there |
//! |---|---|
//! | [`listen`] | ports, and accepting |
//! | [`gate`] | how many connections each port may have, and who gives way |
//! | [`socket`] | the options of every socket, and connections to other hosts |
//! | [`timeout`] | a stream that fails when its peer is too slow |
//! | [`min_rate`] | the slowest rate that a peer may read at |
//! | [`quota`] | how much peers may bring to the disk in a day |
//! | [`reserve`] | free space, and how much of it peers leave for the state |
//! | [`queue`] | a fair queue for a limited number of transfers |
//! | [`workers`] | threads for work that blocks |
//! | [`sendfile`] | file contents to a socket without a copy |
//! | [`http`] | a small server for files |
//! | [`drain`] | what a stop waits for |

pub mod drain;
pub mod gate;
pub mod http;
pub mod listen;
pub mod min_rate;
pub mod queue;
pub mod quota;
pub mod reserve;
pub mod sendfile;
pub mod socket;
pub mod tcp;
pub mod timeout;
pub mod workers;
