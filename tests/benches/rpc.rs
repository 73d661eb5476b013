//! Talks and frames against two Python peers that use pickle and sockets as the old libraries do, in one
//! run: calls in a second, one at a time and 64 under way (those in postcard are sealed), a login, and messages in a second of three sizes; then the
//! server's memory with 10,000 idle connections.
//!
//! `cargo bench --bench talks`; figures are ratios, ours to theirs. `-- --idle` measures memory alone.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use piman::messages::transport;
use piman::rpc::{
    Answer, ConnectedPis, Data, Functions, Nothing, Peer, Plan, Request, Secret, Server, connect,
};
use piman_core::rpc::Codec;
use piman_tests::bench::{memory, raise_file_limit};
use piman_tests::server::connect_from;
use tokio::sync::mpsc;

const DEADLINE: Duration = Duration::from_secs(60);
/// How long each figure is measured.
const SPAN: Duration = Duration::from_secs(2);

/// The old way, both sides in Python: prints one figure per line.
const OLD: &str = r#"
import os, pickle, socket, struct, threading, time
SPAN = 2.0
def exactly(sock, n):
    parts = []
    while n:
        part = sock.recv(min(n, 1 << 16))
        if not part: raise SystemExit
        parts.append(part); n -= len(part)
    return b"".join(parts)
def calls():
    a, b = socket.create_server(("127.0.0.1", 0)), None
    port = a.getsockname()[1]
    if os.fork() == 0:
        sock, _ = a.accept(); file = sock.makefile("rb")
        try:
            while True:
                _, op, ret, args, kwargs = pickle.load(file)
                sock.sendall(pickle.dumps((b"A", ret, (args[0],))))
        except (EOFError, ConnectionError): os._exit(0)
    sock = socket.create_connection(("127.0.0.1", port)); file = sock.makefile("rb")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for under_way in (1, 64):
        n, start = 0, time.monotonic()
        for i in range(under_way): sock.sendall(pickle.dumps((b"R", 1, i, (i,), {})))
        while time.monotonic() - start < SPAN:
            _, ret, value = pickle.load(file); n += 1
            sock.sendall(pickle.dumps((b"R", 1, ret, (n,), {})))
        elapsed = time.monotonic() - start
        for i in range(under_way): pickle.load(file)
        print(n / elapsed, flush=True)
    sock.close()
def frames():
    a = socket.create_server(("127.0.0.1", 0)); port = a.getsockname()[1]
    if os.fork() == 0:
        sock, _ = a.accept(); sock.sendall(b"\xff"); exactly(sock, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            size = struct.unpack(">I", exactly(sock, 4))[0]; sock.sendall(b"\xff"); exactly(sock, size)
    sock = socket.create_connection(("127.0.0.1", port)); sock.sendall(b"\xff"); exactly(sock, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for size in (16, 1024, 1 << 20):
        message = bytes(size); n, start = 0, time.monotonic()
        while time.monotonic() - start < SPAN:
            sock.sendall(struct.pack(">I", size)); exactly(sock, 1); sock.sendall(message); n += 1
        print(n / (time.monotonic() - start), flush=True)
    sock.close()
calls(); frames()
"#;

struct Echo;

impl Functions for Echo {
    fn call(&self, _peer: &Peer, request: Request) -> Answer {
        Box::pin(std::future::ready(Ok(request.args.into_iter().next().unwrap_or(Data::None))))
    }
}

struct Ignore;

impl transport::Hooks for Ignore {
    fn message(&mut self, _peer: &transport::Peer, _message: Vec<u8>) {}
}

async fn calls(address: SocketAddr, codec: Codec, under_way: usize) -> f64 {
    let peer = connect(address, codec, Secret::new(None), Arc::new(Nothing), DEADLINE).await.unwrap();
    let (done, mut count) = mpsc::unbounded_channel();
    let start = Instant::now();
    for _ in 0..under_way {
        let (peer, done) = (peer.clone(), done.clone());
        tokio::spawn(async move {
            let mut n = 0_i64;
            while start.elapsed() < SPAN {
                assert_eq!(peer.call(1, vec![n.into()], DEADLINE).await, Ok(n.into()));
                n += 1;
            }
            done.send(n).unwrap();
        });
    }
    drop(done);
    let mut all = 0;
    while let Some(n) = count.recv().await {
        all += n;
    }
    all as f64 / start.elapsed().as_secs_f64()
}

/// Protected logins one after another, each from dialling to the end of the login, in milliseconds.
async fn login_ms(address: SocketAddr) -> f64 {
    const LOGINS: u32 = 500;
    let start = Instant::now();
    for _ in 0..LOGINS {
        let secret = Secret::new(None);
        connect(address, Codec::Postcard, secret, Arc::new(Nothing), DEADLINE).await.unwrap().close();
    }
    start.elapsed().as_secs_f64() * 1000.0 / f64::from(LOGINS)
}

async fn messages(size: usize) -> f64 {
    let addresses = vec![([127, 0, 0, 1], 0).into()];
    let settings = transport::Settings::default();
    let plan = transport::Plan { addresses, connections: 1, settings, plugins: None, hooks: || Ignore };
    let server = transport::Server::start(plan).unwrap();
    let settings = transport::Settings::default();
    let peer = transport::connect(server.addresses()[0], DEADLINE, settings, None, Ignore).await.unwrap();
    let message: Arc<[u8]> = vec![0; size].into();
    let (mut n, start) = (0, Instant::now());
    while start.elapsed() < SPAN {
        peer.send(Arc::clone(&message)).await.unwrap();
        n += 1;
    }
    f64::from(n) / start.elapsed().as_secs_f64()
}

/// How many idle connections there are.
const IDLE: usize = 10_000;
/// The name by which this program is called to be a server of frames and nothing else.
const FRAMES: &str = "--serve-frames";

fn serve_frames() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let addresses = vec![([127, 0, 0, 1], 0).into()];
        let settings =
            transport::Settings { idle: Duration::from_secs(3600), ..transport::Settings::default() };
        let plan =
            transport::Plan { addresses, connections: 2 * IDLE, settings, plugins: None, hooks: || Ignore };
        let server = transport::Server::start(plan).unwrap();
        println!("frames {}", server.addresses()[0]);
        std::future::pending::<()>().await;
    });
}

