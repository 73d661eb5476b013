//! Clients that lie, vanish and are slow, lines that break, files that change.

use super::*;

/// With those who say and take nothing.
fn little() -> Timeouts {
    let two = Duration::from_secs(2);
    let limits = Limits { stall: Some(two), slowest: 50, span: two, ..Limits::NONE };
    Timeouts { talk: two, limits }
}

#[test]
fn lies_about_the_size() {
    let server = serve();
    // Longer than it is: nothing is visible; what came can be resumed.
    let (mut stream, _) = server.old_put(b"short", 10);
    stream.write_all(b"01234").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty() && !server.path("short").exists());
    let out = tempfile::tempdir().unwrap();
    let from = out.path().join("short");
    fs::write(&from, b"0123456789").unwrap();
    let outcome = putting(server.address, &from, "short").unwrap();
    assert_eq!(outcome, Outcome { size: 10, moved: 5, already: false, resumed_at: 5 });
    // Shorter than it is: what was said counts, and the rest is nobody's request.
    let (mut stream, _) = server.old_put(b"long", 10);
    stream.write_all(&noise(100_000, 1)).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(fs::read(server.path("long")).unwrap(), &noise(10, 1)[..]);
    // Another file than what is there is not glued to it.
    let (mut stream, _) = server.old_put(b"other", 10);
    stream.write_all(b"01234").unwrap();
    drop(stream);
    until("the end", || !server.parts().is_empty() && server.old_put(b"probe", u64::MAX).1 == b"TF");
    fs::write(&from, b"abcdefghijkl").unwrap();
    let mut last = None;
    until("its name is free", || {
        last = Some(putting(server.address, &from, "other"));
        !matches!(last, Some(Err(TransferError::Taken)))
    });
    let outcome = last.unwrap().unwrap();
    assert_eq!(outcome, Outcome { size: 12, moved: 12, already: false, resumed_at: 0 });
    assert_eq!(fs::read(server.path("other")).unwrap(), b"abcdefghijkl");
}

#[test]
fn whoever_goes_at_whatever_moment_leaves_nothing_taken() {
    let server = serve();
    fs::write(server.path("down"), noise(5_000_000, 7)).unwrap();
    let request = |op: u8, name: &str| {
        let mut bytes = vec![op];
        bytes.extend_from_slice(name.as_bytes());
        bytes.resize(256, 0);
        bytes
    };
    let mut talks = Vec::new();
    for cut in [0, 1, 100, 255, 256, 257, 260, 264, 265, 270] {
        let mut up = request(b'U', &format!("up {cut}"));
        up.extend_from_slice(&20u64.to_be_bytes());
        up.extend_from_slice(b"0123456789");
        up.truncate(cut);
        talks.push(up);
        let mut down = request(b'D', "down");
        down.extend_from_slice(b"T");
        down.truncate(cut);
        talks.push(down);
        let mut ranges = request(b'R', &format!("ranges {cut}"));
        ranges.extend_from_slice(b"U\0\0\0\0\0\0\0\x14\0\0\0\0\0\0\0\0");
        ranges.extend_from_slice(b"01234");
        ranges.truncate(cut);
        talks.push(ranges);
    }
    for talk in &talks {
        server.connect().write_all(talk).unwrap();
    }
    for cut in [0, 1, 100, 255, 256, 257, 260, 264, 265, 270] {
        for kind in ["up", "ranges"] {
            let file = format!("{kind} {cut}");
            until("the name is free", || {
                let (mut stream, said) = server.old_put(file.as_bytes(), 3);
                said == b"TT" && {
                    stream.write_all(b"abc").unwrap();
                    stream.read(&mut [0]).unwrap() == 0
                }
            });
            assert_eq!(fs::read(server.path(&file)).unwrap(), b"abc");
        }
    }
    assert_eq!(server.parts(), [] as [&Path; 0]);
}

#[test]
fn the_silent_the_slow_and_the_deaf_are_shown_out() {
    let server = serve_with(little());
    fs::write(server.path("big"), noise(50_000_000, 3)).unwrap();
    let mut silent = server.connect();
    // It takes all that the sockets hold, and no more.
    let mut deaf = server.ask(b'D', b"big");
    deaf.write_all(b"T").unwrap();
    let mut slow = server.connect();
    slow.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let began = Instant::now();
    let slow_end = loop {
        if slow.write_all(b"D").is_err() {
            break "reset";
        }
        match slow.read(&mut [0]) {
            Ok(0) => break "closed",
            Ok(_) => panic!("an answer to half a request"),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break "reset",
        }
        assert!(began.elapsed() < Duration::from_secs(60), "the slow one is still there");
    };
    assert!(!slow_end.is_empty());
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    // The others are served meanwhile, and the deaf one does not get the whole of it later.
    assert_eq!(server.old_get(b"big").1.len(), 50_000_000);
    let mut all = Vec::new();
    until("the deaf one's end", || server.gate.open() == 0);
    let end = deaf.read_to_end(&mut all);
    assert!(end.is_err() || all.len() < 50_000_009, "{} bytes", all.len());
}

