//! The TFTP server over real sockets: clients that others wrote, lost packets, limits, no way out.

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use piman::netboot::tftp::{Folder, Limits, Report, Rules, What, serve};
use piman_tests::disk::run;
use piman_tests::wait::until;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A server on a free port of loopback.
struct Server {
    dir: TempDir,
    at: SocketAddr,
    reports: Arc<Mutex<Vec<Report>>>,
    _runtime: Runtime,
}

impl Server {
    fn start(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("boot")).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = socket.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap();
        let reports = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&reports);
        let tell = Arc::new(move |report| told.lock().unwrap().push(report));
        let folder = Folder::new(&dir.path().join("boot"));
        runtime.spawn(async move { serve(socket, folder, limits, Rules::default(), tell).await.unwrap() });
        Self { dir, at, reports, _runtime: runtime }
    }

    fn file(&self, name: &str, length: usize) -> Vec<u8> {
        let path = self.dir.path().join("boot").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let bytes: Vec<u8> = (0..length).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
        fs::write(path, &bytes).unwrap();
        bytes
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Waits for a report that is meant.
    #[track_caller]
    fn report(&self, meant: impl Fn(&Report) -> bool) -> Report {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let reports = self.reports.lock().unwrap();
            if let Some(report) = reports.iter().find(|r| meant(r)) {
                return report.clone();
            }
            assert!(Instant::now() < deadline, "{reports:?}");
            drop(reports);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn client(&self) -> Client {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Client { socket, server: self.at, transfer: None, last: Vec::new() }
    }
}

/// A client whose every packet the test decides.
struct Client {
    socket: UdpSocket,
    server: SocketAddr,
    transfer: Option<SocketAddr>,
    last: Vec<u8>,
}

/// The option by which a client has nothing sent again for a minute.
const CALM: &[u8] = b"timeout\x0060\0";

impl Client {
    fn request(&mut self, name: &str, options: &[u8]) {
        let packet = [b"\0\x01", name.as_bytes(), b"\0octet\0", options].concat();
        self.socket.send_to(&packet, self.server).unwrap();
    }

    #[track_caller]
    fn receive(&mut self) -> Vec<u8> {
        let mut buffer = [0; 2000];
        let (n, from) = self.socket.recv_from(&mut buffer).unwrap();
        assert_ne!(from, self.server, "each transfer has a port of its own");
        self.transfer = Some(from);
        self.last = buffer[..n].to_vec();
        self.last.clone()
    }

    /// What comes that is not what came last once more: a machine that sleeps makes the server repeat it.
    #[track_caller]
    fn receive_next(&mut self) -> Vec<u8> {
        let last = self.last.clone();
        loop {
            let packet = self.receive();
            if packet != last {
                return packet;
            }
        }
    }

    fn ack(&self, block: u16) {
        let [high, low] = block.to_be_bytes();
        self.socket.send_to(&[0, 4, high, low], self.transfer.unwrap()).unwrap();
    }

    fn nothing_comes(&mut self) {
        self.socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut buffer = [0; 2000];
        assert!(self.socket.recv_from(&mut buffer).is_err(), "{buffer:?}");
        self.socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    }
}

/// Sizes around the ends of blocks, and more than 65535 blocks of 512 bytes.
const SIZES: [usize; 6] = [0, 1, 511, 512, 1468 * 3, 34 << 20];

fn gets(server: &Server, client: &str, get: impl Fn(&str, &Path) -> Command) {
    // curl 7.88 fails on every empty file, whichever server has it.
    for size in SIZES.into_iter().filter(|size| *size > 0 || client != "curl") {
        let name = format!("file-{size}");
        let bytes = server.file(&name, size);
        let to = server.out(&format!("{client}-{size}"));
        run(&mut get(&name, &to));
        assert!(fs::read(&to).unwrap_or_default() == bytes, "{client}: {size} bytes");
        let sent =
            server.report(|r| r.asked.trim_start_matches('/') == name && matches!(r.what, What::Sent { .. }));
        let What::Sent { bytes: told, .. } = sent.what else { unreachable!() };
        assert_eq!(told, size as u64);
        server.reports.lock().unwrap().clear();
    }
}

#[test]
#[cfg_attr(lacks = "curl", ignore = "needs curl")]
fn curl() {
    let server = Server::start(Limits::default());
    for blksize in ["512", "1468"] {
        gets(&server, "curl", |name, to| {
            let mut curl = Command::new("curl");
            curl.args(["-sS", "--max-time", "120", "--tftp-blksize", blksize, "-o"]).arg(to);
            curl.arg(format!("tftp://{}/{name}", server.at));
            curl
        });
    }
    let missing = format!("tftp://{}/none", server.at);
    let output = Command::new("curl").args(["-sS", &missing]).output().unwrap();
    assert_eq!(output.status.code(), Some(68), "file not found: {output:?}");
}

#[test]
#[cfg_attr(lacks = "tftp", ignore = "needs tftp (tftp-hpa)")]
fn tftp_hpa() {
    let server = Server::start(Limits::default());
    gets(&server, "tftp-hpa", |name, to| {
        let mut tftp = Command::new("tftp");
        tftp.args(["-m", "binary", "127.0.0.1", &server.at.port().to_string(), "-c", "get", name]).arg(to);
        tftp
    });
    // As text, which is what it does unless told otherwise.
    fs::write(server.dir.path().join("boot/text"), "one\ntwo\r\n").unwrap();
    let to = server.out("text");
    let mut tftp = Command::new("tftp");
    tftp.args(["-m", "ascii", "127.0.0.1", &server.at.port().to_string(), "-c", "get", "text"]);
    run(tftp.arg(&to));
    assert_eq!(fs::read_to_string(to).unwrap(), "one\ntwo\r\n");
}

#[test]
#[cfg_attr(lacks = "atftp", ignore = "needs atftp")]
fn atftp() {
    let server = Server::start(Limits::default());
    for options in [&["blksize 1468", "windowsize 16"][..], &["tsize", "timeout 3", "windowsize 5"], &[]] {
        gets(&server, "atftp", |name, to| {
            let mut atftp = Command::new("atftp");
            for option in options {
                atftp.args(["--option", option]);
            }
            atftp.args(["--get", "--remote-file", name, "--local-file"]).arg(to);
            atftp.args(["127.0.0.1", &server.at.port().to_string()]);
            atftp
        });
    }
}

#[test]
#[cfg_attr(lacks = "busybox", ignore = "needs busybox")]
fn busybox() {
    let server = Server::start(Limits::default());
    for blksize in ["512", "1468"] {
        gets(&server, "busybox", |name, to| {
            let mut tftp = Command::new("busybox");
            tftp.args(["tftp", "-g", "-b", blksize, "-r", name, "-l"]).arg(to);
            tftp.args(["127.0.0.1", &server.at.port().to_string()]);
            tftp
        });
    }
}

#[test]
fn a_pi_asks_for_its_own_files_and_for_many_that_are_not_there() {
    let server = Server::start(Limits::default());
    server.file("config.txt", 3);
    server.file("abcdef01/cmdline.txt", 4);
    let mut pi = server.client();
    // A boot ROM: size and block size asked, lockstep.
    for (name, length) in [("abcdef01/config.txt", 3), ("abcdef01/cmdline.txt", 4)] {
        pi.request(name, b"tsize\x000\0blksize\x001024\0");
        assert_eq!(pi.receive_next(), format!("\0\x06blksize\x001024\0tsize\0{length}\0").as_bytes());
        pi.ack(0);
        assert_eq!(pi.receive_next().len(), 4 + length);
        pi.ack(1);
        let report = server.report(|r| r.asked == name);
        assert!(matches!(report.what, What::Sent { .. }), "{report:?}");
        assert_eq!(report.own_part(), Some("abcdef01"));
    }
    for name in ["abcdef01/recovery.elf", "abcdef01/autoboot.txt"] {
        pi.request(name, b"tsize\x000\0");
        assert_eq!(pi.receive_next(), b"\0\x05\0\x01there is no such file\0");
        // The next error is the same.
        pi.last.clear();
        assert!(matches!(server.report(|r| r.asked == name).what, What::Missing));
    }
    // It only wants to know how long it is.
    pi.request("config.txt", b"tsize\x000\0");
    pi.receive();
    pi.socket.send_to(b"\0\x05\0\0Early terminate\0", pi.transfer.unwrap()).unwrap();
    assert!(matches!(server.report(|r| r.asked == "config.txt").what, What::Stopped));
}

#[test]
fn nothing_outside_the_folder_and_nothing_is_written() {
    let server = Server::start(Limits::default());
    fs::write(server.out("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret", server.dir.path().join("boot/link")).unwrap();
    let mut client = server.client();
    for name in ["../secret", "/../secret", "abcdef01/../../secret", "link", "..\\secret"] {
        client.request(name, b"");
        assert_eq!(client.receive()[..4], [0, 5, 0, 2], "{name}");
    }
    client.request("/etc/passwd", b"");
    assert_eq!(client.receive()[..4], [0, 5, 0, 1]);
    client.socket.send_to(b"\0\x02new\0octet\0", server.at).unwrap();
    assert_eq!(client.receive()[..4], [0, 5, 0, 2]);
    assert!(!server.dir.path().join("boot/new").exists());
    // Neither errors nor acknowledgements at the server's own port are answered.
    client.socket.send_to(b"\0\x05\0\0x\0", server.at).unwrap();
    client.socket.send_to(b"\0\x04\0\x01", server.at).unwrap();
    client.nothing_comes();
}

#[test]
fn lost_and_repeated_packets() {
    let server = Server::start(Limits::default());
    let bytes = server.file("file", 512 * 2 + 10);
    let mut client = server.client();
    // What is not acknowledged comes again.
    client.request("file", b"");
    let first = client.receive();
    assert_eq!(first, [b"\0\x03\0\x01", &bytes[..512]].concat());
    assert_eq!(client.receive(), first);
    client.ack(1);
    assert_eq!(client.receive_next()[..4], [0, 3, 0, 2]);
    client.ack(2);
    assert_eq!(client.receive_next(), [b"\0\x03\0\x03", &bytes[1024..]].concat());
    client.ack(3);
    let report = server.report(|r| r.asked == "file");
    assert!(matches!(report.what, What::Sent { sent_twice: 1.., .. }), "{report:?}");

    // An impatient client asks three times; it gets one transfer.
    let mut client = server.client();
    server.reports.lock().unwrap().clear();
    for _ in 0..3 {
        client.request("file", CALM);
    }
    assert_eq!(client.receive(), [b"\0\x06", CALM].concat());
    client.nothing_comes();
    client.ack(0);
    assert_eq!(client.receive(), first);
    client.ack(1);
    assert_eq!(client.receive()[..4], [0, 3, 0, 2]);
    // An acknowledgement that comes twice makes nothing come twice.
    client.ack(1);
    client.nothing_comes();
    client.ack(2);
    assert_eq!(client.receive()[..4], [0, 3, 0, 3]);
    client.ack(3);
    let report = server.report(|r| r.asked == "file");
    assert!(matches!(report.what, What::Sent { sent_twice: 0, .. }), "{report:?}");

    // Windows: the client loses the second of four and says so.
    let bytes = server.file("window", 8 * 5);
    client.request("window", &[CALM, b"blksize\x008\0windowsize\x004\0"].concat());
    client.receive();
    client.ack(0);
    let blocks: Vec<Vec<u8>> = (0..4).map(|_| client.receive()).collect();
    assert_eq!(blocks[3], [b"\0\x03\0\x04", &bytes[24..32]].concat());
    client.ack(1);
    let again: Vec<u8> = (0..4).map(|_| client.receive()[3]).collect();
    assert_eq!(again, [2, 3, 4, 5]);
    client.ack(5);
    assert_eq!(client.receive(), b"\0\x03\0\x06", "an empty last block");
    client.ack(6);
    let report = server.report(|r| r.asked == "window");
    assert!(matches!(report.what, What::Sent { bytes: 40, sent_twice: 3, .. }), "{report:?}");
}

#[test]
fn a_boot_storm_is_answered_in_turn() {
    let limits = Limits { transfers: 2, waiting: 30, per_address: 40, ..Limits::default() };
    let server = Server::start(limits);
    server.file("file", 5000);
    let mut clients: Vec<Client> = (0..33).map(|_| server.client()).collect();
    for client in &mut clients {
        client.request("file", b"");
    }
    // Everybody gets the first block, and whoever acknowledges it a place: two are served, thirty wait, and one is told
    // that it is too much.
    for client in &mut clients {
        assert_eq!(client.receive()[..4], [0, 3, 0, 1]);
        client.ack(1);
    }
    let busy = server.report(|r| matches!(r.what, What::Failed(_)));
    let refused = clients.iter().position(|c| c.socket.local_addr().unwrap() == busy.peer).unwrap();
    assert_eq!(clients[refused].receive_next()[..4], [0, 5, 0, 0]);
    clients.remove(refused);
    let mut ports = HashSet::new();
    std::thread::scope(|scope| {
        let all: Vec<_> = clients
            .iter_mut()
            .map(|client| {
                scope.spawn(move || {
                    for block in 2..=10 {
                        let packet = client.receive_next();
                        assert_eq!(packet[..4], [0, 3, 0, block]);
                        client.ack(block.into());
                    }
                    client.transfer.unwrap().port()
                })
            })
            .collect();
        ports.extend(all.into_iter().map(|one| one.join().unwrap()));
    });
    // The last report comes after the last block was acknowledged.
    let waited = |r: &&Report| matches!(r.what, What::Waiting(_));
    let reports = || server.reports.lock().unwrap().iter().filter(|r| !waited(r)).count();
    until("33 reports", || reports() >= 33);
    assert_eq!(reports(), 33);
    let all = server.reports.lock().unwrap();
    assert!((20..=30).contains(&all.iter().filter(waited).count()), "those who wait are seen to");
    assert!(all.iter().any(|r| r.load.waiting > 0 && r.load.active == 2));
    let last = all.last().unwrap().load;
    assert_eq!((last.active, last.waiting, last.refused), (0, 0, 1));
}

#[test]
fn one_address_cannot_have_everything() {
    let server = Server::start(Limits { per_address: 1, ..Limits::default() });
    server.file("file", 5000);
    let (mut first, mut second) = (server.client(), server.client());
    first.request("file", b"");
    first.receive();
    first.ack(1);
    assert_eq!(first.receive_next()[..4], [0, 3, 0, 2]);
    second.request("file", b"");
    assert_eq!(second.receive()[..4], [0, 3, 0, 1]);
    second.ack(1);
    let answer = second.receive_next();
    assert_eq!(answer[..4], [0, 5, 0, 0]);
    assert!(String::from_utf8_lossy(&answer).contains("too many"), "{answer:?}");
}
