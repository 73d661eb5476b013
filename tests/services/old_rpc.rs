//! Old TCPTalks peers in both roles: their library, re-enacted in Python, with our server, our clients, the agent
//! and `piman call --server`; and servers that answer a login wrongly or not at all.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use piman::rpc::{
    Answer, CallError, ConnectedPis, Data, Functions, Nothing, Peer, Plan, Request, RpcError, Secret, Server,
    connect,
};
use piman_core::rpc::auth::{EITHER, LoginOut, Verdict};
use piman_core::rpc::{Codec, Encode, Protocol};
use piman_tests::binaries;
use piman_tests::running::Running;
use piman_tests::server::{connect_from, wait_until};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// No test waits longer for anything.
const DEADLINE: Duration = Duration::from_secs(300);

/// An old program, and what it says line by line.
struct Old {
    _child: Running,
    lines: Receiver<String>,
}

impl Old {
    /// Starts it.
    fn start(options: &str) -> Self {
        // What it waits for must not be a compiler.
        let _ = (binaries::piman(), binaries::pi_agent());
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/services/old_rpc.py");
        let child = Command::new("python3").args([program, options]).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("python3 starts");
        let output = BufReader::new(child.stdout.take().unwrap());
        let (to, lines) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
        Self { _child: Running(child), lines }
    }

    #[track_caller]
    fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("it ended or says nothing")
    }

    /// The rest of the line that begins with this word, which must come next.
    #[track_caller]
    fn says(&self, word: &str) -> String {
        let line = self.line();
        let rest = line.strip_prefix(word).unwrap_or_else(|| panic!("`{line}` in place of `{word}`"));
        rest.trim().to_owned()
    }

    #[track_caller]
    fn port(&self) -> u16 {
        self.says("port").parse().unwrap()
    }
}

fn message(value: &dyn Encode) -> Vec<u8> {
    let mut buf = vec![0; 1000];
    let n = Codec::Pickle.encode(value, &mut buf).unwrap();
    buf.truncate(n);
    buf
}

/// What both sides call in the proof, and the peer that has come.
struct Proof {
    served: AtomicUsize,
    opened: UnboundedSender<Peer>,
}

impl Functions for Proof {
    fn call(&self, _peer: &Peer, request: Request) -> Answer {
        self.served.fetch_add(1, Ordering::Relaxed);
        let answer = match (request.opcode, &request.args[..], &request.keywords[..]) {
            (2, [Data::Int(n), payload], []) => Ok(Data::Tuple(vec![(2 * n + 1).into(), payload.clone()])),
            (2, [Data::Int(n)], [(key, payload)]) if key.str() == Some("payload") => {
                Ok(Data::Tuple(vec![(2 * n + 1).into(), payload.clone()]))
            }
            (0xBB, [], []) => Ok("proof1".into()),
            _ => Err(format!("TypeError: wrong call: {request:?}")),
        };
        Box::pin(std::future::ready(answer))
    }

    fn opened(&self, peer: &Peer) {
        let _ = self.opened.send(peer.clone());
    }
}

fn sample(n: i64) -> Data {
    if n % 500 == 0 {
        return Data::Bytes(vec![b'.'; 5000]);
    }
    match n % 10 {
        0 => n.into(),
        1 => (-n).into(),
        2 => (n << 40).into(),
        3 => Data::Float(n as f64 / 8.0),
        4 => format!("t\u{e9}xt\n{n}").into(),
        5 => Data::Bytes(n.to_le_bytes().to_vec()),
        6 => Data::List(vec![n.into(), Data::Tuple(vec![n.into(), Data::None])]),
        7 => Data::dict([("n", n.into())]),
        8 => Data::Set(vec![n.into()]),
        _ => true.into(),
    }
}

