use super::*;
use crate::rpc::Slot;
use std::format;
use std::string::String;

fn seen(message: &[u8]) -> String {
    let (mut slots, mut stack, mut memo, mut text) = ([Slot::default(); 40], [0; 20], [0; 5], [0; 20]);
    let (slots, stack, memo, text) = (&mut slots[..], &mut stack[..], &mut memo[..], &mut text[..]);
    match head(message, Memory { slots, stack, memo, text, depth_max: 9, weight_max: 99 }) {
        Some(Head::Answer { retcode, value }) => match value.and_then(Value::fault) {
            Some(fault) => format!("{retcode} {fault}"),
            None => format!("{retcode}"),
        },
        Some(Head::Call { retcode }) => format!("{retcode}"),
        None => String::new(),
    }
}

#[test]
fn heads_of_messages_that_are_cut() {
    let bytes =
        b"\x80\x02c_codecs\nencode\nX\x01\0\0\0AX\x06\0\0\0latin1\x86RKMc_codecs\nencode\nX\x09\0\0\0xx";
    assert_eq!(seen(bytes), "77");
    let error =
        b"\x80\x03C\x01AKMcbuiltins\nValueError\ncbuiltins\nValueError\nX\x02\0\0\0no\x85R](X\x09\0\0\0x";
    assert_eq!(seen(error), "77 ValueError: no");
    assert_eq!(seen(b"\x80\x03(C\x01R\x8a\x09\0\0\0\0\0\0\0\0\x01KM)}t."), "77");
    assert_eq!(seen(b"\x80\x03(C\x01RK"), "");
}
