//! Our clients with old servers, and with servers that lie.

use super::*;

/// A client against a server whose words are fixed, at every chop.
fn asked(upload: bool, ranges: bool, have: &[u8], says: &[u8]) -> (Vec<u8>, End, Folder) {
    let mut last = None;
    for chop in 1..=says.len().max(300) {
        let files = folder(if upload { &[("f", b"0123456789")] } else { &[] });
        if !upload {
            files.borrow_mut().partial.insert("f".to_owned(), have.to_vec());
        }
        let mut script = Script::new(says, chop);
        let mut storage = MemoryStorage::new(&files);
        let end = if upload {
            let mut machine = Upload::new(name("f"), ranges);
            blocking::run(run(&mut script, &mut [0; 7], &mut machine, &mut storage))
        } else {
            let mut machine = Download::new(name("f"), ranges);
            blocking::run(run(&mut script, &mut [0; 7], &mut machine, &mut storage))
        };
        drop(storage);
        let end = end.unwrap_or(End::Closed);
        let now = (script.output, end, Rc::try_unwrap(files).unwrap().into_inner());
        if let Some((output, end, _)) = &last {
            assert_eq!((output, end), (&now.0, &now.1), "in pieces of {chop}");
        }
        last = Some(now);
    }
    last.unwrap()
}

#[test]
fn clients_with_old_servers() {
    let size = 10u64.to_be_bytes();
    let (said, end, after) = asked(false, false, b"junk", &join(&[b"T", &size, b"0123456789"]));
    assert_eq!((said, end), (join(&[&request(b'D', b"f"), b"T"]), End::Done { start: 0, size: 10 }));
    assert_eq!(after.complete["f"], b"0123456789");
    assert_eq!(asked(false, false, b"", b"F\0\0\0\0\0\0\0\0").1, End::Refused(Refusal::Refused));
    assert_eq!(asked(false, false, b"", b"E\0\0\0\0\0\0\0\0").1, End::Refused(Refusal::Failed));
    assert_eq!(asked(false, false, b"", b"xxxxxxxxx").1, End::ProtocolError);
    assert_eq!(asked(false, false, b"", &join(&[b"T", &size, b"012345678"])).1, End::Closed);

    let (said, end, _) = asked(true, false, b"", b"TT");
    assert_eq!(said, join(&[&request(b'U', b"f"), &size, b"0123456789"]));
    assert_eq!(end, End::Done { start: 0, size: 10 });
    assert_eq!(asked(true, false, b"", b"F").1, End::Refused(Refusal::Refused));
    assert_eq!(asked(true, false, b"", b"E").1, End::Refused(Refusal::Failed));
    assert_eq!(asked(true, false, b"", b"TF").1, End::Refused(Refusal::NoSpace));
    assert_eq!(asked(true, false, b"", b"T").1, End::Closed);

    // It answers in any way, or not at all, to what it does not know.
    for upload in [true, false] {
        for says in [&b""[..], b"E", b"F\0\0\0\0\0\0\0\0", b"T"] {
            assert_eq!(asked(upload, true, b"012", says).1, End::NoRanges, "{says:?}");
        }
    }
}

#[test]
fn a_server_that_lies_about_where_it_goes_on_is_not_believed() {
    let size = 10u64.to_be_bytes();
    for start in [1u64, 2, 4, 11, u64::MAX] {
        let says = join(&[b"RT", &size, &start.to_be_bytes(), b"0123456789"]);
        assert_eq!(asked(false, true, b"012", &says).1, End::ProtocolError, "{start}");
    }
    let says = join(&[b"RT", &2u64.to_be_bytes(), &3u64.to_be_bytes()]);
    assert_eq!(asked(false, true, b"012", &says).1, End::ProtocolError);
    let says = join(&[b"RT", &11u64.to_be_bytes(), &hash(b"0123456789")]);
    assert_eq!(asked(true, true, b"", &says).1, End::Closed);
}

#[test]
fn old_servers_can_answer_whether_they_know_ranges() {
    let size = 10u64.to_be_bytes();
    let probe = |says: &[u8]| {
        let mut script = Script::new(says, 3);
        let mut storage = MemoryStorage::new(&folder(&[]));
        let end = blocking::run(run(&mut script, &mut [0; 7], &mut Probe::default(), &mut storage));
        (script.output, end.unwrap())
    };
    let asked = request(b'D', b".piman-ranges");
    assert_eq!(probe(b"Franges-1"), (asked.clone(), End::Ranges));
    for says in [
        &b""[..],
        b"F",
        b"F\0\0\0\0\0\0\0\0",
        b"Franges-0",
        b"Eranges-1",
        b"E\0\0\0\0\0\0\0\0",
        b"T",
        b"xxxxxxxxx",
    ] {
        assert_eq!(probe(says), (asked.clone(), End::NoRanges), "{says:?}");
    }
    // It has a file of that name, and is not left waiting.
    assert_eq!(probe(&join(&[b"T", &size])), (join(&[&asked, b"F"]), End::NoRanges));
}
