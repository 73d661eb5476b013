//! Bytes from a file to a socket inside the kernel.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

use crate::pace::{Pace, SLOWEST};

/// How much is asked of the kernel at once: enough to be rare, little enough that many
/// transfers take turns.
const PIECE: usize = 2 << 20;

/// Sends `length` bytes of `file` from `offset`. `between` is called after each piece with how
/// many bytes were sent so far; its error ends the transfer.
///
/// # Errors
/// `TimedOut` if the peer takes nothing, or next to nothing, for as long as `stall`, `UnexpectedEof` if the file is
/// shorter than it was, and whatever the socket, the file or `between` says.
pub async fn send(
    stream: &TcpStream,
    file: &File,
    offset: u64,
    length: u64,
    stall: Duration,
    mut between: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut sent = 0;
    let mut pace = Pace::new(SLOWEST, stall);
    while sent < length {
        let mut at = offset + sent;
        let want = usize::try_from(length - sent).map_or(PIECE, |left| left.min(PIECE));
        let piece = stream.async_io(Interest::WRITABLE, || {
            rustix::fs::sendfile(stream, file, Some(&mut at), want).map_err(io::Error::from)
        });
        let began = Instant::now();
        let n = match timeout(stall, piece).await {
            Ok(n) => n?,
            Err(_) => return Err(io::Error::new(ErrorKind::TimedOut, "the peer takes no more bytes")),
        };
        if n == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the file became shorter"));
        }
        sent += n as u64;
        pace.note(began.elapsed(), n as u64)?;
        between(sent)?;
        // The other transfers of this thread first: meanwhile the peer takes what it has, and the
        // next piece does not run into a full buffer.
        yield_now().await;
    }
    Ok(())
}
