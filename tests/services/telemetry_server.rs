//! The telemetry service over real sockets and files: old clients, lines that break, servers that die,
//! full disks, hundreds at once.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use piman::net::listen::Gate;
use piman::telemetry::{Client, Named, RecordStore, Rotation, TelemetryServer, Waits, run};
use piman_tests::proxy::stammer;
use piman_tests::server::connect_from;
use piman_tests::small::Small;
use piman_tests::wait::until;

const NEVER: Rotation = Rotation { bytes: 0, age: Duration::ZERO };

struct Server {
    address: SocketAddr,
    gate: Arc<Gate>,
    runtime: tokio::runtime::Runtime,
}

/// Serves on `port`, 0 for any.
fn serve(folder: &Path, rotation: Rotation, sync: bool, port: u16) -> Server {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
    socket.listen(4096).unwrap();
    socket.set_nonblocking(true).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let gate = Gate::new("telemetry", 2000, 2000);
    let streams =
        Arc::new(TelemetryServer::new(Arc::new(RecordStore::open(folder, rotation, sync).unwrap())));
    let who = |address: IpAddr| Named { name: address.to_string(), kept: Box::new(()) };
    runtime.spawn(run(listener, gate.clone(), streams, who, |stream| stream.set_nodelay(true).unwrap()));
    Server { address, gate, runtime }
}

fn waits() -> Waits {
    Waits {
        silence: Duration::from_secs(60),
        moment: Duration::from_secs(2),
        pause: Duration::from_millis(5),
        ..Waits::default()
    }
}

/// A client by hand; the greeting is read.
fn old(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut greeting = [0; 22];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"Connection established");
    stream
}

fn says(stream: &mut TcpStream, want: &str) {
    let mut got = vec![0; want.len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8_lossy(&got), want);
}

fn csv(folder: &Path) -> PathBuf {
    folder.join("127.0.0.1.csv")
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn an_old_client() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), NEVER, false, 0);
    let mut stream = old(server.address);
    stream.write_all(b"1,2\n").unwrap();
    says(&mut stream, "data processed");
    assert_eq!(text(&csv(dir.path())), "1,2\n");
    stream.write_all(b"3,").unwrap();
    says(&mut stream, "data received");
    stream.write_all(b"4\n5\n6").unwrap();
    says(&mut stream, "data received");
    assert_eq!(text(&csv(dir.path())), "1,2\n3,4\n5\n");
    drop(stream);
    until("the last record", || text(&csv(dir.path())) == "1,2\n3,4\n5\n6\n");
    let mut stream = old(server.address);
    stream.write_all(b"7\n").unwrap();
    says(&mut stream, "data processed");
    assert_eq!(text(&csv(dir.path())), "1,2\n3,4\n5\n6\n7\n");
}

#[test]
fn the_silent_and_the_slow_cost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), NEVER, false, 0);
    let silent = TcpStream::connect(server.address).unwrap();
    let mut deaf = old(server.address);
    // It reads no acknowledgement, and is closed in the middle of a record.
    for n in 0..20_000 {
        deaf.write_all(format!("deaf {n}\n").as_bytes()).unwrap();
    }
    deaf.write_all(b"deaf end").unwrap();
    let mut slow = old(server.address);
    for byte in b"one byte\nat a time\n" {
        slow.write_all(&[*byte]).unwrap();
        let ends = *byte == b'\n';
        says(&mut slow, if ends { "data processed" } else { "data received" });
    }
    drop((deaf, slow, silent));
    until("all have gone", || server.gate.open() == 0);
    let all = text(&csv(dir.path()));
    let (deaf, slow): (Vec<_>, Vec<_>) = all.lines().partition(|l| l.starts_with("deaf"));
    // Of one connection the order stays, and records are never mixed. A reset may cost the deaf one its end.
    assert!(deaf.iter().enumerate().all(|(n, l)| *l == format!("deaf {n}") || n + 1 == deaf.len()));
    assert_eq!(slow, ["one byte", "at a time"]);
}

#[test]
fn any_bytes_and_endless_lines() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), NEVER, false, 0);
    let mut noise = vec![0; 300_000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    noise.extend(vec![b'x'; 200_000]);
    let stream = old(server.address);
    let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
    let acks = thread::spawn(move || reader.read_to_end(&mut Vec::new()).map(drop));
    writer.write_all(&noise).unwrap();
    writer.shutdown(std::net::Shutdown::Write).unwrap();
    acks.join().unwrap().unwrap();
    let kept = fs::read(csv(dir.path())).unwrap();
    // Nothing is lost; long records are in several lines.
    let strip = |bytes: &[u8]| bytes.iter().copied().filter(|b| *b != b'\n').collect::<Vec<_>>();
    assert!(strip(&kept) == strip(&noise));
    assert!(kept.split(|b| *b == b'\n').all(|line| line.len() <= piman_core::telemetry::RECORD_MAX));
}

/// Every record is there and in order; how many are there twice.
fn in_order(all: &str, count: usize) -> usize {
    let mut next = 0;
    let mut twice = 0;
    for line in all.lines() {
        let want = format!("{next},some,values");
        let before = format!("{},some,values", next as i64 - 1);
        if line == want {
            next += 1;
        } else if line == before {
            twice += 1;
        } else {
            // The beginning of one that was cut.
            assert!(want.starts_with(line), "{line:?} where {want:?} should be");
        }
    }
    assert_eq!(next, count);
    twice
}

