//! Path B: fetch the chunks of an image, check, decode, write each at its place.
//!
//! | file | what lives there |
//! |---|---|
//! | `area` | reads and writes of the root filesystem's place on the disk |
//! | `grow` | the root filesystem made as large as its partition |
//! | `pipeline` | one thread that receives, others that check, decode and write |
//!
//! Order of writes: block 0 is zeroed, or with the image of a whole disk says that an installation is under way; all chunks but their block 0; what makes the filesystem as large as the partition; the proof; block 0. Each
//! is on the medium before the next begins, so a card without a good proof never mounts.

mod area;
mod grow;
mod pipeline;

use std::net::TcpStream;

use anyhow::anyhow;
use piman_core::hash::Hash;
use piman_core::install::fetch::{Kind, Request};
use piman_core::install::table::{BLOCK, Next, Scope, TABLE_MAX, Table};
use piman_core::install::{ImageOffer, Stage};

use crate::failure::{Cause, Failure, OrFail};
use crate::fetch::{Link, Source};
use crate::telemetry::progress::Progress;

pub use crate::fetch::Retry;
pub(crate) use area::Aligned;
pub use area::{Area, Medium};
pub use grow::grow;

use pipeline::Pipeline;

/// What is still to be written: the proof, then the first block.
#[derive(Debug)]
pub struct Pending {
    first: Vec<u8>,
    proof_offset: u64,
    covered: Vec<(u64, u64)>,
    /// Whether the filesystem is still to be made as large as its place.
    grows: bool,
    /// What was done so far.
    pub summary: Summary,
}

impl Pending {
    /// The first block.
    pub(crate) fn first(&self) -> &[u8] {
        &self.first
    }

    /// Another one is written in its place.
    pub(crate) fn set_first(&mut self, block: Vec<u8>) {
        self.first = block;
    }

    /// Where the proof goes.
    pub(crate) fn proof_offset(&self) -> u64 {
        self.proof_offset
    }

    /// From where to where there are chunks, in order.
    pub(crate) fn covered(&self) -> &[(u64, u64)] {
        &self.covered
    }
}

/// What an installation took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// The size of the filesystem, or the smallest disk that will do, in bytes.
    pub total_bytes: u64,
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

