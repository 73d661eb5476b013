//! Hashing what clients ask to have compared: it costs a core, and a request for it is short.
//!
//! One piece at a time is hashed for each address, and the address that was served least is next. What was hashed once
//! is not hashed again: states of the hash are kept at steps of a file.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use piman_core::hash::Hash;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::upload::{HASH_PACE, hash_on};
use crate::sys::lock::lock;

/// Files that are hashed at the same time.
const AT_ONCE: usize = 2;
/// How much is hashed before it is another one's turn, in bytes.
const PIECE: u64 = 32 << 20;
/// How much may be hashed for one address at full speed; after that as much a second as [`HASH_PACE`].
const BUDGET: f64 = (16_u64 << 30) as f64;
/// How many addresses are remembered.
const PEERS_MAX: usize = 4096;
/// How often it is looked whose budget has grown again.
const LOOK: Duration = Duration::from_secs(1);
/// How many files are remembered, and how many states of each.
const FILES_MAX: usize = 64;
const STATES_MAX: u64 = 64;
/// The least distance of two states, in bytes.
const STEP: u64 = 16 << 20;
/// How many hashes of a file are remembered.
const HASHES_MAX: usize = 16;

/// The hashing of one server.
#[derive(Debug, Default)]
pub(super) struct Hashing {
    line: Mutex<Line>,
    files: Mutex<VecDeque<Known>>,
    /// Bytes that were hashed since the start.
    hashed: std::sync::atomic::AtomicU64,
}

#[derive(Debug, Default)]
struct Line {
    running: usize,
    peers: HashMap<IpAddr, Peer>,
    waiting: VecDeque<(IpAddr, oneshot::Sender<()>)>,
}

#[derive(Debug)]
struct Peer {
    running: bool,
    /// Bytes of [`BUDGET`] that are used.
    used: f64,
    at: Instant,
}

impl Peer {
    fn used(&self, now: Instant) -> f64 {
        (self.used - now.duration_since(self.at).as_secs_f64() * HASH_PACE as f64).max(0.0)
    }
}

/// The right to hash one piece; the next one's turn comes when it is dropped.
struct Turn<'a> {
    hashing: &'a Hashing,
    peer: IpAddr,
    bytes: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let (mut line, now) = (self.hashing.line(), Instant::now());
        line.running = line.running.saturating_sub(1);
        if let Some(peer) = line.peers.get_mut(&self.peer) {
            peer.running = false;
            (peer.used, peer.at) = (peer.used(now) + self.bytes as f64, now);
        }
        line.next(now);
    }
}

impl Line {
    /// Gives turns to those who are next.
    fn next(&mut self, now: Instant) {
        self.waiting.retain(|(_, turn)| !turn.is_closed());
        while self.running < AT_ONCE {
            let used = |ip: &IpAddr| match self.peers.get(ip) {
                Some(peer) if peer.running => None,
                Some(peer) => Some(peer.used(now)).filter(|used| *used < BUDGET),
                None => Some(0.0),
            };
            let of_all = self.waiting.iter().enumerate().filter_map(|(at, (ip, _))| Some((at, used(ip)?)));
            let Some((at, _)) = of_all.min_by(|(_, a), (_, b)| a.total_cmp(b)) else { return };
            let Some((ip, turn)) = self.waiting.remove(at) else { return };
            if turn.send(()).is_ok() {
                self.begin(ip, now);
            }
        }
    }

    fn begin(&mut self, ip: IpAddr, now: Instant) {
        if self.peers.len() >= PEERS_MAX {
            self.peers.retain(|_, peer| peer.running || peer.used(now) > 0.0);
        }
        if self.peers.len() >= PEERS_MAX {
            let least = self.peers.iter().filter(|(_, p)| !p.running);
            let least = least.min_by(|(_, a), (_, b)| a.used(now).total_cmp(&b.used(now))).map(|(ip, _)| *ip);
            least.and_then(|ip| self.peers.remove(&ip));
        }
        self.running += 1;
        self.peers.entry(ip).or_insert(Peer { running: false, used: 0.0, at: now }).running = true;
    }
}

