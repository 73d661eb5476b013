//! TFTP, whose requests anybody can forge.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::*;

/// How many files a Pi's boot takes.
const FILES: usize = 55;

struct Boot {
    server: Server,
    at: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Boot {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let boot = folder.path().join("boot");
        fs::create_dir(&boot).unwrap();
        for n in 0..FILES {
            fs::write(boot.join(format!("file{n}")), vec![n as u8; 20_000]).unwrap();
        }
        fs::write(boot.join("large"), vec![7; 64 << 20]).unwrap();
        let state = folder.path().join("state");
        let server =
            Server::start_services(&state, &["--netboot", boot.to_str().unwrap(), "--tftp-port", "0"]);
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, server.port("tftp")));
        Self { server, at, _folder: folder }
    }

    fn socket(&self, from: [u8; 4]) -> UdpSocket {
        let socket = UdpSocket::bind((Ipv4Addr::from(from), 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket
    }

    fn request(&self, socket: &UdpSocket, name: &str) {
        socket.send_to(&[b"\0\x01", name.as_bytes(), b"\0octet\0"].concat(), self.at).unwrap();
    }

    /// Gets a file as a boot ROM does, and asks again after a while; how many bytes it is.
    fn get(&self, from: [u8; 4], name: &str) -> usize {
        let began = Instant::now();
        'again: loop {
            assert!(began.elapsed() < WITHIN, "{name} does not come");
            let socket = self.socket(from);
            self.request(&socket, name);
            let (mut block, mut length) = (1_u16, 0);
            loop {
                let mut packet = [0; 600];
                let Ok((n, port)) = socket.recv_from(&mut packet) else { continue 'again };
                let [high, low] = block.to_be_bytes();
                if packet[..2] == [0, 5] {
                    continue 'again;
                }
                if packet[..4] != [0, 3, high, low] {
                    continue;
                }
                socket.send_to(&[0, 4, high, low], port).unwrap();
                (block, length) = (block.wrapping_add(1), length + n - 4);
                if n < 516 {
                    return length;
                }
            }
        }
    }

    /// A Pi boots meanwhile; how long that took.
    fn boots(&self, from: [u8; 4]) -> Duration {
        let began = Instant::now();
        for n in 0..FILES {
            assert_eq!(self.get(from, &format!("file{n}")), 20_000);
        }
        began.elapsed()
    }
}

/// Runs `attack` again and again for each of forty addresses while `meanwhile` goes on.
fn forty<T>(attack: impl Fn([u8; 4], &AtomicBool) + Sync, meanwhile: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for host in 1..=40 {
            let (attack, over) = (&attack, &over);
            scope.spawn(move || attack([127, 0, 3, host], over));
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
        over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn forty_addresses_with_64_requests_a_second_stop_no_boot() {
    let boot = Boot::new();
    let sent = |from: [u8; 4], over: &AtomicBool| {
        let mut open = std::collections::VecDeque::new();
        while !over.load(Ordering::Relaxed) {
            // Each from a port of its own, so that each is a request of its own; nobody answers.
            let socket = boot.socket(from);
            boot.request(&socket, "large");
            open.push_back(socket);
            if open.len() > 20 {
                open.pop_front();
            }
            thread::park_timeout(Duration::from_millis(1000 / 64));
        }
    };
    let took = forty(sent, || {
        // It has begun when there are more than places.
        wait_until("the attack has begun", || open_files(&boot.server) > 400);
        boot.boots([127, 0, 0, 9])
    });
    assert!(took < Duration::from_secs(40), "{took:?}");
    let devices = boot.server.piman(&["devices"]);
    assert!(devices.contains("127.0.0.9") && !devices.contains("127.0.3."), "{devices}");
}

#[test]
fn transfers_that_hardly_move_stop_no_boot() {
    let boot = Boot::new();
    // Each keeps eight transfers alive by an acknowledgement now and then.
    let trickle = |from: [u8; 4], over: &AtomicBool| {
        let mut transfers: Vec<(UdpSocket, Option<SocketAddr>, u16)> = Vec::new();
        while !over.load(Ordering::Relaxed) {
            if transfers.len() < 8 {
                let socket = boot.socket(from);
                socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
                boot.request(&socket, "large");
                transfers.push((socket, None, 0));
            }
            transfers.retain_mut(|(socket, port, block)| {
                let mut packet = [0; 600];
                while let Ok((_, from)) = socket.recv_from(&mut packet) {
                    *port = Some(from);
                    if packet[..2] == [0, 5] {
                        return false;
                    }
                    *block = u16::from_be_bytes([packet[2], packet[3]]);
                }
                let [high, low] = block.to_be_bytes();
                port.is_none_or(|port| socket.send_to(&[0, 4, high, low], port).is_ok())
            });
            thread::park_timeout(Duration::from_millis(50));
        }
    };
    let took = forty(trickle, || {
        boot.server.wait_log("requests wait for their turn");
        boot.boots([127, 0, 0, 9])
    });
    assert!(took < Duration::from_secs(40), "{took:?}");
}

#[test]
fn forged_requests_make_nobody_known() {
    let boot = Boot::new();
    assert_eq!(boot.get([127, 0, 0, 9], "file1"), 20_000);
    for n in 0..5000_u16 {
        let [high, low] = n.to_be_bytes();
        let socket = boot.socket([127, 1, high, low]);
        for name in ["file1", "../../etc/passwd", "missing"] {
            boot.request(&socket, name);
        }
    }
    assert_eq!(boot.get([127, 0, 0, 10], "file1"), 20_000);
    wait_until("the real one is seen", || boot.server.piman(&["devices"]).contains("127.0.0.10"));
    let devices = boot.server.piman(&["devices"]);
    assert!(devices.contains("127.0.0.9") && !devices.contains("127.1."), "{devices}");
    assert!(open_files(&boot.server) < 2500);
    assert!(boot.server.memory_kb("VmHWM") < 100_000);
}

fn open_files(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap().count()
}
