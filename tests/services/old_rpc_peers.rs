//! Old rpc peers as the library was: how it raises errors, what it may send that cannot be read, and many of
//! them at one address.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use piman::cli::call;
use piman::rpc::{
    Answer, CallError, ConnectedPis, Data, Functions, Nothing, Peer, Plan, Request, Secret, Server, connect,
};
use piman_core::rpc::auth::LoginOut;
use piman_core::rpc::{Codec, Encode};
use piman_tests::running::Running;
use piman_tests::server::{self, wait_until};

/// No test waits longer for anything.
const DEADLINE: Duration = Duration::from_secs(120);

/// The old library: a thread reads 256 bytes at a time, finds the end of a pickle by halving, and runs what is
/// called; `execute` waits for an answer and raises the error in it, with the lines of its traceback.
const LIBRARY: &str = r#"
import pickle, queue, random, socket, sys, threading, time, traceback
PORT, PROTOCOL = int(sys.argv[1]), int(sys.argv[2])
def loads(raw):
    a, b = 0, len(raw)
    while b - a > 1:
        i = (a + b) // 2
        try: pickle.loads(raw[:i])
        except (EOFError, pickle.UnpicklingError, AttributeError): a = i
        else: b = i
    return pickle.loads(raw[:b]), raw[b:]
class Peer:
    def __init__(self, functions={}, password="secret"):
        self.functions = {0xBB: lambda: "ABC123", **functions}
        self.queues, self.lock, self.write = {}, threading.RLock(), threading.RLock()
        self.socket = socket.create_connection(("127.0.0.1", PORT))
        self.socket.settimeout(1)
        self.listener = threading.Thread(target=self.listen, daemon=True); self.listener.start()
        self.sendback(0xAA, password)
        assert self.poll(0xAA, 1), "authentification failed"
    def rawsend(self, raw):
        with self.write:
            sent = 0
            while sent < len(raw):
                try: sent += self.socket.send(raw[sent:])
                except socket.timeout: pass
    def send(self, opcode, *args, **kwargs):
        retcode = random.randint(0, 0xFFFFFFFF)
        self.rawsend(pickle.dumps((b"R", opcode, retcode, args, kwargs), PROTOCOL))
        return retcode
    def sendback(self, retcode, *args): self.rawsend(pickle.dumps((b"A", retcode, args), PROTOCOL))
    def queue(self, retcode):
        with self.lock: return self.queues.setdefault(retcode, queue.Queue())
    def poll(self, retcode, timeout):
        try: output = self.queue(retcode).get(True, timeout)
        except queue.Empty: raise TimeoutError("timeout exceeded") from None
        with self.lock: del self.queues[retcode]
        return output if len(output) > 1 else output[0]
    def execute(self, opcode, *args, timeout=5, **kwargs):
        output = self.poll(self.send(opcode, *args, **kwargs), timeout)
        if isinstance(output, tuple) and isinstance(output[0], type) and issubclass(output[0], Exception):
            kind, value, lines = output
            text = "{}\n\nraised by the distant instance:\n{}{}: {}"
            raise kind(text.format(value, "".join(traceback.format_list(lines)), kind.__name__, value))
        return output
    def listen(self):
        buffer = b""
        while True:
            try: more = self.socket.recv(256)
            except socket.timeout: continue
            except OSError: more = b""
            if not more: return
            buffer += more
            try:
                while True:
                    message, buffer = loads(buffer)
                    if message[0] == b"R": self.run(*message[1:])
                    elif message[0] == b"A": self.queue(message[1]).put(message[2])
            except (EOFError, pickle.UnpicklingError, AttributeError): continue
    def run(self, opcode, retcode, args, kwargs):
        try:
            try: function = self.functions[opcode]
            except KeyError:
                raise KeyError("opcode {} is not bound to any instruction".format(opcode)) from None
            output = function(*args, **kwargs)
        except Exception:
            kind, value, trace = sys.exc_info()
            output = (kind, value, traceback.extract_tb(trace))
        self.sendback(retcode, output)
"#;

/// A program on the library; its output.
fn python(program: &str, port: u16, protocol: u8) -> (Running, BufReader<ChildStdout>) {
    let child = Command::new("python3")
        .args(["-c", &format!("{LIBRARY}{program}"), &port.to_string(), &protocol.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.expect("python3 starts");
    let output = BufReader::new(child.stdout.take().unwrap());
    (Running(child), output)
}

/// The next line that a program prints.
async fn line(mut output: BufReader<ChildStdout>) -> (String, BufReader<ChildStdout>) {
    let read = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        (line, output)
    });
    tokio::time::timeout(DEADLINE, read).await.unwrap().unwrap()
}

