//! Talks between our own peers: postcard, logins, and the calls that are under way against a model.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use piman_core::rpc::auth::{Handshake, Verdict, verify};
use piman_core::rpc::{Calls, Codec, DEPTH_MAX, Encode, Memory, Place, Slot, Value, WEIGHT_MAX, postcard};

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 2 {
        0 => frame(data),
        _ => calls(data),
    }
});

/// Messages one after another, as they lie in a frame.
fn frame(mut data: &[u8]) {
    let mut slots = vec![Slot::default(); 2 * data.len() + 16];
    while !data.is_empty() {
        let Ok((value, used)) = postcard::decode_first(data, memory(&mut slots)) else { return };
        assert!(used > 0 && used <= data.len());
        if value.fault().is_none() {
            same_again(&value, &value.to_string());
        }
        if let Some(step) = Handshake::parse(value) {
            assert_eq!(look(&step, Handshake::parse), Some(step));
            assert!(!verify(Some("a password"), value));
        }
        if let Some(verdict) = Verdict::parse(value) {
            assert_eq!(look(&verdict, Verdict::parse), Some(verdict));
        }
        data = &data[used..];
    }
}

fn memory(slots: &mut [Slot]) -> Memory<'_> {
    let (depth_max, weight_max) = (DEPTH_MAX, WEIGHT_MAX);
    Memory { slots, stack: &mut [], memo: &mut [], text: &mut [], depth_max, weight_max }
}

fn look<T>(value: &dyn Encode, look: impl FnOnce(Value<'_>) -> Option<T>) -> Option<T> {
    let mut buf = vec![0; 1 << 16];
    let n = Codec::Postcard.encode(value, &mut buf).expect("it came in less");
    let mut slots = vec![Slot::default(); 1 << 12];
    look(Codec::Postcard.decode(&buf[..n], memory(&mut slots)).expect("what we write we read"))
}

fn same_again(value: &dyn Encode, text: &str) {
    let mut buf = vec![0; 1 << 16];
    let n = Codec::Postcard.encode(value, &mut buf).expect("it came in less");
    let mut slots = vec![Slot::default(); 2 * n + 16];
    let again = Codec::Postcard.decode(&buf[..n], memory(&mut slots)).expect("what we write we read");
    assert_eq!(again.to_string(), text);
}

/// Beginnings, answers and time, in any order: every call ends once, at its place.
fn calls(data: &[u8]) {
    let mut calls = Calls::new(vec![Place::default(); 5]);
    let mut model: BTreeMap<u32, (usize, u64)> = BTreeMap::new();
    let mut old = Vec::new();
    let mut now = 0;
    for step in data.chunks_exact(3) {
        let (what, a, b) = (step[0], step[1], step[2]);
        match what % 5 {
            0 => {
                let deadline = now + u64::from(b);
                match calls.begin(u32::from(a) << 16 | u32::from(b), deadline) {
                    Ok((retcode, place)) => {
                        assert!(model.len() < 5 && model.values().all(|(p, _)| *p != place));
                        assert!(model.insert(retcode, (place, deadline)).is_none());
                    }
                    Err(_) => assert_eq!(model.len(), 5),
                }
            }
            1 => {
                let retcode = model.keys().nth(usize::from(a) % 5).copied();
                let Some(retcode) = retcode else { continue };
                let (place, _) = model.remove(&retcode).expect("it is there");
                assert_eq!(calls.end(retcode), Some(place));
                assert_eq!(calls.end(retcode), None);
                old.push(retcode);
            }
            2 => {
                let any = old.get(usize::from(a)).copied().unwrap_or(u32::from(a) << 16 | u32::from(b));
                assert_eq!(calls.end(any), model.remove(&any).map(|(place, _)| place));
            }
            3 => {
                now += u64::from(a);
                while let Some(place) = calls.expired(now) {
                    let late = model.iter().find(|(_, (p, d))| *p == place && *d <= now);
                    let retcode = *late.expect("it was under way and is late").0;
                    model.remove(&retcode);
                }
                assert!(model.values().all(|(_, d)| *d > now));
            }
            _ => {
                let first = model.values().map(|(_, d)| *d).min();
                assert!(calls.next_deadline_ms() <= first || first.is_none());
            }
        }
        assert_eq!(calls.under_way(), model.len());
    }
    while let Some(place) = calls.expired(u64::MAX) {
        let retcode = *model.iter().find(|(_, (p, _))| *p == place).expect("it was under way").0;
        model.remove(&retcode);
    }
    assert!(model.is_empty());
}
