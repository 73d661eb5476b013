//! The transfer service in one run against nginx (sendfile; PUT) and against nc: download and upload of 1 and
//! of 64 clients, and its memory with 1, 64 and 1,000 of them.
//!
//! Files lie in memory (/dev/shm), so that no disk is measured; piman brings an upload to the disk before it is
//! visible, which costs nothing there. `PIMAN_BENCH_ROUNDS` says how often (3).

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use piman_tests::bench::{Nginx, drain, median, memory, raise_file_limit};
use piman_tests::server::{Server, wait_until};
use piman_tests::wait::until;

/// What all clients of a round move together, in bytes.
const ALL: u64 = 2 << 30;

fn main() {
    raise_file_limit();
    let rounds: usize = std::env::var("PIMAN_BENCH_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(3);
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let files = folder.path().join("files");
    fs::create_dir(&files).expect("a folder");
    let dir = files.to_str().expect("a plain name");
    let limits = ["--connections", "3000", "--connections-per-address", "3000"];
    let service = ["--transfer-dir", dir, "--transfer-port", "0"];
    let server = Server::start_services(&folder.path().join("state"), &[&service[..], &limits].concat());
    let nginx = Nginx::start(&files, folder.path());
    let port = server.port("transfer");
    println!("\n{} MB through loopback, medians of {rounds}\n", ALL / 1_000_000);
    println!("| | clients | piman GB/s | nginx GB/s | ratio | nc GB/s | ratio |");
    println!("|---|---|---|---|---|---|---|");
    for clients in [1, 64] {
        let bytes = ALL / clients as u64;
        fs::write(files.join("down"), vec![0x5A; bytes as usize]).expect("room in memory");
        let body: Arc<[u8]> = vec![0xA5; 1 << 20].into();
        let mut rates = [const { Vec::new() }; 6];
        for round in 0..=rounds {
            let down = |how: How| clients_do(clients, bytes, move |_| how.download(bytes));
            let up = |how: How, prefix: &'static str| {
                let body = Arc::clone(&body);
                let rate =
                    clients_do(clients, bytes, move |i| how.upload(&format!("{prefix}{i}"), bytes, &body));
                // What came is whole, and is out of the way of the next round.
                for i in 0..clients {
                    let name = files.join(format!("{prefix}{i}"));
                    until("the upload to be there", || name.exists());
                    assert_eq!(fs::metadata(&name).expect("it is there").len(), bytes);
                    fs::remove_file(name).expect("it is ours");
                }
                rate
            };
            let nginx_port = nginx.as_ref().map(|n| n.port);
            let of = [
                Some(down(How::Piman(port))),
                nginx_port.map(|p| down(How::Nginx(p))),
                Some(nc_down(clients, bytes, &files.join("down"))),
                Some(up(How::Piman(port), "piman-")),
                nginx_port.map(|p| up(How::Nginx(p), "nginx-")),
                Some(nc_up(clients, bytes, &files, &body)),
            ];
            // The first round warms up.
            if round > 0 {
                rates.iter_mut().zip(of).for_each(|(all, rate)| all.extend(rate));
            }
        }
        let [a, b, c, d, e, f] = rates.map(median);
        for (what, ours, nginx, nc) in [("download", a, b, c), ("upload", d, e, f)] {
            println!(
                "| {what} | {clients} | {ours:.2} | {nginx:.2} | {:.2} | {nc:.2} | {:.2} |",
                ours / nginx,
                ours / nc
            );
        }
    }
    memory_of_clients(&server, &files);
}

#[derive(Clone, Copy)]
enum How {
    Piman(u16),
    Nginx(u16),
}

impl How {
    fn connect(self) -> TcpStream {
        let (Self::Piman(port) | Self::Nginx(port)) = self;
        TcpStream::connect(("127.0.0.1", port)).expect("the server accepts")
    }

