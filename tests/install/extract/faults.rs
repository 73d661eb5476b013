//! Archives, connections and disks that fail.

use super::*;

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn truncated_and_damaged_archives() {
    let mut tar = Tar::new();
    tar.file(b"a", &bytes(1, 3000)).entry(b"d/", b'5', b"").file(b"d/b", &bytes(2, 70_000));
    let packed = gzip(&tar.end());
    let good = expect(&packed);
    let dir = TempDir::new().unwrap();
    let root = File::open(dir.path()).unwrap();
    let attempt = |bytes: &[u8], expected: Option<Expected>| {
        install_from(bytes, || {}, expected, root.as_fd(), &Progress::new()).unwrap_err()
    };
    for cut in (0..packed.len()).step_by(101).chain(packed.len() - 9..packed.len()) {
        // With a size known it is the connection; without, most likely too, and the text says so.
        let failure = attempt(&packed[..cut], Some(good));
        assert_eq!(failure.cause, Cause::Network, "{cut}: {failure}");
        assert!(failure.to_string().contains(&format!("after {cut} of {} bytes", packed.len())), "{failure}");
        let failure = attempt(&packed[..cut], None);
        assert_eq!(failure.cause, Cause::Network, "{cut}: {failure}");
        assert!(failure.to_string().contains("not complete"), "{failure}");
        // The archive itself is cut, and its hash says that this is it.
        let failure = attempt(&packed[..cut], Some(expect(&packed[..cut])));
        assert_eq!(failure.cause, Cause::Image, "{cut}: {failure}");
    }
    for at in (0..packed.len()).step_by(997).chain(packed.len() - 8..packed.len()) {
        let mut damaged = packed.clone();
        damaged[at] ^= 0x10;
        // On its way: worth another try. At its source: not. The header's time and system say nothing.
        let failure = attempt(&damaged, Some(good));
        assert_eq!(failure.cause, Cause::Network, "{at}: {failure}");
        assert!(failure.to_string().contains("not the one that was offered"), "{failure}");
        if at >= 10 {
            assert_eq!(attempt(&damaged, Some(expect(&damaged))).cause, Cause::Image, "{at}");
        }
    }
    // A tar archive that ends within: the packing is whole, so it is the archive.
    let cut = gzip(&tar.end()[..5000]);
    let failure = attempt(&cut, None);
    assert_eq!(failure.cause, Cause::Image, "{failure}");
    assert!(failure.to_string().contains("truncated"), "{failure}");
    let failure = attempt(&tar.end(), None);
    assert!(failure.to_string().contains("not compressed"), "{failure}");
    assert_eq!(failure.cause, Cause::Image);
    let failure = attempt(b"<html>404 not found", None);
    assert!(failure.to_string().contains("neither gzip nor zstd"), "{failure}");
}

/// Fails after this many bytes.
struct Breaks<'a>(&'a [u8], usize);

