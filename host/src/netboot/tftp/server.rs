//! The sockets of the TFTP server: requests, a port for each transfer, limits, reports.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use quinn_udp::{RecvMeta, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::admission::{Admission, Entry, Turn};
use super::folder::{Folder, NoFile};
use super::limits::Limits;
use super::packet::{self, Bad, Request, code};
use super::path::Paths;
use super::sending::{Sending, Source};
use super::service::{Rules, Server, Tell, What};
use super::transfer::Outcome;

/// The longest request that is looked at.
const REQUEST_MAX: usize = 2048;

/// Answers requests on `socket` for ever.
///
/// # Errors
/// If the socket cannot be used at all.
pub async fn serve(
    socket: std::net::UdpSocket,
    folder: Folder,
    limits: Limits,
    rules: Rules,
    tell: Tell,
) -> anyhow::Result<()> {
    socket.set_nonblocking(true).context("the TFTP socket")?;
    let local = socket.local_addr().context("the TFTP socket")?;
    let extras = UdpSocketState::new((&socket).into()).context("the TFTP socket")?;
    let socket = UdpSocket::from_std(socket).context("the TFTP socket")?;
    let server = Arc::new(Server {
        folder,
        limits,
        tell,
        gate: Admission::new(limits),
        paths: Paths::default(),
        rules,
    });
    let mut buffer = vec![0; 64 * REQUEST_MAX];
    loop {
        let mut meta = [RecvMeta::default()];
        let received = socket
            .async_io(Interest::READABLE, || {
                extras.recv((&socket).into(), &mut [IoSliceMut::new(&mut buffer)], &mut meta)
            })
            .await;
        if let Err(e) = received {
            // A client's unreachable port, say; never a reason to end, nor to spin.
            tracing::debug!("tftp: {e}");
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        }
        let [meta] = meta;
        let here = match meta.dst_ip.map(|ip| ip.to_canonical()) {
            // Asked by broadcast, which is not to be answered (RFC 1123, 4.2.3.4).
            Some(ip) if is_for_all(ip) => continue,
            Some(ip) => ip,
            None => local.ip(),
        };
        let peer = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
        let bytes = buffer.get(..meta.len).unwrap_or_default();
        for request in bytes.chunks(meta.stride.max(1)) {
            accept(&server, request, peer, here);
        }
    }
}

fn is_for_all(ip: IpAddr) -> bool {
    ip.is_multicast() || ip == Ipv4Addr::BROADCAST
}

fn accept(server: &Arc<Server>, packet: &[u8], peer: SocketAddr, here: IpAddr) {
    let refuse = |code, text: &'static str| {
        let server = Arc::clone(server);
        async move {
            if let Err(e) = send_packet(here, peer, &packet::error(code, text)).await {
                tracing::debug!("tftp: {peer}: {e}");
            }
            server.report(peer, String::new(), What::Failed(text.to_owned()), false);
        }
    };
    let request = match Request::parse(packet) {
        Ok(request) => request,
        Err(Bad::Ignore) => return,
        Err(Bad::Refuse(code, text)) => {
            tokio::spawn(refuse(code, text));
            return;
        }
    };
    if let Entry::New(turn) = server.gate.enter(peer, &request.name) {
        tokio::spawn(answer(Arc::clone(server), turn, request, here));
    }
}

/// One packet from a port of its own.
async fn send_packet(here: IpAddr, peer: SocketAddr, packet: &[u8]) -> io::Result<()> {
    let socket = UdpSocket::bind((here, 0)).await?;
    socket.send_to(packet, peer).await?;
    Ok(())
}

async fn answer(server: Arc<Server>, turn: Turn, request: Request, here: IpAddr) {
    let peer = turn.peer();
    let begun = Instant::now();
    let Rules { only_known, images } = &server.rules;
    let refused = only_known.as_ref().and_then(|known| known.refuses_file(peer.ip(), &request.name));
    let image = match refused {
        Some(_) => None,
        None => images.as_ref().and_then(|images| images.of(peer.ip(), &request.name)),
    };
    let source = Source { folder: &server.folder, request: &request, image: image.as_deref() };
    let opened = if refused.is_some() { Err(NoFile::NotListed) } else { source.open() };
    let mut proven = false;
    let (refusal, what) = match opened {
        Ok((body, name)) => {
            let length = body.length();
            let mut sending =
                Sending { server: &server, source, length, here, turn: &turn, proven: &mut proven };
            let what = match sending.run(body).await {
                Ok((Outcome::Complete, sent_twice)) => {
                    What::Sent { name, bytes: length, took: begun.elapsed(), sent_twice }
                }
                Ok((Outcome::Stopped(0 | 8), _)) => What::Stopped,
                Ok((outcome, _)) => What::Failed(outcome.to_string()),
                Err(e) => What::Failed(e.to_string()),
            };
            (None, what)
        }
        Err(NoFile::Missing) => (Some((code::NOT_FOUND, "there is no such file".to_owned())), What::Missing),
        Err(e @ NoFile::NotListed) => {
            (Some((code::ACCESS, e.to_string())), What::Refused(refused.unwrap_or_default()))
        }
        Err(e @ (NoFile::Outside | NoFile::Unreadable(_) | NoFile::NoPair)) => {
            (Some((code::ACCESS, e.to_string())), What::Failed(e.to_string()))
        }
    };
    if let Some((code, text)) = refusal
        && let Err(e) = send_packet(here, peer, &packet::error(code, &text)).await
    {
        tracing::debug!("tftp: {peer}: {e}");
    }
    // What is reported then counts this one no more.
    drop(turn);
    server.report(peer, request.name, what, proven);
}
