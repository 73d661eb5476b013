//! Both ends of a serial line in memory, on simulated time: bytes are lost, damaged and invented, and nobody above
//! notices more than that it takes longer.

use std::collections::VecDeque;

use piman_core::serial::{Event, Link, Role, STREAMS};
use piman_tests::chance::{Random, noise};

/// How bad a line is: one in so many bytes, each; 0: never.
#[derive(Clone, Copy)]
struct Faults {
    lost: u64,
    flipped: u64,
    invented: u64,
}

/// One end with a program: it answers every stream with what came in on it, turned around.
struct End {
    link: Link,
    /// Bytes on the line towards this end, with the time when they are there.
    line: VecDeque<(u64, u8)>,
    /// When the last byte towards it has left.
    busy_us: u64,
    streams: [Program; STREAMS],
    ups: usize,
    downs: usize,
}

#[derive(Default, Clone)]
struct Program {
    open: bool,
    port: u16,
    out: VecDeque<u8>,
    ended: bool,
    got: Vec<u8>,
    peer_ended: bool,
    cut: bool,
    /// Takes nothing off the stream: no credit is given back.
    lazy: bool,
}

impl End {
    fn new(role: Role, session: u16) -> Self {
        let streams = std::array::from_fn(|_| Program::default());
        Self { link: Link::new(role, session), line: VecDeque::new(), busy_us: 0, streams, ups: 0, downs: 0 }
    }

    fn step(&mut self, now_us: u64) {
        let now = now_us / 1000;
        let mut bytes = Vec::new();
        while self.line.front().is_some_and(|(at, _)| *at <= now_us) {
            bytes.extend(self.line.pop_front().map(|(_, byte)| byte));
        }
        let mut input = &bytes[..];
        while let Some(event) = self.link.receive(&mut input, now) {
            match event {
                Event::Up => {
                    self.ups += 1;
                    self.streams = std::array::from_fn(|_| Program::default());
                }
                Event::Down => unreachable!("time tells that"),
                Event::Opened { stream, port } => {
                    // Its last user has said all there.
                    self.streams[stream] = Program { open: true, port, ..Program::default() };
                }
                Event::Bytes { stream, bytes } => {
                    let program = &mut self.streams[stream];
                    assert!(program.open && !program.peer_ended, "bytes on a stream that is not open");
                    program.got.extend(bytes);
                    let (n, lazy) = (bytes.len(), program.lazy);
                    if program.port == 7 {
                        program.out.extend(bytes);
                    }
                    if !lazy {
                        self.link.consumed(stream, n);
                    }
                }
                Event::Ended { stream } => {
                    self.streams[stream].peer_ended = true;
                    self.streams[stream].ended |= self.streams[stream].port == 7;
                }
                Event::Cut { stream } => self.streams[stream].cut = true,
            }
        }
        if let Some(Event::Down) = self.link.tick(now) {
            self.downs += 1;
        }
        for (at, program) in self.streams.iter_mut().enumerate() {
            if !program.open {
                continue;
            }
            while self.link.room(at) > 0 && !program.out.is_empty() {
                let n = self.link.send(at, program.out.make_contiguous());
                program.out.drain(..n);
            }
            if program.ended && program.out.is_empty() {
                self.link.end(at);
            }
        }
    }
}

struct Line {
    ends: [End; 2],
    random: Random,
    faults: Faults,
    now_us: u64,
    bytes: u64,
}

impl Line {
    fn new(seed: u64, faults: Faults) -> Self {
        let ends = [End::new(Role::Dialler, seed as u16), End::new(Role::Listener, 0)];
        Self { ends, random: Random::new(seed), faults, now_us: 0, bytes: 0 }
    }

