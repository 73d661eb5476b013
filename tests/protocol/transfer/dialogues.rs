//! Golden bytes, and dialogues with a server.

use super::*;

/// Repair the code and never this test: these bytes are in the field.
#[test]
fn golden_bytes() {
    let mut buf = [0xaa; REQUEST_LEN];
    let mut padded = b"Da.log".to_vec();
    padded.resize(256, 0);
    assert_eq!(Message::Request(Operation::Download, &name("a.log")).encode(&mut buf), padded);
    padded[0] = b'U';
    assert_eq!(Message::Request(Operation::Upload, &name("a.log")).encode(&mut buf), padded);
    padded[0] = b'R';
    assert_eq!(Message::Request(Operation::Ranges, &name("a.log")).encode(&mut buf), padded);
    assert_eq!(Message::Probe.encode(&mut buf), request(b'D', b".piman-ranges"));
    assert_eq!(RANGES.to_be_bytes(), *b"ranges-1");
    let full = [b'n'; 255];
    let longest = Name::parse(&full).unwrap();
    let sent = Message::Request(Operation::Upload, &longest);
    assert_eq!(sent.encode(&mut buf), request(b'U', &full));
    for (status, byte) in [
        (Status::Go, b'T'),
        (Status::No, b'F'),
        (Status::Error, b'E'),
        (Status::Space, b'S'),
        (Status::Ranges, b'R'),
    ] {
        assert_eq!(Message::Status(status).encode(&mut buf), [byte]);
    }
    let hash = Hash([7; 32]);
    let size = 0x0102_0304_0506_0708;
    assert_eq!(Message::Offer(Status::Go, size).encode(&mut buf), b"T\x01\x02\x03\x04\x05\x06\x07\x08");
    assert_eq!(Message::Size(size).encode(&mut buf), b"\x01\x02\x03\x04\x05\x06\x07\x08");
    assert_eq!(Message::Want(258).encode(&mut buf), b"U\0\0\0\0\0\0\x01\x02");
    assert_eq!(
        Message::From(Status::Go, 258, 3).encode(&mut buf),
        b"T\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x03"
    );
    assert_eq!(Message::Have(258, hash).encode(&mut buf), join(&[b"D\0\0\0\0\0\0\x01\x02", &[7; 32]]));
    assert_eq!(
        Message::Partial(Status::No, 258, hash).encode(&mut buf),
        join(&[b"F\0\0\0\0\0\0\x01\x02", &[7; 32]])
    );
}

#[test]
fn a_download_as_old_peers_do_it() {
    for size in [0usize, 1, 255, 256, 257, 3000] {
        let bytes: Vec<u8> = (0..size).map(|i| i as u8).collect();
        let make = || folder(&[("a b", &bytes)]);
        let said = served(make, &join(&[&request(b'D', b"a b\0 "), b"T"]));
        assert_eq!(said.0, join(&[b"T", &(size as u64).to_be_bytes(), &bytes]));
        assert_eq!(said.1, Ok(End::Done { start: 0, size: size as u64 }));
        let stopped = served(make, &join(&[&request(b'D', b"a b"), b"F"]));
        assert_eq!((stopped.0.len(), stopped.1), (9, Ok(End::Stopped)));
        let strange = served(make, &join(&[&request(b'D', b"a b"), b"x"]));
        assert_eq!((strange.0.len(), strange.1), (9, Ok(End::ProtocolError)));
    }
}

#[test]
fn whether_ranges_are_known_is_asked_by_the_name_of_no_file() {
    let make = || folder(&[(".piman-ranges", b"hidden"), ("f", b"0123")]);
    let (said, end, _) = served(make, &request(b'D', b".piman-ranges"));
    assert_eq!((said.as_slice(), end), (&b"Franges-1"[..], Ok(End::Ranges)));
    // Nothing else has that answer: to old clients there is no such file.
    for (operation, name, answer) in [
        (b'D', &b".piman-ranges2"[..], &b"F\0\0\0\0\0\0\0\0"[..]),
        (b'D', b".piman-range", b"F\0\0\0\0\0\0\0\0"),
        (b'D', b" .piman-ranges", b"F\0\0\0\0\0\0\0\0"),
        (b'D', b"none", b"F\0\0\0\0\0\0\0\0"),
        (b'U', b".piman-ranges", b"F"),
    ] {
        let (said, end, _) = served(make, &request(operation, name));
        assert_eq!((said.as_slice(), end), (answer, Ok(End::Refused(Refusal::Refused))), "{name:?}");
    }
}