impl Read for Breaks<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = buf.len().min(1000).min(self.1);
        if n == 0 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        self.1 -= n;
        self.0.read(&mut buf[..n])
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_connection_that_breaks_is_told_from_a_bad_archive() {
    let mut tar = Tar::new();
    tar.file(b"a", &bytes(1, 3_000_000));
    let packed = gzip(&tar.end());
    let dir = TempDir::new().unwrap();
    let root = File::open(dir.path()).unwrap();
    for at in [0, 1, 5, 700, 100_000, packed.len() - 1] {
        for expected in [None, Some(expect(&packed))] {
            let source = Breaks(&packed, at);
            let failure = install_from(source, || {}, expected, root.as_fd(), &Progress::new()).unwrap_err();
            assert_eq!(failure.cause, Cause::Network, "{failure}");
            assert!(failure.to_string().contains(&format!("after {at}")), "{failure}");
        }
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn what_is_behind_the_last_expected_byte_is_no_matter() {
    let mut tar = Tar::new();
    tar.file(b"a", &bytes(1, 300_000));
    let packed = gzip(&tar.end());
    let dir = TempDir::new().unwrap();
    let root = File::open(dir.path()).unwrap();
    // The server does not close, and no time-out is set; or it sends something more.
    for more in [&[][..], b"\n", &[7; 1 << 20]] {
        let (client, server) = serve([&packed, more].concat());
        let summary = install(client, Some(expect(&packed)), root.as_fd(), &Progress::new()).unwrap();
        assert_eq!((summary.bytes, summary.hash), (packed.len() as u64, expect(&packed).hash));
        assert!(server.join().unwrap());
    }
    // The connection breaks there.
    let source = packed.chain(Breaks(&[], 0));
    install_from(source, || {}, Some(expect(&packed)), root.as_fd(), &Progress::new()).unwrap();
}

/// Serves these bytes to one client, and then nothing, without closing.
fn serve(packed: Vec<u8>) -> (TcpStream, thread::JoinHandle<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        peer.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
        // The client may have had enough before everything is sent.
        let _ = peer.write_all(&packed);
        // Ends when the client closes, and not before.
        !matches!(peer.read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    });
    (client, server)
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_failure_closes_the_connection_at_once() {
    let mut tar = Tar::new();
    tar.file(b"../out", b"").file(b"large", &bytes(1, 1 << 20));
    let (client, server) = serve(gzip(&tar.0));
    let dir = TempDir::new().unwrap();
    let root = File::open(dir.path()).unwrap();
    // The server would keep the connection for ever.
    let failure = install(client, None, root.as_fd(), &Progress::new()).unwrap_err();
    assert_eq!(failure.cause, Cause::Image, "{failure}");
    assert!(failure.to_string().contains("../out"), "{failure}");
    assert!(server.join().unwrap(), "closed");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_server_that_falls_silent_is_left() {
    let mut tar = Tar::new();
    tar.file(b"a", &bytes(1, 1 << 20));
    let packed = gzip(&tar.end());
    let (client, server) = serve(packed[..packed.len() / 2].to_vec());
    client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let dir = TempDir::new().unwrap();
    let root = File::open(dir.path()).unwrap();
    let failure = install(client, Some(expect(&packed)), root.as_fd(), &Progress::new()).unwrap_err();
    assert_eq!(failure.cause, Cause::Network);
    assert!(failure.to_string().contains("fell silent"), "{failure}");
    assert!(server.join().unwrap());
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn progress_counts_what_is_received_and_all_is_read() {
    let mut tar = Tar::new();
    tar.file(b"a", &bytes(1, 100_000));
    // Padding as tapes have it, beyond the end of the archive, and a second member.
    let packed = [gzip(&[tar.end(), vec![0; 100_000]].concat()), gzip(&[0; 5000])].concat();
    let dir = TempDir::new().unwrap();
    let root = File::open(dir.path()).unwrap();
    let progress = Progress::new();
    let closed = AtomicBool::new(false);
    let close = || closed.store(true, Relaxed);
    let summary = install_from(&packed[..], close, Some(expect(&packed)), root.as_fd(), &progress).unwrap();
    assert_eq!(progress.snapshot().done, packed.len() as u64);
    assert_eq!(progress.snapshot().total, packed.len() as u64);
    assert_eq!(summary.bytes, packed.len() as u64);
    assert_eq!(summary.hash, expect(&packed).hash);
    assert_eq!(summary.unpacked_bytes, tar.end().len() as u64 + 105_000);
    assert_eq!((summary.extracted.entries, summary.extracted.file_bytes), (1, 100_000));
    assert!(!closed.load(Relaxed));
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_full_disk_is_told_from_a_bad_archive() {
    let small = Loop::new(16 << 20);
    let mut large = Tar::new();
    large.file(b"fits", b"1").file(b"does not fit", &bytes(1, 40 << 20));
    let mut many = Tar::new();
    for i in 0..10_000 {
        many.file(format!("file {i}").as_bytes(), b"");
    }
    for (tar, name) in [(large, "`does not fit`"), (many, "`file ")] {
        // The server would keep the connection for ever: it is closed by us.
        let (client, server) = serve(gzip(&tar.0));
        let root = File::open(&small.at).unwrap();
        let failure = install(client, None, root.as_fd(), &Progress::new()).unwrap_err();
        assert_eq!(failure.cause, Cause::Disk, "{failure}");
        let text = failure.to_string();
        assert!(text.contains("the disk is full") && text.contains(name), "{text}");
        assert!(server.join().unwrap());
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_disk_that_cannot_be_written_is_told() {
    let disk = Loop::new(16 << 20);
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(&disk.at));
    let mut tar = Tar::new();
    tar.file(b"a", b"1");
    let failure = extract(&gzip(&tar.end()), &disk.at).unwrap_err();
    assert_eq!(failure.cause, Cause::Disk);
    assert!(failure.to_string().contains("read-only"), "{failure}");
}