#[test]
fn through_a_stammering_proxy_that_breaks() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), NEVER, true, 0);
    for (seed, cut) in [(5, None), (6, Some(3000))] {
        let proxy = stammer(server.address, seed, cut);
        let mut client = Client::new("127.0.0.1", proxy.port(), waits());
        let mut breaks = 0;
        for n in 0..1000 {
            client.send(format!("{n},some,values\n").as_bytes(), &mut |_| breaks += 1).unwrap();
        }
        let all = text(&csv(dir.path()));
        let twice = in_order(&all, 1000);
        assert!(twice <= breaks, "{twice} records are there twice after {breaks} breaks");
        assert_eq!(cut.is_some(), breaks > 3, "{breaks}");
        drop(client);
        until("all have gone", || server.gate.open() == 0);
        fs::remove_file(csv(dir.path())).unwrap();
    }
}

#[test]
fn a_server_that_ends_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = serve(dir.path(), NEVER, false, piman_tests::port::steady());
    let port = server.address.port();
    let folder = dir.path().to_owned();
    let sender = thread::spawn(move || {
        let mut client = Client::new("127.0.0.1", port, waits());
        for n in 0..30_000 {
            client.send(format!("{n},some,values\n").as_bytes(), &mut |_| {}).unwrap();
        }
    });
    for round in 1..6 {
        until("records", || text(&csv(&folder)).len() > round * 20_000);
        server.runtime.shutdown_timeout(Duration::from_secs(60));
        server = serve(dir.path(), NEVER, false, port);
    }
    sender.join().unwrap();
    in_order(&text(&csv(dir.path())), 30_000);
}

#[test]
fn hundreds_of_clients_each_with_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), Rotation { bytes: 5000, age: Duration::ZERO }, false, 0);
    let address = server.address;
    thread::scope(|scope| {
        for n in 0..200u8 {
            scope.spawn(move || {
                let mut stream = connect_from([127, 0, 7, n + 1], address.port());
                says(&mut stream, "Connection established");
                for i in 0..100 {
                    stream.write_all(format!("{n},{i},{}\n", "x".repeat(80)).as_bytes()).unwrap();
                    says(&mut stream, "data processed");
                }
            });
        }
    });
    for n in 0..200u8 {
        let mine = format!("127.0.7.{}", n + 1);
        let mut lines = 0;
        for entry in fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if name == format!("{mine}.csv") || name.starts_with(&format!("{mine}-")) {
                let all = text(&path);
                assert!(all.len() <= 5000 && all.lines().all(|l| l.starts_with(&format!("{n},"))));
                lines += all.lines().count();
            }
        }
        assert_eq!(lines, 100, "{mine}");
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_full_disk_stops_acknowledgements_and_nothing_else() {
    let small = Small::new(4096);
    let server = serve(&small.path(), NEVER, false, 0);
    let mut client = Client::new("127.0.0.1", server.address.port(), waits());
    client.send(b"before\n", &mut |e| panic!("{e}")).unwrap();
    let hog = small.path().join("hog");
    let mut file = fs::File::create(&hog).unwrap();
    let chunk = vec![1; 1 << 12];
    while file.write_all(&chunk).is_ok() {}
    drop(file);
    // The last block of the file takes more until it is full.
    let is_full = || {
        let file = fs::metadata(csv(&small.path())).unwrap();
        let probe = small.path().join("probe");
        let written = fs::write(&probe, [1; 100]);
        fs::remove_file(&probe).unwrap();
        written.is_err() && file.blocks() * 512 - file.len() < 100
    };
    let mut stream = old(server.address);
    stream.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    let mut acknowledged = 0;
    loop {
        stream.write_all(format!("{acknowledged:099}\n").as_bytes()).unwrap();
        let mut first = [0];
        let acknowledges = loop {
            match stream.read(&mut first) {
                Ok(n) => break n == 1,
                Err(e) if is_full() => {
                    assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock, "{e}");
                    break false;
                }
                // It is only slow.
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock, "{e}"),
            }
        };
        if !acknowledges {
            break;
        }
        says(&mut stream, "ata processed");
        acknowledged += 1;
        assert!(acknowledged < 10_000);
    }
    // One goes away with its record: that one is not written later.
    let mut gone = old(server.address);
    gone.write_all(&[&b"gone"[..], &vec![b'g'; 3000], b"\n"].concat()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            drop(gone);
            until("it is gone", || server.gate.open() == 2);
            fs::remove_file(&hog).unwrap();
        });
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        says(&mut stream, "data processed");
    });
    client.send(b"after\n", &mut |e| panic!("{e}")).unwrap();
    let all = text(&csv(&small.path()));
    let lines: Vec<_> = all.lines().collect();
    assert_eq!((lines[0], *lines.last().unwrap()), ("before", "after"));
    let written: Vec<_> = (0..=acknowledged).map(|n| format!("{n:099}")).collect();
    assert_eq!(lines[1..lines.len() - 1], written);
}

#[test]
fn an_old_server_that_says_one_word() {
    for word in ["data received", "data processed"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"Connection established").unwrap();
            let mut all = Vec::new();
            let mut buf = [0; 1024];
            loop {
                match stream.read(&mut buf).unwrap() {
                    0 => return all,
                    n => all.extend_from_slice(&buf[..n]),
                }
                stream.write_all(word.as_bytes()).unwrap();
            }
        });
        let mut client = Client::new("127.0.0.1", port, waits());
        for n in 0..100 {
            client.send(format!("{n}\n").as_bytes(), &mut |e| panic!("{e}")).unwrap();
        }
        drop(client);
        let want: String = (0..100).map(|n| format!("{n}\n")).collect();
        assert_eq!(String::from_utf8(server.join().unwrap()).unwrap(), want);
    }
}
