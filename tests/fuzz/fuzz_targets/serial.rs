//! A serial line: any bytes at one end change nothing that was not said, and two ends whose bytes are damaged in any
//! way say the same in the end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use piman_core::serial::{Event, Link, Role, STREAMS};

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    if kind & 1 == 0 { alone(data) } else { pair(data) }
});

/// Half of the bytes are what is done, half what is heard.
fn alone(data: &[u8]) {
    let (acts, mut heard) = data.split_at(data.len() / 2);
    let mut link = Link::new(Role::Listener, 0);
    let mut out = Default::default();
    for (now, act) in (0..).step_by(100).zip(acts) {
        let (mut input, rest) = heard.split_at(heard.len().min(usize::from(act >> 3)));
        heard = rest;
        while let Some(event) = link.receive(&mut input, now) {
            if let Event::Bytes { stream, bytes } = event {
                assert!(stream < STREAMS && !bytes.is_empty());
                let n = bytes.len();
                link.consumed(stream, n);
            }
        }
        let stream = usize::from(*act) % STREAMS;
        match act & 7 {
            0 => link.end(stream),
            1 => link.cut(stream),
            2 => assert!(link.send(stream, &[7; 300]) <= 300),
            3 => _ = link.tick(now + 60_000),
            4 => link.consumed(stream, usize::from(*act) << 8),
            _ => _ = link.tick(now),
        }
        while let Some(wire) = link.transmit(now, &mut out) {
            assert!(wire.starts_with(&[0]) && wire.ends_with(&[0]));
        }
    }
}

/// How many bytes are damaged at most: a line that damages all frames says nothing, whatever the ends do.
const DAMAGE_MAX: usize = 300;
/// How long the ends may take when the line is sound again, in milliseconds.
const RECOVERY_MS: u64 = 400_000;

/// The dialler says some bytes on one stream; each byte of the input damages one on the line.
fn pair(data: &[u8]) {
    let said: Vec<u8> = (0..1500_u32).map(|i| (i * i >> 3) as u8).collect();
    let mut ends = [Link::new(Role::Dialler, 4711), Link::new(Role::Listener, 0)];
    let (mut got, mut ended, mut stream, mut sent) = (Vec::new(), false, None, 0);
    let mut damage = data.iter().take(DAMAGE_MAX);
    let mut out = Default::default();
    let (mut now, mut end) = (0, RECOVERY_MS);
    while now < end {
        now += 20;
        for at in 0..2 {
            let _ = ends[at].tick(now);
            let mut wire = Vec::new();
            while let Some(bytes) = ends[at].transmit(now, &mut out) {
                wire.extend_from_slice(bytes);
            }
            if !wire.is_empty()
                && let Some(byte) = damage.next()
            {
                end = now + RECOVERY_MS;
                let place = usize::from(*byte) * wire.len() / 256;
                if byte & 1 == 0 {
                    wire[place] ^= byte | 1;
                } else {
                    wire.remove(place);
                }
            }
            let mut input = &wire[..];
            while let Some(event) = ends[1 - at].receive(&mut input, now) {
                match event {
                    Event::Bytes { bytes, stream } => {
                        got.extend_from_slice(bytes);
                        let n = bytes.len();
                        ends[1 - at].consumed(stream, n);
                    }
                    Event::Ended { .. } => ended = true,
                    Event::Up => (got, ended, stream, sent) = (Vec::new(), false, None, 0),
                    Event::Opened { port, .. } => assert_eq!(port, 7),
                    Event::Cut { .. } | Event::Down => panic!("nobody said so"),
                }
            }
        }
        stream = stream.or_else(|| ends[0].open(7));
        if let Some(stream) = stream {
            sent += ends[0].send(stream, &said[sent..]);
            if sent == said.len() {
                ends[0].end(stream);
            }
        }
        if ended {
            return assert_eq!(got, said);
        }
    }
    panic!("it does not end: {ends:?}");
}
