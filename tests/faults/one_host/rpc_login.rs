//! The login of the rpc service against a host that dials without the password, one that is dialled in place of the
//! server, one in between, and one that takes another's name.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use embedded_io_adapters::std::FromStd;
use embedded_io_async::Write as _;
use piman::rpc::{
    Answer, CallError, ConnectedPis, Data, Functions, Nothing, Peer, Plan, Request, RpcError, Secret, connect,
};
use piman_core::blocking::{self, Blocking};
use piman_core::messages::GO;
use piman_core::rpc::auth::Verdict;
use piman_core::rpc::secure::{
    Buffers, Client, FIRST, HELLO_MIN, LoginFault, OVERHEAD, Protected, RANDOM_LENGTH, SecureError,
    Server as Side, Status, Terms, login,
};
use piman_core::rpc::{Codec, IDENTITY, Protocol};
use piman_tests::binaries;
use piman_tests::running::Running;

use super::*;

/// Bytes that this test has not used yet.
fn random() -> [u8; RANDOM_LENGTH] {
    use std::sync::atomic::{AtomicU8, Ordering};
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    std::array::from_fn(|i| n.wrapping_add(i as u8))
}

fn terms<'a>(password: &'a str, name: &'a str, random: &'a [u8; RANDOM_LENGTH]) -> Terms<'a> {
    Terms { password: Some(password), name, record_max: 512, asked: false, random }
}

/// Says when a peer is gone, and echoes.
struct Watched(std::sync::Mutex<Sender<()>>);

impl Functions for Watched {
    fn call(&self, _peer: &Peer, request: Request) -> Answer {
        Box::pin(std::future::ready(Ok(Data::Tuple(request.args))))
    }

    fn closed(&self, _peer: &Peer) {
        let _ = self.0.lock().unwrap().send(());
    }
}

/// A server in this program, and when one of its connections ends.
fn here(password: &str, old_peers: bool) -> (piman::rpc::Server, Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let secret = Secret::new(Some(password.into()));
    let (gone, when) = channel();
    let plan =
        Plan { listener, operator: None, secret, old_peers, connections: 100, connections_per_address: 100 };
    let functions = Arc::new(Watched(gone.into()));
    (piman::rpc::Server::start(plan, ConnectedPis::default(), functions).unwrap(), when)
}

async fn dial(address: SocketAddr, password: &str) -> Result<Peer, RpcError> {
    connect(address, Protocol::Piman, Secret::new(Some(password.into())), Arc::new(Nothing), WITHIN).await
}

/// What somebody does to bytes that pass by, at a place.
type Change = fn(&mut Vec<u8>, usize);

/// Somebody between a client and the server, who changes what goes from one of them at one place.
fn between(server: SocketAddr, of_client: bool, change: Change, at: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = TcpStream::connect(server).unwrap();
        let pass = |mut from: TcpStream, mut to: TcpStream, changes: bool| {
            move || {
                let (mut seen, mut piece) = (0, vec![0; 4096]);
                while let Ok(n @ 1..) = from.read(&mut piece) {
                    let mut bytes = piece[..n].to_vec();
                    if changes && (seen..seen + n).contains(&at) {
                        change(&mut bytes, at - seen);
                    }
                    seen += n;
                    if to.write_all(&bytes).is_err() {
                        break;
                    }
                }
                let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            }
        };
        let [a, b] = [&client, &server].map(|s| s.try_clone().unwrap());
        let to_server = thread::spawn(pass(client, server, of_client));
        pass(b, a, !of_client)();
        let _ = to_server.join();
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_somebody_in_between_changes_both_ends_notice() {
    let (server, gone) = here("secret", true);
    let flip: Change = |bytes, at| bytes[at] ^= 4;
    let one_more: Change = |bytes, at| bytes.insert(at, 7);
    let twice: Change = |bytes, _| bytes.extend_from_within(..);
    // Bytes of the login: of the client 55 and 32, of the server 60 and 33; records follow.
    for (change, at) in [(flip, 300), (one_more, 300), (twice, 300), (flip, 130), (one_more, 131)] {
        for of_client in [true, false] {
            let address = between(server.address(), of_client, change, at);
            let began = Instant::now();
            // What is changed in the first records ends the login.
            if let Ok(peer) = dial(address, "secret").await {
                let mut failed = false;
                for n in 0..20 {
                    match peer.call(1, vec![n.into()], Duration::from_secs(1)).await {
                        Ok(answer) => assert_eq!(answer, Data::Tuple(vec![n.into()]), "a changed answer"),
                        // A record that was made longer is a forgery when the rest of it comes, which may take many calls.
                        Err(CallError::TimedOut(_)) => {
                            failed = true;
                            peer.close();
                            break;
                        }
                        Err(e) => {
                            assert_eq!(e, CallError::Closed);
                            failed = true;
                            break;
                        }
                    }
                }
                assert!(failed, "nobody noticed: {at} {of_client}");
            }
            gone.recv_timeout(WITHIN).expect("the server notices it, too");
            assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_ours_never_falls_back_and_gives_nothing_away() {
    let mut verdict = vec![0; 100];
    let n = Codec::Pickle.encode(&Verdict(true), &mut verdict).unwrap();
    verdict.truncate(n);
    let hello =
        Side::new(&terms("guess", "piman", &random()), Client::new(&terms("guess", "", &random())).hello());
    let (rogue, refusal) = (hello.unwrap().hello().to_vec(), Status::WrongPassword.refusal().to_vec());
    for answer in [verdict, vec![0xFF], vec![], b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), rogue, refusal]
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let says = answer.clone();
        let heard = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(WITHIN)).unwrap();
            let mut all = vec![0; HELLO_MIN];
            stream.read_exact(&mut all).unwrap();
            stream.write_all(&says).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let _ = stream.read_to_end(&mut all);
            all
        });
        let error = dial(address, "secret").await.unwrap_err();
        let heard = heard.join().unwrap();
        assert_eq!(heard.first(), Some(&FIRST), "{error}");
        // No more than a hello; after a hello of a rogue server the proof, which fits no other login.
        let proof = if answer.len() > HELLO_MIN { 32 } else { 0 };
        assert_eq!(heard.len(), HELLO_MIN + proof, "{error}");
        assert!(!heard.windows(6).any(|w| w == b"secret"));
    }
}

