//! One thread that receives, others that compare, check, decode and write; between them a
//! bounded number of buffers.

use std::collections::{BTreeMap, VecDeque};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder};

use anyhow::anyhow;
use piman_core::hash::Hash;
use piman_core::install::Stage;
use piman_core::install::fetch::{Kind, Request};
use piman_core::install::table::{BLOCK, CHUNK_MAX, Entry, Scope, Table};
use zstd::bulk::Decompressor;

use super::area::{Aligned, Medium};
use super::{Order, Pending, Summary};
use crate::failure::{Cause, Failure, OrFail};
use crate::fetch::{DAMAGED_MAX, Link, Source, Trouble};
use crate::telemetry::progress::Progress;

/// Requests that are sent ahead, so that the server always has something to send.
const AHEAD: usize = 4;
/// Buffers for chunks as they are stored, beside one for each thread that decodes.
const SPARE: usize = 2;
/// Chunks by which is judged whether the card holds this image already.
const PROBES: u32 = 8;
/// Chunks that are read back in the end.
const SAMPLES: usize = 8;
/// What the proof's block holds in the image.
const EMPTY_PROOF: u8 = b'\n';

/// All that the threads share.
pub(super) struct Pipeline<'a, M> {
    table: Table<'a>,
    id: Hash,
    medium: &'a M,
    link: &'a Link,
    progress: &'a Progress,
    threads: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Chunks that may be on the card already.
    unknown: Range<u32>,
    /// Chunks to be fetched.
    needed: VecDeque<u32>,
    /// Chunks that came.
    received: VecDeque<(u32, Aligned)>,
    /// Empty buffers.
    free: Vec<Aligned>,
    /// Chunks that are not on the card.
    left: u32,
    /// Chunks that were written, but for the first, whose first block is not there yet.
    written: Vec<u32>,
    /// How often a chunk came damaged.
    damaged: BTreeMap<u32, u8>,
    /// The first block.
    first: Vec<u8>,
    summary: Summary,
    failed: Option<Failure>,
}

/// What the chunks so far leave for those that come with the next table.
pub(super) struct Handover {
    state: State,
    chunks: u32,
}

/// A chunk whose connection broke.
struct Part {
    index: u32,
    /// So many bytes of it came.
    filled: usize,
    buffer: Aligned,
}

enum Job {
    Compare(u32),
    Write(u32, Aligned),
}

