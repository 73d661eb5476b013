//! Talks over TCP: our peers with each other, and with Python peers that talk as the old library does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use piman::cli::call;
use piman::rpc::{
    Answer, CallError, ConnectedPis, Data, Functions, Nothing, Peer, Plan, Request, RpcError, Secret, Server,
    connect,
};
use piman_core::rpc::Codec;
use piman_core::rpc::Encode;
use piman_core::rpc::auth::LoginOut;
use piman_core::rpc::pickle::Pickler;
use tokio::time::timeout;

/// No test waits longer for anything.
const DEADLINE: Duration = Duration::from_secs(120);
const CODECS: [Codec; 2] = [Codec::Pickle, Codec::Postcard];

/// What the tests call.
struct Some8;

impl Functions for Some8 {
    fn call(&self, peer: &Peer, request: Request) -> Answer {
        let peer = peer.clone();
        Box::pin(async move {
            match (request.opcode, &request.args[..]) {
                // Echo, with the keywords if there are any.
                (1, args) if request.keywords.is_empty() => Ok(Data::Tuple(args.to_vec())),
                (1, _) => Ok(Data::Dict(request.keywords)),
                // A factorial: the other side computes the rest.
                (2, [Data::Int(n)]) if *n <= 1 => Ok(1.into()),
                (2, [Data::Int(n)]) => {
                    let rest = peer.call(2, vec![(n - 1).into()], DEADLINE).await;
                    Ok((n * rest.map_err(|e| e.to_string())?.int().unwrap()).into())
                }
                (3, _) => Err("ValueError: not so".into()),
                // Never.
                (4, _) => std::future::pending().await,
                // Later, the later the smaller.
                (5, [Data::Int(n)]) => {
                    tokio::time::sleep(Duration::from_millis(u64::try_from(50 - n % 50).unwrap())).await;
                    Ok((*n).into())
                }
                (6, [Data::Int(n)]) => Ok(Data::Bytes(vec![7; usize::try_from(*n).unwrap()])),
                (opcode, _) => Err(format!("LookupError: no function is bound to opcode {opcode}")),
            }
        })
    }
}

fn server(password: Option<&str>, functions: Arc<dyn Functions>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let secret = Secret::new(password.map(String::from));
    let plan = Plan {
        listener,
        operator: None,
        secret,
        old_peers: true,
        connections: 100,
        connections_per_address: 100,
    };
    Server::start(plan, ConnectedPis::default(), functions).unwrap()
}

