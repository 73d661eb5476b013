//! Transfers: all three sessions against any bytes. A file is committed only when all of it has come, a name
//! is never a way out of the folder.
#![no_main]

use std::convert::Infallible;

use embedded_io::{ErrorType, Read, Write};
use libfuzzer_sys::fuzz_target;
use piman_core::blocking::{self, Blocking};
use piman_core::hash::Hash;
use piman_core::transfer::{Download, End, Name, Refusal, Server, Storage, Upload, run};

const SIZE: u64 = 300;

fuzz_target!(|data: &[u8]| {
    let [kind, chunk, have, flags, input @ ..] = data else { return };
    if let Ok(name) = Name::parse(input) {
        let text = name.as_str();
        assert!(!text.is_empty() && text.len() <= 255 && !text.starts_with('.'), "{text:?}");
        assert!(!text.contains(['/', '\\', '\0']) && !text.chars().any(char::is_control), "{text:?}");
        assert_eq!(Name::parse(text.as_bytes()), Ok(name));
    }
    let mut io = Blocking(Wire { input, chunk: usize::from(*chunk) + 1 });
    let mut disk = Disk { have: (*have).into(), flags: *flags, at: 0, reserved: None, committed: false };
    let mut buf = [0; 64];
    let name = || Name::parse(b"a.log").expect("a name");
    let ended = match kind % 4 {
        0 | 1 => blocking::run(run(&mut io, &mut buf, &mut Server::default(), &mut disk)),
        2 => blocking::run(run(&mut io, &mut buf, &mut Download::new(name(), flags & 1 == 0), &mut disk)),
        _ => blocking::run(run(&mut io, &mut buf, &mut Upload::new(name(), flags & 1 == 0), &mut disk)),
    };
    if disk.committed {
        assert!(matches!(ended, Ok(End::Done { .. }) | Err(_)), "{ended:?}");
    }
});

/// The peer's bytes; it takes everything.
struct Wire<'i> {
    input: &'i [u8],
    chunk: usize,
}

impl ErrorType for Wire<'_> {
    type Error = Infallible;
}

impl Read for Wire<'_> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Infallible> {
        let n = buf.len().min(self.chunk).min(self.input.len());
        let (bytes, rest) = self.input.split_at(n);
        buf[..n].copy_from_slice(bytes);
        self.input = rest;
        Ok(n)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, buf: &[u8]) -> Result<usize, Infallible> {
        Ok(buf.len().min(self.chunk))
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// A storage of one file, which refuses what the flags say.
struct Disk {
    have: u64,
    flags: u8,
    at: u64,
    reserved: Option<u64>,
    committed: bool,
}

impl Disk {
    fn refuse(&self, bit: u8, refusal: Refusal) -> Result<(), Refusal> {
        if self.flags >> bit & 1 == 1 { Err(refusal) } else { Ok(()) }
    }
}

impl Storage for Disk {
    async fn open(&mut self, _: &Name) -> Result<u64, Refusal> {
        self.refuse(1, Refusal::Refused)?;
        Ok(SIZE)
    }

    async fn create(&mut self, _: &Name, keep: bool) -> Result<u64, Refusal> {
        self.refuse(2, Refusal::Exists)?;
        Ok(if keep { self.have } else { 0 })
    }

    async fn hash(&mut self, bytes: u64) -> Result<Hash, Refusal> {
        self.refuse(3, Refusal::Failed)?;
        // A peer can have the same without knowing BLAKE3.
        Ok(Hash([bytes as u8 & 1; 32]))
    }

    async fn reserve(&mut self, start: u64, size: u64) -> Result<(), Refusal> {
        assert!(start <= size && start <= self.have);
        self.refuse(4, Refusal::NoSpace)?;
        (self.at, self.reserved) = (start, Some(size));
        Ok(())
    }

    async fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, Refusal> {
        assert!(offset < SIZE && !buf.is_empty());
        self.refuse(5, Refusal::Failed)?;
        let n = buf.len().min((SIZE - offset) as usize);
        buf[..n].fill(7);
        Ok(n)
    }

    async fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.refuse(6, Refusal::NoSpace)?;
        assert_eq!(offset, self.at);
        self.at += bytes.len() as u64;
        assert!(self.at <= self.reserved.expect("room was made before"));
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Refusal> {
        assert_eq!(Some(self.at), self.reserved, "it is not whole");
        self.refuse(7, Refusal::Failed)?;
        assert!(!std::mem::replace(&mut self.committed, true), "twice");
        Ok(())
    }
}
