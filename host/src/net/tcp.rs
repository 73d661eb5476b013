//! What the kernel knows of a TCP connection: what the peer has acknowledged, and whether it still answers.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, sockopt_impl};

/// How many questions in a row must have remained without an answer before a peer is taken for gone: one or
/// two of them may have been lost.
const UNANSWERED: u8 = 3;

/// The first part of the kernel's `struct tcp_info`, as all kernels since 4.6 have it. It consists of integers
/// and has no padding.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Raw {
    state: u8,
    congestion: u8,
    retransmits: u8,
    probes: u8,
    backoff: u8,
    options: u8,
    bits: [u8; 2],
    rto: u32,
    ato: u32,
    mss: [u32; 2],
    unacked: u32,
    segments: [u32; 4],
    last_data_sent: u32,
    last_ack_sent: u32,
    last_data_received: u32,
    last_ack_received: u32,
    path: [u32; 11],
    rates: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
    segments_total: [u32; 2],
    not_sent: u32,
    round_trip_min: u32,
}

sockopt_impl!(
    /// The socket option `TCP_INFO`.
    TcpInfo,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    Raw
);

/// A connection at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Info(Raw);

impl Info {
    /// Asks the kernel.
    ///
    /// # Errors
    /// If this is no TCP socket.
    pub fn of(stream: &impl AsFd) -> io::Result<Self> {
        Ok(Self(getsockopt(stream, TcpInfo)?))
    }

    /// How many bytes the peer has acknowledged since it connected.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.0.bytes_acked
    }

    /// Whether something that was written has not been acknowledged yet.
    #[must_use]
    pub fn is_outstanding(&self) -> bool {
        !self.is_closed() && (self.0.unacked > 0 || self.0.not_sent > 0)
    }

    /// Whether the peer has acknowledged the end of our direction, and so everything before it.
    #[must_use]
    pub fn end_is_acked(&self) -> bool {
        const FIN_WAIT2: u8 = 5;
        const TIME_WAIT: u8 = 6;
        matches!(self.0.state, FIN_WAIT2 | TIME_WAIT)
    }

    /// Whether there is no connection any more: both directions have ended, or it failed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        const CLOSE: u8 = 7;
        self.0.state == CLOSE
    }

    /// For how long the peer's system has left us without any answer, if it has been asked for one again and
    /// again: by bytes that were sent anew, or by probes of a window that it has closed. A peer that only takes
    /// nothing answers these probes, and keepalive says nothing as long as there are bytes to be sent.
    #[must_use]
    pub fn unanswered(&self) -> Option<Duration> {
        let asked = self.0.retransmits.max(self.0.probes) >= UNANSWERED;
        asked.then(|| Duration::from_millis(self.0.last_ack_received.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_was_acknowledged_and_what_was_not() {
        assert_eq!(size_of::<Raw>(), 152);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        let before = Info::of(&ours).unwrap();
        ours.write_all(&[0; 1000]).unwrap();
        while Info::of(&ours).unwrap().is_outstanding() {
            std::thread::yield_now();
        }
        assert_eq!(Info::of(&ours).unwrap().acked() - before.acked(), 1000);
        // Nobody reads: the window closes, the rest is outstanding, and the peer answers all the same.
        ours.set_nonblocking(true).unwrap();
        while ours.write(&[0; 1 << 20]).is_ok() {}
        let full = Info::of(&ours).unwrap();
        assert!(full.is_outstanding() && full.unanswered().is_none(), "{full:?}");
        ours.shutdown(Shutdown::Write).unwrap();
        assert!(!Info::of(&ours).unwrap().end_is_acked());
        io::copy(&mut &theirs, &mut io::sink()).unwrap();
        while !Info::of(&ours).unwrap().end_is_acked() {
            std::thread::yield_now();
        }
        assert!(Info::of(&io::stdin()).is_err(), "no socket");
    }
}