    /// 115,200 baud: 87 microseconds a byte.
    fn run(&mut self, seconds: u64, done: impl Fn(&[End; 2]) -> bool) -> bool {
        let until = self.now_us + seconds * 1_000_000;
        let mut out = Default::default();
        while self.now_us < until {
            for at in 0..2 {
                self.ends[at].step(self.now_us);
                // As much as a driver's buffer holds.
                while self.ends[1 - at].busy_us < self.now_us + 5_000 {
                    let Some(wire) = self.ends[at].link.transmit(self.now_us / 1000, &mut out) else { break };
                    let wire = wire.to_vec();
                    self.bytes += wire.len() as u64;
                    self.put(1 - at, &wire);
                }
            }
            if done(&self.ends) {
                return true;
            }
            self.now_us += 1_000;
        }
        false
    }

    fn put(&mut self, to: usize, wire: &[u8]) {
        for byte in wire {
            let mut byte = *byte;
            let end = &mut self.ends[to];
            end.busy_us = end.busy_us.max(self.now_us) + 87;
            if self.random.one_in(self.faults.lost) {
                continue;
            }
            if self.random.one_in(self.faults.flipped) {
                byte ^= 1 << self.random.below(8);
            }
            end.line.push_back((end.busy_us, byte));
            if self.random.one_in(self.faults.invented) {
                end.line.push_back((end.busy_us, self.random.below(256) as u8));
            }
        }
    }

    /// The dialler opens a stream and says all of this on it.
    fn dial(&mut self, port: u16, bytes: Vec<u8>) -> usize {
        let [end, other] = &mut self.ends;
        let at = end.link.open(port).expect("a free stream");
        end.streams[at] =
            Program { open: true, port: 1, out: bytes.into(), ended: true, ..Program::default() };
        // What its last user got is not what this one gets.
        other.streams[at] = Program::default();
        at
    }
}

#[test]
fn echoes_come_back_whole_over_lines_of_all_kinds() {
    let faults = |lost, flipped, invented| Faults { lost, flipped, invented };
    for (seed, faults) in [
        (1, faults(0, 0, 0)),
        (2, faults(1000, 0, 0)),
        (3, faults(0, 1000, 0)),
        (4, faults(0, 0, 1000)),
        (5, faults(700, 700, 700)),
    ] {
        let mut line = Line::new(seed, faults);
        assert!(line.run(20, |ends| ends.iter().all(|e| e.link.is_up())), "seed {seed}");
        let began = line.now_us;
        let sent: Vec<Vec<u8>> = [0, 1, 5_000, 20_000].iter().map(|n| noise(*n, seed + *n as u64)).collect();
        let streams: Vec<usize> = sent.iter().map(|bytes| line.dial(7, bytes.clone())).collect();
        let done = |ends: &[End; 2]| streams.iter().all(|at| ends[0].streams[*at].peer_ended);
        assert!(line.run(300, done), "seed {seed}: it did not end");
        for (at, sent) in streams.iter().zip(&sent) {
            assert!(line.ends[0].streams[*at].got == *sent, "seed {seed}");
            assert!(line.ends[1].streams[*at].got == *sent, "seed {seed}");
        }
        assert_eq!((line.ends[0].ups, line.ends[1].ups, line.ends[0].downs), (1, 1, 0));
        let seconds = (line.now_us - began) as f64 / 1e6;
        // 25,001 bytes in each direction; both directions are used at once.
        println!("seed {seed}: {seconds:.1} s, {:.2} of the line", 25_001.0 * 87e-6 / seconds);
        if seed == 1 {
            assert!(seconds < 3.2, "a good line is used for more than two thirds: {seconds}");
        }
    }
}