/// Calls from this side, many at once; every answer is looked at.
async fn call_many(peer: &Peer, count: i64, at_once: i64) {
    let tasks: Vec<_> = (0..at_once)
        .map(|start| {
            let peer = peer.clone();
            tokio::spawn(async move {
                for n in (start..count).step_by(usize::try_from(at_once).unwrap()) {
                    if n % 7 == 0 {
                        let error = CallError::Function(format!("ValueError: no {n}"));
                        assert_eq!(peer.call(3, vec![n.into()], DEADLINE).await, Err(error));
                        continue;
                    }
                    let want = Data::Tuple(vec![(2 * n + 1).into(), sample(n)]);
                    assert_eq!(peer.call(2, vec![n.into(), sample(n)], DEADLINE).await, Ok(want));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

const CALLS: i64 = 12_000;

/// 12,000 calls of an old peer while we call it 12,000 times, in both roles: none is answered wrongly.
async fn proof(role: &str, protocol: u8) {
    let (opened, mut peers) = unbounded_channel();
    let functions = Arc::new(Proof { served: AtomicUsize::new(0), opened });
    let options = |role: &str, port: u16| {
        format!(
            r#"{{"role": "{role}", "port": {port}, "password": "secret", "protocol": {protocol},
                "count": {CALLS}, "threads": 4, "until": "told"}}"#
        )
    };
    let secret = Secret::new(Some("secret".into()));
    let began = Instant::now();
    let (old, peer, _server);
    if role == "client" {
        let server = start(Some("secret"), Arc::clone(&functions) as Arc<dyn Functions>);
        let started = Old::start(&options(role, server.address().port()));
        (old, _server) = (started, Some(server));
        peer = peers.recv().await.unwrap();
        // The library lets calls in a moment after its login is answered; until then it refuses them.
        while let Err(e) = peer.call(0xBB, vec![], DEADLINE).await {
            assert!(matches!(&e, CallError::Function(text) if text.contains("not logged in")), "{e}");
        }
    } else {
        let started = Old::start(&options(role, 0));
        old = started;
        let address = (Ipv4Addr::LOCALHOST, old.port());
        peer = connect(address, Codec::Pickle, secret, functions.clone(), DEADLINE).await.unwrap();
        _server = None;
    }
    call_many(&peer, CALLS, 8).await;
    peer.call(4, vec![], DEADLINE).await.unwrap();
    let old = tokio::task::spawn_blocking(move || {
        old.says("in");
        assert_eq!(old.says("wrong"), "0 []");
        old.says("end");
        old
    });
    drop(old.await.unwrap());
    tokio::time::timeout(DEADLINE, peer.closed()).await.unwrap();
    let more = usize::from(role == "many");
    assert_eq!(functions.served.load(Ordering::Relaxed), usize::try_from(CALLS).unwrap() + more);
    println!("{role}, protocol {protocol}: {:.1} s", began.elapsed().as_secs_f32());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
async fn twelve_thousand_calls_each_way_with_an_old_server() {
    for (role, protocol) in [("one", 2), ("many", 3), ("one", 5)] {
        proof(role, protocol).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
async fn twelve_thousand_calls_each_way_with_an_old_client() {
    for protocol in [2, 3, 4] {
        proof("client", protocol).await;
    }
}

fn start(password: Option<&str>, functions: Arc<dyn Functions>) -> Server {
    start_with(password, ConnectedPis::default(), functions)
}

fn start_with(password: Option<&str>, connected: ConnectedPis, functions: Arc<dyn Functions>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let secret = Secret::new(password.map(String::from));
    let plan = Plan { listener, operator: None, secret, connections: 500, connections_per_address: 500 };
    Server::start(plan, connected, functions).unwrap()
}

/// The agent's service, and what it logs.
struct Agent {
    _child: Running,
    log: Arc<Mutex<String>>,
}

impl Agent {
    fn start(port: u16, serial: &str, more: &[&str]) -> Self {
        let mut command = Command::new(binaries::pi_agent());
        command.args(["run", "--server", "127.0.0.1", "--port", &port.to_string(), "--serial", serial]);
        let mut child = command.args(more).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let (log, errors) = (Arc::new(Mutex::new(String::new())), child.stderr.take().unwrap());
        let to = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                eprintln!("agent: {line}");
                *to.lock().unwrap() += &(line + "\n");
            }
        });
        Self { _child: Running(child), log }
    }

    #[track_caller]
    fn wait_log(&self, what: &str) {
        wait_until(&format!("the agent logs `{what}`"), || self.log.lock().unwrap().contains(what));
    }
}

/// Two password files: the right one and a wrong one.
fn passwords(folder: &Path) -> (PathBuf, PathBuf) {
    let (right, wrong) = (folder.join("right"), folder.join("wrong"));
    fs::write(&right, "secret\n").unwrap();
    fs::write(&wrong, "guess\n").unwrap();
    (right, wrong)
}

const SERIAL: &str = "10000000abcdef01";

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn the_agent_serves_an_old_server() {
    let folder = tempfile::tempdir().unwrap();
    let (right, _) = passwords(folder.path());
    let right = right.to_str().unwrap();
    fs::create_dir(folder.path().join("hooks")).unwrap();
    let hook = folder.path().join("hooks/greet");
    fs::write(&hook, "#!/bin/sh\necho hello $1\n").unwrap();
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let hooks = folder.path().join("hooks");
    let clear = "the password crosses the network in clear";
    for (role, password, protocol, more) in [
        ("one", "null", 3, &[][..]),
        ("many", "null", 4, &["--protocol", "auto"][..]),
        ("one", "\"secret\"", 2, &["--protocol", "pickle", "--password-file", right][..]),
        ("many", "\"secret\"", 5, &["--protocol", "auto", "--password-file", right][..]),
        // A server without a password accepts everybody.
        ("one", "null", 4, &["--protocol", "auto", "--password-file", right][..]),
        ("many", "null", 4, &["--protocol", "pickle"][..]),
    ] {
        let calls = format!(
            r#"{{"role": "{role}", "password": {password}, "protocol": {protocol},
                "calls": [[187, []], [1, []], [7, ["greet", "you"]], [2, []]]}}"#
        );
        let old = Old::start(&calls);
        let more = [&["--hooks", hooks.to_str().unwrap()], more].concat();
        let agent = Agent::start(old.port(), SERIAL, &more);
        assert_eq!(old.says("in"), if role == "many" { "cdef01" } else { "" });
        assert_eq!(old.says("result"), "\"cdef01\"");
        let identity = old.says("result");
        assert!(identity.contains(&format!("\"serial\": \"{SERIAL}\"")), "{identity}");
        let ran = old.says("result");
        assert!(ran.contains("hello you"), "{ran}");
        let status = old.says("result");
        assert!(status.contains("uptime"), "{status}");
        agent.wait_log("an old server");
        assert_eq!(agent.log.lock().unwrap().contains(clear), more.contains(&right));
        drop(agent);
        old.says("end");
    }
}

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn the_agent_says_what_an_old_server_wants() {
    let folder = tempfile::tempdir().unwrap();
    let (right, wrong) = passwords(folder.path());
    let (right, wrong) = (right.to_str().unwrap(), wrong.to_str().unwrap());
    let options = r#"{"role": "one", "password": "secret", "protocol": 4, "calls": [[187, []]]}"#;
    let old = Old::start(options);
    let port = old.port();
    // The server survives both and opens its port again.
    let agent = Agent::start(port, SERIAL, &[]);
    agent.wait_log("the server wants a password: give it with --password-file");
    drop(agent);
    let agent = Agent::start(port, SERIAL, &["--protocol", "pickle", "--password-file", wrong]);
    agent.wait_log("the password is wrong");
    drop(agent);
    let _agent = Agent::start(port, SERIAL, &["--protocol", "auto", "--password-file", right]);
    old.says("in");
    assert_eq!(old.says("result"), "\"cdef01\"");
    // With a password and no protocol it is not given away, and the agent says what to do.
    let old = Old::start(options);
    let agent = Agent::start(old.port(), SERIAL, &["--password-file", right]);
    agent.wait_log("if it is an old TCPTalks server, say --protocol pickle");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auto_speaks_our_own_protocol_to_our_own_server() {
    let folder = tempfile::tempdir().unwrap();
    let (right, wrong) = passwords(folder.path());
    let (right, wrong) = (right.to_str().unwrap().to_owned(), wrong.to_str().unwrap().to_owned());
    let connected = ConnectedPis::default();
    let locked = start_with(Some("secret"), connected.clone(), Arc::new(connected.clone()));
    let open_fleet = ConnectedPis::default();
    let open = start_with(None, open_fleet.clone(), Arc::new(open_fleet.clone()));
    let (locked_port, open_port) = (locked.address().port(), open.address().port());
    tokio::task::spawn_blocking(move || {
        for (connected, port, more) in [
            (&open_fleet, open_port, &[][..]),
            (&open_fleet, open_port, &["--protocol", "auto"][..]),
            (&open_fleet, open_port, &["--protocol", "piman"][..]),
            (&connected, locked_port, &["--protocol", "auto", "--password-file", &right][..]),
            (&connected, locked_port, &["--password-file", &right][..]),
        ] {
            let _agent = Agent::start(port, SERIAL, more);
            wait_until("the Pi is connected", || connected.find(SERIAL).is_some());
            assert_eq!(connected.find(SERIAL).unwrap().codec(), Codec::Postcard, "{more:?}");
            drop(_agent);
            wait_until("the Pi is gone", || connected.is_empty());
        }
        // Pickles if the operator wants them.
        let agent = Agent::start(locked_port, SERIAL, &["--protocol", "pickle", "--password-file", &right]);
        wait_until("the Pi is connected", || connected.find(SERIAL).is_some());
        assert_eq!(connected.find(SERIAL).unwrap().codec(), Codec::Pickle);
        drop(agent);
        let agent = Agent::start(locked_port, SERIAL, &[]);
        agent.wait_log("the server wants a password");
        let agent = Agent::start(locked_port, SERIAL, &["--protocol", "auto", "--password-file", &wrong]);
        agent.wait_log("the password is wrong");
        let agent = Agent::start(open_port, SERIAL, &["--protocol", "auto", "--password-file", &right]);
        agent.wait_log("the server does not know the password");
    })
    .await
    .unwrap();
    for (address, password) in [(locked.address(), Some("secret")), (open.address(), None)] {
        let secret = Secret::new(password.map(String::from));
        let peer = connect(address, Protocol::Auto, secret, Arc::new(Nothing), DEADLINE).await.unwrap();
        assert_eq!(peer.codec(), Codec::Postcard);
        assert!(peer.call(2, vec![], DEADLINE).await.unwrap().find("connected").is_some());
    }
}

/// What our clients send first is a login to Python, whole and in parts.
#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn the_login_for_either_server_is_one_to_python() {
    let program = r#"
import pickle, sys
for line in sys.stdin:
    data = bytes.fromhex(line)
    for loads in (pickle.loads, pickle._loads):
        print(loads(data))
        for n in range(len(data)):
            try: loads(data[:n]); print("early")
            except (EOFError, pickle.UnpicklingError, AttributeError): pass
            # The other implementation reads a length that is not all there in its own way.
            except Exception as e:
                if loads is pickle.loads: print(n, repr(e))
"#;
    let child =
        Command::new("python3").args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.expect("python3 starts");
    let mut to = child.stdin.take().unwrap();
    for password in [None, Some("s\u{e9}cret")] {
        let login = [EITHER.to_vec(), message(&LoginOut(password))].concat();
        let hex: String = login.iter().map(|b| format!("{b:02x}")).collect();
        writeln!(to, "{hex}").unwrap();
    }
    drop(to);
    let output = child.wait_with_output().unwrap();
    let (none, some) = ("(b'A', 170, (None,))\n", "(b'A', 170, ('s\u{e9}cret',))\n");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), [none, none, some, some].concat());
}

