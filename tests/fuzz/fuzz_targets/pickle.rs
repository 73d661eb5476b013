//! Pickles: where one ends does not depend on how the stream was cut, and what is read can be written
//! in both codecs and is the same then.
#![no_main]

use libfuzzer_sys::fuzz_target;
use piman_core::rpc::pickle::{Assembler, Scanner};
use piman_core::rpc::{Codec, DEPTH_MAX, DecodeError, Memory, Message, Session, Slot, Value, WEIGHT_MAX};

const ROOM: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let Some((chunk, input)) = data.split_first() else { return };
    let whole = messages(input, usize::MAX);
    assert_eq!(whole, messages(input, usize::from(*chunk) + 1));
    let text = read(Codec::Pickle, input, |value| {
        let mut session = Session::new([], 1);
        let _ = session.handle(value);
        if let Some(Message::Call(call)) = Message::parse(value) {
            assert!(call.keywords.len().is_multiple_of(2));
        }
        for codec in [Codec::Pickle, Codec::Postcard] {
            write_and_read(codec, value);
        }
    });
    if text.is_ok() {
        assert_eq!(Scanner::new(u64::MAX).feed(input), Ok(Some(input.len())), "{text:?}");
    }
});

/// What was read, to look at, and as text.
fn read(codec: Codec, message: &[u8], look: impl FnOnce(Value<'_>)) -> Result<String, DecodeError> {
    let (mut slots, mut stack, mut memo) = (vec![Slot::default(); 2000], vec![0; 500], vec![0; 500]);
    let mut text = vec![0; ROOM];
    let memory = Memory {
        slots: &mut slots,
        stack: &mut stack,
        memo: &mut memo,
        text: &mut text,
        depth_max: DEPTH_MAX,
        weight_max: WEIGHT_MAX.min(5000),
    };
    let value = codec.decode(message, memory)?;
    look(value);
    Ok(value.to_string())
}

/// What has no class in it is the same again; what unfolds too far may be refused.
fn write_and_read(codec: Codec, value: Value<'_>) {
    let mut buf = vec![0; 1 << 17];
    let Ok(n) = codec.encode(&value, &mut buf) else { return };
    let again = read(codec, &buf[..n], |_| {});
    if value.fault().is_none() {
        match again {
            Ok(text) => assert_eq!(text, value.to_string()),
            Err(e) => assert_eq!(e, DecodeError::NoRoom, "{value}"),
        }
    }
}

/// All whole messages, and how it ended.
fn messages(mut input: &[u8], chunk: usize) -> (Vec<Vec<u8>>, Option<DecodeError>) {
    let mut buf = vec![0; ROOM];
    let mut assembler = Assembler::new(&mut buf);
    let mut out = Vec::new();
    loop {
        loop {
            match assembler.next_message() {
                Ok(Some(message)) => out.push(message.to_vec()),
                Ok(None) => break,
                Err(e) => return (out, Some(e)),
            }
        }
        let spare = assembler.spare();
        assert!(!spare.is_empty());
        let n = chunk.min(spare.len()).min(input.len());
        if n == 0 {
            return (out, None);
        }
        spare[..n].copy_from_slice(&input[..n]);
        input = &input[n..];
        assembler.filled(n);
    }
}
