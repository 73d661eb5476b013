//! HTTP boot: whether the port is free, or answers with what is in the folder; whether there is an image, and of when.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use jiff::Timestamp;

use super::{Checkup, Health};
use crate::net::listen;
use crate::netboot::boot_sig::{BOOT_IMG, BOOT_SIG, BootSig, SIG_MAX};
use crate::netboot::{NO_BOOT_IMG, Settings};

/// How long a server may take for an answer.
const WITHIN: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes.
const ANSWER_MAX: u64 = 64 << 10;

/// What is wrong with the files is found with the rest of the boot folder.
pub(super) fn examine(checkup: &mut Checkup, settings: &Settings, ip: IpAddr) {
    let Some(port) = settings.http_port else { return };
    let sig = fs::read(settings.folder.join(BOOT_SIG)).ok().filter(|sig| sig.len() <= SIG_MAX);
    match listen::bind(ip, port, "--http-boot-port") {
        Ok(_) => checkup.note(Health::Good, "port", format!("TCP {port} is free (--http-boot-port)")),
        Err(e) => {
            // Perhaps it is the server itself.
            let answer = answers(reachable(ip), port, sig.as_deref());
            checkup.result("port", answer.map_err(|other| anyhow!("{e:#}; {other:#}")));
        }
    }
    if !settings.folder.join(BOOT_IMG).is_file() {
        return checkup.note(Health::Warning, "boot folder", NO_BOOT_IMG);
    }
    let image = sig.as_deref().and_then(BootSig::parse).and_then(|sig| about(&settings.folder, &sig));
    if let Some(text) = image {
        checkup.note(Health::Good, "boot image", text);
    }
}

/// The image in words.
fn about(folder: &Path, sig: &BootSig) -> Option<String> {
    let mib = fs::metadata(folder.join(BOOT_IMG)).ok()?.len() as f64 / f64::from(1 << 20);
    let made = Timestamp::from_second(i64::try_from(sig.made).ok()?).ok()?;
    let how = if sig.rsa2048.is_some() { "signed" } else { "not signed" };
    Some(format!("boot.img: {mib:.1} MiB, {how}, boot.sig of {made}"))
}

/// Where a server that listens on this address can be asked.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// Asks as a boot loader does.
fn answers(ip: IpAddr, port: u16, sig: Option<&[u8]>) -> anyhow::Result<String> {
    let (status, body) = get(SocketAddr::new(ip, port)).context("and what has it gives no answer by HTTP")?;
    let Some(sig) = sig else { bail!("and what has it answers {status}, while the folder has no boot.sig") };
    ensure!(status == 200, "and what has it answers {status} for /{BOOT_SIG}");
    ensure!(body == sig, "and what has it sends another boot.sig than the folder has");
    Ok(format!("TCP {port} answers with the boot.sig of the folder (--http-boot-port)"))
}

/// The status and the content of `/boot.sig`.
fn get(address: SocketAddr) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect_timeout(&address, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    stream.set_write_timeout(Some(WITHIN))?;
    let request = format!("GET /{BOOT_SIG} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    let is_end = |w: &[u8]| w == b"\r\n\r\n";
    let end = answer.windows(4).position(is_end).unwrap_or(answer.len());
    let head = String::from_utf8_lossy(answer.get(..end).unwrap_or_default());
    let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
    let status =
        status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is no answer of HTTP"))?;
    Ok((status, answer.get(end + 4..).unwrap_or_default().to_vec()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// What is found out of a server that gives this answer.
    fn found(answer: &str, sig: Option<&[u8]>) -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 512];
                let n = stream.read(&mut request).unwrap();
                assert!(request[..n].starts_with(b"GET /boot.sig HTTP/1.1\r\nHost: 127.0.0.1:"));
                stream.write_all(answer.as_bytes()).unwrap();
            });
            answers(at.ip(), at.port(), sig).unwrap_or_else(|e| format!("{e:#}"))
        })
    }

    #[test]
    fn who_has_the_port() {
        let ok = "HTTP/1.1 200 OK\r\nServer: x\r\n\r\nsig";
        for (answer, sig, words) in [
            (ok, Some(&b"sig"[..]), "answers with the boot.sig of the folder"),
            (ok, Some(b"other"), "another boot.sig"),
            (ok, None, "the folder has no boot.sig"),
            ("HTTP/1.1 404 Not Found\r\n\r\n", Some(b"sig"), "answers 404"),
            ("SSH-2.0-x\r\n", Some(b"sig"), "no answer by HTTP"),
            ("", Some(b"sig"), "no answer by HTTP"),
        ] {
            let text = found(answer, sig);
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