fn piman_call(more: &[&str]) -> (Output, String) {
    let output = Command::new(binaries::piman()).arg("call").args(more).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output, text)
}

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn piman_call_calls_an_old_server_from_a_desk() {
    let folder = tempfile::tempdir().unwrap();
    let (right, wrong) = passwords(folder.path());
    let (right, wrong) = (right.to_str().unwrap(), wrong.to_str().unwrap());
    for (role, password, more) in [
        ("one", "null", &[][..]),
        ("many", "null", &[][..]),
        ("one", "\"secret\"", &["--protocol", "pickle", "--password-file", right][..]),
        ("many", "\"secret\"", &["--protocol", "auto", "--password-file", right][..]),
        ("many", "null", &["--protocol", "auto", "--password-file", right][..]),
    ] {
        let options = format!(r#"{{"role": "{role}", "password": {password}, "protocol": 4}}"#);
        let old = Old::start(&options);
        let server = format!("127.0.0.1:{}", old.port());
        let all = [&["--json", "--server", &server][..], more, &["1", "[1,\"x\"]", "-7", "text"]].concat();
        let (output, text) = piman_call(&all);
        assert!(output.status.success(), "{text}");
        let result: String = String::from_utf8_lossy(&output.stdout).lines().map(str::trim).collect();
        let want = format!("[{{\"device\": \"{server}\",\"result\": [[1,\"x\"],-7,\"text\"]}}]");
        assert_eq!(result, want);
        let id = old.says("in");
        assert_eq!(id.len(), if role == "many" { 6 } else { 0 }, "{id}");
        old.says("end");
    }
    // Without the password, with a wrong one, and then right; the function fails.
    let options = r#"{"role": "one", "password": "secret", "protocol": 4}"#;
    let old = Old::start(options);
    let server = format!("127.0.0.1:{}", old.port());
    let (output, text) = piman_call(&["--server", &server, "1"]);
    assert!(!output.status.success() && text.contains("give it with --password-file"), "{text}");
    let again = |more: &[&str]| {
        let all = [&["--server", &server][..], more].concat();
        let mut last = piman_call(&all);
        // The old server opens its port again in a moment.
        wait_until("the port is open again", || {
            let closed = last.1.contains("refused (os error");
            if closed {
                last = piman_call(&all);
            }
            !closed
        });
        last
    };
    let (output, text) = again(&["--protocol", "pickle", "--password-file", wrong, "1"]);
    assert!(!output.status.success() && text.contains("the password is wrong"), "{text}");
    let (output, text) = again(&["--protocol", "pickle", "--password-file", right, "3", "5"]);
    assert!(!output.status.success() && text.contains("ValueError: no 5"), "{text}");
    assert!(text.contains("the password crosses the network in clear"), "{text}");
    // The password is not given away unasked.
    let old = Old::start(options);
    let server = format!("127.0.0.1:{}", old.port());
    let (output, text) = piman_call(&["--server", &server, "--password-file", right, "1"]);
    assert!(!output.status.success() && text.contains("--protocol pickle"), "{text}");
    // Wrong use.
    for (more, what) in [
        (&["--protocol", "pickle", "all", "status"][..], "--server"),
        (&["--server", "lab", "--protocol", "telnet", "1"][..], "auto, pickle or piman"),
        (&["--server", "lab:x", "1"][..], "x is not a port"),
        (&["all"][..], "FUNCTION"),
        (&["--server", "127.0.0.1:1", "1"][..], "127.0.0.1 port 1"),
    ] {
        let (output, text) = piman_call(more);
        assert!(!output.status.success() && text.contains(what), "{more:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn piman_call_calls_our_own_server_from_a_desk() {
    let folder = tempfile::tempdir().unwrap();
    let (right, _) = passwords(folder.path());
    let right = right.to_str().unwrap().to_owned();
    let connected = ConnectedPis::default();
    let server = start_with(Some("secret"), connected.clone(), Arc::new(connected));
    let name = format!("127.0.0.1:{}", server.address().port());
    tokio::task::spawn_blocking(move || {
        for protocol in ["piman", "pickle", "auto"] {
            let more = ["--server", &name, "--protocol", protocol, "--password-file", &right];
            let (output, text) = piman_call(&[&more[..], &["--json", "identity"]].concat());
            assert!(output.status.success() && text.contains("\"server\": \"piman\""), "{protocol}: {text}");
        }
        let (output, text) = piman_call(&["--server", &name, "identity"]);
        assert!(!output.status.success() && text.contains("wants a password"), "{text}");
    })
    .await
    .unwrap();
}

/// A server that says this to whoever comes, and closes then or not.
fn says(bytes: Vec<u8>, closes: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            // The login is read first, so that closing is no reset.
            let _ = stream.read(&mut [0; 1000]);
            let _ = stream.write_all(&bytes);
            if !closes {
                open.push(stream);
            }
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_answer_to_the_login_is_an_error_that_says_so() {
    let verdict = message(&Verdict(true));
    let call = message(&piman_core::rpc::CallOut { opcode: 1, retcode: 5, args: &Data::Tuple(vec![]) });
    let garbage = [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec(),
        vec![0; 100],
        call,
        message(&piman_core::rpc::AnswerOut { retcode: 0xAA, value: &Data::from("yes") }),
        b"N.".to_vec(),
        // A text without an end: no more of it is kept than a login may have.
        [b"V".to_vec(), vec![b'x'; 100_000]].concat(),
    ];
    for protocol in [Protocol::Pickle, Protocol::Auto] {
        let join = |port: u16, within| {
            connect((Ipv4Addr::LOCALHOST, port), protocol, Secret::new(None), Arc::new(Nothing), within)
        };
        for bytes in &garbage {
            let error = join(says(bytes.clone(), false), DEADLINE).await.unwrap_err();
            assert!(matches!(error, RpcError::NoAnswer), "{}: {error}", bytes.escape_ascii());
        }
        // Cut after each byte.
        for n in 0..verdict.len() {
            let error = join(says(verdict[..n].to_vec(), true), DEADLINE).await.unwrap_err();
            assert!(matches!(error, RpcError::Closed { midway, .. } if midway == (n > 0)), "{n}: {error}");
        }
        // Nothing, or the beginning only.
        let within = Duration::from_millis(300);
        for n in [0, 1, verdict.len() - 1] {
            let began = Instant::now();
            let error = join(says(verdict[..n].to_vec(), false), within).await.unwrap_err();
            assert!(matches!(error, RpcError::Unanswered { .. }), "{n}: {error}");
            assert!(error.to_string().contains("did not answer the login within 0.3 s"), "{error}");
            assert!(began.elapsed() >= within);
        }
        // The first call is cut in its answer: it ends at once, and does not wait for its time-out.
        let port = says([verdict.clone(), b"\x80\x03(C\x01A".to_vec()].concat(), true);
        let peer = join(port, DEADLINE).await.unwrap();
        assert_eq!(peer.call(1, vec![], Duration::from_secs(3600)).await, Err(CallError::Closed));
    }
    // A greeting of ours that nothing follows.
    let within = Duration::from_millis(300);
    let secret = Secret::new(None);
    let address = (Ipv4Addr::LOCALHOST, says(vec![0xFF], false));
    let error = connect(address, Protocol::Auto, secret, Arc::new(Nothing), within).await.unwrap_err();
    assert!(matches!(error, RpcError::Unanswered { .. }), "{error}");
}

#[test]
fn the_agent_says_what_is_wrong_with_an_answer_to_its_login() {
    let verdict = message(&Verdict(true));
    for (bytes, closes, what) in [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), false, "is it another service?"),
        (b"N.".to_vec(), false, "is it another service?"),
        (verdict[..7].to_vec(), true, "closed the connection in the middle of its answer"),
        (vec![], true, "closed the connection without an answer"),
        (vec![], false, "did not answer in time"),
        ([verdict.clone(), b"\x80\x03(C\x01R".to_vec()].concat(), true, "in the middle of a message"),
        ([verdict.clone(), b"\xff\xff\xff".to_vec()].concat(), false, "reading a call of the server"),
    ] {
        let agent = Agent::start(says(bytes, closes), SERIAL, &[]);
        agent.wait_log(what);
    }
}

/// What the agent cannot read it answers at once, and goes on.
#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn the_agent_answers_what_it_cannot_read() {
    let options = r#"{"role": "many", "password": null, "protocol": 4,
        "calls": [[7, [1267650600228229401496703205376]], ["what", []], [187, []], [200, []]], "large": 1000000}"#;
    let old = Old::start(options);
    let agent = Agent::start(old.port(), SERIAL, &[]);
    old.says("in");
    for (word, what) in [
        ("error", "ValueError"),
        ("error", "TypeError"),
        ("result", "\"cdef01\""),
        ("error", "LookupError no function is bound to opcode 200"),
        ("error", "ValueError the message is longer than 65536 bytes"),
        ("result", "\"cdef01\""),
    ] {
        let said = old.says(word);
        assert!(said.starts_with(what), "{said}");
    }
    drop(agent);
    old.says("end");
}

