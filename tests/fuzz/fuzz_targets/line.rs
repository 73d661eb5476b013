//! The framer: where the stream is cut makes no difference, and no line is lost.
#![no_main]

use libfuzzer_sys::fuzz_target;
use piman_core::line::Framer;

fuzz_target!(|data: &[u8]| {
    let [room, chunk, input @ ..] = data else { return };
    let room = usize::from(*room) + 1;
    let at_once = lines(input, usize::MAX, room);
    assert_eq!(at_once, lines(input, usize::from(*chunk) + 1, room));
    assert_eq!(at_once, expected(input, room));
});

/// Every line, or `None` for one that is too long.
fn lines(mut input: &[u8], chunk: usize, room: usize) -> Vec<Option<Vec<u8>>> {
    let mut buf = vec![0; room];
    let mut framer = Framer::new(&mut buf);
    let mut out = Vec::new();
    loop {
        loop {
            match framer.next_line() {
                Ok(Some(line)) => out.push(Some(line.to_vec())),
                Ok(None) => break,
                Err(_) => out.push(None),
            }
        }
        let spare = framer.spare();
        assert!(!spare.is_empty());
        let n = chunk.min(spare.len()).min(input.len());
        if n == 0 {
            out.extend(framer.rest().map(|l| Some(l.to_vec())));
            return out;
        }
        spare[..n].copy_from_slice(&input[..n]);
        input = &input[n..];
        framer.filled(n);
    }
}

/// The same, in the simplest way.
fn expected(input: &[u8], room: usize) -> Vec<Option<Vec<u8>>> {
    let mut parts: Vec<&[u8]> = input.split(|b| *b == b'\n').collect();
    let rest = parts.pop().unwrap_or_default();
    let strip = |line: &[u8]| line.strip_suffix(b"\r").unwrap_or(line).to_vec();
    let mut out: Vec<_> = parts.iter().map(|line| (line.len() < room).then(|| strip(line))).collect();
    if !rest.is_empty() {
        out.push((rest.len() < room).then(|| strip(rest)));
    }
    out
}
