//! What boot loaders and others say by HTTP, and `boot.sig`: the parsers never panic, and what they say holds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use piman::net::http::range::{Part, Range};
use piman::net::http::request::{HEAD_MAX, Request};
use piman::netboot::boot_sig::{BootSig, SIGNATURE};

fuzz_target!(|data: &[u8]| {
    match Request::parse(data) {
        Ok(Some((request, length))) => {
            assert!(length <= data.len() && request.path.starts_with('/'));
            // Its head alone is the same request, and nothing shorter is one.
            assert_eq!(Request::parse(&data[..length]), Ok(Some((request.clone(), length))));
            assert!(!matches!(Request::parse(&data[..length - 1]), Ok(Some(_))));
            if let Some(value) = &request.range {
                range(value, data.len() as u64);
            }
        }
        Ok(None) => assert!(data.len() < HEAD_MAX),
        Err(bad) => assert!((400..600).contains(&bad.status)),
    }
    if let Ok(text) = std::str::from_utf8(data) {
        range(text, data.len() as u64);
        range(&format!("bytes={text}"), u64::MAX);
    }
    if let Some(sig) = BootSig::parse(data) {
        assert!(sig.rsa2048.as_ref().is_none_or(|signature| signature.len() == SIGNATURE));
        assert_eq!(BootSig::parse(sig.to_string().as_bytes()), Some(sig));
    }
});

fn range(value: &str, length: u64) {
    if let Range::Part(Part { offset, length: part }) = Range::parse(value, length) {
        assert!(part > 0 && offset.checked_add(part).is_some_and(|end| end <= length));
    }
}
