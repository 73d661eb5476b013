//! Old TCPTalks peers in both roles: their library, re-enacted in Python, with our server, our clients and the agent.

mod call;
mod login;
mod proof;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use piman::rpc::{ConnectedPis, Functions, Nothing, Plan, Secret, Server, connect};
use piman_core::rpc::auth::{EITHER, LoginOut};
use piman_core::rpc::{Codec, Encode, Protocol};
use piman_tests::binaries;
use piman_tests::running::Running;
use piman_tests::server::wait_until;

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

fn start(password: Option<&str>, functions: Arc<dyn Functions>) -> Server {
    start_with(password, ConnectedPis::default(), functions)
}

fn start_with(password: Option<&str>, connected: ConnectedPis, functions: Arc<dyn Functions>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let secret = Secret::new(password.map(String::from));
    let plan = Plan {
        listener,
        operator: None,
        secret,
        old_peers: true,
        connections: 500,
        connections_per_address: 500,
    };
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
        agent.wait_log("the server has no password");
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
