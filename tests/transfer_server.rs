//! The transfer service over real sockets and files: clients that lie, vanish and stammer, full
//! disks, many at once.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use piman::listen::Gate;
use piman::transfer::{
    Deadlines, Folder, Outcome, Patience, Progress, Target, TransferError, Transfers, get, put, run,
};
use piman_core::transfer::Name;
use piman_tests::proxy::stammer;
use piman_tests::small::Small;
use piman_tests::wait::until;

struct Server {
    dir: tempfile::TempDir,
    address: SocketAddr,
    transfers: Arc<Transfers>,
    gate: Arc<Gate>,
    _runtime: tokio::runtime::Runtime,
}

/// With those who say and take nothing.
fn little() -> Patience {
    Patience { talk: Duration::from_secs(2), stall: Duration::from_secs(2), slowest: 50 }
}

fn serve_in(dir: tempfile::TempDir, folder: &Path, patience: Patience) -> Server {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let transfers = Arc::new(Transfers::new(Arc::new(Folder::open(folder).unwrap()), patience));
    let gate = Gate::new("transfer", 1000, 1000);
    runtime.spawn(run(listener, gate.clone(), transfers.clone(), Duration::from_secs(3600), |_| ()));
    Server { dir, address, transfers, gate, _runtime: runtime }
}

fn serve_with(patience: Patience) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_owned();
    serve_in(dir, &folder, patience)
}

fn serve() -> Server {
    serve_with(Patience::default())
}

impl Server {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Opens with a request.
    fn ask(&self, operation: u8, name: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let mut request = vec![operation];
        request.extend_from_slice(name);
        request.resize(256, 0);
        stream.write_all(&request).unwrap();
        stream
    }

    /// What an old client gets for a name.
    fn old_get(&self, name: &[u8]) -> (u8, Vec<u8>) {
        let mut stream = self.ask(b'D', name);
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let mut bytes = Vec::new();
        if head[0] == b'T' {
            stream.write_all(b"T").unwrap();
        }
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, u64::from_be_bytes(head[1..].try_into().unwrap()));
        (head[0], bytes)
    }

    /// Begins as an old client does; the answers.
    fn old_put(&self, name: &[u8], size: u64) -> (TcpStream, Vec<u8>) {
        let mut stream = self.ask(b'U', name);
        let mut said = vec![0];
        stream.read_exact(&mut said).unwrap();
        if said == b"T" {
            stream.write_all(&size.to_be_bytes()).unwrap();
            said.push(0);
            stream.read_exact(&mut said[1..]).unwrap();
        }
        (stream, said)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn parts(&self) -> Vec<std::path::PathBuf> {
        let parts = self.transfers.folder().path().join(".piman-uploads");
        fs::read_dir(parts).unwrap().map(|e| e.unwrap().path()).collect()
    }
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut out);
    out
}

fn name(text: &str) -> Name {
    Name::parse(text.as_bytes()).unwrap()
}

fn deadlines() -> Deadlines {
    Deadlines { silence: Duration::from_secs(60), pause: Duration::from_millis(10), ..Deadlines::default() }
}

fn got(server: SocketAddr, file: &str, to: &Path) -> Result<Outcome, TransferError> {
    let mut target = Target::open(to, false).map_err(TransferError::Local)?;
    get(("127.0.0.1", server.port()), &name(file), &mut target, deadlines(), &mut |_| {})
}

fn putting(server: SocketAddr, from: &Path, file: &str) -> Result<Outcome, TransferError> {
    put(from, ("127.0.0.1", server.port()), &name(file), deadlines(), &mut |_| {})
}

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

/// Where our client keeps what it has so far.
fn part_beside(to: &Path) -> std::path::PathBuf {
    let hash = blake3::hash(to.file_name().unwrap().as_encoded_bytes()).to_hex();
    to.with_file_name(format!(".piman-{hash:.16}.part"))
}

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
fn a_full_disk() {
    let Some(small) = Small::new(16 * 1024) else { return };
    let server = serve_in(tempfile::tempdir().unwrap(), &small.path(), Patience::default());
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
    let sent = stream.write_all(&rest);
    let mut said = Vec::new();
    let end = stream.read_to_end(&mut said);
    assert!(said.is_empty() && (sent.is_err() || end.is_ok() || end.is_err()));
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

/// A server of old: it knows `D` and `U`, and does with anything else what `odd` says.
fn old_server(
    content: &'static [u8],
    odd: &'static [u8],
) -> (SocketAddr, std::sync::mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 256];
            if stream.read_exact(&mut request).is_err() {
                continue;
            }
            match request[0] {
                b'D' => {
                    stream.write_all(b"T").unwrap();
                    stream.write_all(&(content.len() as u64).to_be_bytes()).unwrap();
                    stream.read_exact(&mut [0]).unwrap();
                    stream.write_all(content).unwrap();
                }
                b'U' => {
                    let mut size = [0; 8];
                    stream.write_all(b"T").unwrap();
                    stream.read_exact(&mut size).unwrap();
                    stream.write_all(b"T").unwrap();
                    let mut bytes = vec![0; u64::from_be_bytes(size) as usize];
                    stream.read_exact(&mut bytes).unwrap();
                    tell.send(bytes).unwrap();
                }
                _ => stream.write_all(odd).unwrap(),
            }
        }
    });
    (address, told)
}

#[test]
fn our_clients_with_servers_of_old() {
    let out = tempfile::tempdir().unwrap();
    for odd in [&b""[..], b"E", b"F\0\0\0\0\0\0\0\0", b"T"] {
        let (address, told) = old_server(b"0123456789", odd);
        let to = out.path().join(format!("f{}", odd.len()));
        // What is there is of no use without ranges.
        fs::write(part_beside(&to), b"012").unwrap();
        let outcome = got(address, "f", &to).unwrap();
        assert_eq!(outcome, Outcome { size: 10, moved: 10, already: false, resumed_at: 0 }, "{odd:?}");
        assert_eq!(fs::read(&to).unwrap(), b"0123456789");
        let outcome = putting(address, &to, "g").unwrap();
        assert_eq!(outcome, Outcome { size: 10, moved: 10, already: false, resumed_at: 0 }, "{odd:?}");
        assert_eq!(told.recv().unwrap(), b"0123456789");
        fs::remove_file(&to).unwrap();
    }
}
