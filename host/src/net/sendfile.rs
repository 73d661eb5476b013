//! Bytes from a file to a socket inside the kernel.

use std::fs::File;
use std::io::{self, ErrorKind};

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::yield_now;

use crate::net::min_rate::Watch;

/// How much is asked of the kernel at once: enough to be rare, little enough that many
/// transfers take turns.
const PIECE: usize = 2 << 20;

/// Sends `length` bytes of `file` from `offset`. `between` is called after each piece with how
/// many bytes were sent so far; its error ends the transfer. The last bytes may still be on their way then.
///
/// # Errors
/// `TimedOut` if the peer is gone or slower than `watch` allows, `UnexpectedEof` if the file is
/// shorter than it was, and whatever the socket, the file or `between` says.
pub async fn send(
    stream: &TcpStream,
    file: &File,
    offset: u64,
    length: u64,
    watch: &mut Watch<'_, TcpStream>,
    mut between: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut sent = 0;
    while sent < length {
        let mut at = offset + sent;
        let want = usize::try_from(length - sent).map_or(PIECE, |left| left.min(PIECE));
        let piece = stream.async_io(Interest::WRITABLE, || {
            rustix::fs::sendfile(stream, file, Some(&mut at), want).map_err(io::Error::from)
        });
        let n = watch.over(piece).await?;
        if n == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the file became shorter"));
        }
        sent += n as u64;
        between(sent)?;
        // The other transfers of this thread first: meanwhile the peer takes what it has, and the
        // next piece does not run into a full buffer.
        yield_now().await;
    }
    Ok(())
}
