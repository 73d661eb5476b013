//! Readers that are slow, that stop, and that are gone.

use std::os::fd::AsFd;

use piman_tests::netns::Network;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::SockRef;

use super::*;

/// A download that has begun, of a reader whose system has little room.
fn begun(server: &Server, file: &[u8]) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    socket.connect(&server.address.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut request = vec![b'D'];
    request.extend_from_slice(file);
    request.resize(256, 0);
    stream.write_all(&request).unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[0], b'T');
    stream.write_all(b"T").unwrap();
    stream
}

/// Nobody but a system that does not answer is too slow for this.
fn any_pace() -> Timeouts {
    let second = Duration::from_secs(1);
    Timeouts { talk: second, limits: Limits { unanswered: second, ..Limits::NONE } }
}

#[test]
fn a_reader_that_stops_for_long_gets_the_rest_when_it_goes_on() {
    let server = serve_with(any_pace());
    // What fits into the kernel as a whole, and what does not.
    let sizes = [1 << 20, 16 << 20];
    let mut readers = Vec::new();
    for size in sizes {
        let file = format!("f{size}");
        fs::write(server.path(&file), noise(size, 3)).unwrap();
        readers.push(begun(&server, file.as_bytes()));
    }
    // All other times are over several times by then, and the kernel would have forgotten a connection that we
    // had closed: it would be gone from the gate.
    thread::sleep(Duration::from_secs(5));
    assert_eq!(server.gate.open(), 2, "a slow reader is still served");
    for (size, reader) in sizes.into_iter().zip(&mut readers) {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert!(all == noise(size, 3), "{} of {size} bytes", all.len());
    }
    until("both are served", || server.gate.open() == 0);
}

#[test]
fn a_byte_now_and_then_is_cut_by_the_operators_limit_and_only_then() {
    let limited = serve_with(Timeouts {
        limits: Limits { slowest: 1000, span: Duration::from_secs(1), ..Limits::NONE },
        ..Timeouts::default()
    });
    let free = serve_with(any_pace());
    let mut readers = Vec::new();
    for server in [&limited, &free] {
        fs::write(server.path("f"), noise(16 << 20, 4)).unwrap();
        readers.push(begun(server, b"f"));
    }
    let began = Instant::now();
    until("the limit cuts", || {
        for reader in &mut readers {
            let _ = reader.read(&mut [0]);
        }
        thread::sleep(Duration::from_millis(50));
        limited.gate.open() == 0
    });
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(free.gate.open(), 1, "without a limit it is served on");
    // It sees that this is not the end of the file.
    let mut rest = Vec::new();
    assert!(readers[0].read_to_end(&mut rest).is_err() || rest.len() < 15 << 20);
    let mut rest = Vec::new();
    readers[1].read_to_end(&mut rest).unwrap();
    assert!(noise(16 << 20, 4).ends_with(&rest) && rest.len() > 15 << 20, "{}", rest.len());
}

#[test]
fn a_sender_that_stops_for_long_is_cut_by_the_operators_limit_and_only_then() {
    let limited = serve_with(Timeouts {
        limits: Limits { stall: Some(Duration::from_secs(1)), ..Limits::NONE },
        ..Timeouts::default()
    });
    let free = serve_with(any_pace());
    let mut senders: Vec<_> = [&limited, &free].map(|server| server.old_put(b"slow", 10).0).into();
    for sender in &mut senders {
        sender.write_all(b"01234").unwrap();
    }
    until("the limit cuts", || limited.gate.open() == 0);
    // All other times are over several times by then.
    thread::sleep(Duration::from_secs(3));
    assert_eq!(free.gate.open(), 1, "without a limit it is waited for");
    senders[1].write_all(b"56789").unwrap();
    until("it is there", || fs::read(free.path("slow")).is_ok_and(|file| file == b"0123456789"));
    assert!(!limited.path("slow").exists());
}

