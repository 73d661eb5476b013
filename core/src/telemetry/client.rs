//! The client's side: which record has been acknowledged.

use embedded_io_async::{Read, Write};

use super::{GREETING, PROCESSED, RECEIVED};
use crate::error::{Error, PeerError};
use crate::stream::put;

/// What a server is known to mean by its acknowledgements. It is kept over connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Acks {
    /// None has come yet.
    #[default]
    Unknown,
    /// `data processed` is said at the end of a record only: anything else is not the end.
    Exact,
    /// An old server: the first acknowledgement after a piece is the one.
    Any,
}

/// What a byte of the server meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use]
pub enum Reply {
    /// Nothing yet.
    Nothing,
    /// The greeting: records may be sent.
    Greeting,
    /// What was sent has been written.
    Written,
    /// A part of what was sent has been received; or all, if this is an old server. Wait a moment
    /// for more, and if nothing comes call [`Client::is_old`].
    Part,
}

/// One connection, seen from the client.
#[derive(Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Client {
    acks: Acks,
    /// What came last. A zero, which is in no word, is where it begins to count.
    recent: [u8; 22],
}

impl Client {
    /// A new connection to a server of which so much is known.
    #[must_use]
    pub fn new(acks: Acks) -> Self {
        Self { acks, recent: [0; 22] }
    }

    /// What is known of the server by now.
    #[must_use]
    pub fn acks(&self) -> Acks {
        self.acks
    }

    /// After [`Reply::Part`] nothing followed: the server is an old one, and that was it.
    pub fn is_old(&mut self) {
        self.acks = Acks::Any;
    }

    /// Takes one byte of the server. Bytes that belong to nothing are skipped.
    pub fn receive(&mut self, byte: u8) -> Reply {
        // No call of a function that can panic, as those that move bytes do.
        let [_, rest @ ..] = self.recent;
        let [room @ .., last] = &mut self.recent;
        (*room, *last) = (rest, byte);
        let heard = if self.recent.ends_with(PROCESSED) {
            if self.acks == Acks::Unknown {
                self.acks = Acks::Exact;
            }
            Reply::Written
        } else if self.recent.ends_with(RECEIVED) {
            match self.acks {
                Acks::Any => Reply::Written,
                Acks::Exact | Acks::Unknown => Reply::Part,
            }
        } else if self.recent.ends_with(GREETING) {
            Reply::Greeting
        } else {
            return Reply::Nothing;
        };
        // No word goes over a zero.
        let [.., last] = &mut self.recent;
        *last = 0;
        heard
    }
}

/// Waits for the greeting.
///
/// # Errors
/// [`Error::Io`] if the stream fails, [`PeerError::Closed`] if it ends.
pub async fn open<T: Read>(io: &mut T, client: &mut Client) -> Result<(), Error<T::Error>> {
    while listen(io, client).await? != Reply::Greeting {}
    Ok(())
}

/// Sends one record with its newline and waits until it has been written. Without a clock, an
/// acknowledgement that may be one of an old server counts.
///
/// # Errors
/// [`Error::Io`] if the stream fails, [`PeerError::Closed`] if it ends: the record is to be sent
/// again on a new connection.
pub async fn send<T: Read + Write>(
    io: &mut T,
    client: &mut Client,
    record: &[u8],
) -> Result<(), Error<T::Error>> {
    put(io, record).await?;
    io.flush().await?;
    loop {
        match listen(io, client).await? {
            Reply::Written => return Ok(()),
            Reply::Part if client.acks() == Acks::Unknown => {
                client.is_old();
                return Ok(());
            }
            Reply::Part | Reply::Greeting | Reply::Nothing => {}
        }
    }
}

/// Reads what is there, and says the last that it meant.
async fn listen<T: Read>(io: &mut T, client: &mut Client) -> Result<Reply, Error<T::Error>> {
    let mut buf = [0; 64];
    let n = io.read(&mut buf).await?;
    if n == 0 {
        return Err(Error::Peer(PeerError::Closed));
    }
    let mut last = Reply::Nothing;
    for byte in buf.iter().take(n) {
        match client.receive(*byte) {
            Reply::Nothing => {}
            heard => last = heard,
        }
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(client: &mut Client, bytes: &[u8]) -> std::vec::Vec<Reply> {
        bytes.iter().map(|b| client.receive(*b)).filter(|h| *h != Reply::Nothing).collect()
    }

    #[test]
    fn a_server_of_ours_is_recognised() {
        let mut client = Client::default();
        let heard = receive(&mut client, b"Connection establisheddata processeddata receiveddata processed");
        assert_eq!(heard, [Reply::Greeting, Reply::Written, Reply::Part, Reply::Written]);
        assert_eq!(client.acks(), Acks::Exact);
    }

    #[test]
    fn an_old_server_may_say_either() {
        let mut client = Client::default();
        assert_eq!(
            receive(&mut client, b"Connection established\r\ndata received"),
            [Reply::Greeting, Reply::Part]
        );
        client.is_old();
        assert_eq!(receive(&mut client, b"data received, data received"), [Reply::Written, Reply::Written]);
    }

    #[test]
    fn a_byte_belongs_to_one_word() {
        let mut client = Client::default();
        let heard = receive(&mut client, b"data processedata received. data processed");
        assert_eq!(heard, [Reply::Written, Reply::Written]);
    }

    #[test]
    fn noise_is_skipped() {
        let mut client = Client::default();
        assert_eq!(receive(&mut client, b"ddata datadata processe data processed"), [Reply::Written]);
    }
}
