//! The transfer service in memory: golden bytes, dialogues at every chop, both sides against
//! each other and against a model.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use piman_core::Error;
use piman_core::blocking;
use piman_core::error::PeerError;
use piman_core::hash::Hash;
use piman_core::transfer::{
    Download, End, Message, Name, Operation, Probe, RANGES, REQUEST_LEN, Refusal, Server, Status, Storage,
    Upload, run,
};
use piman_tests::memory::{ROOM, Script, World};
use proptest::prelude::*;

mod clients;
mod dialogues;
mod pair;

/// A folder in memory.
#[derive(Debug, Default)]
struct Folder {
    complete: BTreeMap<String, Vec<u8>>,
    partial: BTreeMap<String, Vec<u8>>,
    taken: BTreeSet<String>,
    room: u64,
    /// Writes fail from this offset on.
    breaks_at: Option<u64>,
}

/// One transfer's view of a folder.
#[derive(Debug)]
struct MemoryStorage {
    folder: Rc<RefCell<Folder>>,
    name: String,
    upload: bool,
}

impl MemoryStorage {
    fn new(folder: &Rc<RefCell<Folder>>) -> Self {
        Self { folder: folder.clone(), name: String::new(), upload: false }
    }
}

impl Drop for MemoryStorage {
    fn drop(&mut self) {
        if self.upload {
            self.folder.borrow_mut().taken.remove(&self.name);
        }
    }
}

impl Storage for MemoryStorage {
    async fn open(&mut self, name: &Name) -> Result<u64, Refusal> {
        self.name = name.to_string();
        let folder = self.folder.borrow();
        folder.complete.get(&self.name).map(|b| b.len() as u64).ok_or(Refusal::Refused)
    }

    async fn create(&mut self, name: &Name, keep: bool) -> Result<u64, Refusal> {
        let mut folder = self.folder.borrow_mut();
        let name = name.to_string();
        if folder.complete.contains_key(&name) {
            return Err(Refusal::Exists);
        }
        if !folder.taken.insert(name.clone()) {
            return Err(Refusal::Refused);
        }
        (self.name, self.upload) = (name, true);
        let partial = folder.partial.entry(self.name.clone()).or_default();
        if !keep {
            partial.clear();
        }
        Ok(partial.len() as u64)
    }

    async fn hash(&mut self, bytes: u64) -> Result<Hash, Refusal> {
        let folder = self.folder.borrow();
        let from = if self.upload { &folder.partial } else { &folder.complete };
        let bytes = from.get(&self.name).and_then(|b| b.get(..bytes as usize)).ok_or(Refusal::Failed)?;
        Ok(Hash(*blake3::hash(bytes).as_bytes()))
    }

    async fn reserve(&mut self, start: u64, size: u64) -> Result<(), Refusal> {
        let mut folder = self.folder.borrow_mut();
        if size - start > folder.room {
            return Err(Refusal::NoSpace);
        }
        let name = self.name.clone();
        folder.partial.get_mut(&name).ok_or(Refusal::Failed)?.truncate(start as usize);
        Ok(())
    }

    async fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, Refusal> {
        let folder = self.folder.borrow();
        let bytes = folder.complete.get(&self.name).and_then(|b| b.get(offset as usize..));
        let bytes = bytes.ok_or(Refusal::Failed)?;
        let n = bytes.len().min(buf.len());
        buf[..n].copy_from_slice(&bytes[..n]);
        Ok(n)
    }

    async fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let mut folder = self.folder.borrow_mut();
        if folder.breaks_at.is_some_and(|at| offset + bytes.len() as u64 > at) {
            return Err(Refusal::NoSpace);
        }
        let name = self.name.clone();
        let partial = folder.partial.get_mut(&name).ok_or(Refusal::Failed)?;
        assert_eq!(partial.len() as u64, offset);
        partial.extend_from_slice(bytes);
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Refusal> {
        let mut folder = self.folder.borrow_mut();
        let bytes = folder.partial.remove(&self.name).ok_or(Refusal::Failed)?;
        folder.complete.insert(self.name.clone(), bytes);
        Ok(())
    }
}

fn folder(files: &[(&str, &[u8])]) -> Rc<RefCell<Folder>> {
    let complete = files.iter().map(|(n, b)| ((*n).to_owned(), b.to_vec())).collect();
    Rc::new(RefCell::new(Folder { complete, room: u64::MAX, ..Folder::default() }))
}

fn name(text: &str) -> Name {
    Name::parse(text.as_bytes()).unwrap()
}

fn request(operation: u8, name: &[u8]) -> Vec<u8> {
    let mut bytes = vec![operation];
    bytes.extend_from_slice(name);
    bytes.resize(REQUEST_LEN, 0);
    bytes
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

/// What the server says to `input`, and how it ends, the same at every chop.
fn served(
    folder: impl Fn() -> Rc<RefCell<Folder>>,
    input: &[u8],
) -> (Vec<u8>, Result<End, PeerError>, Folder) {
    let mut before: Option<(Vec<u8>, _)> = None;
    for chop in (1..=64).chain([255, 256, 257, input.len().max(1)]) {
        let folder = folder();
        let mut script = Script::new(input, chop);
        let mut buf = [0; 50];
        let end = blocking::run(run(
            &mut script,
            &mut buf,
            &mut Server::default(),
            &mut MemoryStorage::new(&folder),
        ));
        let end = end.map_err(|e| match e {
            Error::Peer(e) => e,
            Error::Io(never) => match never {},
            other => panic!("{other:?}"),
        });
        let got = (script.output, end);
        if let Some(before) = &before {
            assert_eq!(&got, before, "in pieces of {chop}");
        }
        before = Some(got);
        if chop == input.len().max(1) {
            let (output, end) = before.unwrap();
            return (output, end, Rc::try_unwrap(folder).unwrap().into_inner());
        }
    }
    unreachable!()
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}