/// Connects and greets as a client of ours does; what follows is silence.
fn greet(port: u16, i: usize) -> TcpStream {
    let mut stream = connect_from([127, 0, 2, 1 + (i / 5000) as u8], port);
    stream.write_all(&[0xFF]).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    stream
}

/// The old client's login, pickled, and the server's verdict.
fn log_in(port: u16, i: usize) -> TcpStream {
    let mut stream = connect_from([127, 0, 3, 1 + (i / 5000) as u8], port);
    stream.write_all(b"\x80\x03C\x01AK\xAAN\x85\x87.").unwrap();
    let mut verdict = [0; 64];
    assert!(stream.read(&mut verdict).unwrap() > 0);
    stream
}

fn idle<T>(what: &str, pid: u32, connect: impl Fn(usize) -> T) {
    let before = memory(pid).unwrap();
    let open: Vec<T> = (0..IDLE).map(connect).collect();
    let after = memory(pid).unwrap();
    println!(
        "{what}, {IDLE} idle connections: {:.1} MB, {:.2} KB each",
        after / 1000.0,
        (after - before) / open.len() as f64
    );
}

fn idle_connections() {
    raise_file_limit();
    let mut child =
        Command::new(std::env::current_exe().unwrap()).arg(FRAMES).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let port = line.trim().rsplit(':').next().unwrap().parse().unwrap();
    idle("frames", child.id(), |i| greet(port, i));
    child.kill().unwrap();
    child.wait().unwrap();
    let state = tempfile::tempdir().unwrap();
    let limits = ["--rpc-port", "0", "--connections", "30000", "--connections-per-address", "30000"];
    let server = piman_tests::server::Server::start_services(state.path(), &limits);
    idle("talks, pickle", server.id(), |i| log_in(server.port("rpc"), i));
    drop(server);
    // As `pi-agent run` talks: the client is ours, and answers what it is asked.
    let server = piman_tests::server::Server::start_services(state.path(), &limits);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], server.port("rpc")));
    idle("talks, postcard", server.id(), |_| {
        let secret = Secret::new(None);
        let peer = connect(address, Codec::Postcard, secret, Arc::new(Nothing), DEADLINE);
        runtime.block_on(peer).unwrap()
    });
}

fn main() {
    if std::env::args().any(|a| a == FRAMES) {
        raise_file_limit();
        return serve_frames();
    }
    if std::env::args().any(|a| a == "--idle") {
        return idle_connections();
    }
    let old = Command::new("python3").args(["-c", OLD]).stderr(Stdio::inherit()).output();
    let Ok(old) = old else { return println!("skipped: needs python3 to compare with") };
    let old: Vec<f64> = String::from_utf8_lossy(&old.stdout).lines().map(|l| l.parse().unwrap()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let secret = Secret::new(None);
        let plan = Plan {
            listener,
            operator: None,
            secret,
            old_peers: true,
            connections: 100,
            connections_per_address: 100,
        };
        let server = Server::start(plan, ConnectedPis::default(), Arc::new(Echo)).unwrap();
        println!("{:32} {:>10} {:>10} {:>7}", "", "Python", "piman", "ratio");
        let row = |what: &str, old: f64, ours: f64| {
            println!("{what:32} {old:10.0} {ours:10.0} {:7.2}", ours / old);
        };
        for (under_way, old) in [1, 64].into_iter().zip(&old) {
            for codec in [Codec::Pickle, Codec::Postcard] {
                let ours = calls(server.address(), codec, under_way).await;
                row(&format!("calls/s, {under_way} under way, {codec:?}"), *old, ours);
            }
        }
        println!("a protected login takes {:.2} ms", login_ms(server.address()).await);
        for (size, old) in [16, 1024, 1 << 20].into_iter().zip(old.iter().skip(2)) {
            row(&format!("messages/s of {size} bytes"), *old, messages(size).await);
        }
    });
    drop(runtime);
    idle_connections();
}
