//! Time-outs as a decorator around a tokio stream, and the options of every socket.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::net::gate::moved;
use crate::net::min_rate::UNANSWERED;
use crate::net::tcp::Info;

/// How often it is looked whether a peer that says nothing is still there.
pub const LOOK: Duration = Duration::from_secs(30);

/// A stream that fails with `TimedOut` when it is read from and its peer's system has stopped answering. The
/// connections of services on which both sides may be silent for hours need it: keepalive says nothing as long as
/// there is something on its way to the peer.
#[derive(Debug)]
pub struct Living {
    stream: TcpStream,
    look: Pin<Box<Sleep>>,
}

impl Living {
    /// Within a runtime.
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, look: Box::pin(sleep(LOOK)) }
    }

    /// Ready when the peer is gone.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while self.look.as_mut().poll(cx).is_ready() {
            match answers(&self.stream) {
                Ok(()) => self.look.as_mut().reset(Instant::now() + LOOK),
                Err(e) => return Poll::Ready(e),
            }
        }
        Poll::Pending
    }
}

/// Looks whether the peer's system answers what it was sent or asked; every [`LOOK`] is often enough.
///
/// # Errors
/// `TimedOut` if it does not.
pub fn answers(stream: &TcpStream) -> io::Result<()> {
    if Info::of(stream)?.unanswered().is_some_and(|silence| silence >= UNANSWERED) {
        let text = "the peer's system does not answer any more: has it lost power?";
        return Err(io::Error::new(ErrorKind::TimedOut, text));
    }
    Ok(())
}

impl AsFd for Living {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsyncRead for Living {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Pending => self.poll_gone(cx).map(Err),
            done => {
                moved();
                done
            }
        }
    }
}

impl AsyncWrite for Living {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A client's blocking connection to the first address of the host that answers. A server that lost power
/// is noticed, and one that sends or takes nothing for as long as `silence`.
///
/// # Errors
/// If nobody answers, or within `connect`.
pub fn dial(host: &str, port: u16, connect: Duration, silence: Duration) -> io::Result<std::net::TcpStream> {
    let stream = piman_core::hosted::dial::connect(host, port, connect)?;
    stream.set_write_timeout(Some(silence))?;
    stream.set_read_timeout(Some(silence))?;
    SockRef::from(&stream).set_tcp_keepalive(&keepalive())?;
    Ok(stream)
}

/// A blocking socket's time-out looks like "try again", which tells nobody anything: `text` does.
#[must_use]
pub fn timely(e: io::Error, text: &'static str) -> io::Error {
    match e.kind() {
        ErrorKind::WouldBlock => io::Error::new(ErrorKind::TimedOut, text),
        _ => e,
    }
}

/// Sets what every connection needs: small lines leave at once, a peer that lost power is noticed when
/// nothing is on its way to it (keepalive).
///
/// When something is, the kernel needs a quarter of an hour (`net.ipv4.tcp_retries2`), and whoever waits for it
/// notices sooner ([`Watch`](crate::net::min_rate::Watch), [`Living`]). A user time-out (`TCP_USER_TIMEOUT`) would also cut
/// a peer that is only slow: it counts the time for which a window is closed, and not whether the peer's system
/// answers meanwhile.
pub fn tune(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let set = socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive()));
    if let Err(e) = set {
        tracing::debug!("a socket's options cannot be set: {e}");
    }
}

/// A peer that lost power is noticed after two minutes.
#[must_use]
pub fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4)
}

/// Makes the end of this connection an error for the peer (a reset), since what it got is not whole.
pub fn reset_at_close(stream: &TcpStream) {
    // It fails only for a socket that is gone already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_connection_counts_the_time_for_which_its_window_is_closed() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let within = Duration::from_secs(20);
            let client = dial("127.0.0.1", port, within, within).unwrap();
            let (served, _) = listener.accept().await.unwrap();
            tune(&served);
            for socket in [SockRef::from(&client), SockRef::from(&served)] {
                assert_eq!(socket.tcp_user_timeout().unwrap(), None);
                assert!(socket.keepalive().unwrap());
            }
        });
    }
}
