//! Files of an archive.

use std::fs;
use std::io::{self, BufReader, Read};

use anyhow::Context;
use embedded_io_adapters::std::FromStd;
use piman_core::archive::{File, Kind, Reader, components};
use piman_core::hosted::unpack::Decoder;

use crate::images::output::Output;

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

pub(super) fn extract(file: &fs::File, output: &mut Output<'_>) -> anyhow::Result<()> {
    let decoder = Decoder::new(BufReader::with_capacity(PIECE, file))?;
    let mut reader = Reader::new(FromStd::new(BufReader::with_capacity(PIECE, decoder)));
    while let Some(entry) = reader.next_entry().context("it is damaged")? {
        let (Kind::File(found), Ok(parts)) = (&entry.kind, components(&entry.path)) else { continue };
        let Ok(path) = String::from_utf8(parts.collect::<Vec<_>>().join(&b'/')) else { continue };
        let Some(name) = output.wants(&path) else { continue };
        if found.sparse.is_none() {
            output.put(name, found.size, &mut reader)?;
        } else {
            output.put_made(name, found.size, &mut || with_holes(found, &mut reader))?;
        }
    }
    Ok(())
}

/// A file of which only parts are stored. Its size was looked at.
fn with_holes(file: &File, stored: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut whole = vec![0; usize::try_from(file.size).map_err(io::Error::other)?];
    for part in file.segments() {
        let end = part.offset.saturating_add(part.length);
        let range = usize::try_from(part.offset).ok().zip(usize::try_from(end).ok());
        let place = range.and_then(|(start, end)| whole.get_mut(start..end));
        stored.read_exact(place.ok_or(io::ErrorKind::InvalidData)?)?;
    }
    Ok(whole)
}
