//! Every service over every transport that is to be had here: the same conversations, and the table in the README
//! that says so.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use embedded_io_async::{ErrorType, Read, Write};
use pi_agent::reach::serial;
use piman::frame::{self, Hooks, Peer, Settings};
use piman_core::blocking;
use piman_tests::cable::{Cable, Faults};
use piman_tests::dialogue::{Client, Host, SERVICES, archive, hold};
use piman_tests::memory::{End, both, pipe};
use piman_tests::server::Server;

/// Both sides in one thread: a client whose conversation runs together with the server's.
struct InMemory {
    host: Host,
    chop: usize,
    served: Option<(End, u16)>,
}

impl Client for InMemory {
    type Stream = End;

    fn open(&mut self, port: u16) -> End {
        let (ours, theirs) = pipe(self.chop, None);
        self.served = Some((theirs, port));
        ours
    }

    fn run<F: Future>(&mut self, conversation: F) -> F::Output {
        let (io, port) = self.served.take().expect("a stream was opened");
        both(conversation, self.host.serve(io, port)).0
    }
}

/// A blocking socket as the core's drivers want it.
struct Socket(TcpStream);

impl ErrorType for Socket {
    type Error = io::Error;
}

impl Read for Socket {
    async fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Socket {
    async fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A client over sockets.
struct Sockets<C>(C);

impl<C: FnMut(u16) -> io::Result<TcpStream>> Client for Sockets<C> {
    type Stream = Socket;

    fn open(&mut self, port: u16) -> Socket {
        let stream = (self.0)(port).expect("the server is there");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time-out");
        Socket(stream)
    }

    fn run<F: Future>(&mut self, conversation: F) -> F::Output {
        blocking::run(conversation)
    }
}

struct Echo;

impl Hooks for Echo {
    fn message(&mut self, peer: &Peer, message: Vec<u8>) {
        peer.queue(message).expect("room for one");
    }
}

/// The programs' services, each with a folder of its own.
struct Services {
    _folder: tempfile::TempDir,
    server: Server,
    echo: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Services {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).to_str().expect("a plain name").to_owned();
        for name in ["files", "records"] {
            fs::create_dir(path(name)).expect("a folder");
        }
        fs::write(path("rootfs"), archive()).expect("a file");
        let (files, records) = (path("files"), path("records"));
        let more = ["--no-date", "--no-images", "--transfer-dir", &files, "--transfer-port", "0"];
        let more =
            [&more[..], &["--stream-dir", &records, "--stream-port", "0", "--talks-port", "0"]].concat();
        let server = Server::start(Path::new(&path("rootfs")), Path::new(&path("state")), &more);
        server.wait_log("is good");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let echo = runtime.block_on(async {
            let addresses = vec![([127, 0, 0, 1], 0).into()];
            let settings = Settings::default();
            let plan = frame::Plan { addresses, connections: 9, settings, plugins: None, hooks: || Echo };
            let server = frame::Server::start(plan).expect("it listens");
            let address = server.addresses()[0];
            // Until the runtime ends.
            std::mem::forget(server);
            address
        });
        Self { _folder: folder, server, echo, _runtime: runtime }
    }

    fn address(&self, port: u16) -> SocketAddr {
        let name = match port {
            3333 => "control",
            4444 => "rootfs",
            50001 => "transfer",
            5003 => "stream",
            25565 => "talks",
            _ => return self.echo,
        };
        ([127, 0, 0, 1], self.server.port(name)).into()
    }
}

/// A row: what was tried, and how, and which services it held for.
fn row(table: &mut String, transport: &str, how: &str, mut client: impl FnMut(&str)) {
    *table += &format!("| {transport} | {how} |");
    for service in SERVICES {
        let held = catch_unwind(AssertUnwindSafe(|| client(service))).is_ok();
        *table += if held { " yes |" } else { " NO |" };
    }
    *table += "\n";
}

#[test]
fn every_service_over_every_transport() {
    let mut table =
        format!("| transport | how | {} |\n|---|---|{}\n", SERVICES.join(" | "), "---|".repeat(5));
    row(&mut table, "memory", "the core on both sides; pieces of 1, 7 and 4,096 bytes", |service| {
        for chop in [1, 7, 4096] {
            hold(&mut InMemory { host: Host::default(), chop, served: None }, service);
        }
    });
    let services = Services::start();
    row(&mut table, "TCP", "client on std, `piman serve` on tokio", |service| {
        hold(&mut Sockets(|port| TcpStream::connect(services.address(port))), service);
    });
    // Another run would find the file of the one before.
    let services = Services::start();
    let cable = Cable::new(Faults { lost: 2000, flipped: 2000 });
    let there: Vec<(u16, SocketAddr)> =
        [3333, 4444, 50001, 5003, 25565, 9123].map(|port| (port, services.address(port))).into();
    let reach = move |port| {
        let found = there.iter().find(|(p, _)| *p == port).ok_or(io::ErrorKind::NotFound)?;
        TcpStream::connect(found.1)
    };
    let line = |end: usize| serial::Line { device: cable.ends[end].clone(), baud: 115_200 };
    let _listening = serial::listen(&line(0), Box::new(reach)).expect("a line");
    row(&mut table, "serial line", "pseudo-terminals; 1 byte in 2,000 lost, 1 damaged", |service| {
        let within = Duration::from_secs(30);
        hold(&mut Sockets(|port| serial::connect(&line(1), port, within)), service);
    });
    let readme =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).expect("the README");
    assert!(!table.contains("NO"), "not every service holds:\n{table}");
    assert!(readme.contains(&table), "the README should have this table:\n{table}");
}
