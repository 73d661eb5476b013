//! The server under load, in one run: fan-out of the root filesystem against nginx with
//! sendfile, 10,000 idle control connections, decisions per second, over loopback and in the core alone.
//!
//! nginx is left out where it is not installed. `PIMAN_BENCH_ROUNDS` says how often (3).

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use piman_core::blocking;
use piman_core::install::drive;
use piman_core::install::{Event, InstallPolicy, Plan, Question};
use piman_core::line::LINE_MAX;
use piman_tests::bench::{Nginx, cpu, drain, median, memory, raise_file_limit};
use piman_tests::disk::run;
use piman_tests::memory::Script;
use piman_tests::server::{Server, connect_from};

const ARCHIVE: u64 = 500 << 20;
const IDLE: usize = 10_000;
const DECISIONS: usize = 20_000;

fn main() {
    raise_file_limit();
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
    decisions_of_the_core();
}

fn fan_out(server: &Server, archive: &Path, folder: &Path, rounds: usize) {
    let bytes = fs::metadata(archive).expect("the archive is there").len();
    let nginx = Nginx::start(folder, folder);
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
        let of = |loads: &[Load], what: fn(&Load) -> f64| median(loads.iter().map(what).collect());
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
    drain(&stream)
}

fn idle(server: &Server) {
    let before = memory(server.id()).unwrap_or_default();
    // So many connections to one port need more than one address.
    let from = |i: usize| [127, 0, 1, 1 + (i / 20_000) as u8];
    let idle: Vec<TcpStream> = (0..IDLE).map(|i| connect_from(from(i), server.port("control"))).collect();
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

/// The session alone, in memory: reports in, commands out.
fn decisions_of_the_core() {
    const PIS: usize = 2_000_000;

    struct Boots(usize);
    impl InstallPolicy for Boots {
        fn decide(&mut self, question: &Question) -> Plan {
            if question.installed { Plan::Boot } else { Plan::Format(None) }
        }
        fn note(&mut self, event: Event<'_>) {
            self.0 += usize::from(matches!(event, Event::Boot));
        }
    }

    let reports = b"IS_INSTALLED\n".repeat(PIS);
    let (mut boots, mut script) = (Boots(0), Script::new(&reports, usize::MAX));
    let began = Instant::now();
    blocking::run(drive::serve(&mut script, &mut [0; LINE_MAX], None, &mut boots))
        .expect("memory never fails");
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(boots.0, PIS);
    let command = script.output.len() / PIS;
    assert!(script.output.chunks(command).all(|c| c.starts_with(b"boot\n")), "a command for each");
    println!("\ndecisions in the core alone, one thread: {:.0} per second", PIS as f64 / seconds);
}