/// What old peers call, and which are connected.
#[derive(Default)]
struct Desk(Mutex<Vec<Peer>>);

impl Functions for Desk {
    fn call(&self, _peer: &Peer, request: Request) -> Answer {
        let answer = match request.opcode {
            1 => Ok(Data::Tuple(request.args)),
            3 => Err("ValueError: not so".into()),
            4 => Err("Strange: not known in Python".into()),
            opcode => Err(format!("LookupError: no function is bound to opcode {opcode}")),
        };
        Box::pin(std::future::ready(answer))
    }

    fn opened(&self, peer: &Peer) {
        self.0.lock().unwrap().push(peer.clone());
    }
}

fn listen(operator: Option<&Path>, connected: ConnectedPis, functions: Arc<dyn Functions>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let plan = Plan {
        listener,
        operator: operator.map(|state| state.join(piman::rpc::SOCKET)),
        secret: Secret::new(Some("secret".into())),
        connections: 100,
        old_peers: true,
        connections_per_address: 100,
    };
    Server::start(plan, connected, functions).unwrap()
}

/// Errors reach the caller's `execute` as errors of their class, at once and with the reason, whatever was
/// called; and the connection lives after each.
const CALLER: &str = r#"
peer = Peer()
deep = 7
for _ in range(100): deep = [deep]
def fails(kind, text, opcode, *args, **kwargs):
    began = time.monotonic()
    try: peer.execute(opcode, *args, timeout=100, **kwargs); assert False, "no error"
    except Exception as e:
        assert type(e) is kind and str(e).startswith(text), (opcode, repr(e)[:300])
        assert str(e).endswith(kind.__name__ + ": " + str(e).split("\n\n")[0]), repr(e)[:300]
    assert peer.execute(1, 5, timeout=100) == (5,)
fails(ValueError, "not so", 3)
fails(RuntimeError, "Strange: not known in Python", 4)
fails(LookupError, "no function is bound to opcode 77", 77)
fails(ValueError, "the message has an integer of more than 64 bits", 1, 2**100)
fails(ValueError, "the message has an integer of more than 64 bits", 1, key=-2**100)
fails(ValueError, "the message has an integer of more than 64 bits", 2**100)
fails(ValueError, "the message is nested too deeply", 1, deep)
fails(ValueError, "the message has too many values", 1, [None] * 600000)
fails(ValueError, "the call is malformed", "opcode")
fails(ValueError, "the call is malformed", None, 1, 2)
fails(ValueError, "the message is longer than 4194304 bytes", 1, b"." * (8 << 20))
fails(ValueError, "the message is longer than 4194304 bytes", 1, "." * (8 << 20), key=1)
fails(ValueError, "the message is longer than 4194304 bytes", 1, list(range(1000000)) + ["."] * 3000000)
# The next call is under way while the long one is still being sent.
long, short = peer.send(1, b"." * (20 << 20)), peer.send(1, "short")
assert peer.poll(long, 100)[0] is ValueError and peer.poll(short, 100) == ("short",)
print("fine", flush=True)
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
async fn every_error_is_raised_at_once_with_its_reason() {
    let server = listen(None, ConnectedPis::default(), Arc::new(Desk::default()));
    for protocol in [0, 2, 3, 4, 5] {
        let (_child, output) = python(CALLER, server.address().port(), protocol);
        assert_eq!(line(output).await.0, "fine\n", "protocol {protocol}");
    }
}

/// Answers that cannot be read, and one whose traceback is ten megabytes.
const CALLED: &str = r#"
def long_error(): return (ValueError, ValueError("no"), ["x" * (10 << 20)])
def deep():
    value = 7
    for _ in range(100): value = [value]
    return value
peer = Peer({1: lambda *a: a, 10: lambda: 2**100, 11: long_error, 12: lambda: b"." * (8 << 20), 13: deep,
    14: lambda: [None] * 600000, 15: lambda **k: k, 16: lambda: [][1]})
