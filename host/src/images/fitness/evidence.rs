//! What is kept of an archive while it is read once, from front to back: the tree of its names, what each
//! program is, and the few small files that say how the system boots.

use std::collections::HashMap;
use std::io::BufRead;

use embedded_io_adapters::std::FromStd;
use piman_core::archive::{Entry, Kind, Reader};
use piman_core::install::program::{HEAD, Machine, NotAProgram, Program};

use crate::images::ext4::Error;
use crate::images::ext4::tree::Tree;

/// The longest configuration file that is kept, in bytes.
const TEXT_MAX: u64 = 64 << 10;
/// How many of them are kept.
const TEXTS_MAX: usize = 256;
/// The last components of the names of those that are.
const TEXTS: [&[u8]; 5] = [b"fstab", b"cmdline.txt", b"config.txt", b"manifest.json", b"oci-layout"];
/// How many entries at the top of an archive are looked at for what they are by their content.
const TOP_MAX: usize = 64;

/// What a file that may be executed is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Executable {
    /// A program for a processor, and its loader.
    Elf(Machine, Option<Box<str>>),
    /// A script and its interpreter.
    Script(Box<str>),
    /// Nothing that runs.
    Not(NotAProgram),
}

/// What a file is that is no part of a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// It ends its first sector as a partition table or a boot sector does.
    DiskImage,
    /// It begins as an ext2, 3 or 4 filesystem.
    Filesystem,
    /// It is packed: xz, gzip, zstd, bzip2 or zip.
    Packed,
}

/// What is known of an archive.
#[derive(Debug)]
pub(crate) struct Evidence {
    pub(super) tree: Tree,
    /// By the number of the entry.
    pub(super) executables: HashMap<u64, Executable>,
    /// By the number of the entry.
    pub(super) texts: HashMap<u64, Box<str>>,
    /// Files at the top of the archive, by the number of the entry.
    pub(super) top: HashMap<u64, (Box<str>, Content)>,
    /// What the partitions are called that it comes with; `None`: it gets those of a card of ours.
    pub(super) disks: Option<Vec<String>>,
}

impl Evidence {
    pub(crate) fn new() -> Self {
        Self {
            tree: Tree::new(),
            executables: HashMap::new(),
            texts: HashMap::new(),
            top: HashMap::new(),
            disks: None,
        }
    }

    /// Of a system that comes with its own partitions, which are called so.
    pub(crate) fn of_disk(names: Vec<String>) -> Self {
        Self { disks: Some(names), ..Self::new() }
    }

    /// How many entries there were.
    pub(crate) fn entries(&self) -> u64 {
        self.tree.entries
    }

    /// Takes in the next entry; the reader stands at its content.
    ///
    /// # Errors
    /// [`Error`] if it cannot be part of any system, or cannot be read.
    pub(crate) fn add(
        &mut self,
        entry: Entry,
        reader: &mut Reader<FromStd<impl BufRead>>,
    ) -> Result<(), Error> {
        self.note(entry, |most| head(reader, most))
    }

    /// The same for an entry whose first bytes `head` gives, at most as many as it is asked for.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub(crate) fn note(
        &mut self,
        entry: Entry,
        head: impl FnOnce(usize) -> Result<Vec<u8>, Error>,
    ) -> Result<(), Error> {
        let index = self.tree.entries;
        let (path, mode) = (entry.path.clone(), entry.mode);
        let size = match &entry.kind {
            Kind::File(file) if file.sparse.is_none() => Some(file.size),
            _ => None,
        };
        self.tree.add(entry)?;
        let Some(size) = size.filter(|size| *size > 0) else { return Ok(()) };
        let trimmed = path.strip_prefix(b"./").unwrap_or(&path);
        let last = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        let is_top = !trimmed.contains(&b'/') && self.top.len() < TOP_MAX;
        if TEXTS.contains(&last) && size <= TEXT_MAX && self.texts.len() < TEXTS_MAX {
            let content = head(usize::try_from(size).unwrap_or(usize::MAX))?;
            self.texts.insert(index, String::from_utf8_lossy(&content).into());
        } else if is_top {
            let content = head(HEAD)?;
            if let Some(kind) = Content::of(&content) {
                self.top.insert(index, (String::from_utf8_lossy(trimmed).into(), kind));
            }
            if mode & 0o111 != 0 {
                self.executables.insert(index, Executable::of(&content));
            }
        } else if mode & 0o111 != 0 {
            let content = head(HEAD)?;
            self.executables.insert(index, Executable::of(&content));
        }
        Ok(())
    }
}

impl Executable {
    fn of(head: &[u8]) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into();
        match Program::parse(head) {
            Ok(Program::Elf { machine, loader }) => Self::Elf(machine, loader.map(text)),
            Ok(Program::Script { interpreter }) => Self::Script(text(interpreter)),
            Err(why) => Self::Not(why),
        }
    }
}

impl Content {
    fn of(head: &[u8]) -> Option<Self> {
        const PACKED: [&[u8]; 5] = [b"\xfd7zXZ\0", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"PK\x03\x04"];
        let at = |from: usize, magic: &[u8]| head.get(from..).is_some_and(|rest| rest.starts_with(magic));
        if at(0x438, &[0x53, 0xef]) {
            Some(Self::Filesystem)
        } else if at(510, &[0x55, 0xaa]) {
            Some(Self::DiskImage)
        } else {
            PACKED.iter().any(|magic| at(0, magic)).then_some(Self::Packed)
        }
    }
}

/// The first bytes of the entry at which the reader stands, at most this many.
fn head(reader: &mut Reader<FromStd<impl BufRead>>, most: usize) -> Result<Vec<u8>, Error> {
    let mut head = Vec::new();
    loop {
        let piece = reader.content()?;
        let length = piece.len().min(most - head.len());
        if length == 0 {
            return Ok(head);
        }
        head.extend_from_slice(piece.get(..length).unwrap_or_default());
        reader.consume(length);
    }
}
