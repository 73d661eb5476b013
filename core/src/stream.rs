//! What the drivers of all services do with a byte stream.

use embedded_io_async::Write;

use crate::error::{Error, PeerError};

/// `write_all`, with a write of 0 as the peer's fault instead of a panic.
///
/// # Errors
/// [`Error::Io`] if the stream fails, [`PeerError::WriteZero`] if it takes no more bytes.
pub async fn put<T: Write>(io: &mut T, mut bytes: &[u8]) -> Result<(), Error<T::Error>> {
    while !bytes.is_empty() {
        match io.write(bytes).await? {
            0 => return Err(Error::Peer(PeerError::WriteZero)),
            n => bytes = bytes.get(n..).unwrap_or_default(),
        }
    }
    Ok(())
}
