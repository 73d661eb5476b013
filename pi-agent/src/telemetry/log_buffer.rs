//! What the agent logged, kept to be sent to the server's transfer service when it is done.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use embedded_io_adapters::std::FromStd;
use piman_core::blocking::{self, Blocking};
use piman_core::hash::Hash;
use piman_core::transfer::{End, Name, Refusal, Storage, Upload, run};

use crate::identity::Identity;

/// So much of the end of a log is kept, in bytes.
const KEPT: usize = 256 * 1024;
/// A server without a transfer service must not hold up a Pi that wants to boot.
const CONNECT: Duration = Duration::from_secs(3);
/// For each answer.
const ANSWER: Duration = Duration::from_secs(15);

static LINES: Mutex<VecDeque<u8>> = Mutex::new(VecDeque::new());

/// Keeps one line, with the time since the machine started in front of it.
pub fn keep(line: &str) {
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let line = format!("[{:6}.{:03}] {line}\n", uptime.tv_sec, uptime.tv_nsec / 1_000_000);
    let mut kept = lines();
    kept.extend(line.as_bytes());
    if kept.len() > KEPT {
        // From the next whole line on.
        let cut = kept.len() - KEPT;
        let cut = kept.iter().skip(cut).position(|b| *b == b'\n').map_or(cut, |at| cut + at + 1);
        kept.drain(..cut);
    }
}

/// Sends what was kept, as `<serial>-<seconds since 1970>.log`; to fail is no failure of what was done.
pub fn send(host: &str, port: u16, identity: &Identity) {
    let log = lines().make_contiguous().to_vec();
    match put(host, port, identity, log) {
        Ok(name) => log::info!("the log is on the server as {name}"),
        Err(e) => log::debug!("the log stays here: {e:#}"),
    }
}

fn put(host: &str, port: u16, identity: &Identity, log: Vec<u8>) -> anyhow::Result<Name> {
    let name = Name::parse(file_name(identity).as_bytes())?;
    let stream = connect(host, port).with_context(|| format!("connecting to {host} port {port}"))?;
    let mut io = Blocking(FromStd::new(stream));
    let mut machine = Upload::new(name.clone(), false);
    let mut buf = [0; 4096];
    match blocking::run(run(&mut io, &mut buf, &mut machine, &mut Log(log)))? {
        End::Done { .. } => Ok(name),
        other => bail!("the server does not take it: {other:?}"),
    }
}

pub(crate) fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = piman_core::hosted::dial::connect(host, port, CONNECT)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    Ok(stream)
}

/// Without what a name may not have, in case a firmware has strange ideas of a serial number.
fn file_name(identity: &Identity) -> String {
    let who = identity.serial.as_deref().or(identity.mac.as_deref()).unwrap_or("unknown");
    let who: String = who.chars().take(64).map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let time = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    format!("{who}-{time}.log")
}

fn lines() -> MutexGuard<'static, VecDeque<u8>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A log as what is uploaded.
struct Log(Vec<u8>);

impl Storage for Log {
    async fn open(&mut self, _: &Name) -> Result<u64, Refusal> {
        Ok(self.0.len() as u64)
    }

    async fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, Refusal> {
        let from = usize::try_from(offset).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        let n = from.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(from) {
            *to = *from;
        }
        Ok(n)
    }

    async fn create(&mut self, _: &Name, _: bool) -> Result<u64, Refusal> {
        Err(Refusal::Failed)
    }

    async fn hash(&mut self, _: u64) -> Result<Hash, Refusal> {
        Err(Refusal::Failed)
    }

    async fn reserve(&mut self, _: u64, _: u64) -> Result<(), Refusal> {
        Err(Refusal::Failed)
    }

    async fn write_at(&mut self, _: u64, _: &[u8]) -> Result<(), Refusal> {
        Err(Refusal::Failed)
    }

    async fn commit(&mut self) -> Result<(), Refusal> {
        Err(Refusal::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_in_whole_lines() {
        for n in 0..20_000 {
            keep(&format!("line {n}"));
        }
        let text = String::from_utf8(lines().make_contiguous().to_vec()).unwrap();
        assert!(text.len() <= KEPT && text.len() > KEPT - 100);
        assert!(text.starts_with('[') && text.ends_with("line 19999\n"));
    }

    #[test]
    fn names() {
        let serial = |s: &str| Identity { serial: Some(s.into()), ..Identity::default() };
        assert!(file_name(&serial("10000000abcdef01")).starts_with("10000000abcdef01-"));
        let odd = file_name(&serial("../\n\u{fc}x"));
        assert!(odd.starts_with("-----x-") && Name::parse(odd.as_bytes()).is_ok(), "{odd}");
        let mac = Identity { mac: Some("dc:a6:32:00:00:01".into()), ..Identity::default() };
        assert!(file_name(&mac).starts_with("dc-a6-32-00-00-01-"));
    }
}
