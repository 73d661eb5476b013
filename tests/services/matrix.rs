//! Every service over every transport that is to be had here: the same conversations, and the table in the README
//! that says so.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use embedded_io_async::{ErrorType, Read, Write};
use piman::messages::transport::{self, Hooks, Peer, Settings};
use piman_core::blocking;
use piman_core::hosted::dial::serial;
use piman_tests::binaries;
use piman_tests::cable::{Cable, Faults};
use piman_tests::dialogue::{Client, Host, SERVICES, archive, hold};
use piman_tests::link::{self, Weather};
use piman_tests::memory::{End, ROOM, World};
use piman_tests::server::Server;
use piman_tests::stack::{self, Closing, Orderly, PATIENT, Pair, Time, Wall};
use smoltcp::iface::SocketHandle;
use smoltcp::phy::TunTapInterface;
use smoltcp::wire::IpEndpoint;

/// Both sides in one thread: a client whose conversation runs together with the server's.
struct InMemory {
    host: Host,
    chop: usize,
    world: World,
    served: Option<(End, u16)>,
}

impl Client for InMemory {
    type Stream = End;

    fn open(&mut self, port: u16) -> End {
        let (ours, theirs) = self.world.stream(ROOM, self.chop);
        self.served = Some((theirs, port));
        ours
    }

    fn run<F: Future>(&mut self, conversation: F) -> F::Output {
        let (io, port) = self.served.take().expect("a stream was opened");
        self.world.both(conversation, self.host.serve(io, port)).0
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

/// Both sides over smoltcp in one thread.
struct OverCable<'s> {
    host: Host,
    pair: &'s Pair,
    closing: Closing<'s, link::End, Time>,
    served: Option<(stack::Socket<'s, link::End, Time>, u16)>,
}

impl<'s> Client for OverCable<'s> {
    type Stream = Orderly<'s, link::End, Time>;

    fn open(&mut self, port: u16) -> Self::Stream {
        let (pair, closing) = (self.pair, &self.closing);
        let client = async {
            closing.all().await;
            pair.client(port).await
        };
        let (ours, theirs) = pair.run(client, pair.server(port));
        self.served = Some((theirs.expect("a client comes"), port));
        self.closing.later(ours.expect("the server is there"))
    }

    fn run<F: Future>(&mut self, conversation: F) -> F::Output {
        let (mut io, port) = self.served.take().expect("a stream was opened");
        let client = async {
            let said = conversation.await;
            self.closing.all().await;
            said
        };
        let server = async {
            self.host.serve(&mut io, port).await;
            // The client may be gone, or its last word lost.
            let _ = io.close().await;
        };
        self.pair.run(client, server).0
    }
}

/// A client over smoltcp on a TAP device.
struct OnTap<'s> {
    net: &'s stack::Net<TunTapInterface, Wall>,
    socket: SocketHandle,
    closing: Closing<'s, TunTapInterface, Wall>,
    services: &'s Services,
}

impl<'s> Client for OnTap<'s> {
    type Stream = Orderly<'s, TunTapInterface, Wall>;

    fn open(&mut self, port: u16) -> Self::Stream {
        let ip = Ipv4Addr::from(self.services.ip).into();
        let (net, address) = (self.net, IpEndpoint::new(ip, self.services.address(port).port()));
        let io = net.run(async {
            self.closing.all().await;
            net.connect(self.socket, address, PATIENT).await
        });
        self.closing.later(io.expect("the server is there"))
    }