#[test]
fn streams_come_and_go_in_their_places() {
    let mut line = Line::new(9, Faults { lost: 3000, flipped: 3000, invented: 3000 });
    assert!(line.run(20, |ends| ends.iter().all(|e| e.link.is_up())));
    for round in 0..40 {
        let sent = noise(100 + round, round as u64);
        let at = line.dial(7, sent.clone());
        assert!(line.run(60, |ends| ends[0].streams[at].peer_ended), "round {round}");
        assert!(line.ends[0].streams[at].got == sent, "round {round}");
    }
    // The listener refuses, the dialler changes its mind, both at once.
    for round in 0..40 {
        let at = line.dial(5, noise(3000, 5));
        assert!(line.run(60, |ends| ends[1].streams[at].open && !ends[1].streams[at].got.is_empty()));
        for end in [0, 1] {
            if round % 3 == 2 || round % 3 == end {
                line.ends[end].link.cut(at);
                line.ends[end].streams[at] = Program::default();
            }
        }
        line.run(1, |ends| ends[0].streams[at].cut && ends[1].streams[at].cut);
        line.ends.iter_mut().for_each(|e| e.streams[at] = Program::default());
    }
    // When all is said, all places are free again.
    line.run(60, |_| false);
    let all: Vec<usize> = (0..STREAMS).map(|_| line.dial(7, vec![1])).collect();
    assert!(line.ends[0].link.open(7).is_none());
    assert!(line.run(60, |ends| all.iter().all(|at| ends[0].streams[*at].got == [1])));
}

#[test]
fn a_stream_that_nobody_reads_holds_up_no_other() {
    let mut line = Line::new(11, Faults { lost: 0, flipped: 0, invented: 0 });
    assert!(line.run(20, |ends| ends.iter().all(|e| e.link.is_up())));
    let stuck = line.dial(9, noise(100_000, 1));
    assert!(line.run(1, |ends| ends[1].streams[stuck].open));
    line.ends[1].streams[stuck].lazy = true;
    line.run(5, |_| false);
    assert!(line.ends[1].streams[stuck].got.len() <= 8192, "the credit bounds what waits");
    let other = line.dial(7, noise(10_000, 2));
    assert!(line.run(20, |ends| ends[0].streams[other].peer_ended));
}

#[test]
fn an_end_that_begins_anew_is_understood_and_one_that_is_gone_is_missed() {
    let mut line = Line::new(13, Faults { lost: 0, flipped: 0, invented: 0 });
    assert!(line.run(20, |ends| ends.iter().all(|e| e.link.is_up())));
    let at = line.dial(7, noise(50_000, 1));
    line.run(1, |_| false);
    // The dialling program is started again.
    line.ends[0] = End::new(Role::Dialler, 4711);
    assert!(line.run(20, |ends| ends[0].link.is_up() && ends[1].ups == 2));
    assert!(!line.ends[1].streams[at].open);
    let again = line.dial(7, noise(1_000, 2));
    assert!(line.run(20, |ends| ends[0].streams[again].peer_ended));
    // The cable is pulled, while something is under way.
    line.dial(7, noise(1_000, 3));
    line.faults.lost = 1;
    assert!(line.run(120, |ends| ends[0].downs == 1));
    line.faults.lost = 0;
    assert!(line.run(60, |ends| ends[0].ups == 2));
    let last = line.dial(7, noise(1_000, 4));
    assert!(line.run(20, |ends| ends[0].streams[last].peer_ended));
}

#[test]
fn an_idle_line_is_quiet_and_a_listener_that_begins_anew_is_dialled_again() {
    let mut line = Line::new(17, Faults { lost: 0, flipped: 0, invented: 0 });
    assert!(line.run(20, |ends| ends.iter().all(|e| e.link.is_up())));
    let before = line.bytes;
    assert!(!line.run(600, |ends| ends[0].downs + ends[1].downs > 0));
    let spent = line.bytes - before;
    assert!((60..3600).contains(&spent), "{spent} bytes in ten minutes of silence");
    // A stream is used as ever, and what it has as credit is its own.
    let at = line.dial(7, noise(5_000, 1));
    assert!(line.run(20, |ends| ends[0].streams[at].peer_ended && ends[0].streams[at].got.len() == 5_000));
    // The listening program is started again, and nobody has anything to say.
    line.run(5, |_| false);
    line.ends[1] = End::new(Role::Listener, 0);
    assert!(line.run(60, |ends| ends[1].link.is_up() && ends[0].ups == 2), "nobody speaks again");
    assert!(line.ends[0].link.deadline_ms().is_some(), "it is to be woken");
    let again = line.dial(7, noise(1_000, 2));
    assert!(line.run(20, |ends| ends[0].streams[again].peer_ended));
}