#[test]
fn a_body_of_a_byte_now_and_then_is_cut_off_and_can_be_resumed() {
    let server = serve_with(little());
    let bytes = noise(10_000, 21);
    let mut slow = server.ask(b'U', b"slow");
    slow.read_exact(&mut [0]).unwrap();
    slow.write_all(&10_000_u64.to_be_bytes()).unwrap();
    slow.read_exact(&mut [0]).unwrap();
    slow.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let began = Instant::now();
    let mut sent = 0;
    // Never silent for long, and never at an end.
    while slow.write_all(&bytes[sent..=sent]).is_ok() {
        sent += 1;
        match slow.read(&mut [0]) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => break,
        }
        assert!(began.elapsed() < Duration::from_secs(60), "the slow one is still there");
    }
    until("its end", || server.gate.open() == 0);
    assert!(!server.path("slow").exists());
    // Its name is free again, and what came is worth something.
    let from = tempfile::NamedTempFile::new().unwrap();
    fs::write(from.path(), &bytes).unwrap();
    let outcome = putting(server.address, from.path(), "slow").unwrap();
    assert!(outcome.resumed_at > 0 && outcome.resumed_at <= sent as u64, "{outcome:?} after {sent}");
    assert!(fs::read(server.path("slow")).unwrap() == bytes);
}

#[test]
fn a_stammering_proxy_changes_nothing() {
    let server = serve();
    let out = tempfile::tempdir().unwrap();
    let bytes = noise(300_000, 11);
    fs::write(server.path("down"), &bytes).unwrap();
    let proxy = stammer(server.address, 42, None);
    let to = out.path().join("down");
    got(proxy, "down", &to).unwrap();
    assert!(fs::read(&to).unwrap() == bytes);
    let outcome = putting(proxy, &to, "up").unwrap();
    assert_eq!(outcome.moved, bytes.len() as u64);
    assert!(fs::read(server.path("up")).unwrap() == bytes);
}

#[test]
fn a_line_that_breaks_again_and_again_only_costs_time() {
    let server = serve();
    let out = tempfile::tempdir().unwrap();
    let bytes = noise(1_000_000, 12);
    fs::write(server.path("down"), &bytes).unwrap();
    // Every connection is cut after some 150 KB.
    let proxy = stammer(server.address, 43, Some(150_000));
    let to = out.path().join("down");
    let mut target = Target::open(&to, false).unwrap();
    let mut breaks = 0;
    let mut count = |p: Progress<'_>| breaks += u32::from(matches!(p, Progress::Again(_)));
    let outcome =
        get(("127.0.0.1", proxy.port()), &name("down"), &mut target, deadlines(), &mut count).unwrap();
    assert!(fs::read(&to).unwrap() == bytes);
    assert!(breaks >= 5, "{breaks}");
    assert!(outcome.moved < 1_100_000, "what was there was fetched again: {outcome:?}");
    let mut breaks = 0;
    let mut count = |p: Progress<'_>| breaks += u32::from(matches!(p, Progress::Again(_)));
    put(&to, ("127.0.0.1", proxy.port()), &name("up"), deadlines(), &mut count).unwrap();
    assert!(fs::read(server.path("up")).unwrap() == bytes);
    assert!(breaks >= 5, "{breaks}");
    assert_eq!(server.parts(), [] as [&Path; 0]);
}

#[test]
fn a_download_that_changed_meanwhile_is_not_glued_together() {
    let server = serve();
    let out = tempfile::tempdir().unwrap();
    let new = noise(100_000, 21);
    fs::write(server.path("f"), &new).unwrap();
    let to = out.path().join("f");
    fs::write(part_beside(&to), noise(60_000, 20)).unwrap();
    let outcome = got(server.address, "f", &to).unwrap();
    assert_eq!(outcome, Outcome { size: 100_000, moved: 100_000, already: false, resumed_at: 0 });
    assert!(fs::read(&to).unwrap() == new);
    // Longer than the file there is now.
    let to = out.path().join("g");
    fs::write(part_beside(&to), noise(200_000, 21)).unwrap();
    got(server.address, "f", &to).unwrap();
    assert!(fs::read(&to).unwrap() == new);
}

#[test]
fn a_file_that_becomes_shorter_is_not_taken_for_whole() {
    let server = serve();
    fs::write(server.path("f"), noise(30_000_000, 1)).unwrap();
    let mut stream = server.ask(b'D', b"f");
    let mut head = [0; 9];
    stream.read_exact(&mut head).unwrap();
    stream.write_all(b"T").unwrap();
    let mut file = fs::OpenOptions::new().write(true).open(server.path("f")).unwrap();
    file.set_len(1000).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes);
    assert!(end.is_err() || bytes.len() < 30_000_000);
}