sys.stdin.read()
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
async fn answers_that_cannot_be_read_end_their_calls_at_once() {
    let desk = Arc::new(Desk::default());
    let server = listen(None, ConnectedPis::default(), Arc::clone(&desk) as Arc<dyn Functions>);
    // The first two cannot carry the traceback that the library sends.
    for protocol in [2, 3, 4, 5] {
        let (_child, _output) = python(CALLED, server.address().port(), protocol);
        let opened = || desk.0.lock().unwrap().pop();
        let connected = async {
            loop {
                if let Some(peer) = opened() {
                    break peer;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let peer = tokio::time::timeout(DEADLINE, connected).await.unwrap();
        // Nobody waits for the time-out of a call: it is longer than the test may last.
        let call = async |opcode| {
            let call = peer.call(opcode, vec![], Duration::from_secs(3600));
            tokio::time::timeout(DEADLINE, call).await.expect("at once")
        };
        let unreadable = |why: &str| Err(CallError::Unreadable(why.into()));
        assert_eq!(call(10).await, unreadable("the message has an integer of more than 64 bits"));
        assert_eq!(call(11).await, Err(CallError::Function("ValueError: no".into())));
        assert_eq!(call(12).await, unreadable("the message is longer than 4194304 bytes"));
        assert_eq!(call(13).await, unreadable("the message is nested too deeply"));
        assert_eq!(call(14).await, unreadable("the message has too many values"));
        assert_eq!(call(16).await, Err(CallError::Function("IndexError: list index out of range".into())));
        let keywords = vec![("speed".into(), 2.into())];
        let named = peer.call_with(15, vec![], keywords, DEADLINE).await;
        assert_eq!(named, Ok(Data::dict([("speed", 2.into())])));
        // The connection lives after all of that.
        assert_eq!(peer.call(1, vec![7.into()], DEADLINE).await, Ok(Data::Tuple(vec![7.into()])));
        peer.close();
    }
}

/// Two of these are at one address.
const ROBOT: &str = r#"
class Pose:
    def __init__(self, x): self.x = x
def move(distance, speed=1): return "{} at {}".format(distance, speed)
name = sys.argv[0]
peer = Peer({20: move, 21: lambda: (b"\x00ab", float("inf"), Pose(1), {1: "a"}), 22: lambda: "x" * 65536,
    23: lambda: Pose(2), 24: lambda: NAME})
print("connected", flush=True)
sys.stdin.read()
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
async fn two_old_peers_at_one_address_are_two() {
    let state = tempfile::tempdir().unwrap();
    let connected = ConnectedPis::default();
    let server = listen(Some(state.path()), connected.clone(), Arc::new(connected.clone()));
    let mut robots = Vec::new();
    for (name, protocol) in [("left", 4), ("right", 2)] {
        let program = format!("NAME = '{name}'\n{ROBOT}");
        let (child, output) = python(&program, server.address().port(), protocol);
        let (said, output) = line(output).await;
        assert_eq!(said, "connected\n");
        robots.push((child, output));
    }
    let folder = state.path().to_owned();
    let calls = move || {
        let call = |device: &str, function: &str, args: &[&str], json| {
            let wanted = call::Wanted {
                device: device.into(),
                function: function.into(),
                args: args.iter().map(|a| (*a).to_owned()).collect(),
                within: DEADLINE,
                json,
            };
            call::call(&folder, &wanted)
        };
        let (text, well) = call("all", "24", &[], false).unwrap();
        assert!(well, "{text}");
        let rows: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(rows, ["127.0.0.1    ok  left", "127.0.0.1#2  ok  right"]);
        for (name, want) in [("127.0.0.1#1", "left"), ("127.0.0.1#2", "right")] {
            let (text, _) = call(name, "24", &[], false).unwrap();
            assert!(text.ends_with(&format!("ok  {want}\n")) && text.lines().count() == 2, "{text}");
        }
        let error = call("127.0.0.1", "24", &[], false).unwrap_err().to_string();
        assert!(error.contains("2 peers are connected from 127.0.0.1") && error.contains("#2"), "{error}");
        let error = call("127.0.0.1#3", "24", &[], false).unwrap_err().to_string();
        assert!(error.contains("not connected"), "{error}");

        let second =
            |function: &str, args: &[&str], json| call("127.0.0.1#2", function, args, json).unwrap().0;
        let result = |text: String| text.lines().nth(1).unwrap().split_once("  ok  ").unwrap().1.to_owned();
        assert_eq!(result(second("20", &["5", "speed=3"], false)), "5 at 3");
        assert_eq!(result(second("20", &["distance=x=y"], false)), "x=y at 1");
        assert!(second("20", &["5", "depth=3"], false).contains("unexpected keyword argument 'depth'"));
        assert_eq!(result(second("21", &[], false)), r"(b'\x00ab', inf, <__main__.Pose {'x': 1}>, {1: 'a'})");
        assert_eq!(result(second("23", &[], false)), "<__main__.Pose {'x': 2}>", "an object is no failure");
        assert_eq!(result(second("22", &[], false)).len(), 65_536);
        let dense = |text: &str| text.split_whitespace().collect::<String>();
        let json = dense(&second("21", &[], true));
        assert_eq!(
            json,
            concat!(
                r#"[{"device":"127.0.0.1#2","result":{"$tuple":[{"$bytes":"006162"},{"$float":"inf"},"#,
                r#"{"$object":[{"$class":"__main__.Pose"},{"$tuple":[]},{"x":1}]},{"$dict":[[1,"a"]]}]}}]"#
            )
        );

        // An old peer has no status; that is no failure.
        let (text, well) = call::status(&folder, DEADLINE, false).unwrap();
        assert!(well && text.matches("an old peer, without a status function").count() == 2, "{text}");
        assert!(!text.contains("KeyError"), "{text}");
        let (text, well) = call::status(&folder, DEADLINE, true).unwrap();
        let row = r#"{"device":"127.0.0.1#2","note":"anoldpeer,withoutastatusfunction;oldlogin,notprotected","result":null}"#;
        assert!(well && dense(&text).contains(row), "{text}");
    };
    tokio::task::spawn_blocking(calls).await.unwrap();
    // A number is free again when its connection is over.
    let (first, _output) = robots.remove(0);
    drop(first);
    wait_gone(&connected, "127.0.0.1").await;
    assert!(connected.find("127.0.0.1#2").is_some());
    drop(server);
}

async fn wait_gone(connected: &ConnectedPis, name: &str) {
    let gone = async {
        while connected.find(name).is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, gone).await.unwrap();
}

fn pickle(value: &dyn Encode) -> Vec<u8> {
    let mut buf = vec![0; 1000];
    let n = Codec::Pickle.encode(value, &mut buf).unwrap();
    buf.truncate(n);
    buf
}

/// A thousand at one address: each is one, by its own name; the limit of an address holds; and what they have
/// half sent does not take all memory.
#[test]
fn a_thousand_at_one_address() {
    let state = tempfile::tempdir().unwrap();
    let server = server::Server::start_services(
        state.path(),
        &["--rpc-port", "0", "--connections-per-address", "1000"],
    );
    let address = SocketAddr::from(([127, 0, 0, 1], server.port("rpc")));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut peers = runtime.block_on(async {
        let mut peers = Vec::new();
        for _ in 0..1000 {
            let secret = Secret::new(None);
            peers.push(connect(address, Codec::Pickle, secret, Arc::new(Nothing), DEADLINE).await.unwrap());
        }
        let over = connect(address, Codec::Pickle, Secret::new(None), Arc::new(Nothing), DEADLINE).await;
        assert!(over.is_err(), "one more than an address may have");
        peers
    });
    let began = Instant::now();
    let text = server.piman(&["status"]);
    println!("status of 1,000 old peers: {:?}", began.elapsed());
    let names: std::collections::BTreeSet<&str> =
        text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names.len(), 1000);
    assert!(names.contains("127.0.0.1#1000"), "{text}");
    assert_eq!(text.matches("an old peer, without a status function").count(), 1000);
    let idle = server.memory_kb("VmRSS");

    // Three hundred of them make place for others, each of which sends most of a long call.
    let gone = peers.split_off(700);
    gone.iter().for_each(Peer::close);
    wait_until("they are gone", || server.log().matches(" is gone").count() == 300);
    let mut refused = 0;
    let mut calls = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(&pickle(&LoginOut(None))).unwrap();
        let head = [&b"\x80\x03(C\x01RK\x09K\x07B"[..], &3_500_000_u32.to_le_bytes()].concat();
        stream.write_all(&head).unwrap();
        stream.write_all(&vec![b'.'; 3_400_000]).unwrap();
        calls.push(stream);
    }
    // All of it is read when the rest is answered.
    for stream in &mut calls {
        stream.write_all(&[b'.'; 100_000]).unwrap();
        stream.write_all(b"\x85}t.").unwrap();
    }
    for mut stream in calls {
        let mut got = Vec::new();
        let answered = |got: &[u8]| {
            let text = String::from_utf8_lossy(got);
            (text.contains("long messages: send it again later"), text.contains("no function is bound"))
        };
        while answered(&got) == (false, false) {
            let mut piece = [0; 1024];
            let n = stream.read(&mut piece).unwrap();
            assert!(n > 0, "closed after {}", got.escape_ascii());
            got.extend_from_slice(&piece[..n]);
        }
        refused += u32::from(answered(&got).0);
    }
    let most = server.memory_kb("VmHWM");
    println!(
        "1,000 old peers: {idle} kB; 300 with 3.5 MB of a call each: at most {most} kB, {refused} refused"
    );
    assert!((1..300).contains(&refused), "{refused}");
    // Without a limit it would be a gigabyte.
    assert!(most < 400_000, "{most} kB");
    // The others live.
    let answer = runtime.block_on(peers[0].call(0xBB, vec![], DEADLINE));
    assert_eq!(answer, Ok("piman0".into()));
}