/// The answer of a server to a login with this password, and how long it took.
fn old_login(from: [u8; 4], port: u16, password: &str) -> (bool, Duration) {
    let mut stream = connect_from(from, port);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let began = Instant::now();
    stream.write_all(&message(&LoginOut(Some(password)))).unwrap();
    let mut answer = vec![0; message(&Verdict(true)).len()];
    stream.read_exact(&mut answer).unwrap();
    let took = began.elapsed();
    assert!(answer == message(&Verdict(true)) || answer == message(&Verdict(false)));
    (answer == message(&Verdict(true)), took)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
async fn a_wrong_password_is_answered_before_an_old_client_gives_up() {
    let server = start(Some("secret"), Arc::new(Nothing));
    let port = server.address().port();
    tokio::task::spawn_blocking(move || {
        let times: Vec<_> = (1..=4).map(|i| old_login([127, 0, 1, i], port, "guess")).collect();
        assert!(times.iter().all(|(admitted, _)| !admitted));
        // The machine may be busy for once.
        let fastest = times.iter().map(|(_, took)| *took).min().unwrap();
        assert!(fastest < Duration::from_millis(500), "{times:?}");
        // The library itself, which waits for one second.
        for protocol in [2, 4] {
            let options = format!(
                r#"{{"role": "client", "port": {port}, "password": "guess", "protocol": {protocol}}}"#
            );
            let old = Old::start(&options);
            assert_eq!(old.says("refused"), "");
        }
    })
    .await
    .unwrap();
    for codec in [Codec::Postcard, Codec::Pickle] {
        let secret = Secret::new(Some("guess".into()));
        let began = Instant::now();
        let error = connect(server.address(), codec, secret, Arc::new(Nothing), DEADLINE).await.unwrap_err();
        assert!(matches!(error, RpcError::Denied), "{error}");
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_is_limited_by_attempts() {
    let server = start(Some("secret"), Arc::new(Nothing));
    let address = server.address();
    let port = address.port();
    let guess = move |codec: Codec| async move {
        let secret = Secret::new(Some("guess".into()));
        connect(address, codec, secret, Arc::new(Nothing), DEADLINE).await.map(drop).unwrap_err()
    };
    // All at once, by both protocols: no more than the burst is looked at.
    let guesses: Vec<_> = (0..60)
        .map(|i| tokio::spawn(guess(if i % 2 == 0 { Codec::Pickle } else { Codec::Postcard })))
        .collect();
    for guess in guesses {
        let error = guess.await.unwrap();
        assert!(matches!(error, RpcError::Denied), "{error}");
    }
    tokio::task::spawn_blocking(move || {
        // Ten and one a second were looked at; nothing is, as long as somebody goes on guessing.
        let (mut admitted, began) = (0, Instant::now());
        for _ in 0..20 {
            let guessing: Vec<_> = (0..4)
                .map(|_| std::thread::spawn(move || old_login([127, 0, 0, 1], port, "guess")))
                .collect();
            admitted += usize::from(old_login([127, 0, 0, 1], port, "secret").0);
            guessing.into_iter().for_each(|g| assert!(!g.join().unwrap().0));
        }
        assert!(admitted < 20, "the right password is looked at while the limit is exceeded");
        println!("{admitted} of 20 right ones were looked at in {:?}", began.elapsed());
        // Another address is not concerned, and this one gets in again after a while.
        assert!(old_login([127, 0, 0, 9], port, "secret").0);
        wait_until("the right password is looked at again", || old_login([127, 0, 0, 1], port, "secret").0);
    })
    .await
    .unwrap();
    let _ = TcpStream::connect(address).unwrap();
}
