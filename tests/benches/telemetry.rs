//! The telemetry service: records in a second of 1 and of 100 clients, each record written and acknowledged before the
//! next is sent; and the memory of both programs after many records.
//!
//! `PIMAN_BENCH_RECORDS` says how many (1,000,000).

use std::fs;
use std::io::{BufWriter, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use piman_core::telemetry::{Client, Reply};
use piman_tests::bench::{memory, raise_file_limit};
use piman_tests::binaries;
use piman_tests::server::{Server, connect_from};

/// How long each figure is measured.
const SPAN: Duration = Duration::from_secs(5);

fn main() {
    raise_file_limit();
    let records =
        std::env::var("PIMAN_BENCH_RECORDS").ok().and_then(|r| r.parse().ok()).unwrap_or(1_000_000_u64);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let kept = folder.path().join("records");
    fs::create_dir(&kept).expect("a folder");
    let dir = kept.to_str().expect("a plain name");
    let more = ["--telemetry-dir", dir, "--telemetry-port", "0", "--telemetry-rotate-mib", "0"];
    let server = Server::start_services(&folder.path().join("state"), &more);
    println!("\n| clients | records/s | memory of the server, MB |\n|---|---|---|");
    for clients in [1, 100] {
        let port = server.port("telemetry");
        let threads: Vec<_> = (0..clients).map(|i| thread::spawn(move || send(port, i))).collect();
        thread::sleep(SPAN / 2);
        let rss = memory(server.id()).unwrap_or_default() / 1000.0;
        let sent: u64 = threads.into_iter().map(|t| t.join().expect("no client panics")).sum();
        println!("| {clients} | {:.0} | {rss:.1} |", sent as f64 / SPAN.as_secs_f64());
    }
    let before = fs::metadata(kept.join("127.0.0.1.csv")).expect("records").len();
    many(&server, records, folder.path());
    let after = fs::metadata(kept.join("127.0.0.1.csv")).expect("records").len();
    println!("{} bytes of records were kept", after - before);
}

/// Sends records for a while; how many were acknowledged.
fn send(port: u16, client: usize) -> u64 {
    // Each is a Pi with an address of its own, and so with a file of its own.
    let mut stream = connect_from([127, 0, 0, 1 + client as u8], port);
    stream.set_nodelay(true).expect("an option");
    let mut talk = Client::default();
    wait_for(&mut stream, &mut talk, Reply::Greeting);
    let (began, mut sent) = (Instant::now(), 0);
    while began.elapsed() < SPAN {
        stream.write_all(record(sent).as_bytes()).expect("it reads");
        wait_for(&mut stream, &mut talk, Reply::Written);
        sent += 1;
    }
    sent
}

fn record(n: u64) -> String {
    format!("{},{n},21.5,48,1013.25\n", 1_700_000_000 + n)
}

fn wait_for(stream: &mut TcpStream, talk: &mut Client, what: Reply) {
    let mut buf = [0; 64];
    loop {
        let n = stream.read(&mut buf).expect("it answers");
        assert!(n > 0, "the server closed");
        if buf[..n].iter().any(|b| talk.receive(*b) == what) {
            return;
        }
    }
}

/// `piman telemetry` with so many records from a file.
fn many(server: &Server, records: u64, folder: &std::path::Path) {
    let file = folder.join("many.csv");
    let mut out = BufWriter::new(fs::File::create(&file).expect("a file"));
    (0..records).for_each(|n| out.write_all(record(n).as_bytes()).expect("room"));
    drop(out);
    let mut piman = Command::new(binaries::piman());
    piman.arg("telemetry").arg(&file).args([
        "127.0.0.1",
        "--no-follow",
        "--port",
        &server.port("telemetry").to_string(),
    ]);
    let began = Instant::now();
    let mut child = piman.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("piman starts");
    let mut most = 0.0_f64;
    loop {
        most = most.max(memory(child.id()).unwrap_or_default());
        if let Some(status) = child.try_wait().expect("it is our child") {
            assert!(status.success());
            break;
        }
        thread::sleep(Duration::from_millis(200));
    }
    let rate = records as f64 / began.elapsed().as_secs_f64();
    println!(
        "\npiman telemetry, {records} records: {rate:.0} records/s, its memory {:.1} MB at most, the server's then {:.1} MB",
        most / 1000.0,
        memory(server.id()).unwrap_or_default() / 1000.0
    );
}