#[test]
fn sent_means_that_the_peer_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let (files, state) = (folder.path().join("files"), folder.path().join("state"));
    fs::create_dir(&files).unwrap();
    fs::write(files.join("slow"), noise(1 << 20, 5)).unwrap();
    fs::write(files.join("quick"), noise(1 << 20, 5)).unwrap();
    let files = files.to_str().unwrap();
    let server = piman_tests::server::Server::start_services(
        &state,
        &["--transfer-dir", files, "--transfer-port", "0"],
    );
    let ask = |file: &[u8]| {
        let mut stream = server.connect("transfer");
        SockRef::from(&stream).set_recv_buffer_size(16 << 10).unwrap();
        let mut request = vec![b'D'];
        request.extend_from_slice(file);
        request.resize(256, 0);
        stream.write_all(&request).unwrap();
        stream.read_exact(&mut [0; 9]).unwrap();
        stream.write_all(b"T").unwrap();
        stream
    };
    let mut slow = ask(b"slow");
    // The kernel has all of it by then.
    until("bytes are there", || slow.peek(&mut [0; 100]).unwrap() == 100);
    let mut all = Vec::new();
    ask(b"quick").read_to_end(&mut all).unwrap();
    assert!(all == noise(1 << 20, 5));
    server.wait_log("\"quick\": sent 1048576 bytes");
    assert!(!server.log().contains("\"slow\": sent"), "{}", server.log());
    let mut all = Vec::new();
    slow.read_to_end(&mut all).unwrap();
    assert!(all == noise(1 << 20, 5));
    server.wait_log("\"slow\": sent 1048576 bytes");
}

/// Runs this in the network namespace of that name.
fn within<T: Send>(namespace: &str, run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let namespace = File::open(Path::new("/run/netns").join(namespace)).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            run()
        });
        inside.join().unwrap()
    })
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "ip", ignore = "needs ip (iproute2)")]
fn whoever_lost_its_network_is_noticed_while_it_reads_and_while_it_does_not() {
    let network = Network::make();
    network.ip(&network.pi, "address add 192.168.77.2/24 dev eth0");
    let server = within(&network.server, || {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_owned();
        serve_at("192.168.77.1:0", dir, &folder, any_pace())
    });
    fs::write(server.path("f"), noise(8 << 20, 6)).unwrap();
    let file = fs::OpenOptions::new().append(true).open(server.path("f")).unwrap();
    file.set_len(64 << 30).unwrap();
    let (_stopped, mut reading) = within(&network.pi, || (begun(&server, b"f"), begun(&server, b"f")));
    let reading = thread::spawn(move || {
        // Until the end of this test, if nothing else.
        reading.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        std::io::copy(&mut reading, &mut std::io::sink())
    });
    thread::sleep(Duration::from_secs(3));
    assert_eq!(server.gate.open(), 2, "both are well");
    network.ip(&network.pi, "link set eth0 down");
    let began = Instant::now();
    until("both are given up", || server.gate.open() == 0);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}: the kernel noticed", began.elapsed());
    drop(reading.join().unwrap());
}

/// An old server, with little room in its system, that stops for a while before it reads the bytes.
fn slow_server(pause: Duration, size: usize) -> (SocketAddr, thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&listener).set_recv_buffer_size(16 << 10).unwrap();
    let address = listener.local_addr().unwrap();
    let serve = thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 256];
            stream.read_exact(&mut request).unwrap();
            if request[0] == b'D' {
                stream.write_all(b"F\0\0\0\0\0\0\0\0").unwrap();
                continue;
            }
            assert_eq!(request[0], b'U');
            stream.write_all(b"T").unwrap();
            stream.read_exact(&mut [0; 8]).unwrap();
            stream.write_all(b"T").unwrap();
            thread::sleep(pause);
            let mut bytes = Vec::new();
            let _ = Read::by_ref(&mut stream).take(size as u64).read_to_end(&mut bytes);
            return bytes;
        }
        Vec::new()
    });
    (address, serve)
}

#[test]
fn our_client_waits_for_a_slow_server_unless_it_is_told_for_how_long() {
    let from = tempfile::NamedTempFile::new().unwrap();
    let size = 16 << 20;
    fs::write(from.path(), noise(size, 8)).unwrap();
    let second = Duration::from_secs(1);
    // An answer may take one second; the server does not pause.
    let patient = Deadlines { silence: second, tries: 1, ..deadlines() };
    let put_to = |server: SocketAddr, deadlines| {
        put(from.path(), ("127.0.0.1", server.port()), &name("f"), deadlines, &mut |_| {})
    };
    let (server, serve) = slow_server(4 * second, size);
    let outcome = put_to(server, patient).unwrap();
    assert_eq!(outcome, Outcome { size: size as u64, moved: size as u64, already: false, resumed_at: 0 });
    assert!(serve.join().unwrap() == noise(size, 8));
    let (server, serve) = slow_server(4 * second, size);
    let began = Instant::now();
    let error = put_to(server, Deadlines { stall: Some(second), ..patient }).unwrap_err();
    assert!(error.to_string().contains("takes no more bytes"), "{error}");
    assert!(began.elapsed() < 4 * second, "{:?}", began.elapsed());
    assert!(serve.join().unwrap().len() < size);
}
