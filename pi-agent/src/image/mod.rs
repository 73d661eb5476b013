//! Path B: fetch the chunks of an image, check, decode, write each at its place.
//!
//! | file | what lives there |
//! |---|---|
//! | `source` | the fetch connection |
//! | `area` | reads and writes of the root filesystem's place on the disk |
//! | `pipeline` | one thread that receives, others that check, decode and write |
//!
//! Order of writes: block 0 is zeroed; all chunks but their block 0; the proof; block 0. Each
//! is on the medium before the next begins, so a card without a good proof never mounts.

mod area;
mod pipeline;
mod source;

use std::net::TcpStream;

use anyhow::{Context, anyhow};
use piman_core::hash::Hash;
use piman_core::install::fetch::{Kind, Request};
use piman_core::install::table::{BLOCK, TABLE_MAX, Table};
use piman_core::install::{ImageOffer, Stage};

use crate::failure::{Cause, Failure, OrFail};
use crate::progress::Progress;

pub use area::{Area, Medium};
pub use source::Retry;

use area::Aligned;
use pipeline::Pipeline;
use source::{Connection, Trouble};

/// How often a chunk that came damaged is fetched again.
const DAMAGED_MAX: u8 = 5;

/// What is still to be written: the proof, then the first block.
#[derive(Debug)]
pub struct Pending {
    first: Vec<u8>,
    proof_offset: u64,
    /// What was done so far.
    pub summary: Summary,
}

/// What an installation took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// The size of the filesystem, in bytes.
    pub filesystem_bytes: u64,
    /// Chunks of the image.
    pub chunks: u32,
    /// Chunks that the card already held.
    pub reused: u32,
    /// Chunks that were fetched again because they came damaged.
    pub repaired: u32,
    /// Connections that broke.
    pub broken: u32,
    /// Bytes of chunks that were fetched.
    pub fetched_bytes: u64,
    /// Bytes written to the disk.
    pub written_bytes: u64,
    /// Requests to the disk that wrote them.
    pub writes: u32,
}

/// What to install and from where.
#[derive(Debug)]
pub struct Order<'a> {
    /// The image.
    pub offer: &'a ImageOffer,
    /// The archive that it was made from.
    pub archive: Hash,
    /// How often a broken connection is made again.
    pub retry: Retry,
    /// How far it is, in bytes as they are stored.
    pub progress: &'a Progress,
}

/// Installs all of the image but what makes it valid; [`commit`] does the rest. `connect` makes
/// a connection to the fetch port, with the caller's time-outs, and is called again when one
/// breaks. What the card already holds is neither fetched nor written. `erase` is called when
/// the chunk table is here and right, and before the first write: it may partition the disk.
///
/// Memory: 8 MiB for each thread that decodes and writes (3 or 4) and 8 MiB more.
///
/// # Errors
/// [`Failure`]: [`Cause::Network`] when connections keep breaking or the server has given
/// the image up; [`Cause::Image`] for a table or a chunk that stays damaged, and says which;
/// [`Cause::Disk`] when the disk is too small or fails.
pub fn install(
    connect: impl FnMut() -> std::io::Result<TcpStream>,
    order: &Order<'_>,
    medium: &impl Medium,
    erase: impl FnOnce() -> Result<(), Failure>,
) -> Result<Pending, Failure> {
    let mut source = Source { connect, retry: order.retry.clone(), connection: None, failed: 0, broken: 0 };
    let bytes = fetch_table(&mut source, order.offer)?;
    let table = Table::parse(&bytes).or_fail(Stage::Transfer, Cause::Image, "reading the chunk table")?;
    let header = table.header();
    if header.archive != order.archive {
        let error = anyhow!("the image offered was made from another archive, {:.16}", header.archive);
        return Err(Failure { stage: Stage::Transfer, cause: Cause::Image, error });
    }
    if header.filesystem_bytes > medium.length() {
        let (image, room) = (header.filesystem_bytes, medium.length());
        let error = anyhow!("the image needs a root partition of {image} bytes, this one has {room}");
        return Err(Failure { stage: Stage::Transfer, cause: Cause::Disk, error });
    }
    let pipeline = Pipeline::new(table, order, medium);
    erase()?;
    write(medium, 0, &[0; BLOCK as usize]).and_then(|()| medium.sync()).or_fail(
        Stage::Transfer,
        Cause::Disk,
        "wiping the first block of the root filesystem",
    )?;
    let mut pending = pipeline.run(&mut source)?;
    order.progress.begin(Stage::Sync, 0);
    medium.sync().or_fail(Stage::Sync, Cause::Disk, "bringing the root filesystem to the disk")?;
    pending.summary.broken = source.broken;
    pending.summary.writes += 1;
    pending.summary.written_bytes += BLOCK;
    Ok(pending)
}

