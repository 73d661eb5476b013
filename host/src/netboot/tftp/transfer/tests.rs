use super::*;

fn terms(length: u64, windowsize: u16) -> Terms {
    Terms {
        blksize: 512,
        windowsize,
        timeout: None,
        length,
        options: false,
        longest: Duration::from_secs(3600),
    }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// All that is sent at this time, as (first, count) of blocks; (0, 0) are options.
#[track_caller]
fn sends(t: &mut Transfer, at: u64, expected: &[(u64, u16)]) {
    let mut sent = Vec::new();
    while let Some(send) = t.poll_transmit(ms(at)) {
        sent.push(match send {
            Send::Options => (0, 0),
            Send::Blocks { first, count } => (first, count),
        });
    }
    assert_eq!(sent, expected, "at {at} ms");
}

fn ack(t: &mut Transfer, at: u64, block: u16) {
    t.handle(Reply::Ack(block), ms(at));
}

fn timeout(t: &mut Transfer, at: u64) {
    t.handle_timeout(ms(at));
}

#[test]
fn lockstep() {
    let mut t = Transfer::new(terms(1024, 1), ms(0));
    sends(&mut t, 0, &[(1, 1)]);
    ack(&mut t, 1, 1);
    sends(&mut t, 1, &[(2, 1)]);
    ack(&mut t, 2, 2);
    sends(&mut t, 2, &[(3, 1)]);
    assert_eq!(t.place(3), (1024, 0), "a full last block is followed by an empty one");
    assert_eq!(t.outcome(), None);
    ack(&mut t, 3, 3);
    assert_eq!((t.outcome(), t.poll_timeout()), (Some(Outcome::Complete), None));
    sends(&mut t, 4, &[]);
}

#[test]
fn an_empty_file_is_one_empty_block() {
    let mut t = Transfer::new(terms(0, 4), ms(0));
    sends(&mut t, 0, &[(1, 1)]);
    ack(&mut t, 1, 1);
    assert_eq!(t.outcome(), Some(Outcome::Complete));
}

#[test]
fn retransmission_backs_off_until_the_client_is_given_up() {
    let mut t = Transfer::new(terms(9999, 1), ms(0));
    sends(&mut t, 0, &[(1, 1)]);
    let mut times = Vec::new();
    while let Some(at) = t.poll_timeout() {
        let at = u64::try_from(at.as_millis()).unwrap();
        timeout(&mut t, at - 1);
        sends(&mut t, at - 1, &[]);
        timeout(&mut t, at);
        if t.outcome().is_none() {
            times.push(at);
            sends(&mut t, at, &[(1, 1)]);
        }
    }
    assert_eq!(times, [1000, 3000, 7000, 15_000, 23_000]);
    assert_eq!((t.outcome(), t.sent_twice()), (Some(Outcome::Silent), 5));
}

#[test]
fn the_wait_follows_the_round_trip_and_the_clients_wish() {
    let mut t = Transfer::new(terms(9999, 1), ms(0));
    sends(&mut t, 0, &[(1, 1)]);
    ack(&mut t, 1, 1);
    sends(&mut t, 1, &[(2, 1)]);
    assert_eq!(t.poll_timeout(), Some(ms(251)));
    timeout(&mut t, 251);
    sends(&mut t, 251, &[(2, 1)]);
    assert_eq!(t.poll_timeout(), Some(ms(751)), "twice as long");

    let wish = Terms { timeout: Some(Duration::from_secs(3)), ..terms(9999, 1) };
    let mut t = Transfer::new(wish, ms(0));
    for at in [0, 3000, 6000, 9000] {
        timeout(&mut t, at);
        sends(&mut t, at, &[(1, 1)]);
        assert_eq!(t.poll_timeout(), Some(ms(at + 3000)));
    }
}

#[test]
fn a_repeated_acknowledgement_does_not_double_the_traffic() {
    let mut t = Transfer::new(terms(9999, 1), ms(0));
    sends(&mut t, 0, &[(1, 1)]);
    timeout(&mut t, 1000);
    sends(&mut t, 1000, &[(1, 1)]);
    ack(&mut t, 1001, 1);
    sends(&mut t, 1001, &[(2, 1)]);
    // The client answers the block that it got twice.
    ack(&mut t, 1002, 1);
    sends(&mut t, 1002, &[]);
    ack(&mut t, 1003, 2);
    sends(&mut t, 1003, &[(3, 1)]);
}

#[test]
fn options_are_repeated_and_acknowledged() {
    let mut t = Transfer::new(Terms { options: true, ..terms(10, 1) }, ms(0));
    sends(&mut t, 0, &[(0, 0)]);
    ack(&mut t, 1, 1);
    sends(&mut t, 1, &[]);
    timeout(&mut t, 1000);
    sends(&mut t, 1000, &[(0, 0)]);
    ack(&mut t, 1001, 0);
    sends(&mut t, 1001, &[(1, 1)]);
    ack(&mut t, 1002, 0);
    sends(&mut t, 1002, &[]);
    ack(&mut t, 1003, 1);
    assert_eq!(t.outcome(), Some(Outcome::Complete));
}

#[test]
fn windows_and_a_lost_block_inside() {
    let mut t = Transfer::new(terms(512 * 9 + 1, 4), ms(0));
    sends(&mut t, 0, &[(1, 4)]);
    ack(&mut t, 1, 4);
    sends(&mut t, 1, &[(5, 4)]);
    // Block 7 is lost: the client acknowledges 6.
    ack(&mut t, 2, 6);
    sends(&mut t, 2, &[(7, 4)]);
    assert_eq!(t.sent_twice(), 2);
    ack(&mut t, 3, 10);
    assert_eq!(t.outcome(), Some(Outcome::Complete));
}

#[test]
fn the_first_block_of_a_window_is_lost() {
    let mut t = Transfer::new(terms(512 * 20, 4), ms(0));
    sends(&mut t, 0, &[(1, 4)]);
    ack(&mut t, 1, 4);
    sends(&mut t, 1, &[(5, 4)]);
    // 5 is lost; the client says so for each of 6, 7 and 8.
    for at in 2..5 {
        ack(&mut t, at, 4);
    }
    sends(&mut t, 5, &[(5, 4)]);
    ack(&mut t, 6, 4);
    sends(&mut t, 6, &[]);
    ack(&mut t, 7, 8);
    sends(&mut t, 7, &[(9, 4)]);
    ack(&mut t, 8, 8);
    sends(&mut t, 8, &[]);
    ack(&mut t, 9, 12);
    sends(&mut t, 9, &[(13, 4)]);
    // Nothing was sent twice for a whole window: this is a loss again.
    ack(&mut t, 10, 12);
    sends(&mut t, 10, &[(13, 4)]);
}

#[test]
fn a_late_acknowledgement_after_a_timeout_is_taken() {
    let mut t = Transfer::new(terms(512 * 20, 4), ms(0));
    sends(&mut t, 0, &[(1, 4)]);
    timeout(&mut t, 1000);
    ack(&mut t, 1001, 4);
    sends(&mut t, 1001, &[(5, 4)]);
    ack(&mut t, 1002, 60_000);
    ack(&mut t, 1002, 9);
    sends(&mut t, 1002, &[]);
    t.handle(Reply::Other, ms(1003));
    assert_eq!(t.outcome(), None);
}

#[test]
fn block_numbers_wrap_to_0() {
    for windowsize in [1u16, 7, 64] {
        let blocks: u64 = 200_000;
        let mut t = Transfer::new(terms(blocks * 512 - 1, windowsize), ms(0));
        let mut next = 1u64;
        while t.outcome().is_none() {
            let Some(Send::Blocks { first, count }) = t.poll_transmit(ms(next)) else { panic!("stuck") };
            assert_eq!(first, next);
            next += u64::from(count);
            ack(&mut t, next, (next - 1) as u16);
        }
        assert_eq!((t.outcome(), next - 1, t.sent_twice()), (Some(Outcome::Complete), blocks, 0));
    }
}

#[test]
fn the_client_stops_or_takes_too_long() {
    let mut t = Transfer::new(Terms { options: true, ..terms(10, 1) }, ms(0));
    sends(&mut t, 0, &[(0, 0)]);
    t.handle(Reply::Error(8, b"only asking"), ms(1));
    assert_eq!(t.outcome(), Some(Outcome::Stopped(8)));

    let mut t = Transfer::new(Terms { longest: ms(5000), ..terms(1 << 30, 1) }, ms(0));
    for (n, at) in (0..4999).step_by(100).enumerate() {
        while t.poll_transmit(ms(at)).is_some() {}
        ack(&mut t, at, u16::try_from(n + 1).unwrap());
        assert_eq!(t.outcome(), None);
    }
    timeout(&mut t, 5000);
    assert_eq!(t.outcome(), Some(Outcome::TooLong), "it was not silent, but slow");
}
