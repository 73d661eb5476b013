//! The server under load, in one run: fan-out of the root filesystem against nginx with
//! sendfile, 10,000 idle control connections, decisions per second.
//!
//! nginx is left out where it is not installed. `PIMAN_BENCH_ROUNDS` says how often (3).

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use piman_tests::disk::run;
use piman_tests::server::Server;
use rustix::net::RecvFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const ARCHIVE: u64 = 500 << 20;
const IDLE: usize = 10_000;
const DECISIONS: usize = 20_000;

fn main() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let rounds: usize = std::env::var("PIMAN_BENCH_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(3);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let archive = folder.path().join("rootfs.tgz");
    // Bytes that do not pack, as a packed archive's.
    let (dir, archive_at) = (folder.path().display(), archive.display());
    let script = format!(
        "head -c {ARCHIVE} /dev/urandom > {dir}/data && tar -C {dir} -c data | gzip -1 > {archive_at} && rm {dir}/data"
    );
    run(Command::new("bash").args(["-o", "pipefail", "-c", &script]));
    let limits = ["--connections", "30000", "--connections-per-address", "30000", "--no-images", "--no-date"];
    let server = Server::start(&archive, &folder.path().join("state"), &limits);
    server.wait_log("is good");
    fan_out(&server, &archive, folder.path(), rounds);
    idle(&server);
    decisions(&server);
}

fn fan_out(server: &Server, archive: &Path, folder: &Path, rounds: usize) {
    let bytes = fs::metadata(archive).expect("the archive is there").len();
    let nginx = Nginx::start(archive, folder);
    println!("\nfan-out of {} MB over loopback, medians of {rounds}\n", bytes / 1_000_000);
    println!(
        "| clients | piman GB/s | nginx GB/s | ratio | piman CPU s/GB | nginx CPU s/GB | ratio | piman RSS MB | nginx RSS MB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for clients in [1, 8, 64] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..=rounds {
            let a = load(clients, bytes, server.port("rootfs"), None, &[server.id()]);
            let b = nginx.as_ref().map(|n| load(clients, bytes, n.port, Some("/rootfs.tgz"), &n.processes()));
            // The first round warms up.
            if round > 0 {
                ours.push(a);
                theirs.extend(b);
            }
        }
        let of = |loads: &[Load], what: fn(&Load) -> f64| {
            let mut values: Vec<f64> = loads.iter().map(what).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
        };
        let (rate, cpu, rss) = (|l: &Load| l.rate, |l: &Load| l.cpu, |l: &Load| l.rss_mb);
        println!(
            "| {clients} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} | {:.0} |",
            of(&ours, rate),
            of(&theirs, rate),
            of(&ours, rate) / of(&theirs, rate),
            of(&ours, cpu),
            of(&theirs, cpu),
            of(&ours, cpu) / of(&theirs, cpu),
            of(&ours, rss),
            of(&theirs, rss)
        );
    }
}

/// What one load came to.
struct Load {
    /// GB/s of all clients together.
    rate: f64,
    /// Seconds of the server's processors for each GB.
    cpu: f64,
    rss_mb: f64,
}

/// `clients` fetch the file at once; with a path by HTTP.
fn load(clients: usize, bytes: u64, port: u16, path: Option<&'static str>, servers: &[u32]) -> Load {
    let (began, before) = (Instant::now(), cpu(servers));
    let threads: Vec<_> = (0..clients).map(|_| thread::spawn(move || fetch(port, path))).collect();
    for client in threads {
        let got = client.join().expect("no client panics");
        assert!(got >= bytes, "{got} of {bytes} bytes came");
    }
    let gigabytes = bytes as f64 * clients as f64 / 1e9;
    Load {
        rate: gigabytes / began.elapsed().as_secs_f64(),
        cpu: (cpu(servers) - before) / gigabytes,
        rss_mb: servers.iter().filter_map(|pid| memory(*pid)).sum::<f64>() / 1000.0,
    }
}

/// Counts what comes, and has the kernel throw it away: the client should cost little.
fn fetch(port: u16, path: Option<&str>) -> u64 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the server accepts");
    if let Some(path) = path {
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("a request");
    }
    let mut buf = vec![0; 1 << 20];
    let mut sum = 0;
    loop {
        match rustix::net::recv(&stream, &mut buf[..], RecvFlags::TRUNC) {
            Ok((_, 0)) => return sum,
            Ok((_, n)) => sum += n as u64,
            Err(e) => panic!("after {sum} bytes: {e}"),
        }
    }
}