impl Summary {
    pub(crate) fn log(&self) {
        log::info!(
            "{} chunks, {} of them on the card already, {} repaired, {} broken connections, {} writes",
            self.chunks,
            self.reused,
            self.repaired,
            self.broken,
            self.writes
        );
    }
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

/// Installs all of the image but what makes it valid; [`grow()`] and [`commit`] do the rest. `connect` makes
/// a connection to the fetch port, with the caller's time-outs, and is called again when one
/// breaks. What the card already holds is neither fetched nor written. `erase` is called when
/// the chunk table is here and right, and before the first write: it may partition the disk. It is told what the image is
/// of; with that of a whole disk it has to see to the first block. Of an image that is still being made the first chunks
/// are installed while the server makes the others.
///
/// Memory: 8 MiB for each thread that decodes and writes (3 or 4) and 8 MiB more.
///
/// # Errors
/// [`Failure`]: [`Cause::Network`] when connections keep breaking or the server has given
/// the image up; [`Cause::Image`] for a table or a chunk that stays damaged, and says which;
/// [`Cause::TooSmall`] or [`Cause::Disk`] when the disk is too small or fails.
pub fn install(
    connect: impl FnMut() -> std::io::Result<TcpStream>,
    order: &Order<'_>,
    medium: &impl Medium,
    erase: impl FnOnce(&Scope) -> Result<(), Failure>,
) -> Result<Pending, Failure> {
    let link = Link::default();
    let mut source = Source::new(connect, &link, order.retry.clone(), "the image");
    let ImageOffer { table: mut id, table_bytes, .. } = *order.offer;
    let mut bytes = fetch_table(&mut source, Next { table: id, table_bytes })?;
    let mut table = parse(&bytes)?;
    let header = table.header();
    if header.archive != order.archive {
        let error = anyhow!("the image offered was made from another archive, {:.16}", header.archive);
        return Err(Failure { stage: Stage::Transfer, cause: Cause::Image, error });
    }
    let whole_disk = matches!(header.scope, Scope::Disk(_));
    if whole_disk != order.offer.whole_disk {
        let error = anyhow!("the image offered is another kind of image than its chunk table says");
        return Err(Failure { stage: Stage::Transfer, cause: Cause::Image, error });
    }
    crate::install::room::image(header.total_bytes, medium.length(), whole_disk)?;
    let mut pipeline = Pipeline::new((table, id), order, medium, &link, None);
    erase(&header.scope)?;
    if !whole_disk {
        write(medium, 0, &[0; BLOCK as usize]).and_then(|()| medium.sync()).or_fail(
            Stage::Transfer,
            Cause::Disk,
            "wiping the first block of the root filesystem",
        )?;
    }
    pipeline.run(&mut source)?;
    while !table.header().whole {
        let before = pipeline.hand_over();
        let next = next_table(&mut source, id)?;
        let more = fetch_table(&mut source, next)?;
        let later = parse(&more)?;
        let gets_on = later.header().whole || later.header().chunks > table.header().chunks;
        if !gets_on || !later.continues(&table) {
            return Err(another());
        }
        (bytes, id) = (more, next.table);
        table = parse(&bytes)?;
        pipeline = Pipeline::new((table, id), order, medium, &link, Some(before));
        pipeline.run(&mut source)?;
    }
    order.progress.begin(Stage::Sync, 0);
    medium.sync().or_fail(Stage::Sync, Cause::Disk, "bringing the root filesystem to the disk")?;
    pipeline.read_back()?;
    let mut pending = pipeline.finish()?;
    pending.summary.broken = source.broken();
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

/// Writes the first block before the proof, so that the filesystem can be mounted; whoever does that has seen to it that
/// the card does not count as installed.
///
/// # Errors
/// [`Cause::Disk`] if the disk fails.
pub(crate) fn write_first(medium: &impl Medium, pending: &Pending) -> Result<(), Failure> {
    write(medium, 0, &pending.first).and_then(|()| medium.sync()).or_fail(
        Stage::Personalise,
        Cause::Disk,
        "writing the first block",
    )
}

/// Takes the first block as it is on the medium for the one that is to be written last.
///
/// # Errors
/// [`Cause::Disk`] if the disk fails.
pub(crate) fn read_first(medium: &impl Medium, pending: &mut Pending) -> Result<(), Failure> {
    let mut buffer = Aligned::new(BLOCK as usize);
    let read = medium.read_at(0, buffer.first_mut(BLOCK as usize));
    read.or_fail(Stage::Personalise, Cause::Disk, "reading the first block")?;
    pending.first = buffer.first(BLOCK as usize).to_vec();
    Ok(())
}

/// Writes from an aligned copy.
fn write(medium: &impl Medium, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    let mut buffer = Aligned::new(bytes.len());
    buffer.first_mut(bytes.len()).copy_from_slice(bytes);
    medium.write_at(offset, buffer.first(bytes.len()))
}

fn parse(bytes: &[u8]) -> Result<Table<'_>, Failure> {
    Table::parse(bytes).or_fail(Stage::Transfer, Cause::Image, "reading the chunk table")
}

/// What was written already would not belong to it.
fn another() -> Failure {
    let error = anyhow!(
        "the server made another image than it began with: install again, or make the image again on the server"
    );
    Failure { stage: Stage::Transfer, cause: Cause::Image, error }
}

/// Which table has more chunks than this one. The server answers as soon as there are.
fn next_table<F: FnMut() -> std::io::Result<TcpStream>>(
    source: &mut Source<'_, F>,
    id: Hash,
) -> Result<Next, Failure> {
    let request = Request { kind: Kind::Next, id, offset: 0, length: Next::BYTES as u64 };
    let bytes = source.whole("what comes next of the image", &request, &|_| true, "ask the server again")?;
    let bytes: Option<&[u8; Next::BYTES]> = bytes.as_slice().try_into().ok();
    bytes.map(Next::decode).ok_or_else(another)
}

/// The table's bytes, which have the hash that was offered.
fn fetch_table<F: FnMut() -> std::io::Result<TcpStream>>(
    source: &mut Source<'_, F>,
    offer: Next,
) -> Result<Vec<u8>, Failure> {
    let length = offer.table_bytes;
    if length as usize > TABLE_MAX {
        let error = anyhow!("the chunk table offered is too large: {length} bytes");
        return Err(Failure { stage: Stage::Transfer, cause: Cause::Image, error });
    }
    let request = Request { kind: Kind::Table, id: offer.table, offset: 0, length: length.into() };
    let right = |bytes: &[u8]| blake3::hash(bytes).as_bytes() == &offer.table.0;
    source.table(&request, right, "make the image again on the server")
}