impl<'a, M: Medium> Pipeline<'a, M> {
    /// Prepares to install `table`, which has this hash, and decides whether the card is compared first; or goes on
    /// behind the chunks of an earlier table.
    pub(super) fn new(
        (table, id): (Table<'a>, Hash),
        order: &Order<'a>,
        medium: &'a M,
        link: &'a Link,
        before: Option<Handover>,
    ) -> Self {
        let cores = thread::available_parallelism().map_or(2, usize::from);
        // One more than decode at once: it waits for the disk meanwhile.
        let threads = cores.clamp(2, 3) + 1;
        let header = table.header();
        let mut pipeline = Self {
            table,
            id,
            medium,
            link,
            progress: order.progress,
            threads,
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        let (mut state, first) = match before {
            Some(Handover { state, chunks }) => {
                order.progress.set_total(header.stored_bytes);
                (state, chunks)
            }
            None => {
                order.progress.begin(Stage::Transfer, header.stored_bytes);
                let free = (0..threads + SPARE).map(|_| Aligned::new(CHUNK_MAX as usize)).collect();
                (State { free, ..State::default() }, 0)
            }
        };
        if pipeline.probe(first) {
            state.unknown = first..header.chunks;
            // The first chunk is always fetched: its first block is needed and will be wiped.
            if first == 0 {
                state.needed.extend(state.unknown.next());
            }
        } else {
            state.needed.extend(first..header.chunks);
        }
        state.left = header.chunks - first;
        (state.summary.total_bytes, state.summary.chunks) = (header.total_bytes, header.chunks);
        pipeline.state = Mutex::new(state);
        pipeline
    }

    /// Everything of this table is written; there is another one.
    pub(super) fn hand_over(self) -> Handover {
        let chunks = self.table.header().chunks;
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        Handover { state, chunks }
    }

    /// Runs until all chunks are written or something failed.
    pub(super) fn run<F>(&mut self, source: &mut Source<'_, F>) -> Result<(), Failure>
    where
        F: FnMut() -> std::io::Result<TcpStream>,
    {
        let this = &*self;
        thread::scope(|scope| {
            for _ in 0..this.threads {
                let work = || {
                    if let Err(failure) = this.work() {
                        this.fail(failure);
                    }
                };
                if let Err(e) = Builder::new().name("chunks".to_owned()).spawn_scoped(scope, work) {
                    let error = anyhow!("starting a thread that decodes and writes: {e}");
                    this.fail(Failure { stage: Stage::Transfer, cause: Cause::Refused, error });
                    break;
                }
            }
            if let Err(failure) = this.receive(source) {
                this.fail(failure);
            }
        });
        self.lock().failed.take().map_or(Ok(()), Err)
    }

    /// Reads some of what was written, past the cache, when everything has been synced.
    pub(super) fn read_back(&self) -> Result<(), Failure> {
        let mut written = std::mem::take(&mut self.lock().written);
        written.sort_unstable();
        let mut buffer = Aligned::new(CHUNK_MAX as usize);
        // The last one always: a disk may have less room than it says.
        for index in written.iter().rev().step_by(written.len().div_ceil(SAMPLES).max(1)) {
            let entry = self.entry(*index)?;
            if !self.is_on_card(&entry, &mut buffer) {
                let error = anyhow!(
                    "the disk gives back other bytes than were written, from byte {} of the root filesystem \
                     on: it is failing, or has less room than it says; take another one",
                    entry.offset
                );
                return Err(Failure { stage: Stage::Sync, cause: Cause::Disk, error });
            }
        }
        Ok(())
    }

    /// What is left to be done.
    pub(super) fn finish(self) -> Result<Pending, Failure> {
        let header = self.table.header();
        let (proof_offset, grows) = (header.proof_offset, header.scope == Scope::Root { grows: true });
        let covered = self.table.iter().map(|e| (e.offset, e.offset + u64::from(e.length))).collect();
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        match state.failed {
            Some(failure) => Err(failure),
            None => Ok(Pending { first: state.first, proof_offset, covered, grows, summary: state.summary }),
        }
    }

    /// No code panics while it holds the lock, so what it guards is always whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'g>(&self, state: MutexGuard<'g, State>) -> MutexGuard<'g, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the first failure and ends all threads.
    fn fail(&self, failure: Failure) {
        self.lock().failed.get_or_insert(failure);
        self.link.end();
        self.changed.notify_all();
    }

    fn entry(&self, index: u32) -> Result<Entry, Failure> {
        self.table.entry(index).ok_or_else(|| Failure {
            stage: Stage::Transfer,
            cause: Cause::Image,
            error: anyhow!("there is no chunk {index}"),
        })
    }

    // --- receiving ------------------------------------------------------------------

    fn receive<F>(&self, source: &mut Source<'_, F>) -> Result<(), Failure>
    where
        F: FnMut() -> std::io::Result<TcpStream>,
    {
        let mut asked = VecDeque::new();
        let mut part = None;
        while self.wait_for_need(&asked) {
            let Err(trouble) = self.receive_one(source, &mut asked, &mut part) else { continue };
            let mut state = self.lock();
            while let Some(index) = asked.pop_back() {
                state.needed.push_front(index);
            }
            if state.is_over() {
                break;
            }
            drop(state);
            source.pause(trouble)?;
        }
        // Else it is asked what comes next.
        if self.table.header().whole {
            source.close();
        }
        Ok(())
    }

    /// Waits until there is a chunk to fetch; false when there will be none.
    fn wait_for_need(&self, asked: &VecDeque<u32>) -> bool {
        let mut state = self.lock();
        while !state.is_over() && state.needed.is_empty() && asked.is_empty() {
            state = self.wait(state);
        }
        !state.is_over()
    }

    /// Asks ahead and receives one chunk; or a part of it, which is kept for when it is asked for
    /// again, as the first on another connection.
    fn receive_one<F>(
        &self,
        source: &mut Source<'_, F>,
        asked: &mut VecDeque<u32>,
        part: &mut Option<Part>,
    ) -> Result<(), Trouble>
    where
        F: FnMut() -> std::io::Result<TcpStream>,
    {
        // A peer that closes with requests unread resets the connection, and what it had sent
        // is lost: after a failure one chunk at a time, so that each attempt can get on.
        let ahead = if source.is_doubtful() { 1 } else { AHEAD };
        let connection = source.connection()?;
        let missing = || Trouble::No("no such chunk".into());
        let entry = |index| self.table.entry(index).ok_or_else(missing);
        while asked.len() < ahead {
            let Some(index) = self.lock().needed.pop_front() else { break };
            asked.push_back(index);
            let Entry { position, stored, .. } = entry(index)?;
            let came = part.as_ref().filter(|p| p.index == index && asked.len() == 1);
            let came = came.map_or(0, |p| p.filled as u64);
            let (offset, length) = (position + came, u64::from(stored) - came);
            connection.ask(&Request { kind: Kind::Chunks, id: self.id, offset, length })?;
        }
        let Some(index) = asked.front().copied() else { return Ok(()) };
        let stored = entry(index)?.stored;
        let mut now = match part.take() {
            Some(part) if part.index == index => part,
            // Others have become more urgent.
            Some(part) => Part { index, filled: 0, buffer: part.buffer },
            None => match self.take_buffer() {
                Some(buffer) => Part { index, filled: 0, buffer },
                None => return Ok(()),
            },
        };
        let before = now.filled;
        let came = connection.receive_rest(now.buffer.first_mut(stored as usize), &mut now.filled);
        if now.filled > before {
            source.went_well();
            self.lock().summary.fetched_bytes += (now.filled - before) as u64;
        }
        if let Err(trouble) = came {
            *part = Some(now);
            return Err(trouble);
        }
        asked.pop_front();
        let mut state = self.lock();
        state.received.push_back((index, now.buffer));
        self.changed.notify_all();
        Ok(())
    }

    /// Waits for an empty buffer; `None` at the end.
    fn take_buffer(&self) -> Option<Aligned> {
        let mut state = self.lock();
        loop {
            if state.is_over() {
                return None;
            }
            match state.free.pop() {
                Some(buffer) => return Some(buffer),
                None => state = self.wait(state),
            }
        }
    }

    fn give_back(&self, buffer: Aligned) {
        self.lock().free.push(buffer);
        self.changed.notify_all();
    }

    // --- working --------------------------------------------------------------------

    fn work(&self) -> Result<(), Failure> {
        let mut zstd = Decompressor::new().or_fail(Stage::Transfer, Cause::Image, "preparing to decode")?;
        let mut out = Aligned::new(CHUNK_MAX as usize);
        while let Some(job) = self.next_job() {
            match job {
                Job::Compare(index) => {
                    let entry = self.entry(index)?;
                    if self.is_on_card(&entry, &mut out) {
                        self.done(&entry, |summary| summary.reused += 1);
                    } else {
                        self.lock().needed.push_back(index);
                        self.changed.notify_all();
                    }
                }
                Job::Write(index, stored) => {
                    let outcome = self.check_and_write(index, &stored, &mut out, &mut zstd);
                    self.give_back(stored);
                    outcome?;
                }
            }
        }
        Ok(())
    }

    fn next_job(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.is_over() {
                return None;
            }
            if let Some((index, stored)) = state.received.pop_front() {
                return Some(Job::Write(index, stored));
            }
            if let Some(index) = state.unknown.next() {
                return Some(Job::Compare(index));
            }
            state = self.wait(state);
        }
    }

    fn check_and_write(
        &self,
        index: u32,
        stored: &Aligned,
        out: &mut Aligned,
        zstd: &mut Decompressor<'_>,
    ) -> Result<(), Failure> {
        let entry = self.entry(index)?;
        let (place, length) = (entry.offset, entry.length as usize);
        let bytes = stored.first(entry.stored as usize);
        if blake3::hash(bytes).as_bytes() != &entry.stored_hash.0 {
            return self.fetch_again(index, place);
        }
        let decoded = if entry.stored == entry.length {
            bytes
        } else {
            let n = zstd.decompress_to_buffer(bytes, out.first_mut(length));
            // The hash was right, so whoever made the image made it wrong: no use to ask again.
            let what = format!("decoding chunk {index} (byte {place} of the root filesystem)");
            match n.or_fail(Stage::Transfer, Cause::Image, &what)? {
                n if n == length => out.first(length),
                n => {
                    let error = anyhow!("{n} bytes instead of {length}").context(what);
                    return Err(Failure { stage: Stage::Transfer, cause: Cause::Image, error });
                }
            }
        };
        let (skip, rest) = match decoded.split_at_checked(BLOCK as usize) {
            Some((first, rest)) if place == 0 => {
                self.lock().first = first.to_vec();
                (BLOCK, rest)
            }
            _ => (0, decoded),
        };
        if !rest.is_empty() {
            let what = || format!("writing {} bytes at byte {place} of the root filesystem", rest.len());
            let written = self.medium.write_at(place + skip, rest);
            written.map_err(|e| anyhow!(e).context(what())).or_fail(
                Stage::Transfer,
                Cause::Disk,
                "installing the image",
            )?;
        }
        if place > 0 {
            self.lock().written.push(index);
        }
        self.done(&entry, |summary| {
            summary.written_bytes += rest.len() as u64;
            summary.writes += u32::from(!rest.is_empty());
        });
        Ok(())
    }

    fn done(&self, entry: &Entry, count: impl FnOnce(&mut Summary)) {
        self.progress.add(entry.stored.into());
        let mut state = self.lock();
        count(&mut state.summary);
        state.left -= 1;
        self.changed.notify_all();
    }

    fn fetch_again(&self, index: u32, place: u64) -> Result<(), Failure> {
        let mut state = self.lock();
        let times = state.damaged.entry(index).or_insert(0);
        *times += 1;
        if *times > DAMAGED_MAX {
            let error = anyhow!(
                "chunk {index} (byte {place} of the root filesystem) came damaged {times} times: \
                 make the image again on the server"
            );
            return Err(Failure { stage: Stage::Transfer, cause: Cause::Image, error });
        }
        log::warn!("chunk {index} came damaged and is fetched again");
        state.summary.repaired += u32::from(*times == 1);
        state.needed.push_front(index);
        self.changed.notify_all();
        Ok(())
    }

    // --- comparing ------------------------------------------------------------------

    /// Whether the card holds these bytes already; the proof counts as empty. What cannot be
    /// read is not there: writing it may heal it.
    fn is_on_card(&self, entry: &Entry, buffer: &mut Aligned) -> bool {
        let bytes = buffer.first_mut(entry.length as usize);
        if let Err(e) = self.medium.read_at(entry.offset, bytes) {
            log::warn!("reading what is at byte {} of the root filesystem: {e}", entry.offset);
            return false;
        }
        let proof = self.table.header().proof_offset.checked_sub(entry.offset);
        let proof = proof.and_then(|at| usize::try_from(at).ok());
        if let Some(block) = proof.and_then(|at| bytes.get_mut(at..at + BLOCK as usize)) {
            block.fill(EMPTY_PROOF);
        }
        blake3::hash(bytes).as_bytes() == &entry.hash.0
    }

    /// Whether comparing is worth the reads from this chunk on: some chunks that say something (not zeros, as a
    /// blank card has them too) are there already.
    fn probe(&self, first: u32) -> bool {
        let telling = |entry: &Entry| entry.offset > 0 && entry.stored > entry.length / 64;
        let telling: Vec<Entry> = self.table.iter().skip(first as usize).filter(telling).collect();
        let step = telling.len().div_ceil(PROBES as usize).max(1);
        let mut buffer = Aligned::new(CHUNK_MAX as usize);
        let (mut probed, mut equal) = (0, 0);
        for entry in telling.iter().skip(step / 2).step_by(step) {
            probed += 1;
            equal += u32::from(self.is_on_card(entry, &mut buffer));
        }
        equal > 0 && equal * 4 >= probed
    }
}

impl State {
    fn is_over(&self) -> bool {
        self.left == 0 || self.failed.is_some()
    }
}
