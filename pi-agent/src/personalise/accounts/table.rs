//! Files of lines with colons: passwd and its relatives. What is no such line stays as it is.

use std::path::Path;

use anyhow::Context;

use crate::card::root_files::{self, Access};
use crate::card::root_path::resolve;

/// The largest file that is read, in bytes.
const MAX: u64 = 4 << 20;

/// The fields of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fields(Vec<String>);

impl Fields {
    pub(super) fn new(fields: &[&str]) -> Self {
        Self(fields.iter().map(ToString::to_string).collect())
    }

    /// A field, from 0; what is not there is empty.
    pub(super) fn text(&self, index: usize) -> &str {
        self.0.get(index).map_or("", String::as_str)
    }

    pub(super) fn number(&self, index: usize) -> Option<u32> {
        self.text(index).parse().ok()
    }

    pub(super) fn set(&mut self, index: usize, text: &str) {
        if self.0.len() <= index {
            self.0.resize(index + 1, String::new());
        }
        if let Some(field) = self.0.get_mut(index) {
            *field = text.to_owned();
        }
    }
}

enum Line {
    Fields(Fields),
    /// A comment, an entry of NIS, or anything.
    Other(Vec<u8>),
}

/// One of the files.
pub(super) struct Table {
    path: String,
    lines: Vec<Line>,
    /// `None`: it is not there.
    access: Option<Access>,
    changed: bool,
}

impl Table {
    pub(super) fn read(root: &Path, path: &str) -> anyhow::Result<Self> {
        let found = root_files::read(root, Path::new(path), MAX)
            .with_context(|| format!("reading {path} of the card"))?;
        let access = found.as_ref().map(|found| found.access);
        let bytes = found.map(|found| found.bytes).unwrap_or_default();
        let is_entry = |line: &str| line.contains(':') && !line.starts_with(['#', '+', '-']);
        let line = |line: &[u8]| match std::str::from_utf8(line) {
            Ok(text) if is_entry(text) => Line::Fields(Fields(text.split(':').map(String::from).collect())),
            _ => Line::Other(line.to_vec()),
        };
        let lines = bytes.strip_suffix(b"\n").unwrap_or(&bytes).split(|b| *b == b'\n');
        let lines =
            lines.map(line).filter(|line| !matches!(line, Line::Other(bytes) if bytes.is_empty())).collect();
        Ok(Self { path: path.to_owned(), lines, access, changed: false })
    }

    pub(super) fn is_there(&self) -> bool {
        self.access.is_some()
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = &Fields> {
        self.lines.iter().filter_map(|line| match line {
            Line::Fields(fields) => Some(fields),
            Line::Other(_) => None,
        })
    }

    /// The first line of this name.
    pub(super) fn find(&self, name: &str) -> Option<&Fields> {
        self.lines().find(|line| line.text(0) == name)
    }

    /// The first line with this number.
    pub(super) fn by_number(&self, number: u32) -> Option<&Fields> {
        self.lines().find(|line| line.number(2) == Some(number))
    }

    /// Puts a line in place of the first one of its name, or at the end.
    pub(super) fn put(&mut self, new: Fields) {
        let place = self.lines.iter_mut().find_map(|line| match line {
            Line::Fields(fields) if fields.text(0) == new.text(0) => Some(fields),
            _ => None,
        });
        match place {
            Some(place) if *place == new => {}
            Some(place) => {
                *place = new;
                self.changed = true;
            }
            None => {
                self.lines.push(Line::Fields(new));
                self.changed = true;
            }
        }
    }

    /// Writes it, if something has changed, with the access that it had.
    pub(super) fn write(&self, root: &Path) -> anyhow::Result<()> {
        let Some(access) = self.access.filter(|_| self.changed) else { return Ok(()) };
        let mut bytes = Vec::new();
        for line in &self.lines {
            match line {
                Line::Fields(fields) => bytes.extend(fields.0.join(":").bytes()),
                Line::Other(other) => bytes.extend(other),
            }
            bytes.push(b'\n');
        }
        let what = || format!("writing {} of the card", self.path);
        let file = resolve(root, Path::new(&self.path)).with_context(what)?;
        root_files::write(&file, access, &bytes).with_context(what)
    }
}
