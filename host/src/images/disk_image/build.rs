//! The used blocks of a disk image as chunks, the same for cards of all sizes.

use std::fs::File;
use std::sync::atomic::Ordering::Relaxed;

use piman_core::hash::Hash;
use piman_core::install::table::{BLOCK, CHUNKS_MAX, Header, Scope, WholeDisk};

use super::{DiskImage, Growth, Pieces, joined};
use crate::images::ext4::pack::{self, Packing};
use crate::images::ext4::{Built, Error, Order};

/// More runs than this are joined over the smallest gaps, so that their chunks fit in a table.
const RUNS_MAX: usize = CHUNKS_MAX as usize / 2;

/// Makes the chunks of a kept image.
///
/// # Errors
/// [`Error`]; nothing is left behind.
pub fn build(order: &Order<'_>) -> Result<Built, Error> {
    let image = DiskImage::of_copy(order.archive).map_err(|e| Error::Disk(format!("{e:#}")))?;
    let proof = image.proof_offset;
    let mut runs = image.used;
    runs.push((proof, proof + BLOCK));
    let cuts = pack::cut(joined(runs, RUNS_MAX));
    if cuts.len() > CHUNKS_MAX as usize {
        return Err(Error::Disk(format!("it has more than {CHUNKS_MAX} chunks that are used")));
    }
    let disk = WholeDisk {
        root: image.root.unwrap_or(0),
        grows: image.growth == Growth::Last,
        sector: u16::try_from(image.sector).map_err(|e| Error::Wrong(e.to_string()))?,
    };
    let id = order.id.map_or_else(|| hash(order), Ok)?;
    let header = Header {
        total_bytes: image.bytes,
        used_bytes: cuts.iter().map(|(_, length)| u64::from(*length)).sum(),
        archive: id,
        proof_offset: proof,
        ..pack::header(Scope::Disk(disk), &[])?
    };
    let mut chunks = pack::temporary(order.folder).map_err(Error::io("making a file in the state folder"))?;
    let packing = Packing {
        spool: order.archive,
        cuts: &cuts,
        proof: Some(proof),
        ready: &|_| true,
        early: order.progress.begin_chunks(header, chunks.as_file())?,
        progress: order.progress,
        part: (0, 100),
        stop: order.stop,
    };
    // It may be another file than the one that was looked at.
    let same = || match hash(order)? {
        now if now == id => Ok(()),
        _ => Err(Error::Changed),
    };
    let entries = pack::beside(same, || pack::pack(&packing, &mut chunks))?;
    pack::finish(header, &entries, chunks)
}

/// BLAKE3 of the whole file.
fn hash(order: &Order<'_>) -> Result<Hash, Error> {
    let file: &File = order.archive;
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
    }
}
