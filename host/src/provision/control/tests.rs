use super::*;
use piman_core::install::{Can, Fingerprint, Found, Notice, Paths, TEXT_MAX};

/// What a Pi that says nothing costs, in bytes.
fn size<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn the_longest_lines_of_our_agents_fit() {
    let name = "x".repeat(64);
    let hello = Hello {
        serial: Some(&name),
        mac: Some(&name),
        model: Some(&name),
        agent: Some(&name),
        disk_bytes: u64::MAX,
        root_bytes: u64::MAX,
        card_id: Some(&name),
        card: Some(Hash([255; 32])),
        installation: Some(Installation(u64::MAX)),
        paths: Paths { stream: true, image: true },
        can: Can { signed: true, answer: true, disk: true, grow: true, personal: true, early: true },
        revision: u16::MAX,
        found: Some(Found::Incomplete),
        print: Fingerprint::new(u64::MAX),
        personal: Some(Hash([255; 32])),
    };
    let text = "x".repeat(TEXT_MAX + 1);
    let failed = Notice::Failed { stage: Stage::Filesystem, text: &text };
    for notice in [Notice::Hello(hello), Notice::Disk { text: &text }, failed] {
        assert!(notice.to_string().len() + 2 <= LINE);
    }
}

#[test]
fn ten_thousand_idle_connections_need_little_memory() {
    let bytes = size(run);
    assert!(bytes <= 2128, "{bytes} bytes");
}
