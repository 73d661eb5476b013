//! Frames: one side against any bytes, and two sides against each other, whose bytes are cut and delayed
//! in any way: nothing is lost, nothing is mixed up, nobody waits for ever.
#![no_main]

use std::collections::VecDeque;

use libfuzzer_sys::fuzz_target;
use piman_core::messages::{GO, Link, Role, SIZE_MAX, Step};

const LIMIT: u32 = 1000;

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let role = if kind & 1 == 0 { Role::Client } else { Role::Server };
    if kind & 2 == 0 { alone(role, data) } else { pair(data) }
});

/// Half of the bytes say what our side does, half are the peer's.
fn alone(role: Role, data: &[u8]) {
    let mut link = Link::new(role, LIMIT);
    let (acts, mut bytes) = data.split_at(data.len() / 2);
    let (mut size, mut at) = (0, 0);
    for act in acts {
        let (n, after) = bytes.split_at(bytes.len().min(usize::from(act >> 3)));
        bytes = after;
        let mut input = n;
        loop {
            match link.handle(&mut input) {
                Step::Read => break,
                Step::Refused(code) => {
                    assert_ne!(code, GO);
                    return;
                }
                Step::Broken => return,
                Step::Piece(piece) => {
                    assert!(piece.size <= LIMIT);
                    if piece.offset == 0 {
                        (size, at) = (piece.size, 0);
                    }
                    assert_eq!((piece.size, piece.offset), (size, at));
                    at += piece.bytes.len() as u32;
                    assert_eq!(piece.is_last(), at == size);
                    assert!(at <= size && (!piece.bytes.is_empty() || size == 0));
                }
                Step::Granted | Step::Rejected(_) | Step::Greeted | Step::Answer(_) => {}
            }
        }
        assert!(input.is_empty());
        match act & 7 {
            0 => drop(link.start(u64::from(*act))),
            1 => drop(link.start(u64::from(SIZE_MAX) + u64::from(act >> 3))),
            2 => drop(link.sent(u32::from(*act))),
            3 => drop(link.sent(u32::MAX)),
            4 => _ = link.quiet(),
            5 if link.must_keep_quiet() => link.kept_quiet(),
            _ => {}
        }
    }
}

/// A side with a program that sends messages of these sizes.
struct Side {
    link: Link,
    /// What the peer wrote and we have not read.
    inbox: VecDeque<u8>,
    wants: VecDeque<u32>,
    under_way: Option<u32>,
    taken: Vec<u32>,
    refused: Vec<u32>,
    part: Vec<u8>,
    got: Vec<Vec<u8>>,
    greeted: bool,
}

impl Side {
    fn new(role: Role, wants: &[u8]) -> Self {
        // Sizes around the first byte of an answer, and around the limit.
        let size = |b: &u8| match b % 4 {
            0 => u32::from(b / 4),
            1 => LIMIT - 30 + u32::from(b / 4),
            2 => 0x00FF_FFFF + u32::from(b / 4),
            _ => SIZE_MAX - u32::from(b / 4),
        };
        Self {
            link: Link::new(role, LIMIT),
            inbox: VecDeque::new(),
            wants: wants.iter().take(6).map(size).collect(),
            under_way: None,
            taken: Vec::new(),
            refused: Vec::new(),
            part: Vec::new(),
            got: Vec::new(),
            greeted: false,
        }
    }

    /// Reads up to `n` bytes and does what follows; what it writes.
    fn act(&mut self, n: usize) -> Vec<u8> {
        let n = n.min(self.inbox.len());
        let bytes: Vec<u8> = self.inbox.drain(..n).collect();
        let (mut input, mut out) = (&bytes[..], Vec::new());
        loop {
            loop {
                match self.link.handle(&mut input) {
                    Step::Read => break,
                    Step::Greeted => self.greeted = true,
                    Step::Answer(byte) => out.push(byte),
                    Step::Piece(piece) => {
                        assert_eq!(piece.offset as usize, self.part.len());
                        self.part.extend(piece.bytes);
                        if piece.is_last() {
                            self.got.push(std::mem::take(&mut self.part));
                        }
                    }
                    Step::Granted => {
                        let size = self.under_way.take().expect("a message is under way");
                        out.extend(body(size));
                        self.link.sent(size);
                        self.taken.push(size);
                    }
                    Step::Rejected(_) => {
                        self.refused.push(self.under_way.take().expect("a message is under way"))
                    }
                    bad @ (Step::Refused(_) | Step::Broken) => panic!("{bad:?} of a peer of ours"),
                }
            }
            let may = self.greeted && self.under_way.is_none() && !self.link.must_keep_quiet();
            let Some(size) = self.wants.front().copied().filter(|_| may) else { return out };
            let Ok(start) = self.link.start(size.into()) else { return out };
            out.extend(start);
            self.under_way = Some(size);
            self.wants.pop_front();
        }
    }

    /// Nothing was on the wire for so long that it means something; whether it did.
    fn quiet(&mut self) -> bool {
        if self.link.is_in_doubt() {
            assert!(matches!(self.link.quiet(), Step::Rejected(_)));
            self.refused.push(self.under_way.take().expect("a message is under way"));
            return true;
        }
        false
    }

    fn is_done(&self) -> bool {
        self.wants.is_empty() && self.under_way.is_none() && self.link.is_idle()
    }
}

fn body(size: u32) -> impl Iterator<Item = u8> {
    (0..size).map(move |i| (i ^ size) as u8)
}

fn pair(data: &[u8]) {
    let (sizes, order) = data.split_at(data.len().min(12));
    let (a, b) = sizes.split_at(sizes.len() / 2);
    let mut sides = [Side::new(Role::Client, a), Side::new(Role::Server, b)];
    let wanted = [sides[0].wants.clone(), sides[1].wants.clone()];
    for side in &mut sides {
        side.inbox.push_back(GO);
    }
    let turn = |sides: &mut [Side; 2], who: usize, n: usize| {
        let out = sides[who].act(n);
        let moved = !out.is_empty();
        sides[1 - who].inbox.extend(out);
        moved
    };
    for byte in order {
        turn(&mut sides, usize::from(byte & 1), usize::from(byte >> 1));
    }
    // Whatever the order was: from here on everything arrives.
    loop {
        let waiting = sides.iter().any(|s| !s.inbox.is_empty());
        let moved = turn(&mut sides, 0, usize::MAX) | turn(&mut sides, 1, usize::MAX);
        if moved || waiting {
            continue;
        }
        if sides.iter().all(Side::is_done) {
            break;
        }
        let doubts = sides.iter_mut().fold(false, |any, s| s.quiet() || any);
        let wary = sides.iter().any(|s| s.link.must_keep_quiet());
        assert!(doubts || wary, "both wait for ever: {:?} {:?}", sides[0].link, sides[1].link);
        if !doubts {
            sides.iter_mut().filter(|s| s.link.must_keep_quiet()).for_each(|s| s.link.kept_quiet());
        }
    }
    for (who, wanted) in wanted.iter().enumerate() {
        let (from, to) = (&sides[who], &sides[1 - who]);
        let good: Vec<u32> = wanted.iter().copied().filter(|s| *s <= LIMIT).collect();
        let bad: Vec<u32> = wanted.iter().copied().filter(|s| *s > LIMIT).collect();
        assert_eq!((&from.taken, &from.refused), (&good, &bad));
        assert_eq!(to.got, good.iter().map(|s| body(*s).collect()).collect::<Vec<Vec<u8>>>());
    }
}