/// A server that answers every login and has another password.
fn rogue(password: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.set_read_timeout(Some(WITHIN)).unwrap();
            let mut hello = vec![0; HELLO_MIN];
            stream.read_exact(&mut hello).unwrap();
            let mut name = vec![0; usize::from(hello[54])];
            stream.read_exact(&mut name).unwrap();
            hello.extend(name);
            let random = random();
            let side = Side::new(&terms(password, "piman", &random), &hello).unwrap();
            stream.write_all(side.hello()).unwrap();
            let mut proof = [0; 32];
            stream.read_exact(&mut proof).unwrap();
            assert!(!side.verify(&proof));
            stream.write_all(&side.end(Status::Welcome, true)).unwrap();
            let _ = stream.read(&mut [0; 100]);
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_the_same_error_in_both_directions() {
    let (server, _gone) = here("secret", true);
    for address in [server.address(), rogue("secret")] {
        let error = dial(address, "guess").await.unwrap_err();
        assert!(matches!(error, RpcError::Denied), "{error}");
        assert!(error.to_string().contains("the two sides have different ones"), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    fs::write(&password, "guess\n").unwrap();
    for address in [server.address(), rogue("secret")] {
        let mut agent = agent(address, "10000000000000e1", &password);
        let mut log = agent.0.stderr.take().unwrap();
        let mut seen = String::new();
        while !seen.contains("the password is wrong: the two sides have different ones") {
            let mut piece = [0; 1000];
            let n = log.read(&mut piece).unwrap();
            assert!(n > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&piece[..n]));
        }
    }
}

fn agent(server: SocketAddr, serial: &str, password: &std::path::Path) -> Running {
    let mut command = Command::new(binaries::pi_agent());
    command.args(["run", "--server", "127.0.0.1", "--port", &server.port().to_string(), "--serial", serial]);
    command.arg("--password-file").arg(password).stdout(Stdio::null()).stderr(Stdio::piped());
    Running(command.spawn().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_can_refuse_old_peers() {
    let (server, _gone) = here("secret", false);
    let secret = || Secret::new(Some("secret".into()));
    let old = connect(server.address(), Codec::Pickle, secret(), Arc::new(Nothing), WITHIN).await;
    assert!(matches!(old, Err(RpcError::Denied)), "{old:?}");
    let mut plain = from([127, 0, 0, 1], server.address().port());
    plain.write_all(&[0xFF]).unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, [0]);
    for protocol in [Protocol::Piman, Protocol::Auto] {
        let peer = connect(server.address(), protocol, secret(), Arc::new(Nothing), WITHIN).await.unwrap();
        assert!(peer.is_protected());
        assert!(peer.call(1, vec![], WITHIN).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_begins_logins_and_proves_nothing_is_refused_before_it_costs_more() {
    let (server, _gone) = here("secret", true);
    let port = server.address().port();
    tokio::task::spawn_blocking(move || {
        let mut refused = 0;
        for _ in 0..30 {
            let mut stream = from([127, 0, 0, 5], port);
            let random = random();
            stream.write_all(Client::new(&terms("guess", "", &random)).hello()).unwrap();
            let mut answer = [0; 3];
            stream.read_exact(&mut answer).unwrap();
            refused += usize::from(answer == Status::TooManyAttempts.refusal());
            let _ = stream.shutdown(Shutdown::Both);
            if answer != Status::TooManyAttempts.refusal() {
                // The server counts it when it sees the end.
                let _ = stream.read_to_end(&mut Vec::new());
                thread::yield_now();
            }
        }
        assert!(refused >= 5, "{refused} of 30 were refused");
    })
    .await
    .unwrap();
    assert!(dial(server.address(), "secret").await.is_ok(), "another address is not concerned");
}

/// A peer with a name that has logged in and says nothing more.
fn named<'b>(
    port: u16,
    name: &str,
    buffers: &'b mut [[u8; 512 + OVERHEAD]; 2],
) -> Result<Protected<'b, Blocking<FromStd<TcpStream>>>, SecureError<std::io::Error>> {
    let stream = from([127, 0, 0, 1], port);
    let [incoming, outgoing] = buffers;
    let random = random();
    blocking::run(login(
        Blocking(FromStd::new(stream)),
        &terms("secret", name, &random),
        Buffers { incoming, outgoing },
    ))
}

const MEMORY: [[u8; 512 + OVERHEAD]; 2] = [[0; 512 + OVERHEAD]; 2];

struct Claims(&'static str);

impl Functions for Claims {
    fn call(&self, _peer: &Peer, request: Request) -> Answer {
        let answer = match request.opcode {
            n if n == i64::from(IDENTITY) => Ok(Data::dict([("serial", self.0.into())])),
            _ => Err("LookupError: nothing else".into()),
        };
        Box::pin(std::future::ready(answer))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_takes_the_name_of_a_peer_that_answers() {
    const SERIAL: &str = "10000000000000f1";
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    fs::write(&password, "secret\n").unwrap();
    let options = ["--rpc-port", "0", "--rpc-password-file", password.to_str().unwrap()];
    let server = Server::start_services(&folder.path().join("state"), &options);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.port("rpc")));
    let mut pi = agent(address, SERIAL, &password);
    server.wait_log(&format!("is {SERIAL}"));
    for name in [SERIAL, "10000000000000F1", "1000 0000 0000 00f1"] {
        let refused = named(address.port(), name, &mut MEMORY.clone()).err().unwrap();
        assert!(
            matches!(refused, SecureError::Login(LoginFault::Refused(Status::NameTaken))),
            "{name}: {refused}"
        );
        assert!(refused.to_string().contains("is connected already"), "{refused}");
    }
    // An old peer, which says its name after the login.
    let secret = || Secret::new(Some("secret".into()));
    let old = connect(address, Codec::Pickle, secret(), Arc::new(Claims("10000000 000000F1")), WITHIN)
        .await
        .unwrap();
    tokio::time::timeout(WITHIN, old.closed()).await.expect("it is closed");
    let status = || {
        let mut command = Command::new(binaries::piman());
        command.args(["status", "--state"]).arg(folder.path().join("state"));
        String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
    };
    let text = status();
    assert!(text.matches(SERIAL).count() == 1 && !text.contains("not protected"), "{text}");
    // Another old one is shown as what it is.
    let other = connect(address, Codec::Pickle, secret(), Arc::new(Claims("10000000000000f2")), WITHIN)
        .await
        .unwrap();
    wait_until("the old peer is listed, and marked", || {
        let text = status();
        text.contains("10000000000000f2") && text.contains("old login, not protected")
    });
    server.wait_log("is connected (old login, not protected)");
    other.close();
    // When the Pi is gone, its name is free again.
    pi.0.kill().unwrap();
    pi.0.wait().unwrap();
    server.wait_log(&format!("{SERIAL} is gone"));
    let mut silent = MEMORY;
    let mut silent = named(address.port(), SERIAL, &mut silent).unwrap();
    blocking::run(silent.write(&[GO])).unwrap();
    blocking::run(silent.flush()).unwrap();
    // That one does not answer: it keeps the next one out for a few seconds and no longer.
    let began = Instant::now();
    let mut next = MEMORY;
    let next = named(address.port(), "10000000000000F1", &mut next).unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    server.wait_log("does not answer");
    drop((silent, next));
}

#[test]
fn hostile_streams_end_and_the_server_stays_small() {
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    fs::write(&password, "secret\n").unwrap();
    let options = ["--rpc-port", "0", "--rpc-password-file", password.to_str().unwrap()];
    let server = Server::start_services(&folder.path().join("state"), &options);
    let port = server.port("rpc");
    drop(from([127, 0, 0, 1], port));
    forget_peak(&server);
    let before = server.memory_kb("VmHWM");
    thread::scope(|scope| {
        for n in 0..8_u8 {
            scope.spawn(move || {
                let mut chance = piman_tests::chance::Random::new(n.into());
                for _ in 0..60 {
                    let mut stream = from([127, 0, 1, n + 1], port);
                    let length = chance.below(300) as usize;
                    let random = random();
                    let mut bytes = Client::new(&terms("guess", "x", &random)).hello().to_vec();
                    bytes.truncate(chance.below(60) as usize);
                    bytes.extend(piman_tests::chance::noise(length, chance.below(1 << 40)));
                    let _ = stream.write_all(&bytes).and_then(|()| stream.shutdown(Shutdown::Write));
                    // Nothing that comes is a welcome.
                    let mut answer = Vec::new();
                    let _ = stream.read_to_end(&mut answer);
                    assert!(answer.len() < 150, "{answer:?}");
                }
            });
        }
    });
    let more = server.memory_kb("VmHWM") - before;
    assert!(more < 8 << 10, "{more} kB");
}
