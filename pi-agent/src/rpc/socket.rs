//! The socket to a server: its options, the wait for it, and why there is no greeting.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, anyhow};
use piman_core::error::{Error, PeerError};
use piman_core::hosted::dial;
use piman_core::messages::refusal;
use rustix::event::{PollFd, PollFlags, poll};

/// How long a connection may take to be made.
pub(super) const CONNECT: Duration = Duration::from_secs(30);
/// How long the server may stand still in the midst of a message.
pub(super) const STALL: Duration = Duration::from_secs(30);

/// Sets the options that every socket to a server has.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    dial::keepalive(stream)
}

/// Waits, for `at_most` or for ever; whether the server has said something.
pub(super) fn readable(
    socket: &TcpStream,
    woken: &UnixStream,
    at_most: Option<Duration>,
) -> anyhow::Result<bool> {
    let at_most = at_most.and_then(|time| time.try_into().ok());
    let mut both = [
        PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(woken.as_fd(), PollFlags::IN),
    ];
    loop {
        match poll(&mut both, at_most.as_ref()) {
            Ok(_) => return Ok(both.first().is_some_and(|fd| !fd.revents().is_empty())),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).context("waiting for the server"),
        }
    }
}

/// Why there is no greeting, for people.
pub(super) fn no_greeting<E: std::fmt::Display>(e: Error<E>) -> anyhow::Error {
    match e {
        Error::Peer(PeerError::Refused(code)) => {
            anyhow!("the server refuses the connection: {}", refusal(code))
        }
        e => anyhow!("greeting: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_words() {
        let text = |code| no_greeting(Error::<io::Error>::Peer(PeerError::Refused(code))).to_string();
        assert_eq!(text(0xFE), "the server refuses the connection: it has too many connections; try later");
        assert!(text(0).ends_with("it gives no reason"));
    }
}
