//! Sessions of a transfer over a byte stream and a storage. Time-outs belong to the stream.

use core::future::Future;

use embedded_io_async::{Read, Write};

use super::name::Name;
use super::step::{Ask, Body, End, Input, Machine, Step, Value};
use super::wire::{REQUEST_LEN, Refusal};
use crate::error::{Error, PeerError};
use crate::hash::Hash;
use crate::stream::put;

/// Where the bytes of one transfer come from or go to. One value serves one connection; to
/// drop it is to abandon what was not committed.
///
/// A server asks with the name that the client sent; on a client the value is made for one
/// file and may ignore the name.
pub trait Storage {
    /// Opens a complete file to be sent; its size in bytes.
    ///
    /// # Errors
    /// [`Refusal::Refused`] if there is none or it is being uploaded right now.
    fn open(&mut self, name: &Name) -> impl Future<Output = Result<u64, Refusal>>;

    /// Takes a file that is to be made, so that nobody else does; how many bytes of it are there
    /// from an earlier attempt. Without `keep` these are thrown away.
    ///
    /// # Errors
    /// [`Refusal::Exists`] if it is complete, [`Refusal::Refused`] if someone else makes it.
    fn create(&mut self, name: &Name, keep: bool) -> impl Future<Output = Result<u64, Refusal>>;

    /// The BLAKE3 hash of the first `bytes` bytes.
    ///
    /// # Errors
    /// [`Refusal::Failed`] if these cannot be read.
    fn hash(&mut self, bytes: u64) -> impl Future<Output = Result<Hash, Refusal>>;

    /// Throws away what is there behind the first `start` bytes and sets room aside for a
    /// file of `size` bytes. May be called again with a smaller `start`.
    ///
    /// # Errors
    /// [`Refusal::NoSpace`] if there is not enough that is really free.
    fn reserve(&mut self, start: u64, size: u64) -> impl Future<Output = Result<(), Refusal>>;

    /// Reads bytes at `offset`; how many. 0 means that the file has become shorter.
    ///
    /// # Errors
    /// [`Refusal::Failed`] if they cannot be read.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> impl Future<Output = Result<usize, Refusal>>;

    /// Writes all of `bytes` at `offset`; called with rising offsets.
    ///
    /// # Errors
    /// [`Refusal::NoSpace`] or [`Refusal::Failed`].
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> impl Future<Output = Result<(), Refusal>>;

    /// Makes the file visible under its name, complete and on the disk.
    ///
    /// # Errors
    /// [`Refusal::Failed`] if it could not be.
    fn commit(&mut self) -> impl Future<Output = Result<(), Refusal>>;
}

/// Why [`advance`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use]
pub enum Pause {
    /// The bytes are to be moved, by whatever is quickest here; then call again with
    /// [`Input::Moved`] or [`Input::Broken`].
    Body(Body),
    /// It is over.
    End(End),
}

/// Runs a session until bytes of the file are to be moved, or to its end.
///
/// # Errors
/// [`Error::Io`] if the stream fails, [`PeerError::WriteZero`] if it takes no more bytes.
pub async fn advance<T: Read + Write>(
    io: &mut T,
    machine: &mut dyn Machine,
    storage: &mut impl Storage,
    input: Input<'_>,
) -> Result<Pause, Error<T::Error>> {
    let mut buf = [0; REQUEST_LEN];
    let mut step = machine.handle(input);
    loop {
        step = match step {
            Step::Read(bytes) => {
                let room = buf.get_mut(..bytes).unwrap_or_default();
                if fill(io, room).await? {
                    machine.handle(Input::Received(room))
                } else {
                    machine.handle(Input::Closed)
                }
            }
            Step::Send(message) => {
                put(io, message.encode(&mut buf)).await?;
                io.flush().await?;
                machine.handle(Input::Sent)
            }
            Step::Ask(ask) => {
                let answer = answer(storage, &ask).await;
                machine.handle(Input::Answer(answer))
            }
            Step::Body(body) => return Ok(Pause::Body(body)),
            Step::End(end) => return Ok(Pause::End(end)),
        };
    }
}

/// Runs a session to its end; the bytes of the file go through `buf`, which must not be empty.
///
/// # Errors
/// [`Error::Io`] if the stream fails, [`PeerError::Closed`] if it ends in the middle of the
/// file, [`PeerError::WriteZero`] if it takes no more bytes.
pub async fn run<T: Read + Write>(
    io: &mut T,
    buf: &mut [u8],
    machine: &mut dyn Machine,
    storage: &mut impl Storage,
) -> Result<End, Error<T::Error>> {
    let mut input = Input::Start;
    loop {
        let moved = match advance(io, machine, storage, input).await? {
            Pause::End(end) => return Ok(end),
            Pause::Body(Body::Out { start, size }) => send(io, buf, storage, start, size).await?,
            Pause::Body(Body::In { start, size }) => receive(io, buf, storage, start, size).await?,
        };
        input = moved.map_or_else(Input::Broken, |()| Input::Moved);
    }
}

async fn answer(storage: &mut impl Storage, ask: &Ask<'_>) -> Result<Value, Refusal> {
    match ask {
        Ask::Open(name) => storage.open(name).await.map(Value::Bytes),
        Ask::Create { name, keep } => storage.create(name, *keep).await.map(Value::Bytes),
        Ask::Hash(bytes) => storage.hash(*bytes).await.map(Value::Hash),
        Ask::Reserve { start, size } => storage.reserve(*start, *size).await.map(|()| Value::Done),
        Ask::Commit => storage.commit().await.map(|()| Value::Done),
    }
}

async fn send<T: Write>(
    io: &mut T,
    buf: &mut [u8],
    storage: &mut impl Storage,
    start: u64,
    size: u64,
) -> Result<Result<(), Refusal>, Error<T::Error>> {
    let mut at = start;
    while at < size {
        let room = piece(buf, size - at);
        let n = match storage.read_at(at, room).await {
            Ok(0) => return Ok(Err(Refusal::Failed)),
            Ok(n) => n.min(room.len()),
            Err(no) => return Ok(Err(no)),
        };
        put(io, room.get(..n).unwrap_or_default()).await?;
        at += n as u64;
    }
    io.flush().await?;
    Ok(Ok(()))
}

async fn receive<T: Read>(
    io: &mut T,
    buf: &mut [u8],
    storage: &mut impl Storage,
    start: u64,
    size: u64,
) -> Result<Result<(), Refusal>, Error<T::Error>> {
    let mut at = start;
    while at < size {
        let room = piece(buf, size - at);
        let n = io.read(room).await?.min(room.len());
        if n == 0 {
            return Err(Error::Peer(PeerError::Closed));
        }
        if let Err(no) = storage.write_at(at, room.get(..n).unwrap_or_default()).await {
            return Ok(Err(no));
        }
        at += n as u64;
    }
    Ok(Ok(()))
}

/// As much of the buffer as there is left to move.
fn piece(buf: &mut [u8], left: u64) -> &mut [u8] {
    let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
    buf.get_mut(..len).unwrap_or_default()
}

/// Whether the stream had enough to fill all of `room`.
async fn fill<T: Read>(io: &mut T, mut room: &mut [u8]) -> Result<bool, Error<T::Error>> {
    while !room.is_empty() {
        match io.read(room).await? {
            0 => return Ok(false),
            n => room = room.get_mut(n..).unwrap_or_default(),
        }
    }
    Ok(true)
}