    fn download(self, bytes: u64) {
        let mut stream = self.connect();
        let head = match self {
            Self::Piman(_) => {
                ask(&mut stream, b'D', "down");
                let mut offer = [0; 9];
                stream.read_exact(&mut offer).expect("an offer");
                assert_eq!(offer[0], b'T');
                stream.write_all(b"T").expect("it reads");
                0
            }
            Self::Nginx(_) => {
                stream
                    .write_all(b"GET /down HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    .expect("it reads");
                1
            }
        };
        let got = drain(&stream);
        assert!(got >= bytes + head, "{got} of {bytes} bytes came");
    }

    fn upload(self, name: &str, bytes: u64, piece: &[u8]) {
        let mut stream = self.connect();
        match self {
            Self::Piman(_) => {
                ask(&mut stream, b'U', name);
                go(&mut stream);
                stream.write_all(&bytes.to_be_bytes()).expect("it reads");
                go(&mut stream);
            }
            Self::Nginx(_) => write!(
                stream,
                "PUT /{name} HTTP/1.1\r\nHost: x\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n"
            )
            .expect("it reads"),
        }
        send(&mut stream, bytes, piece);
        // It closes when it has them all.
        let _ = drain(&stream);
    }
}

fn ask(stream: &mut TcpStream, operation: u8, name: &str) {
    let mut request = vec![operation];
    request.extend(name.as_bytes());
    request.resize(256, 0);
    stream.write_all(&request).expect("it reads");
}

fn go(stream: &mut TcpStream) {
    let mut byte = [0];
    stream.read_exact(&mut byte).expect("an answer");
    assert_eq!(byte, *b"T");
}

fn send(stream: &mut impl Write, bytes: u64, piece: &[u8]) {
    let mut left = bytes;
    while left > 0 {
        let n = left.min(piece.len() as u64);
        stream.write_all(&piece[..n as usize]).expect("it reads");
        left -= n;
    }
}

/// All at once, from the same moment; GB/s of all together.
fn clients_do(clients: usize, bytes: u64, act: impl Fn(usize) + Send + Sync + 'static) -> f64 {
    let (start, act) = (Arc::new(Barrier::new(clients + 1)), Arc::new(act));
    let run = |i| {
        let (start, act) = (Arc::clone(&start), Arc::clone(&act));
        thread::spawn(move || {
            start.wait();
            act(i);
        })
    };
    let threads: Vec<_> = (0..clients).map(run).collect();
    start.wait();
    let began = Instant::now();
    threads.into_iter().for_each(|t| t.join().expect("no client panics"));
    bytes as f64 * clients as f64 / 1e9 / began.elapsed().as_secs_f64()
}

/// nc as it is used by hand: one for each client, on a port of its own.
fn nc(mut command: Command) -> (std::process::Child, u16) {
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let child = command.args(["127.0.0.1", &port.to_string()]).spawn().expect("nc is installed");
    wait_until("nc listens", || {
        // Not by connecting: it takes one connection only.
        let hex = format!(" 0100007F:{port:04X} 00000000:0000 0A ");
        fs::read_to_string("/proc/net/tcp").is_ok_and(|text| text.contains(&hex))
    });
    (child, port)
}

fn nc_down(clients: usize, bytes: u64, file: &Path) -> f64 {
    let all: Vec<_> = (0..clients)
        .map(|_| {
            let mut command = Command::new("nc");
            command.args(["-N", "-l"]).stdin(fs::File::open(file).expect("the file")).stdout(Stdio::null());
            nc(command)
        })
        .collect();
    let ports: Vec<u16> = all.iter().map(|(_, port)| *port).collect();
    let rate = clients_do(clients, bytes, move |i| {
        let stream = TcpStream::connect(("127.0.0.1", ports[i])).expect("nc accepts");
        assert_eq!(drain(&stream), bytes);
    });
    all.into_iter().for_each(|(mut child, _)| drop(child.wait()));
    rate
}

fn nc_up(clients: usize, bytes: u64, files: &Path, piece: &Arc<[u8]>) -> f64 {
    let to = |i: usize| files.join(format!("nc-{i}"));
    let all: Vec<_> = (0..clients)
        .map(|i| {
            let mut command = Command::new("nc");
            let file = fs::File::create(to(i)).expect("a file");
            command.args(["-d", "-l"]).stdin(Stdio::null()).stdout(file);
            nc(command)
        })
        .collect();
    let ports: Vec<u16> = all.iter().map(|(_, port)| *port).collect();
    let piece = Arc::clone(piece);
    let rate = clients_do(clients, bytes, move |i| {
        let mut stream = TcpStream::connect(("127.0.0.1", ports[i])).expect("nc accepts");
        send(&mut stream, bytes, &piece);
        stream.shutdown(Shutdown::Write).expect("a socket");
        let _ = drain(&stream);
    });
    for (i, (mut child, _)) in all.into_iter().enumerate() {
        let _ = child.wait();
        assert_eq!(fs::metadata(to(i)).expect("it is there").len(), bytes);
        fs::remove_file(to(i)).expect("it is ours");
    }
    rate
}

/// Half of them get a file, half put one, and all stand in the middle of it.
fn memory_of_clients(server: &Server, files: &Path) {
    const SIZE: u64 = 64 << 20;
    // Room for 500 of these is kept free.
    const UPLOAD: u64 = 8 << 20;
    fs::write(files.join("down"), vec![0; SIZE as usize]).expect("room in memory");
    let how = How::Piman(server.port("transfer"));
    println!("\n| clients in the middle of a file | memory of the server, MB |\n|---|---|");
    let mut clients = Vec::new();
    for count in [0, 1, 64, 1000] {
        while clients.len() < count {
            let mut stream = how.connect();
            let i = clients.len();
            if i.is_multiple_of(2) {
                ask(&mut stream, b'D', "down");
                stream.read_exact(&mut [0; 9]).expect("an offer");
                stream.write_all(b"T").expect("it reads");
                stream.read_exact(&mut [0; 1000]).expect("the file");
            } else {
                ask(&mut stream, b'U', &format!("half-{i}"));
                go(&mut stream);
                stream.write_all(&UPLOAD.to_be_bytes()).expect("it reads");
                go(&mut stream);
                stream.write_all(&[1; 100_000]).expect("it reads");
            }
            clients.push(stream);
        }
        // What was sent is taken by then.
        thread::sleep(Duration::from_millis(500));
        println!("| {count} | {:.1} |", memory(server.id()).unwrap_or_default() / 1000.0);
    }
}
