//! Records: whatever the pieces, all bytes are kept in their order and every line is whole; a client hears
//! the same in any pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use piman_core::telemetry::{Client, Records};

fuzz_target!(|data: &[u8]| {
    let [room, chunk, input @ ..] = data else { return };
    let (room, chunk) = (usize::from(*room) + 2, usize::from(*chunk) + 1);
    let mut buf = vec![0; room];
    let mut records = Records::new(&mut buf);
    let (mut rest, mut kept) = (input, Vec::new());
    while !rest.is_empty() {
        let spare = records.spare();
        let n = chunk.min(spare.len()).min(rest.len());
        assert!(n > 0);
        spare[..n].copy_from_slice(&rest[..n]);
        rest = &rest[n..];
        let whole = records.filled(n);
        assert!(whole.is_empty() || whole.ends_with(b"\n"));
        kept.extend_from_slice(whole);
        let _ = records.acknowledgement();
    }
    kept.extend_from_slice(records.rest());
    assert!(kept.is_empty() || kept.ends_with(b"\n"));
    if input.split(|b| *b == b'\n').all(|line| line.len() + 1 < room) {
        let mut want = input.to_vec();
        if !want.is_empty() && !want.ends_with(b"\n") {
            want.push(b'\n');
        }
        assert_eq!(kept, want);
    } else {
        // Long ones are in several lines, nothing else.
        let without = |bytes: &[u8]| bytes.iter().copied().filter(|b| *b != b'\n').collect::<Vec<_>>();
        assert_eq!(without(&kept), without(input));
        assert!(kept.split(|b| *b == b'\n').all(|line| line.len() < room));
    }
    let mut client = Client::default();
    for byte in input {
        let _ = client.receive(*byte);
    }
});