/// Seconds of processors that these processes have used.
fn cpu(pids: &[u32]) -> f64 {
    let ticks = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<u64> =
            stat.rsplit_once(')')?.1.split_whitespace().filter_map(|f| f.parse().ok()).collect();
        // After the name and the state, which is no number: fields 14 and 15 of the manual.
        Some(fields.get(10)? + fields.get(11)?)
    };
    pids.iter().filter_map(ticks).sum::<u64>() as f64 / 100.0
}

/// Resident memory, in KB.
fn memory(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find(|l| l.starts_with("VmRSS"))?.split_whitespace().nth(1)?.parse().ok()
}

fn idle(server: &Server) {
    let before = memory(server.id()).unwrap_or_default();
    let connect = |i: usize| {
        // So many connections to one port need more than one address.
        let from = std::net::SocketAddr::from(([127, 0, 1, 1 + (i / 20_000) as u8], 0));
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.bind(&from.into()).expect("an address of loopback");
        let to = std::net::SocketAddr::from(([127, 0, 0, 1], server.port("control")));
        socket.connect(&to.into()).expect("the server accepts");
        TcpStream::from(socket)
    };
    let idle: Vec<TcpStream> = (0..IDLE).map(connect).collect();
    // When the last one is answered, all are there.
    let mut last = idle.last().expect("there are connections");
    last.write_all(b"IS_INSTALLED\n").expect("it takes a report");
    let mut answer = String::new();
    BufReader::new(last).read_line(&mut answer).expect("it answers");
    let after = memory(server.id()).unwrap_or_default();
    let mut times: Vec<Duration> = (0..1000).map(|_| decision(server.port("control"))).collect();
    times.sort();
    println!(
        "\n{IDLE} idle control connections: {:.1} MB, {:.1} MB of it before; a decision meanwhile: \
         median {:.2} ms, 99th percentile {:.2} ms",
        after / 1000.0,
        before / 1000.0,
        times[500].as_secs_f64() * 1e3,
        times[990].as_secs_f64() * 1e3
    );
}

/// Connects, reports, waits for the command.
fn decision(port: u16) -> Duration {
    let began = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the server accepts");
    stream.write_all(b"IS_INSTALLED\n").expect("it takes a report");
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).expect("it answers");
    assert_eq!(answer, "boot\n");
    began.elapsed()
}

fn decisions(server: &Server) {
    const CLIENTS: usize = 8;
    let port = server.port("control");
    let ask = move || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the server accepts");
        stream.set_nodelay(true).expect("an option");
        let mut lines = BufReader::new(stream.try_clone().expect("a second handle"));
        let mut line = String::new();
        for _ in 0..DECISIONS / 16 {
            // Sixteen under way at once, as from sixteen Pis.
            stream.write_all("IS_INSTALLED\n".repeat(16).as_bytes()).expect("it takes reports");
            for _ in 0..32 {
                line.clear();
                lines.read_line(&mut line).expect("it answers");
            }
        }
    };
    let began = Instant::now();
    let threads: Vec<_> = (0..CLIENTS).map(|_| thread::spawn(ask)).collect();
    threads.into_iter().for_each(|t| t.join().expect("no client panics"));
    let rate = (CLIENTS * DECISIONS) as f64 / began.elapsed().as_secs_f64();
    println!("\ndecisions over loopback, {CLIENTS} connections: {rate:.0} per second");
}

/// nginx with a configuration of its own; ended when dropped.
struct Nginx {
    child: Child,
    port: u16,
}

impl Nginx {
    fn start(archive: &Path, folder: &Path) -> Option<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).ok()?.port();
        let (root, work) = (archive.parent()?.display(), folder.display());
        let config = folder.join("nginx.conf");
        let text = format!(
            "daemon off; worker_processes 2; pid {work}/nginx.pid; error_log {work}/nginx.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; sendfile_max_chunk 2m; server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
        );
        fs::write(&config, text).ok()?;
        // Its workers are another user than root.
        run(Command::new("chmod").args(["a+rx"]).arg(folder));
        run(Command::new("chmod").args(["a+r"]).arg(archive));
        let program = ["nginx", "/usr/sbin/nginx"]
            .into_iter()
            .find(|p| Command::new(p).arg("-v").stderr(Stdio::null()).status().is_ok_and(|s| s.success()));
        let Some(program) = program else {
            println!("nginx is not installed: left out");
            return None;
        };
        let mut nginx = Command::new(program);
        let child = nginx.arg("-c").arg(&config).arg("-e").arg(folder.join("nginx.log")).spawn().ok()?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "nginx does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Some(Self { child, port })
    }

    /// Its main process and its workers.
    fn processes(&self) -> Vec<u32> {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        [id].into_iter().chain(children.split_whitespace().filter_map(|c| c.parse().ok())).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its main process ends the workers when asked to.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}
