//! The Pi's figures as records: CPU, memory, disk, temperature, processes; streamed at an interval.

use std::io;
use std::mem;
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use embedded_io_adapters::std::FromStd;
use piman_core::blocking::{Blocking, run};
use piman_core::error::PeerError;
use piman_core::telemetry::{self, Acks};

use crate::telemetry::log_buffer::connect;
use crate::telemetry::machine::{self, Disk, Memory, Times};
use piman_core::hosted::backoff::Backoff;

/// The names of the columns, in their order.
pub const HEADER: &str = "time_s,cpu_percent,memory_used_kib,memory_total_kib,disk_used_kib,disk_total_kib,temperature_c,processes";

/// How long the server may take to write a record: its disk may be full for a while.
const ANSWER: Duration = Duration::from_secs(60);
/// How long a server has for its greeting; one that greets later, or never, gets the record then.
const GREETING: Duration = Duration::from_secs(1);
/// Between two attempts to reach it at most.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What is measured between two records.
#[derive(Debug, Default)]
pub struct Meter {
    last: Times,
}

impl Meter {
    /// One record without its newline, the CPU since the last one; since the start of the machine
    /// at the first. What this machine does not tell stays empty.
    pub fn record(&mut self) -> String {
        let root = Path::new("/");
        let time = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        let cpu = Times::now(root).and_then(|now| now.percent_since(mem::replace(&mut self.last, now)));
        let (memory, disk) = (Memory::now(root), Disk::now(root));
        let tenths = |x: Option<f64>| x.map(|x| format!("{x:.1}")).unwrap_or_default();
        let whole = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
        let fields = [
            tenths(cpu),
            whole(memory.map(|m| m.used_kib)),
            whole(memory.map(|m| m.total_kib)),
            whole(disk.map(|d| d.used_kib)),
            whole(disk.map(|d| d.total_kib)),
            tenths(machine::temperature(root)),
            whole(machine::processes(root).map(|n| n as u64)),
        ];
        format!("{time},{}", fields.join(","))
    }
}

/// Sends a record every `interval` for ever, or until so many have been written; on every
/// connection the names of the columns first. A server that is away is tried again; what was
/// not measured meanwhile is not made up for.
pub fn send(host: &str, port: u16, interval: Duration, count: Option<u64>) {
    let mut meter = Meter::default();
    let mut acks = Acks::default();
    let mut line = None;
    let mut backoff = Backoff::new(Duration::from_secs(1).min(interval), PAUSE_MAX);
    let mut sent = 0;
    while count.is_none_or(|n| sent < n) {
        match one(host, port, &mut line, acks, &meter.record()) {
            Ok(known) => {
                acks = known;
                sent += 1;
                backoff.reset();
                if count.is_none_or(|n| sent < n) {
                    thread::sleep(interval);
                }
            }
            Err(e) => {
                line = None;
                let pause = backoff.wait();
                log::warn!("the figures cannot be sent to {host} port {port}: {e}; again in {pause:.1?}");
                thread::sleep(pause);
            }
        }
    }
}

type Line = (Blocking<FromStd<TcpStream>>, telemetry::Client);

/// One record on a connection that is made if there is none.
fn one(host: &str, port: u16, line: &mut Option<Line>, acks: Acks, record: &str) -> io::Result<Acks> {
    if line.as_ref().is_some_and(|(io, _)| has_closed(io.0.inner())) {
        *line = None;
    }
    let mut text = format!("{record}\n");
    let (io, client) = match line {
        Some(line) => line,
        None => {
            let socket = connect(host, port)?;
            let greets = says_something(&socket, GREETING)?;
            socket.set_read_timeout(Some(ANSWER))?;
            let new = line.insert((Blocking(FromStd::new(socket)), telemetry::Client::new(acks)));
            if greets {
                let other =
                    |_| io::Error::other("what answers there does not greet as a service for records does");
                run(telemetry::open(&mut new.0, &mut new.1)).map_err(other)?;
            }
            // In one piece: some servers take one for each connection.
            text.insert_str(0, &format!("{HEADER}\n"));
            new
        }
    };
    run(telemetry::send(io, client, text.as_bytes())).map_err(failed)?;
    Ok(client.acks())
}

/// Whether the server says something within this time. One that does not receives first.
fn says_something(socket: &TcpStream, within: Duration) -> io::Result<bool> {
    socket.set_read_timeout(Some(within))?;
    match socket.peek(&mut [0]) {
        Ok(_) => Ok(true),
        Err(e) if is_late(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether the server has closed the connection since the last record.
fn has_closed(socket: &TcpStream) -> bool {
    let peeked = socket.set_nonblocking(true).and_then(|()| socket.peek(&mut [0]));
    let is_open = match peeked {
        Ok(n) => n > 0,
        Err(e) => is_late(&e),
    };
    !is_open || socket.set_nonblocking(false).is_err()
}

fn is_late(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn failed(e: piman_core::Error<io::Error>) -> io::Error {
    match e {
        piman_core::Error::Io(e) if is_late(&e) => io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the server did not acknowledge the record within {} s", ANSWER.as_secs()),
        ),
        piman_core::Error::Peer(PeerError::Closed) => {
            io::Error::other("the server closed the connection and did not acknowledge the record")
        }
        other => io::Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    #[test]
    fn figures_of_this_machine() {
        let mut meter = Meter::default();
        let record = meter.record();
        let fields: Vec<&str> = record.split(',').collect();
        assert_eq!(fields.len(), HEADER.split(',').count(), "{record}");
        let number = |i: usize| fields[i].parse::<f64>().unwrap();
        assert!(number(0) > 1.7e9 && (0.0..=100.0).contains(&number(1)), "{record}");
        assert!(0.0 < number(2) && number(2) < number(3) && number(4) <= number(5), "{record}");
        assert!(number(7) >= 1.0, "{record}");
    }

    #[test]
    fn a_server_that_goes_and_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let mut kept = Vec::new();
            for records in [2, 3] {
                let (mut socket, _) = listener.accept().unwrap();
                socket.write_all(b"Connection established").unwrap();
                let mut lines = 0;
                let mut buf = [0; 1024];
                while lines < records {
                    let n = socket.read(&mut buf).unwrap();
                    lines += buf[..n].iter().filter(|b| **b == b'\n').count();
                    kept.extend_from_slice(&buf[..n]);
                    socket.write_all(b"data received").unwrap();
                }
            }
            String::from_utf8(kept).unwrap()
        });
        send("127.0.0.1", port, Duration::from_millis(1), Some(3));
        // Nothing is waited for after the last one.
        let kept = server.join().unwrap();
        let lines: Vec<&str> = kept.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[2]), (5, HEADER, HEADER));
    }
}
