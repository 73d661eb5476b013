//! Files of every size, and many at once.

use super::*;

#[test]
fn sizes_down_and_up_by_old_and_by_our_clients() {
    let server = serve();
    let out = tempfile::tempdir().unwrap();
    for size in [0usize, 1, 255, 256, 257, 3_000_000] {
        let bytes = noise(size, size as u64);
        let long = "n".repeat(255 - size.to_string().len()) + &size.to_string();
        let (mut stream, said) = server.old_put(long.as_bytes(), size as u64);
        assert_eq!(said, b"TT");
        stream.write_all(&bytes).unwrap();
        // The server closes when it has them all: then the file is there.
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        assert_eq!(fs::read(server.path(&long)).unwrap(), bytes);
        assert!(server.old_get(long.as_bytes()) == (b'T', bytes.clone()));
        let to = out.path().join(&long);
        let outcome = got(server.address, &long, &to).unwrap();
        assert_eq!((outcome.size, outcome.moved), (size as u64, size as u64));
        assert!(fs::read(&to).unwrap() == bytes);
        let up = format!("up {size}");
        let outcome = putting(server.address, &to, &up).unwrap();
        assert_eq!((outcome.size, outcome.moved, outcome.already), (size as u64, size as u64, false));
        assert!(fs::read(server.path(&up)).unwrap() == bytes);
        let outcome = putting(server.address, &to, &up).unwrap();
        assert_eq!((outcome.moved, outcome.already), (0, true));
    }
    assert_eq!(server.parts(), [] as [&Path; 0]);
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 6);
}

#[test]
fn more_than_4_gib() {
    let server = serve();
    let size = 5u64 << 30;
    let sparse = File::create(server.path("sparse")).unwrap();
    sparse.set_len(size).unwrap();
    sparse.write_all_at(b"last", size - 4).unwrap();
    let mut stream = server.ask(b'D', b"sparse");
    let mut head = [0; 9];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head, [&b"T"[..], &size.to_be_bytes()].concat()[..]);
    stream.write_all(b"T").unwrap();
    let mut buf = vec![0; 1 << 20];
    let mut tail = Vec::new();
    let mut total = 0;
    loop {
        let n = stream.read(&mut buf).unwrap();
        if n == 0 {
            break;
        }
        total += n as u64;
        tail.extend_from_slice(&buf[n.saturating_sub(4)..n]);
        tail.drain(..tail.len().saturating_sub(4));
    }
    assert_eq!((total, tail.as_slice()), (size, &b"last"[..]));
    // Only what is missing is fetched.
    let out = tempfile::tempdir().unwrap();
    let to = out.path().join("sparse");
    let have = size - 1_000_000;
    File::create(part_beside(&to)).unwrap().set_len(have).unwrap();
    let outcome = got(server.address, "sparse", &to).unwrap();
    assert_eq!(outcome, Outcome { size, moved: 1_000_000, already: false, resumed_at: have });
    let mut end = [0; 4];
    File::open(&to).unwrap().read_exact_at(&mut end, size - 4).unwrap();
    assert_eq!(&end, b"last");
}

#[test]
fn two_hundred_at_once() {
    let server = serve();
    let out = tempfile::tempdir().unwrap();
    let size = |i: u64| 20_000 + 997 * i as usize;
    for i in 0..100 {
        fs::write(server.path(&format!("down {i}")), noise(size(i), i)).unwrap();
        fs::write(out.path().join(format!("up {i}")), noise(size(i), 1000 + i)).unwrap();
    }
    let (address, out) = (server.address, out.path());
    thread::scope(|scope| {
        for i in 0..100 {
            scope.spawn(move || got(address, &format!("down {i}"), &out.join(format!("down {i}"))).unwrap());
            scope.spawn(move || {
                putting(address, &out.join(format!("up {i}")), &format!("up {i}")).unwrap();
            });
        }
    });
    for i in 0..100 {
        assert!(fs::read(out.join(format!("down {i}"))).unwrap() == noise(size(i), i), "{i}");
        assert!(fs::read(server.path(&format!("up {i}"))).unwrap() == noise(size(i), 1000 + i), "{i}");
    }
    assert_eq!(server.parts(), [] as [&Path; 0]);
}

#[test]
fn an_upload_goes_on_behind_4_gib() {
    let server = serve();
    let out = tempfile::tempdir().unwrap();
    let from = out.path().join("sparse");
    let size = 5u64 << 30;
    let file = File::create(&from).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(b"last", size - 4).unwrap();
    let part = blake3::hash(b"sparse").to_hex();
    let part = server.path(".piman-uploads").join(format!("{part:.32}.part"));
    let have = size - 1_000_000;
    File::create(part).unwrap().set_len(have).unwrap();
    let outcome = putting(server.address, &from, "sparse").unwrap();
    assert_eq!(outcome, Outcome { size, moved: 1_000_000, already: false, resumed_at: have });
    let there = File::open(server.path("sparse")).unwrap();
    let mut end = [0; 4];
    there.read_exact_at(&mut end, size - 4).unwrap();
    assert_eq!((there.metadata().unwrap().len(), &end), (size, b"last"));
}
