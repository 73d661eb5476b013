//! The client of the transfer service: a file down, resumed, and a file up.

use piman_core::hash::Hash;
use piman_core::transfer::{Download, End, Machine, Name, Refusal, Storage, Upload, run};

use super::Service;
use crate::probe::Line;
use crate::script;

/// A file down and a file up, each with ranges.
pub struct Transfer;

struct Ram([u8; 16]);

impl Storage for Ram {
    async fn open(&mut self, _name: &Name) -> Result<u64, Refusal> {
        Ok(16)
    }

    async fn create(&mut self, _name: &Name, _keep: bool) -> Result<u64, Refusal> {
        Ok(8)
    }

    async fn hash(&mut self, _bytes: u64) -> Result<Hash, Refusal> {
        Ok(Hash([7; 32]))
    }

    async fn reserve(&mut self, _start: u64, size: u64) -> Result<(), Refusal> {
        if size <= 16 { Ok(()) } else { Err(Refusal::NoSpace) }
    }

    async fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, Refusal> {
        let mut n = 0;
        for (to, from) in buf.iter_mut().zip(self.0.iter().skip(offset as usize)) {
            *to = *from;
            n += 1;
        }
        Ok(n)
    }

    async fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        for (to, from) in self.0.iter_mut().skip(offset as usize).zip(bytes) {
            *to = *from;
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Refusal> {
        Ok(())
    }
}

impl Service for Transfer {
    const SCRIPT: &'static [u8] = script!(
        b"R",
        b"T\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x08",
        b"89abcdef",
        b"R",
        b"T\0\0\0\0\0\0\0\x08",
        &[7; 32],
        b"T",
    );

    async fn run(io: &mut Line, buf: &mut [u8]) -> bool {
        let (Ok(down), Ok(up)) = (Name::parse(b"down.log"), Name::parse(b"up.log")) else { return false };
        done(io, buf, &mut Download::new(down, true)).await && done(io, buf, &mut Upload::new(up, true)).await
    }
}

async fn done(io: &mut Line, buf: &mut [u8], machine: &mut dyn Machine) -> bool {
    matches!(run(io, buf, machine, &mut Ram([0; 16])).await, Ok(End::Done { start: 8, size: 16 }))
}
