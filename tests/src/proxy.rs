//! A proxy between two sides that stammers: pieces of random size, random delays, lines that break.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

/// Forwards to `server` from a port of its own, which is returned. With `cut`, each connection
/// breaks after about so many bytes in both directions together.
///
/// # Panics
/// If no port can be bound.
#[must_use]
pub fn stammer(server: SocketAddr, seed: u64, cut: Option<i64>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for (n, client) in listener.incoming().flatten().enumerate() {
            let Ok(server) = TcpStream::connect(server) else { continue };
            let left = Arc::new(AtomicI64::new(cut.unwrap_or(i64::MAX)));
            let seed = seed.wrapping_add(n as u64 * 2);
            for (from, to, seed) in [(&client, &server, seed), (&server, &client, seed + 1)] {
                if let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) {
                    let left = left.clone();
                    thread::spawn(move || forward(from, to, seed, &left));
                }
            }
        }
    });
    address
}

fn forward(mut from: TcpStream, mut to: TcpStream, seed: u64, left: &AtomicI64) {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let _ = to.set_nodelay(true);
    let mut buf = [0; 20_000];
    loop {
        let most = if next(3) == 0 { 1 + next(3) } else { 1 + next(buf.len() as u64 - 1) };
        let n = match from.read(&mut buf[..most as usize]) {
            Ok(0) | Err(_) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(n) => n,
        };
        if next(4) == 0 {
            thread::sleep(Duration::from_micros(next(3000)));
        }
        let cut = left.fetch_sub(n as i64, Ordering::Relaxed) < n as i64;
        if cut || to.write_all(&buf[..n]).is_err() {
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
    }
}