    fn run<F: Future>(&mut self, conversation: F) -> F::Output {
        self.net.run(async {
            let said = conversation.await;
            self.closing.all().await;
            said
        })
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
    ip: [u8; 4],
    echo: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Services {
    fn start(ip: [u8; 4]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).to_str().expect("a plain name").to_owned();
        for name in ["files", "records"] {
            fs::create_dir(path(name)).expect("a folder");
        }
        fs::write(path("rootfs"), archive()).expect("a file");
        let mut command = Command::new(binaries::piman());
        command.args([
            "serve",
            "--no-date",
            "--no-images",
            "--allow-unfit",
            "--listen",
            &IpAddr::from(ip).to_string(),
        ]);
        for port in ["control", "rootfs", "fetch", "transfer", "telemetry", "rpc"] {
            command.args([&format!("--{port}-port"), "0"]);
        }
        for (option, name) in [
            ("--rootfs", "rootfs"),
            ("--state", "state"),
            ("--transfer-dir", "files"),
            ("--telemetry-dir", "records"),
        ] {
            command.args([option, &path(name)]);
        }
        let server = Server::start_by(&mut command, Path::new(&path("state")));
        server.wait_log("is good");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let echo = runtime.block_on(async {
            let addresses = vec![(ip, 0).into()];
            let settings = Settings::default();
            let plan = transport::Plan { addresses, connections: 9, settings, plugins: None, hooks: || Echo };
            let server = transport::Server::start(plan).expect("it listens");
            let address = server.addresses()[0];
            // Until the runtime ends.
            std::mem::forget(server);
            address
        });
        Self { _folder: folder, server, ip, echo, _runtime: runtime }
    }

    fn address(&self, port: u16) -> SocketAddr {
        let name = match port {
            3333 => "control",
            4444 => "rootfs",
            50001 => "transfer",
            5003 => "telemetry",
            25565 => "rpc",
            _ => return self.echo,
        };
        (self.ip, self.server.port(name)).into()
    }
}

/// A row: what was tried, and how, and which services it held for.
fn row(transport: &str, how: &str, mut client: impl FnMut(&str)) -> String {
    let mut row = format!("| {transport} | {how} |");
    for service in SERVICES {
        let held = catch_unwind(AssertUnwindSafe(|| client(service))).is_ok();
        row += if held { " yes |" } else { " NO |" };
    }
    row
}

const LOOPBACK: [u8; 4] = [127, 0, 0, 1];

fn memory() -> String {
    row("memory", "the core on both sides; pieces of 1, 7 and 4,096 bytes", |service| {
        for chop in [1, 7, 4096] {
            let world = World::new();
            hold(&mut InMemory { host: Host::default(), chop, world, served: None }, service);
        }
    })
}

fn tcp() -> String {
    let services = Services::start(LOOPBACK);
    row("TCP", "client on std, `piman serve` on tokio", |service| {
        hold(&mut Sockets(|port| TcpStream::connect(services.address(port))), service);
    })
}

fn smoltcp_in_memory() -> String {
    let storm = Weather { lost: 5, twice: 5, damaged: 5, late: 10, delay_ms: 3 };
    row("smoltcp", "both sides, in memory; of 100 packets 5 lost, 5 doubled, 5 damaged, 10 late", |service| {
        for weather in [Weather::default(), storm] {
            let pair = Pair::new(weather, 0);
            let (host, closing) = (Host::default(), Closing::default());
            hold(&mut OverCable { host, pair: &pair, closing, served: None }, service);
        }
    })
}

/// How the client on a TAP device is tried.
const ON_TAP: &str = "client on a TAP device, `piman serve`; 5 doubled, 10 late";

fn smoltcp_on_tap() -> String {
    // Nothing is lost: a peer of talks has a second to log in.
    let weather = Weather { twice: 5, late: 10, delay_ms: 2, ..Weather::default() };
    stack::alone(move || {
        let (net, sockets, happened) = stack::tap(weather, 0);
        let services = Services::start(stack::KERNEL);
        let row = row("smoltcp", ON_TAP, |service| {
            let closing = Closing::default();
            hold(&mut OnTap { net: &net, socket: sockets[0], closing, services: &services }, service);
        });
        assert!(happened.borrow().disturbed > 5, "{happened:?}");
        row
    })
}

fn serial_line() -> String {
    let services = Services::start(LOOPBACK);
    let cable = Cable::new(Faults { lost: 2000, flipped: 2000 });
    let there: Vec<(u16, SocketAddr)> =
        [3333, 4444, 50001, 5003, 25565, 9123].map(|port| (port, services.address(port))).into();
    let reach = move |port| {
        let found = there.iter().find(|(p, _)| *p == port).ok_or(io::ErrorKind::NotFound)?;
        TcpStream::connect(found.1)
    };
    let line = |end: usize| serial::Line { device: cable.ends[end].clone(), baud: 115_200 };
    let _listening = serial::listen(&line(0), Box::new(reach)).expect("a line");
    let row = row("serial line", "pseudo-terminals; 1 byte in 2,000 lost, 1 damaged", |service| {
        let within = Duration::from_secs(30);
        hold(&mut Sockets(|port| serial::connect(&line(1), port, within)), service);
    });
    // This program keeps the line that it has dialled: no other test may get a cable of the same name.
    std::mem::forget(cable);
    row
}

fn readme() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../host/README.md"))
        .expect("the page of the server")
}

#[test]
fn every_service_over_every_transport() {
    let head = format!("| transport | how | {} |\n|---|---|{}", SERVICES.join(" | "), "---|".repeat(5));
    let table = [head, memory(), tcp(), smoltcp_in_memory(), serial_line()].join("\n") + "\n";
    assert!(!table.contains("NO"), "not every service holds:\n{table}");
    // That row has a test of its own.
    let others: String = readme().split_inclusive('\n').filter(|line| !line.contains(ON_TAP)).collect();
    assert!(others.contains(&table), "the README should have this table:\n{table}");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn every_service_on_a_tap_device() {
    let row = smoltcp_on_tap();
    assert!(!row.contains("NO"), "not every service holds:\n{row}");
    assert!(readme().lines().any(|line| line == row), "the README should have this row:\n{row}");
}