/// Makes an installed image valid: writes the proof's block, then the first block, each
/// brought to the medium. `proof` is exactly one block.
///
/// # Errors
/// [`Cause::Disk`] if the disk fails.
pub fn commit(medium: &impl Medium, pending: &Pending, proof: &[u8]) -> Result<(), Failure> {
    let block = |bytes: &[u8]| bytes.len() as u64 == BLOCK;
    if !block(proof) || !block(&pending.first) {
        let error = anyhow!("the proof or the first block is not one block long");
        return Err(Failure { stage: Stage::Commit, cause: Cause::Refused, error });
    }
    for (offset, bytes, what) in
        [(pending.proof_offset, proof, "writing the proof"), (0, &pending.first, "writing the first block")]
    {
        write(medium, offset, bytes).and_then(|()| medium.sync()).or_fail(
            Stage::Commit,
            Cause::Disk,
            what,
        )?;
    }
    Ok(())
}

/// Writes from an aligned copy.
fn write(medium: &impl Medium, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    let mut buffer = Aligned::new(bytes.len());
    buffer.first_mut(bytes.len()).copy_from_slice(bytes);
    medium.write_at(offset, buffer.first(bytes.len()))
}

/// Connections, one after another.
struct Source<F> {
    connect: F,
    retry: Retry,
    connection: Option<Connection>,
    /// Connections that failed in a row.
    failed: u32,
    /// Connections that failed.
    broken: u32,
}

impl<F: FnMut() -> std::io::Result<TcpStream>> Source<F> {
    /// The connection, made if there is none.
    fn connection(&mut self) -> Result<&mut Connection, Trouble> {
        if self.connection.is_none() {
            self.connection = Some(Connection::new((self.connect)()?));
        }
        self.connection.as_mut().ok_or_else(|| Trouble::No("no connection".into()))
    }

    /// Something came: failures are counted anew.
    fn went_well(&mut self) {
        self.failed = 0;
        self.retry.backoff.reset();
    }

    /// Counts a failure; gives the pause before the next attempt.
    fn pause(&mut self, trouble: Trouble) -> Result<std::time::Duration, Failure> {
        self.connection = None;
        let network = |error| Failure { stage: Stage::Transfer, cause: Cause::Network, error };
        let error = match trouble {
            Trouble::Broken(e) => anyhow::Error::from(e),
            Trouble::No(reason) => {
                return Err(network(anyhow!("the server has this image no longer: {reason}")));
            }
        };
        self.failed += 1;
        self.broken += 1;
        if self.failed > self.retry.times {
            let context = format!("fetching the image, {} connections failed in a row", self.failed);
            return Err(network(error.context(context)));
        }
        let pause = self.retry.backoff.wait();
        log::warn!("fetching the image: {error}; again in {:.1} s", pause.as_secs_f32());
        Ok(pause)
    }
}

/// The table's bytes, which have the hash that was offered.
fn fetch_table<F: FnMut() -> std::io::Result<TcpStream>>(
    source: &mut Source<F>,
    offer: &ImageOffer,
) -> Result<Vec<u8>, Failure> {
    let length = offer.table_bytes as usize;
    if length > TABLE_MAX {
        let error = anyhow!("the chunk table offered is too large: {length} bytes");
        return Err(Failure { stage: Stage::Transfer, cause: Cause::Image, error });
    }
    let request = Request { kind: Kind::Table, id: offer.table, offset: 0, length: offer.table_bytes.into() };
    let mut bytes = vec![0; length];
    for _ in 0..=DAMAGED_MAX {
        while let Err(trouble) = source.connection().and_then(|c| {
            c.ask(&request)?;
            c.receive(&mut bytes)
        }) {
            std::thread::sleep(source.pause(trouble)?);
        }
        if blake3::hash(&bytes).as_bytes() == &offer.table.0 {
            source.went_well();
            return Ok(bytes);
        }
        log::warn!("the chunk table came damaged and is fetched again");
    }
    let error = anyhow!("its hash is not the one that was offered; make the image again on the server");
    let error = Err(error).context("fetching the chunk table");
    error.or_fail(Stage::Transfer, Cause::Image, "preparing the image")
}
