//! An image while it is made: Pis fetch the chunks that there are, and then ask for more.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard};

use piman_core::hash::Hash;
use piman_core::install::table::{ENTRY, Entry, HEADER, Header};

use super::Image;
use crate::sys::lock::lock;

/// At least so many chunks more make another table.
const STEP: usize = 8;
/// And at least this part of those that there are, so that all tables together stay small.
const STEP_PART: usize = 16;

/// The chunks so far.
#[derive(Debug)]
pub struct Early {
    /// What is said of the image; its sums are of all chunks that there will be, as far as they are known.
    header: Header,
    chunks: Arc<File>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: Vec<Entry>,
    used: u64,
    stored: u64,
    /// What the tables so far are called and begin with; each has more chunks than the one before. Only the newest is
    /// kept whole, since together those of a large image would be larger than its index.
    tables: Vec<(Hash, Header)>,
    newest: Option<Arc<Image>>,
    whole: Option<Arc<Image>>,
}

/// What follows a table.
#[derive(Debug)]
pub enum Following {
    /// This one has more chunks, or is whole.
    Table(Arc<Image>),
    /// There will be one.
    Later,
    /// It is not known here, or is whole.
    Nothing,
}

impl Early {
    /// Nothing yet, of an image with this header, whose chunks are appended to this file.
    pub(in crate::images) fn new(header: Header, chunks: File) -> Self {
        let header = Header { whole: false, ..header };
        Self { header, chunks: Arc::new(chunks), state: Mutex::default() }
    }

    /// One more chunk is in the file.
    pub(in crate::images) fn add(&self, entry: Entry) {
        let mut state = self.lock();
        state.used += u64::from(entry.length);
        state.stored += u64::from(entry.stored);
        state.entries.push(entry);
    }

    /// The image is whole.
    pub(super) fn finish(&self, whole: Arc<Image>) {
        self.lock().whole = Some(whole);
    }

    /// The newest table; `None` as long as there is no chunk.
    #[must_use]
    pub fn newest(&self) -> Option<Arc<Image>> {
        let mut state = self.lock();
        if let Some(whole) = &state.whole {
            return Some(Arc::clone(whole));
        }
        let known = state.newest.as_ref().map_or(0, |table| table.header().chunks as usize);
        let there = state.entries.len();
        if there > 0 && (known == 0 || there >= known + STEP.max(known / STEP_PART)) {
            let header = self.header(&state);
            let table = Arc::new(self.table(header, &state.entries));
            state.tables.push((table.hash(), header));
            state.newest = Some(table);
        }
        state.newest.clone()
    }

    /// The table with this hash.
    #[must_use]
    pub fn by_table(&self, hash: Hash) -> Option<Arc<Image>> {
        let state = self.lock();
        let whole = [&state.whole, &state.newest].into_iter().flatten();
        whole.into_iter().find(|table| table.hash() == hash).cloned().or_else(|| {
            let (_, header) = state.tables.iter().find(|(known, _)| *known == hash)?;
            Some(Arc::new(self.table(*header, &state.entries)))
        })
    }

    /// What has more chunks than the table with this hash.
    #[must_use]
    pub fn after(&self, hash: Hash) -> Following {
        if !self.lock().tables.iter().any(|(known, _)| *known == hash) {
            return Following::Nothing;
        }
        match self.newest() {
            Some(newest) if newest.hash() != hash => Following::Table(newest),
            _ => Following::Later,
        }
    }

    /// What is said of the chunks so far.
    fn header(&self, state: &State) -> Header {
        // What is left compresses as well as what is there.
        let part =
            u128::from(state.stored) * u128::from(self.header.used_bytes) / u128::from(state.used.max(1));
        Header {
            chunks: u32::try_from(state.entries.len()).unwrap_or(u32::MAX),
            stored_bytes: u64::try_from(part).unwrap_or(u64::MAX).max(state.stored),
            ..self.header
        }
    }

    fn table(&self, header: Header, entries: &[Entry]) -> Image {
        let entries = entries.get(..header.chunks as usize).unwrap_or_default();
        let mut table = Vec::with_capacity(HEADER + entries.len() * ENTRY);
        table.extend(header.encode());
        table.extend(entries.iter().flat_map(Entry::encode));
        let stored = entries.iter().map(|entry| u64::from(entry.stored)).sum();
        Image::begun(header, table, Arc::clone(&self.chunks), stored)
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use piman_core::install::table::{BLOCK, Scope, Table};

    use super::*;

    fn entry(index: u64) -> Entry {
        let hash = Hash([index as u8; 32]);
        Entry {
            offset: index * 8192,
            length: 4096,
            stored: 1000,
            position: index * 1000,
            stored_hash: hash,
            hash,
        }
    }

    fn early() -> Early {
        let header = Header {
            scope: Scope::Root { grows: true },
            whole: false,
            chunks: 0,
            total_bytes: 1 << 30,
            used_bytes: 100 * 4096,
            stored_bytes: 0,
            archive: Hash([7; 32]),
            proof_offset: 99 * 8192,
            entries: 5,
        };
        assert!(header.proof_offset > BLOCK);
        Early::new(header, tempfile::tempfile().unwrap())
    }

    #[test]
    fn each_table_has_more_and_the_last_one_is_whole() {
        let early = early();
        assert!(early.newest().is_none());
        let mut tables: Vec<Arc<Image>> = Vec::new();
        for index in 0..90 {
            early.add(entry(index));
            let newest = early.newest().unwrap();
            let table = Table::parse(newest.table()).unwrap();
            assert!(!table.header().whole);
            assert_eq!(table.header().stored_bytes, 100_000);
            if let Some(before) = tables.last() {
                assert!(table.continues(&Table::parse(before.table()).unwrap()));
            }
            if tables.last().is_none_or(|t| t.hash() != newest.hash()) {
                tables.push(newest);
            }
        }
        // Few of them, and each leads to the newest.
        assert!((5..15).contains(&tables.len()), "{}", tables.len());
        let newest = tables.pop().unwrap();
        for table in &tables {
            assert!(matches!(early.after(table.hash()), Following::Table(t) if t.hash() == newest.hash()));
            assert_eq!(early.by_table(table.hash()).unwrap().table(), table.table());
        }
        assert!(matches!(early.after(newest.hash()), Following::Later));
        assert!(matches!(early.after(Hash([0; 32])), Following::Nothing));
        assert_eq!(newest.stored_bytes(), u64::from(newest.header().chunks) * 1000);
        let header = Header { whole: true, ..newest.header() };
        let whole = Image::begun(header, b"whole".to_vec(), Arc::clone(&early.chunks), 90_000);
        let hash = whole.hash();
        early.finish(Arc::new(whole));
        assert!(matches!(early.after(newest.hash()), Following::Table(t) if t.hash() == hash));
        assert!(matches!(early.after(hash), Following::Nothing));
        assert_eq!(early.newest().unwrap().hash(), hash);
    }
}