/// Which file, and which content of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Version {
    fn of(file: &File) -> io::Result<Self> {
        let m = file.metadata()?;
        let modified = (m.mtime(), m.mtime_nsec());
        Ok(Self { device: m.dev(), inode: m.ino(), length: m.len(), modified })
    }

    fn step(&self) -> u64 {
        self.length.div_ceil(STATES_MAX).max(STEP)
    }
}

/// What is known of a file.
#[derive(Debug)]
struct Known {
    version: Version,
    /// The states after one step, two steps and so on.
    states: Vec<blake3::Hasher>,
    hashes: VecDeque<(u64, Hash)>,
}

impl Hashing {
    fn line(&self) -> MutexGuard<'_, Line> {
        lock(&self.line)
    }

    async fn turn(&self, peer: IpAddr) -> Turn<'_> {
        let (turn, mut granted) = oneshot::channel();
        {
            let mut line = self.line();
            line.waiting.push_back((peer, turn));
            line.next(Instant::now());
        }
        // Nobody else drops the sender.
        while timeout(LOOK, &mut granted).await.is_err() {
            self.line().next(Instant::now());
        }
        Turn { hashing: self, peer, bytes: 0 }
    }

    /// The hash of the first `bytes` bytes of a file, for this peer.
    ///
    /// # Errors
    /// If it cannot be read, or is shorter.
    pub(super) async fn hash(&self, peer: IpAddr, file: Arc<File>, bytes: u64) -> io::Result<Hash> {
        let version = Version::of(&file)?;
        let (mut at, mut hasher) = match self.known(version, bytes) {
            Ok(hash) => return Ok(hash),
            Err(state) => *state,
        };
        let step = version.step();
        while at < bytes {
            let mut turn = self.turn(peer).await;
            // Another one may have hashed it meanwhile.
            match self.known(version, bytes) {
                Ok(hash) => return Ok(hash),
                Err(state) if state.0 > at => (at, hasher) = *state,
                Err(_) => {}
            }
            let until = bytes.min(at + PIECE).min((at / step + 1).saturating_mul(step));
            turn.bytes = until.saturating_sub(at);
            let (same, mut state, mut from) = (Arc::clone(&file), hasher, at);
            let hashed = spawn_blocking(move || {
                hash_on(&same, &mut from, until, &mut state)?;
                Ok::<_, io::Error>(state)
            });
            hasher = hashed.await.map_err(io::Error::other)??;
            self.hashed.fetch_add(turn.bytes, std::sync::atomic::Ordering::Relaxed);
            at = until;
            if at.is_multiple_of(step) && Version::of(&file)? == version {
                self.remember(version, |known| {
                    if u64::try_from(known.states.len() + 1).is_ok_and(|n| n * step == at) {
                        known.states.push(hasher.clone());
                    }
                });
            }
        }
        let hash = Hash(*hasher.finalize().as_bytes());
        if Version::of(&file)? == version {
            self.remember(version, |known| {
                known.hashes.push_front((bytes, hash));
                known.hashes.truncate(HASHES_MAX);
            });
        }
        Ok(hash)
    }

    /// The hash, or the state from which it is made, and after how many bytes that is.
    fn known(&self, version: Version, bytes: u64) -> Result<Hash, Box<(u64, blake3::Hasher)>> {
        let files = lock(&self.files);
        let Some(known) = files.iter().find(|known| known.version == version) else {
            return Err(Box::new((0, blake3::Hasher::new())));
        };
        if let Some((_, hash)) = known.hashes.iter().find(|(of, _)| *of == bytes) {
            return Ok(*hash);
        }
        let step = version.step();
        let steps = usize::try_from(bytes / step).unwrap_or(usize::MAX).min(known.states.len());
        Err(Box::new(match steps.checked_sub(1).and_then(|last| known.states.get(last)) {
            Some(state) => (steps as u64 * step, state.clone()),
            None => (0, blake3::Hasher::new()),
        }))
    }

    fn remember(&self, version: Version, what: impl FnOnce(&mut Known)) {
        let mut files = lock(&self.files);
        let at = files.iter().position(|known| known.version == version);
        let mut known = at.and_then(|at| files.remove(at)).unwrap_or_else(|| Known {
            version,
            states: Vec::new(),
            hashes: VecDeque::new(),
        });
        what(&mut known);
        // The one that was asked for most recently stays.
        files.push_front(known);
        files.truncate(FILES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::Ordering;

    use super::*;

    fn peer(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    fn file(length: u64) -> Arc<File> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        file.write_all_at(b"what it begins with", 0).unwrap();
        Arc::new(file)
    }

    fn right(file: &File, bytes: u64) -> Hash {
        let mut hasher = blake3::Hasher::new();
        hash_on(file, &mut 0, bytes, &mut hasher).unwrap();
        Hash(*hasher.finalize().as_bytes())
    }

    #[tokio::test]
    async fn what_was_hashed_is_not_hashed_again() {
        let (hashing, file) = (Hashing::default(), file(100 << 20));
        let hashed = || hashing.hashed.load(Ordering::Relaxed);
        assert_eq!(hashing.hash(peer(1), file.clone(), 100 << 20).await.unwrap(), right(&file, 100 << 20));
        assert_eq!(hashed(), 100 << 20);
        // A hundred requests for all of it, and some for other parts.
        for _ in 0..100 {
            hashing.hash(peer(2), file.clone(), 100 << 20).await.unwrap();
        }
        assert_eq!(hashed(), 100 << 20);
        for bytes in [0, 1, (99 << 20) + 7, 64 << 20] {
            assert_eq!(hashing.hash(peer(2), file.clone(), bytes).await.unwrap(), right(&file, bytes));
        }
        assert!(hashed() <= (100 << 20) + STEP, "{}", hashed());
        // Another content is another file.
        file.write_all_at(b"else", 50 << 20).unwrap();
        assert_eq!(hashing.hash(peer(1), file.clone(), 100 << 20).await.unwrap(), right(&file, 100 << 20));
        assert!(hashing.hash(peer(1), file.clone(), (100 << 20) + 1).await.is_err(), "it is shorter");
    }

    #[tokio::test]
    async fn one_address_keeps_nobody_waiting() {
        let hashing = Arc::new(Hashing::default());
        let asked = |n| {
            let hashing = Arc::clone(&hashing);
            tokio::spawn(async move {
                // Each its own, so that all has to be hashed.
                hashing.hash(peer(n), file(256 << 20), 256 << 20).await.unwrap();
            })
        };
        let greedy: Vec<_> = (0..24).map(|_| asked(1)).collect();
        tokio::task::yield_now().await;
        assert_eq!(hashing.line().running, 1, "one at a time");
        asked(2).await.unwrap();
        let done = greedy.iter().filter(|task| task.is_finished()).count();
        assert!(done <= 4, "{done} of 24 were first");
        greedy.iter().for_each(|task| task.abort());
    }

    #[test]
    fn a_budget_that_is_used_up_grows_again() {
        let (mut line, now) = (Line::default(), Instant::now());
        line.peers.insert(peer(1), Peer { running: false, used: BUDGET, at: now });
        let (turn, mut granted) = oneshot::channel();
        line.waiting.push_back((peer(1), turn));
        line.next(now);
        assert!(granted.try_recv().is_err());
        line.next(now + Duration::from_secs(1));
        assert!(granted.try_recv().is_ok());
        for n in 0..3 * PEERS_MAX as u32 {
            line.begin(IpAddr::from(n.to_be_bytes()), now);
            line.peers.values_mut().for_each(|p| p.running = false);
        }
        assert!(line.peers.len() <= PEERS_MAX);
    }
}
