//! `piman serve` as a process of its own, on free ports of loopback.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::binaries;
use crate::running::memory_kb;
pub use crate::wait::until as wait_until;

/// A connection to a port of loopback from this address of it: as many Pis as there are addresses, and
/// as many connections.
///
/// # Panics
/// If nobody accepts.
#[must_use]
pub fn connect_from(from: [u8; 4], port: u16) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((from, 0)).into()).expect("an address of loopback");
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).expect("it accepts");
    TcpStream::from(socket)
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    state: PathBuf,
    ports: BTreeMap<String, u16>,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts it with an archive and a state folder; returns when all listeners are there.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(archive: &Path, state: &Path, more: &[&str]) -> Self {
        Self::start_by(&mut Self::command(archive, state, more), state)
    }

    /// The command that [`start`](Self::start) runs, for tests that expect it to fail. What the tests install
    /// is mostly no system for a Pi.
    #[must_use]
    pub fn command(archive: &Path, state: &Path, more: &[&str]) -> Command {
        let mut command = Self::strict(archive, state, more);
        // What is on the cards of tests is nobody's.
        command.args(["--allow-unfit", "--policy", "foreign=install", "--policy", "unreadable=install"]);
        command
    }

    /// The same for a server that installs only what can boot a Pi.
    #[must_use]
    pub fn strict(archive: &Path, state: &Path, more: &[&str]) -> Command {
        let mut command = Command::new(binaries::piman());
        command.args(["serve", "--listen", "127.0.0.1", "--rootfs"]).arg(archive);
        command.arg("--state").arg(state);
        for port in ["--control-port", "--rootfs-port", "--fetch-port"] {
            if !more.contains(&port) {
                command.args([port, "0"]);
            }
        }
        command.args(more);
        command
    }

    /// Starts it without a root filesystem: only the services that `more` names.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start_services(state: &Path, more: &[&str]) -> Self {
        let mut command = Command::new(binaries::piman());
        command.args(["serve", "--listen", "127.0.0.1", "--state"]).arg(state).args(more);
        Self::start_by(&mut command, state)
    }

    /// Starts it by this command.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start_by(command: &mut Command, state: &Path) -> Self {
        // Tests wait for what is no news in a room full of Pis.
        if !command.get_args().any(|a| a == "-v" || a == "--log-level") {
            command.env("PIMAN_LOG", "info,piman::pi=debug");
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("piman starts");
        let log = Arc::new(Mutex::new(String::new()));
        let (to, from) = (Arc::clone(&log), child.stderr.take().expect("it is piped"));
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                eprintln!("piman: {line}");
                let mut log = to.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut lines =
            BufReader::new(child.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
        let mut ports = BTreeMap::new();
        // What was asked for beyond the install service has a line of its own.
        let more = [
            "--netboot",
            "--http-boot-port",
            "--transfer-dir",
            "--telemetry-dir",
            "--rpc-port",
            "--messages-port",
            "--messages-channel",
            "--messages-chat",
        ];
        let services = command.get_args().filter(|a| more.iter().any(|m| a == m)).count();
        let install =
            if command.get_args().any(|a| a == "--rootfs" || a == "--control-port") { 3 } else { 0 };
        for line in lines.by_ref().take(install + services) {
            let (name, address) = line.split_once(' ').expect("a name and an address");
            let port = address.rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
            // A second address of one service has a `+` behind its name.
            let mut name = name.to_owned();
            while ports.contains_key(&name) {
                name.push('+');
            }
            ports.insert(name, port);
        }
        assert_eq!(ports.len(), install + services, "piman serve ended, or does not say where it listens");
        // So that it is never held up by a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, state: state.to_owned(), ports, log }
    }

    /// The port of `control`, `rootfs` or `fetch`, `transfer` or `stream`, `messages` or `messages/NAME`.
    ///
    /// # Panics
    /// If there is no such listener.
    #[must_use]
    pub fn port(&self, name: &str) -> u16 {
        self.ports[name]
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until its log says this.
    ///
    /// # Panics
    /// If it does not within two minutes.
    #[track_caller]
    pub fn wait_log(&self, what: &str) {
        wait_until(&format!("the log says `{what}`"), || self.log().contains(what));
    }

    /// A connection to `control`, `rootfs` or `fetch` that fails a test instead of hanging it.
    ///
    /// # Panics
    /// If it is refused.
    #[must_use]
    pub fn connect(&self, name: &str) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port(name))).expect("piman accepts");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        stream.set_write_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        stream
    }

    /// A line of its `/proc/PID/status`, such as `VmHWM`, in kilobytes.
    ///
    /// # Panics
    /// If there is no such line.
    #[must_use]
    pub fn memory_kb(&self, name: &str) -> u64 {
        memory_kb(self.id(), name).expect(name)
    }

    /// Its state folder.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Runs another command of piman on the same state; returns what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn piman(&self, arguments: &[&str]) -> String {
        let (command, rest) = arguments.split_first().expect("a command");
        let mut piman = Command::new(binaries::piman());
        piman.arg(command).arg("--state").arg(&self.state).args(rest);
        String::from_utf8(crate::disk::run(&mut piman).stdout).expect("text")
    }

    /// The file of a Pi's own key, in the Pi: whatever card is in it, it is the same Pi. `--device-key` names it.
    ///
    /// # Panics
    /// If it cannot be written.
    #[must_use]
    pub fn device_key(&self, serial: &str) -> PathBuf {
        // Not beside the state, whose disk may be full.
        let file = std::env::temp_dir().join(format!("piman-tests-{serial}.key"));
        let key = format!("the key of the Pi with the serial number {serial}");
        if std::fs::read_to_string(&file).ok().as_deref() != Some(&key) {
            std::fs::write(&file, key).expect("a file");
        }
        file
    }

    /// The agent's command to install `disk` from this server, as a Pi with this serial number that has its key in
    /// itself.
    pub fn agent(&self, disk: impl AsRef<OsStr>, serial: &str) -> Command {
        let mut agent = self.agent_with_key_on_card(disk, serial);
        agent.arg("--device-key").arg(self.device_key(serial));
        agent
    }

    /// The same with a key on its card: with another card it is somebody else.
    pub fn agent_with_key_on_card(&self, disk: impl AsRef<OsStr>, serial: &str) -> Command {
        let mut agent = Command::new(binaries::pi_agent());
        agent.args(["install", "--server", "127.0.0.1", "--serial", serial]);
        agent.args(["--control-port", &self.port("control").to_string()]);
        agent.args(["--rootfs-port", &self.port("rootfs").to_string(), "--disk"]).arg(disk);
        agent
    }

    /// Kills it, as a power cut does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Tells it to read its configuration again.
    ///
    /// # Panics
    /// If it has ended.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Asks it to stop, as an init system does.
    ///
    /// # Panics
    /// If it has ended already.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it has not ended by then.
    pub fn ended(&mut self, within: Duration) -> ExitStatus {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            assert!(Instant::now() < deadline, "piman serve did not end within {within:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