async fn join(address: SocketAddr, codec: Codec, password: Option<&str>) -> Result<Peer, RpcError> {
    let secret = Secret::new(password.map(String::from));
    connect(address, codec, secret, Arc::new(Some8), DEADLINE).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_every_kind_in_both_codecs() {
    let server = server(Some("secret"), Arc::new(Some8));
    for codec in CODECS {
        let peer = join(server.address(), codec, Some("secret")).await.unwrap();
        let args = vec![
            Data::None,
            true.into(),
            (-7).into(),
            i64::MAX.into(),
            Data::Float(0.5),
            Data::Bytes(vec![0, 255]),
            "h\u{e9}".into(),
            Data::List(vec![1.into(), Data::Tuple(vec![])]),
            Data::Set(vec![3.into()]),
            Data::dict([("key", Data::List(vec![]))]),
        ];
        assert_eq!(peer.call(1, args.clone(), DEADLINE).await, Ok(Data::Tuple(args)));
        assert_eq!(peer.call(2, vec![20.into()], DEADLINE).await, Ok((1..=20).product::<i64>().into()));
        let failed = |text: &str| Err(CallError::Function(text.into()));
        assert_eq!(peer.call(3, vec![], DEADLINE).await, failed("ValueError: not so"));
        assert_eq!(
            peer.call(99, vec![], DEADLINE).await,
            failed("LookupError: no function is bound to opcode 99")
        );
        let large = peer.call(6, vec![3_000_000.into()], DEADLINE).await.unwrap();
        assert_eq!(large, Data::Bytes(vec![7; 3_000_000]));
        assert_eq!(
            peer.call(6, vec![5_000_000.into()], DEADLINE).await,
            failed("MemoryError: the result is too large")
        );
        let within = Duration::from_millis(30);
        assert_eq!(peer.call(4, vec![], within).await, Err(CallError::TimedOut(within)));
        assert_eq!(
            peer.call(1, vec![Data::Bytes(vec![0; 5 << 20])], DEADLINE).await,
            Err(CallError::TooLarge)
        );
        // The connection lives after all of that.
        assert_eq!(peer.call(1, vec![], DEADLINE).await, Ok(Data::Tuple(vec![])));
        peer.close();
        timeout(DEADLINE, peer.closed()).await.unwrap();
        assert_eq!(peer.call(1, vec![], DEADLINE).await, Err(CallError::Closed));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_under_way_answered_in_disorder() {
    let server = server(None, Arc::new(Some8));
    for (codec, calls) in [(Codec::Pickle, 10_000), (Codec::Postcard, 2_000)] {
        let peer = join(server.address(), codec, None).await.unwrap();
        let calls: Vec<_> = (0..calls)
            .map(|n: i64| {
                let peer = peer.clone();
                tokio::spawn(async move { (n, peer.call(5, vec![n.into()], DEADLINE).await) })
            })
            .collect();
        for call in calls {
            let (n, answer) = call.await.unwrap();
            assert_eq!(answer, Ok(n.into()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_without_the_password() {
    let locked = server(Some("secret"), Arc::new(Some8));
    let open = server(None, Arc::new(Some8));
    for codec in CODECS {
        for wrong in [None, Some(""), Some("Secret"), Some("secret ")] {
            let error = join(locked.address(), codec, wrong).await.unwrap_err();
            let denied =
                matches!((&error, wrong), (RpcError::NoPassword, None) | (RpcError::Denied, Some(_)));
            assert!(denied, "{error}");
        }
        assert!(join(open.address(), codec, None).await.is_ok());
    }
    // An old client may send any password to a server without one; our own notices that this cannot be
    // the server it means.
    assert!(join(open.address(), Codec::Pickle, Some("secret")).await.is_ok());
    let error = join(open.address(), Codec::Postcard, Some("secret")).await.unwrap_err();
    assert!(matches!(error, RpcError::ServerNotTrusted), "{error}");
}

fn pickle(value: &dyn Encode) -> Vec<u8> {
    let mut buf = vec![0; 1000];
    let mut out = Pickler::new(&mut buf).unwrap();
    value.encode(&mut out).unwrap();
    let n = out.finish().unwrap();
    buf.truncate(n);
    buf
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_before_the_login_silence_and_strangers_are_dropped() {
    let server = server(Some("secret"), Arc::new(Some8));
    let call = piman_core::rpc::CallOut { opcode: 1, retcode: 5, args: &Data::Tuple(vec![]) };
    let address = server.address();
    for said in
        [pickle(&call), vec![], b"GET / HTTP/1.0\r\n\r\n".to_vec(), vec![0xFF], vec![0xFF, 0, 0, 0, 1]]
    {
        let ended = tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream.write_all(&said).unwrap();
            let mut all = Vec::new();
            // A reset is an end too.
            let _ = stream.read_to_end(&mut all);
            all
        });
        let answer = ended.await.unwrap();
        assert!(!answer.windows(1).any(|w| w == [0x88]), "admitted: {answer:?}");
    }
}

/// Cut after every byte of a login and a call: the server lives, and nobody waits for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disconnects_in_the_midst_of_every_byte() {
    let server = server(None, Arc::new(Some8));
    let address = server.address();
    let call = piman_core::rpc::CallOut { opcode: 1, retcode: 5, args: &Data::Tuple(vec!["text".into()]) };
    let all = [pickle(&LoginOut(None)), pickle(&call)].concat();
    let cuts = tokio::task::spawn_blocking(move || {
        for end in 0..all.len() {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&all[..end]).unwrap();
        }
    });
    cuts.await.unwrap();
    let peer = join(address, Codec::Pickle, None).await.unwrap();
    assert_eq!(peer.call(1, vec![], DEADLINE).await, Ok(Data::Tuple(vec![])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_hears_that_the_peer_is_gone() {
    for codec in CODECS {
        let server = server(None, Arc::new(Some8));
        let connected = ConnectedPis::default();
        let secret = Secret::new(None);
        let peer = connect(server.address(), codec, secret, Arc::new(connected), DEADLINE).await.unwrap();
        let waiting = tokio::spawn({
            let peer = peer.clone();
            async move { peer.call(4, vec![], Duration::from_secs(3600)).await }
        });
        while peer.call(1, vec![], DEADLINE).await.is_err() {}
        peer.close();
        assert_eq!(timeout(DEADLINE, waiting).await.unwrap().unwrap(), Err(CallError::Closed));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_answers_twice_late_and_unasked_is_heard_once() {
    let old = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = old.local_addr().unwrap();
    let peer = std::thread::spawn(move || {
        let (stream, _) = old.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let message = || {
            let mut scanner = piman_core::rpc::pickle::Scanner::new(10_000);
            let mut all = Vec::new();
            let mut byte = [0];
            loop {
                (&stream).read_exact(&mut byte).unwrap();
                all.push(byte[0]);
                if scanner.feed(&byte).unwrap().is_some() {
                    return all;
                }
            }
        };
        message();
        (&stream).write_all(&pickle(&piman_core::rpc::auth::Verdict(true))).unwrap();
        for _ in 0..2 {
            let call = message();
            // The retcode is the second number: K op, then J or a long.
            let at = call.windows(2).position(|w| w == [b'K', 1]).unwrap() + 2;
            let retcode = match call[at] {
                b'K' => u32::from(call[at + 1]),
                b'J' => u32::from_le_bytes(call[at + 1..at + 5].try_into().unwrap()),
                _ => u32::from_le_bytes(call[at + 2..at + 6].try_into().unwrap()),
            };
            let answer = |retcode, value: &str| {
                pickle(&piman_core::rpc::AnswerOut { retcode, value: &Data::from(value) })
            };
            for message in
                [answer(retcode ^ 1, "unasked"), answer(retcode, "first"), answer(retcode, "second")]
            {
                (&stream).write_all(&message).unwrap();
            }
        }
        // The end of the stream.
    });
    let joined = join(address, Codec::Pickle, None).await.unwrap();
    for _ in 0..2 {
        assert_eq!(joined.call(1, vec![], DEADLINE).await, Ok("first".into()));
    }
    timeout(DEADLINE, joined.closed()).await.unwrap();
    peer.join().unwrap();
}

/// Talks as the old library does: pickles with the protocol of its version, one after another.
const OLD: &str = r#"
import pickle, socket, sys, random, threading
PROTOCOL = int(sys.argv[3])
class Peer:
    def __init__(self, sock):
        self.sock, self.file = sock, sock.makefile("rb")
        self.waiting, self.lock = {}, threading.Lock()
    def put(self, message):
        with self.lock: self.sock.sendall(pickle.dumps(message, PROTOCOL))
    def take(self): return pickle.load(self.file)
    def call(self, opcode, *args, **kwargs):
        ret = random.getrandbits(32)
        event = threading.Event(); self.waiting[ret] = [event, None]
        self.put((b"R", opcode, ret, args, kwargs))
        assert event.wait(120), "no answer"
        value = self.waiting.pop(ret)[1]
        if len(value) == 1 and isinstance(value[0], tuple) and len(value[0]) == 3 and isinstance(value[0][1], BaseException):
            raise value[0][1]
        return value[0] if len(value) == 1 else value
    def run(self):
        try:
            while True:
                message = self.take()
                if message[0] == b"A":
                    slot = self.waiting.get(message[1])
                    if slot: slot[1] = message[2]; slot[0].set()
                else:
                    threading.Thread(target=self.answer, args=message[1:], daemon=True).start()
        except (EOFError, ConnectionError): pass
    def answer(self, opcode, ret, args, kwargs):
        try: value = FUNCTIONS[opcode](self, *args, **kwargs)
        except Exception as e: value = (type(e), e, None)
        try: self.put((b"A", ret, (value,)))
        except OSError: pass
def factorial(peer, n): return 1 if n <= 1 else n * peer.call(2, n - 1)
FUNCTIONS = {1: lambda peer, *a: a, 2: factorial, 3: lambda peer: [][1], 0xBB: lambda peer: "abcdef"}
role, port = sys.argv[1], int(sys.argv[2])
if role == "client":
    peer = Peer(socket.create_connection(("127.0.0.1", port)))
    peer.put((b"A", 0xAA, ("secret",)))
    assert peer.take() == (b"A", 0xAA, (True,))
    threading.Thread(target=peer.run, daemon=True).start()
    assert peer.call(2, 20) == 2432902008176640000
    values = (None, True, -1, 2**40, 1.5, b"\x00\xff", "h\u00e9", [1, (2,)], {3, 4}, {"a": [{}]}, "x" * 70000)
    assert peer.call(1, *values) == values
    assert peer.call(1, key="word", n=5) == {"key": "word", "n": 5}
    for opcode, kind, text in [(3, ValueError, "not so"), (77, LookupError, "no function is bound to opcode 77"), (300, LookupError, "no function is bound to opcode 300")]:
        try: peer.call(opcode); assert False
        except kind as e: assert str(e) == text, e
    results = []
    threads = [threading.Thread(target=lambda n=n: results.append((n, peer.call(5, n)))) for n in range(100)]
    [t.start() for t in threads]; [t.join() for t in threads]
    assert len(results) == 100 and all(a == b for a, b in results)
    denied = Peer(socket.create_connection(("127.0.0.1", port)))
    denied.put((b"A", 0xAA, ("wrong",)))
    assert denied.take() == (b"A", 0xAA, (False,))
    assert denied.file.read() == b""
    print("fine", flush=True)
else:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    sock, _ = listener.accept()
    peer = Peer(sock)
    login = peer.take()
    assert login == (b"A", 0xAA, ("secret",)), login
    peer.put((b"A", 0xAA, (True,)))
    peer.run()
    print("fine", flush=True)
"#;

fn python(role: &str, port: u16, protocol: u8) -> Child {
    Command::new("python3")
        .args(["-c", OLD, role, &port.to_string(), &protocol.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 starts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
async fn an_old_client_at_our_server_in_every_protocol() {
    let server = server(Some("secret"), Arc::new(Some8));
    for protocol in 0..=5 {
        let child = python("client", server.address().port(), protocol);
        let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "fine\n", "protocol {protocol}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
async fn our_client_at_an_old_server_in_every_protocol() {
    for protocol in 0..=5 {
        let mut child = python("server", 0, protocol);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let port: u16 = line.trim().parse().unwrap();
        let peer = join(([127, 0, 0, 1], port).into(), Codec::Pickle, Some("secret")).await.unwrap();
        assert_eq!(peer.call(2, vec![20.into()], DEADLINE).await, Ok((1..=20).product::<i64>().into()));
        assert_eq!(peer.call(0xBB, vec![], DEADLINE).await, Ok("abcdef".into()));
        let args =
            vec![Data::None, Data::Bytes(vec![0, 200]), "\u{e9}\n\\".into(), Data::Set(vec![1.into()])];
        assert_eq!(peer.call(1, args.clone(), DEADLINE).await, Ok(Data::Tuple(args)));
        let error = CallError::Function("IndexError: list index out of range".into());
        assert_eq!(peer.call(3, vec![], DEADLINE).await, Err(error));
        let error = peer.call(9, vec![], DEADLINE).await.unwrap_err();
        assert_eq!(error, CallError::Function("KeyError: 9".into()));
        peer.close();
        line.clear();
        tokio::task::spawn_blocking(move || {
            output.read_line(&mut line).unwrap();
            assert_eq!(line, "fine\n");
            assert!(child.wait().unwrap().success());
        })
        .await
        .unwrap();
    }
}

/// A Pi, as the operator sees it.
struct Pi(&'static str);

impl Functions for Pi {
    fn call(&self, _peer: &Peer, request: Request) -> Answer {
        let answer = match (request.opcode, &request.args[..]) {
            (1, _) => Ok(Data::dict([("serial", self.0.into()), ("mac", "b8:27:eb:00:00:01".into())])),
            (2, _) => Ok(Data::dict([("uptime", 3600.into()), ("cpu", Data::Float(12.0))])),
            (4, _) if self.0.ends_with('2') => Err("PermissionError: not me".into()),
            (4, [Data::Int(n)]) => Ok((n + 1).into()),
            _ => Err("LookupError: no such function".into()),
        };
        Box::pin(std::future::ready(answer))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_calls_one_or_all() {
    let state = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let (connected, secret) = (ConnectedPis::default(), Secret::new(Some("secret".into())));
    let plan = Plan {
        listener,
        operator: Some(state.path().join(piman::rpc::SOCKET)),
        secret: secret.clone(),
        connections: 10,
        old_peers: true,
        connections_per_address: 10,
    };
    let server = Server::start(plan, connected.clone(), Arc::new(connected.clone())).unwrap();
    let mut pis = Vec::new();
    for serial in ["10000000aaaaaaa1", "10000000aaaaaaa2"] {
        let pi = connect(server.address(), Codec::Postcard, secret.clone(), Arc::new(Pi(serial)), DEADLINE);
        pis.push(pi.await.unwrap());
    }
    // A Pi that comes again takes the place of its old connection.
    let again = Arc::new(Pi("10000000aaaaaaa2"));
    let _again = connect(server.address(), Codec::Postcard, secret.clone(), again, DEADLINE).await.unwrap();
    timeout(DEADLINE, pis[1].closed()).await.unwrap();
    let known = async {
        while connected.find("10000000aaaaaaa1").is_none() || connected.len() != 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, known).await.unwrap();
    let folder = state.path().to_owned();
    let calls = move || {
        let wanted = |device: &str, function: &str, json| call::Wanted {
            device: device.into(),
            function: function.into(),
            args: vec!["41".into()],
            within: DEADLINE,
            json,
        };
        let (text, well) = call::call(&folder, &wanted("10000000aaaaaaa1", "reboot", false)).unwrap();
        assert!(well && text.contains("10000000aaaaaaa1  ok  42"), "{text}");
        let (text, well) = call::call(&folder, &wanted("all", "reboot", true)).unwrap();
        assert!(!well);
        let json: Vec<_> = text.lines().map(str::trim).filter(|l| l.starts_with('"')).collect();
        let want = [
            "\"device\": \"10000000aaaaaaa1\",",
            "\"result\": 42",
            "\"device\": \"10000000aaaaaaa2\",",
            "\"error\": \"PermissionError: not me\"",
        ];
        assert_eq!(json, want);
        let error = call::call(&folder, &wanted("30000000", "reboot", false)).unwrap_err().to_string();
        assert!(error.contains("is not connected"), "{error}");
        let error = call::call(&folder, &wanted("all", "dance", false)).unwrap_err().to_string();
        assert!(error.contains("identity, status, log"), "{error}");
        let (text, well) = call::status(&folder, DEADLINE, false).unwrap();
        assert!(well && text.contains("60 min") && text.contains("12 %"), "{text}");
        let nobody = call::status(std::path::Path::new("/nonexistent"), DEADLINE, false).unwrap_err();
        assert!(nobody.to_string().contains("piman serve --rpc-port"), "{nobody}");
    };
    tokio::task::spawn_blocking(calls).await.unwrap();
    drop(server);
    assert!(!state.path().join(piman::rpc::SOCKET).exists());
    let nothing = connect("127.0.0.1:1", Codec::Postcard, secret, Arc::new(Nothing), DEADLINE).await;
    assert!(matches!(nothing, Err(RpcError::Io(_))));
}
