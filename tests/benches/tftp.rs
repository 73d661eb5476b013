//! TFTP throughput against dnsmasq and tftp-hpa: the same client, file and machine, as ratios in one run.
//!
//! `cargo bench -p piman-tests --bench tftp`; needs root (port 69 of loopback), and says which of the
//! others is not installed. A server that does not know windows answers block by block, as with a Pi.

use piman_tests::running::Running;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use piman::netboot::tftp::{Folder, Limits, Rules, serve};

const BYTES: usize = 32 << 20;
const ROUNDS: usize = 3;

fn main() {
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.path().join("file"), vec![0x5a; BYTES]).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let ours = socket.local_addr().unwrap();
    let folder = Folder::new(dir.path());
    let limits = Limits { per_address: 64, ..Limits::default() };
    runtime.spawn(
        async move { serve(socket, folder, limits, Rules::default(), Arc::new(|_| {})).await.unwrap() },
    );
    let mut servers = vec![("piman", ours, None)];
    let root = dir.path().display();
    for (name, port, line) in [
        (
            "dnsmasq",
            69,
            format!(
                "dnsmasq -k -p 0 -C /dev/null -u root --enable-tftp --tftp-max=100 --tftp-root={root} --pid-file={root}/dnsmasq.pid --listen-address=127.0.0.1 --bind-interfaces"
            ),
        ),
        ("tftp-hpa", 6969, format!("in.tftpd -L -4 -a 127.0.0.1:6969 -u root -s {root}")),
    ] {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        match command.args(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            Ok(child) => servers.push((name, SocketAddr::from(([127, 0, 0, 1], port)), Some(Running(child)))),
            Err(e) => println!("skipped: {name}: {e}"),
        }
    }
    servers.retain(|(name, at, _)| {
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            if fetch(*at, 16).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        println!("skipped: {name} does not answer on {at}");
        false
    });
    println!("{:>9} {:>8} {:>10} {:>8} {:>7}", "server", "clients", "windowsize", "MB/s", "ratio");
    for (clients, window) in [(1, 16), (32, 16), (1, 1), (32, 1)] {
        let mut base = None;
        for (name, at, _) in &servers {
            let mut best = f64::MAX;
            for _ in 0..ROUNDS {
                best = best.min(all(*at, clients, window));
            }
            let rate = (BYTES * clients) as f64 / best / 1e6;
            let base = *base.get_or_insert(rate);
            println!("{name:>9} {clients:>8} {window:>10} {rate:>8.1} {:>7.2}", base / rate);
        }
    }
    println!("ratio: how many times as fast piman is");
}

/// Seconds until all clients have the file.
fn all(at: SocketAddr, clients: usize, window: u16) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..clients).map(|_| scope.spawn(move || fetch(at, window))).collect();
        for one in all {
            assert_eq!(one.join().unwrap().unwrap(), BYTES);
        }
    });
    start.elapsed().as_secs_f64()
}

/// Fetches the file with blocks of 1468 bytes; how many bytes came.
fn fetch(at: SocketAddr, window: u16) -> std::io::Result<usize> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut request = b"\0\x01file\0octet\0blksize\x001468\0".to_vec();
    if window > 1 {
        request.extend(format!("windowsize\0{window}\0").bytes());
    }
    socket.send_to(&request, at)?;
    let mut buffer = [0; 2048];
    let (n, from) = socket.recv_from(&mut buffer)?;
    let options = String::from_utf8_lossy(&buffer[2..n]).into_owned();
    assert!(buffer[1] == 6 && options.contains("1468"), "{options}");
    let window = if options.contains("windowsize") { window } else { 1 };
    socket.connect(from)?;
    socket.send(&[0, 4, 0, 0])?;
    let (mut bytes, mut last, mut unacknowledged, mut silent) = (0, 0u16, 0, 0);
    loop {
        let n = match socket.recv(&mut buffer) {
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock) && silent < 20 => {
                silent += 1;
                let [high, low] = last.to_be_bytes();
                socket.send(&[0, 4, high, low])?;
                continue;
            }
            Err(e) => return Err(e),
        };
        silent = 0;
        let block = u16::from_be_bytes([buffer[2], buffer[3]]);
        let next = block == last.wrapping_add(1);
        if next {
            last = block;
            bytes += n - 4;
            unacknowledged += 1;
        }
        let end = next && n < 1472;
        if end || !next || unacknowledged >= window {
            unacknowledged = 0;
            let [high, low] = last.to_be_bytes();
            socket.send(&[0, 4, high, low])?;
        }
        if end {
            return Ok(bytes);
        }
    }
}