#[test]
fn an_upload_as_old_peers_do_it() {
    for size in [0usize, 1, 255, 256, 257, 3000] {
        let bytes: Vec<u8> = (0..size).map(|i| i as u8).collect();
        let input = join(&[&request(b'U', b"new"), &(size as u64).to_be_bytes(), &bytes]);
        let (said, end, after) = served(|| folder(&[]), &input);
        assert_eq!((said.as_slice(), end), (&b"TT"[..], Ok(End::Done { start: 0, size: size as u64 })));
        assert_eq!(after.complete["new"], bytes);
        assert!(after.partial.is_empty() && after.taken.is_empty());
        // More than was said: what was said counts.
        let (_, end, after) = served(|| folder(&[]), &join(&[&input, b"and more"]));
        assert_eq!((end, &after.complete["new"]), (Ok(End::Done { start: 0, size: size as u64 }), &bytes));
        // Less than was said: nothing is visible.
        if size > 0 {
            let (_, end, after) = served(|| folder(&[]), &input[..input.len() - 1]);
            assert_eq!(end, Err(PeerError::Closed));
            assert!(after.complete.is_empty() && after.taken.is_empty());
        }
    }
}

#[test]
fn refusals_as_old_peers_know_them() {
    let make = || {
        let folder = folder(&[("there", b"x")]);
        folder.borrow_mut().taken.insert("busy".to_owned());
        folder.borrow_mut().room = 10;
        folder
    };
    let none = b"F\0\0\0\0\0\0\0\0";
    for bad in [&b"nothing"[..], b"busy", b"../there", b".there", b"a/b", b"a\nb", b"\xff", b""] {
        let (said, end, _) = served(make, &request(b'D', bad));
        assert_eq!((said.as_slice(), end), (&none[..], Ok(End::Refused(Refusal::Refused))));
    }
    for bad in [&b"busy"[..], b"../there", b".there", b"a/b", b"a\nb", b"\xff", b""] {
        let (said, end, _) = served(make, &request(b'U', bad));
        assert_eq!((said.as_slice(), end), (&b"F"[..], Ok(End::Refused(Refusal::Refused))));
    }
    assert_eq!(served(make, &request(b'U', b"there")).0, b"F");
    assert_eq!(served(make, &request(b'X', b"there")).0, b"E");
    let (said, end, after) = served(make, &join(&[&request(b'U', b"big"), &11u64.to_be_bytes()]));
    assert_eq!((said.as_slice(), end), (&b"TF"[..], Ok(End::Refused(Refusal::NoSpace))));
    assert!(!after.taken.contains("big"));
    let (said, ..) = served(make, &join(&[&request(b'U', b"big"), &u64::MAX.to_be_bytes()]));
    assert_eq!(said, b"TF");
}

#[test]
fn silence_and_ends_at_every_byte() {
    let make = || folder(&[("a", b"12345")]);
    let up = join(&[&request(b'U', b"b"), &5u64.to_be_bytes(), b"12345"]);
    let down = join(&[&request(b'D', b"a"), b"T"]);
    let ranges_down = join(&[&request(b'R', b"a"), b"D", &2u64.to_be_bytes(), &hash(b"12"), b"T"]);
    let ranges_up = join(&[&request(b'R', b"b"), b"U", &5u64.to_be_bytes(), &0u64.to_be_bytes(), b"12345"]);
    for whole in [up, down, ranges_down, ranges_up] {
        for cut in 0..whole.len() {
            let (_, end, after) = served(make, &whole[..cut]);
            assert!(matches!(end, Ok(End::Closed) | Err(PeerError::Closed)), "{end:?} after {cut}");
            assert_eq!((after.complete.len(), after.taken.len()), (1, 0));
        }
    }
}

