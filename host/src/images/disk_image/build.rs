//! The used blocks of a disk image as chunks, the same for cards of all sizes.

use std::fs::File;
use std::sync::atomic::Ordering::Relaxed;

use piman_core::hash::Hash;
use piman_core::install::table::{BLOCK, CHUNKS_MAX, Header, Scope, WholeDisk};

use super::{DiskImage, Growth, Pieces, joined};
use crate::images::ext4::{Built, Error, Order, pack};

/// More runs than this are joined over the smallest gaps, so that their chunks fit in a table.
const RUNS_MAX: usize = CHUNKS_MAX as usize / 2;

/// Makes the chunks of a kept image.
///
/// # Errors
/// [`Error`]; nothing is left behind.
pub fn build(order: &Order<'_>) -> Result<Built, Error> {
    let id = hash(order)?;
    if order.id.is_some_and(|known| known != id) {
        return Err(Error::Changed);
    }
    let image = DiskImage::of_copy(order.archive).map_err(|e| Error::Disk(format!("{e:#}")))?;
    let proof = image.proof_offset;
    let mut runs = image.used;
    runs.push((proof, proof + BLOCK));
    let cuts = pack::cut(joined(runs, RUNS_MAX));
    if cuts.len() > CHUNKS_MAX as usize {
        return Err(Error::Disk(format!("it has more than {CHUNKS_MAX} chunks that are used")));
    }
    let mut chunks = pack::temporary(order.folder).map_err(Error::io("making a file in the state folder"))?;
    let (progress, stop) = (order.progress, order.stop);
    let entries = pack::pack(order.archive, &cuts, Some(proof), &mut chunks, progress, (20, 100), stop)?;
    let disk = WholeDisk {
        root: image.root.unwrap_or(0),
        grows: image.growth == Growth::Last,
        sector: u16::try_from(image.sector).map_err(|e| Error::Wrong(e.to_string()))?,
    };
    let header = Header {
        total_bytes: image.bytes,
        archive: id,
        proof_offset: proof,
        ..pack::header(Scope::Disk(disk), &entries)?
    };
    pack::finish(header, &entries, chunks)
}

/// BLAKE3 of the whole file.
fn hash(order: &Order<'_>) -> Result<Hash, Error> {
    let file: &File = order.archive;
    let total = file.metadata().map_err(Error::io("looking at the disk image"))?.len();
    let reading = || Error::io("reading the disk image");
    let (mut hasher, mut pieces) = (blake3::Hasher::new(), Pieces::of(file).map_err(reading())?);
    loop {
        if order.stop.load(Relaxed) {
            return Err(Error::Stopped);
        }
        let piece = pieces.next_piece().map_err(reading())?;
        if piece.is_empty() {
            return Ok(Hash(*hasher.finalize().as_bytes()));
        }
        hasher.update(piece);
        order.progress.set((0, 20), pieces.at(), total);
    }
}
