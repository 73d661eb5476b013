//! One host on the network that wants to stop the others: what it can reach is bounded.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use piman_tests::server::{Server, connect_from, wait_until};

mod control;
mod http_boot;
mod log;
mod rpc;
mod rpc_login;
mod slots;
mod telemetry;
mod tftp;
mod transfer;

/// How long a test waits for what must come.
const WITHIN: Duration = Duration::from_secs(60);

/// A connection from this address of loopback, which fails a test instead of hanging it.
fn from(address: [u8; 4], port: u16) -> TcpStream {
    let stream = connect_from(address, port);
    stream.set_read_timeout(Some(WITHIN)).unwrap();
    stream.set_write_timeout(Some(WITHIN)).unwrap();
    stream
}

/// Forgets the most memory that a server had so far.
fn forget_peak(server: &Server) {
    fs::write(format!("/proc/{}/clear_refs", server.id()), "5").unwrap();
}