#[test]
fn a_download_goes_on_only_if_it_is_the_same_file() {
    let make = || folder(&[("a", b"0123456789")]);
    let ask = |have: &[u8]| {
        join(&[&request(b'R', b"a"), b"D", &(have.len() as u64).to_be_bytes(), &hash(have), b"T"])
    };
    let answer = |start: u64, rest: &[u8]| join(&[b"RT", &10u64.to_be_bytes(), &start.to_be_bytes(), rest]);
    assert_eq!(served(make, &ask(b"012")).0, answer(3, b"3456789"));
    assert_eq!(served(make, &ask(b"0123456789")).0, answer(10, b""));
    assert_eq!(served(make, &ask(b"")).0, answer(0, b"0123456789"));
    assert_eq!(served(make, &ask(b"01x")).0, answer(0, b"0123456789"));
    assert_eq!(served(make, &ask(b"0123456789a")).0, answer(0, b"0123456789"));
    assert_eq!(served(make, &ask(b"012")).1, Ok(End::Done { start: 3, size: 10 }));
    let lost = join(&[&request(b'R', b"b"), b"D", &3u64.to_be_bytes(), &hash(b"012")]);
    assert_eq!(served(make, &lost).0, join(&[b"RF", &[0; 16]]));
    let bad = join(&[&request(b'R', b".."), b"D", &3u64.to_be_bytes(), &hash(b"012")]);
    assert_eq!(served(make, &bad).0, join(&[b"RF", &[0; 16]]));
}

#[test]
fn an_upload_goes_on_only_if_it_is_the_same_file() {
    let make = || {
        let folder = folder(&[("same", b"0123456789")]);
        folder.borrow_mut().partial.insert("a".to_owned(), b"012".to_vec());
        folder
    };
    let ask = |name: &[u8], size: u64, start: u64, rest: &[u8]| {
        join(&[&request(b'R', name), b"U", &size.to_be_bytes(), &start.to_be_bytes(), rest])
    };
    let partial = |status: u8, have: u64, hash: &[u8]| join(&[b"R", &[status], &have.to_be_bytes(), hash]);
    let there = partial(b'T', 3, &hash(b"012"));
    let (said, end, after) = served(make, &ask(b"a", 10, 3, b"3456789"));
    assert_eq!((said, end), (join(&[&there, b"T"]), Ok(End::Done { start: 3, size: 10 })));
    assert_eq!(after.complete["a"], b"0123456789");
    let (said, end, after) = served(make, &ask(b"a", 10, 0, b"abcdefghij"));
    assert_eq!((said, end), (join(&[&there, b"T"]), Ok(End::Done { start: 0, size: 10 })));
    assert_eq!(after.complete["a"], b"abcdefghij");
    // Smaller than what is there: it is of another file.
    let (said, _, after) = served(make, &ask(b"a", 2, 0, b"01"));
    assert_eq!(said, join(&[&partial(b'T', 0, &[0; 32]), b"T"]));
    assert_eq!(after.complete["a"], b"01");
    // From anywhere else.
    assert_eq!(served(make, &ask(b"a", 10, 2, b"23456789")).1, Ok(End::ProtocolError));
    // There already: the same as far as the size tells, and not.
    assert_eq!(served(make, &ask(b"same", 10, 0, b"")).0, partial(b'F', 10, &hash(b"0123456789")));
    assert_eq!(served(make, &ask(b"same", 9, 0, b"")).0, partial(b'F', 0, &[0; 32]));
    let full = || {
        let folder = make();
        folder.borrow_mut().room = 6;
        folder
    };
    assert_eq!(served(full, &ask(b"a", 10, 3, b"")).0, partial(b'S', 0, &[0; 32]));
    let breaks = || {
        let folder = make();
        folder.borrow_mut().breaks_at = Some(5);
        folder
    };
    let (said, end, after) = served(breaks, &ask(b"a", 10, 3, b"3456789"));
    assert_eq!((said, end), (join(&[&there, b"S"]), Ok(End::Broken(Refusal::NoSpace))));
    assert!(!after.complete.contains_key("a"));
}
