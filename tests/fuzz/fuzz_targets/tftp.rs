//! TFTP: any packet is read without a panic, no name leads out of a folder, and a transfer keeps its
//! rules whatever the client acknowledges.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use piman::netboot::tftp::folder::own_part;
use piman::netboot::tftp::packet::{Reply, Request};
use piman::netboot::tftp::transfer::{Send, Terms, Transfer};

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = Request::parse(data) {
        assert!(!request.name.contains('\0'));
        if let Some((own, rest)) = own_part(&request.name) {
            assert!(!own.contains('/') && request.name.ends_with(rest));
        }
        assert!(request.asked.blksize.is_none_or(|n| n >= 8) && request.asked.windowsize != Some(0));
    }
    let _ = Reply::parse(data);
    transfer(data);
});

fn transfer(data: &[u8]) {
    let [blksize, windowsize, length, options, replies @ ..] = data else { return };
    let terms = Terms {
        blksize: u16::from(*blksize) + 8,
        windowsize: u16::from(*windowsize % 16) + 1,
        timeout: None,
        length: u64::from(*length) * 100,
        options: options % 2 == 1,
        longest: Duration::from_secs(60),
    };
    let last = terms.length / u64::from(terms.blksize) + 1;
    let mut transfer = Transfer::new(terms, Duration::ZERO);
    let mut now = Duration::ZERO;
    for reply in replies.chunks(4) {
        let mut sent = 0;
        while let Some(send) = transfer.poll_transmit(now) {
            let Send::Blocks { first, count } = send else { continue };
            sent += count;
            assert!(first >= 1 && count >= 1 && first + u64::from(count) - 1 <= last);
            assert!(sent <= terms.windowsize, "never more than a window");
            let (offset, length) = transfer.place(first);
            assert!(offset + u64::from(length) <= terms.length);
        }
        match reply {
            [0, high, low, _] => transfer.handle(Reply::Ack(u16::from_be_bytes([*high, *low])), now),
            [1, block, ..] => transfer.handle(Reply::Ack((*block).into()), now),
            _ => {}
        }
        now += Duration::from_millis(u64::from(reply[0]) * 20);
        transfer.handle_timeout(now);
        if transfer.outcome().is_some() {
            assert_eq!((transfer.poll_timeout(), transfer.poll_transmit(now)), (None, None));
            return;
        }
        assert!(transfer.poll_timeout().is_some());
    }
}
