//! The filesystem while it is made: a sparse file, and which of its blocks are used.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use mkext4::RegionSink;
use piman_core::install::grow::{self, Block, Disk, Failure, Shape};
use piman_core::install::table::BLOCK;

use super::Error;

/// Takes the layout for the largest card, and keeps what the image needs of it.
pub(super) struct Spool<'a> {
    file: &'a File,
    shape: Shape,
    /// Beginning and end in bytes, whole blocks, mostly in ascending order.
    used: RefCell<Vec<(u64, u64)>>,
}

impl<'a> Spool<'a> {
    /// Makes the file as large as the image.
    pub(super) fn new(file: &'a File, shape: Shape) -> Result<Self, Error> {
        file.set_len(shape.bytes()).map_err(Error::io("making a temporary file of the image's size"))?;
        Ok(Self { file, shape, used: RefCell::default() })
    }

    /// What was written so far, and so has to be in the image.
    pub(super) fn used(&self) -> Vec<(u64, u64)> {
        self.used.borrow().clone()
    }

    /// Makes what is written, all metadata, a filesystem of the image's size. `spare` is a free block for what names
    /// the reserve.
    pub(super) fn cut(&self, spare: u64) -> Result<(), Error> {
        let mut first = [0; BLOCK as usize];
        self.file.read_exact_at(&mut first, 0).map_err(Error::io("reading the filesystem back"))?;
        let blocks = self.shape.blocks();
        match grow::cut(&mut first, blocks, spare, &mut &*self) {
            Ok(shape) if shape == self.shape => {}
            Ok(shape) => return Err(Error::Wrong(format!("it was made another one: {shape:?}"))),
            Err(Failure::Disk(e)) => return Err(Error::io("writing the filesystem")(e)),
            Err(Failure::Refused(why)) => return Err(Error::Wrong(why.to_string())),
        }
        self.file.write_all_at(&first, 0).map_err(Error::io("writing the filesystem"))
    }

    fn note(&self, offset: u64, length: u64) {
        let (start, end) = (offset / BLOCK * BLOCK, (offset + length).next_multiple_of(BLOCK));
        let mut used = self.used.borrow_mut();
        match used.last_mut() {
            Some((first, last)) if *first <= start && start <= *last => *last = end.max(*last),
            _ => used.push((start, end)),
        }
    }
}

impl RegionSink for &Spool<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.shape.is_kept(offset / BLOCK) {
            return Ok(());
        }
        // Descriptors come in one piece, for many more groups than there are.
        let length = match offset {
            BLOCK => self.shape.descriptor_blocks() * BLOCK,
            _ => self.shape.bytes().saturating_sub(offset),
        };
        let kept = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
        let bytes = bytes.get(..kept).unwrap_or_default();
        self.note(offset, bytes.len() as u64);
        self.file.write_all_at(bytes, offset)
    }

    fn zeros(&mut self, offset: u64, len: u64) -> io::Result<()> {
        // The file is new: what is not written is zero.
        self.note(offset, len);
        Ok(())
    }
}

impl Disk for &Spool<'_> {
    type Error = io::Error;

    fn read(&mut self, block: u64, into: &mut Block) -> io::Result<()> {
        self.file.read_exact_at(into, block * BLOCK)
    }

    fn write(&mut self, block: u64, bytes: &Block) -> io::Result<()> {
        self.file.write_all_at(bytes, block * BLOCK)
    }
}
