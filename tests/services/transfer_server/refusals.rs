//! What is refused, and to whom.

use super::*;

#[test]
fn refusals() {
    let server = serve();
    fs::write(server.path("there"), b"x").unwrap();
    fs::write(server.path(".hidden"), b"x").unwrap();
    fs::create_dir(server.path("folder")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", server.path("link")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(server.path("pipe")).status().unwrap().success());
    for bad in [
        &b"nothing"[..],
        b".hidden",
        b"folder",
        b"link",
        b"pipe",
        b"../there",
        b"./there",
        b"folder/../there",
        b".piman-uploads",
        b"a\nb",
        b"\xff",
        b"",
    ] {
        assert_eq!(server.old_get(bad), (b'F', Vec::new()), "{bad:?}");
    }
    for bad in [&b"there"[..], b"folder", b"link", b"pipe", b"../new", b".new", b"a/b", b"\xff", b""] {
        assert_eq!(server.old_put(bad, 5).1, b"F", "{bad:?}");
    }
    assert_eq!(server.old_put(b"huge", u64::MAX).1, b"TF");
    assert_eq!(server.old_put(b"huge", 1 << 50).1, b"TF");
    let mut stream = server.ask(b'X', b"there");
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    assert_eq!(said, b"E");
    assert_eq!(server.parts(), [] as [&Path; 0]);
    let out = tempfile::tempdir().unwrap();
    let e = got(server.address, "nothing", &out.path().join("x")).unwrap_err();
    assert!(matches!(e, TransferError::NotThere), "{e}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    let e = putting(server.address, Path::new("/etc/passwd"), "there").unwrap_err();
    assert!(matches!(e, TransferError::Taken), "{e}");
}

#[test]
fn a_file_that_is_being_uploaded_is_nobody_elses() {
    let server = serve();
    let (mut first, said) = server.old_put(b"a", 10);
    assert_eq!(said, b"TT");
    first.write_all(b"01234").unwrap();
    until("the half", || server.parts().iter().any(|p| p.metadata().unwrap().len() == 5));
    assert_eq!(server.old_put(b"a", 10).1, b"F");
    assert_eq!(server.old_get(b"a").0, b'F');
    assert!(!server.path("a").exists());
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("a"), b"0123456789").unwrap();
    assert!(matches!(putting(server.address, &out.path().join("a"), "a"), Err(TransferError::Taken)));
    first.write_all(b"56789").unwrap();
    assert_eq!(first.read(&mut [0]).unwrap(), 0);
    assert_eq!(server.old_get(b"a"), (b'T', b"0123456789".to_vec()));
}

#[test]
fn many_want_the_same_name_and_one_gets_it() {
    let server = serve();
    let out = tempfile::tempdir().unwrap();
    for i in 0..20 {
        fs::write(out.path().join(i.to_string()), noise(50_000, i)).unwrap();
    }
    let (address, out) = (server.address, out.path());
    let won = thread::scope(|scope| {
        let all: Vec<_> = (0..20)
            .map(|i| scope.spawn(move || putting(address, &out.join(i.to_string()), "one").is_ok()))
            .collect();
        let won = all.into_iter().map(|t| t.join().unwrap());
        won.enumerate().filter(|(_, w)| *w).map(|(i, _)| i as u64).collect::<Vec<_>>()
    });
    assert_eq!(won.len(), 1);
    assert!(fs::read(server.path("one")).unwrap() == noise(50_000, won[0]));
}

#[test]
fn the_broom() {
    let server = serve();
    let folder = server.transfers.folder();
    let (mut stream, _) = server.old_put(b"a", 10);
    stream.write_all(b"01234").unwrap();
    until("the half", || server.parts().iter().any(|p| p.metadata().unwrap().len() == 5));
    assert_eq!(folder.sweep(Duration::ZERO), 0, "it is under way");
    drop(stream);
    assert_eq!(folder.sweep(Duration::from_secs(60)), 0, "it is fresh");
    until("it is swept", || folder.sweep(Duration::ZERO) == 1);
    assert_eq!(server.parts(), [] as [&Path; 0]);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_full_disk() {
    let small = Small::new(16 * 1024);
    let server = serve_in(tempfile::tempdir().unwrap(), &small.path(), Timeouts::default());
    let out = tempfile::tempdir().unwrap();
    let from = out.path().join("f");
    // More than there is.
    fs::write(&from, noise(20_000_000, 1)).unwrap();
    assert!(matches!(putting(server.address, &from, "f"), Err(TransferError::ServerFull)));
    assert_eq!(server.old_put(b"f", 20_000_000).1, b"TF");
    assert_eq!(server.parts(), [] as [&Path; 0]);
    // What one has reserved is not promised to another.
    let (first, said) = server.old_put(b"first", 8_000_000);
    assert_eq!(said, b"TT");
    assert_eq!(server.old_put(b"second", 8_000_000).1, b"TF");
    drop(first);
    until("the reservation's end", || server.old_put(b"second", 8_000_000).1 == b"TT");
    until("the end", || server.parts().is_empty());
    // It becomes full in the middle, by somebody else.
    let (mut stream, said) = server.old_put(b"f", 8_000_000);
    assert_eq!(said, b"TT");
    stream.write_all(&noise(2_000_000, 2)).unwrap();
    until("a part", || server.parts().iter().any(|p| p.metadata().unwrap().len() == 2_000_000));
    let mut hog = File::create(small.path().join("hog")).unwrap();
    let chunk = vec![1; 1 << 16];
    while hog.write_all(&chunk).is_ok() {}
    let _ = hog.sync_all();
    let rest = noise(6_000_000, 3);
    // How it breaks off is a matter of moments; in no case is anything said.
    let _ = stream.write_all(&rest);
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    assert_eq!(said, b"");
    assert!(!small.path().join("f").exists());
    // The others are served.
    fs::write(small.path().join("there"), b"").unwrap();
    assert_eq!(server.old_get(b"there"), (b'T', Vec::new()));
    // What was broken off gives way to who needs the room.
    fs::remove_file(small.path().join("hog")).unwrap();
    drop(hog);
    assert_eq!(server.old_put(b"h", 1 << 40).1, b"TF");
    assert_eq!(server.parts().len(), 1, "nothing is given up if that would not be enough");
    fs::write(&from, noise(14_000_000, 4)).unwrap();
    putting(server.address, &from, "g").unwrap();
    assert!(fs::read(small.path().join("g")).unwrap() == noise(14_000_000, 4));
    assert_eq!(server.parts(), [] as [&Path; 0]);
    // On our side: the server is told, and nothing is left.
    fs::remove_file(small.path().join("g")).unwrap();
    let big = serve();
    fs::write(big.path("big"), noise(20_000_000, 5)).unwrap();
    let e = got(big.address, "big", &small.path().join("big")).unwrap_err();
    assert!(matches!(e, TransferError::Full), "{e}");
    assert!(!small.path().join("big").exists() && !part_beside(&small.path().join("big")).exists());
}
