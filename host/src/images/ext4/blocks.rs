//! The content of a file as its blocks have it.

use std::io::{self, Read};

use piman_core::archive;

use super::Error;

/// The content of a file in whole blocks: between the parts that the archive stores there
/// are zeros.
pub(super) struct Blocks<'a> {
    content: &'a mut dyn Read,
    parts: Vec<archive::Segment>,
    runs: &'a [(u64, u64)],
    part: usize,
    run: usize,
    at: u64,
    /// What the archive said, before the writer makes another error of it.
    failed: Option<io::Error>,
}

impl<'a> Blocks<'a> {
    pub(super) fn new(content: &'a mut dyn Read, file: &archive::File, runs: &'a [(u64, u64)]) -> Self {
        let at = runs.first().map_or(0, |r| r.0);
        Self { content, parts: file.segments().collect(), runs, part: 0, run: 0, at, failed: None }
    }

    /// Whose fault a failed read was.
    pub(super) fn io_error(&mut self, e: io::Error) -> Error {
        self.why(e.into())
    }

    /// Whose fault a failed fill was.
    pub(super) fn why(&mut self, e: mkext4::Error) -> Error {
        match self.failed.take() {
            Some(e) => match e.downcast::<archive::Error<io::Error>>() {
                Ok(damage) => damage.into(),
                Err(e) => archive::Error::Read(e).into(),
            },
            None => e.into(),
        }
    }
}

impl Read for Blocks<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some((_, mut end)) = self.runs.get(self.run).copied() else { return Ok(0) };
        while self.at >= end {
            self.run += 1;
            let Some((start, next)) = self.runs.get(self.run).copied() else { return Ok(0) };
            (self.at, end) = (start, next);
        }
        while self.parts.get(self.part).is_some_and(|p| p.offset + p.length <= self.at) {
            self.part += 1;
        }
        let (is_data, until) = match self.parts.get(self.part) {
            Some(part) if part.offset <= self.at => (true, part.offset + part.length),
            Some(part) => (false, part.offset),
            None => (false, end),
        };
        let room = usize::try_from(until.min(end) - self.at).unwrap_or(usize::MAX).min(buf.len());
        let buf = buf.get_mut(..room).unwrap_or_default();
        let n = if is_data {
            match self.content.read(buf) {
                Ok(n) => n,
                Err(e) => {
                    let kind = e.kind();
                    self.failed = Some(e);
                    return Err(kind.into());
                }
            }
        } else {
            buf.fill(0);
            room
        };
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fill_up_with_zeros() {
        let segment = |offset, length| archive::Segment { offset, length };
        let file = archive::File { size: 20_500, sparse: Some(vec![segment(10, 5), segment(20_490, 10)]) };
        let mut stored: &[u8] = b"helloworldworld";
        let mut blocks = Blocks::new(&mut stored, &file, &[(0, 4096), (16_384, 20_500)]);
        let mut all = Vec::new();
        blocks.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 4096 + 4116);
        assert_eq!((&all[..10], &all[10..15], &all[15..20]), (&[0; 10][..], &b"hello"[..], &[0; 5][..]));
        assert_eq!(&all[4096 + 4106..], b"worldworld");
    }
}
