//! The sockets of the TFTP server: requests, a port for each transfer, limits, reports.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use quinn_udp::{RecvMeta, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};

use super::admission::{Admission, Entry, Load, Turn};
use super::body::Body;
use super::folder::{Folder, NoFile, own_part};
use super::line::Line;
use super::packet::{self, Bad, Reply, Request, code};
use super::path::{self, Paths};
use super::transfer::{Outcome, Send, Terms, Transfer};
use crate::netboot::image_folder::ImageFolders;
use crate::netboot::only_known::OnlyKnown;

/// The longest request that is looked at.
const REQUEST_MAX: usize = 2048;

/// What clients can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Transfers at the same time; others wait.
    pub transfers: usize,
    /// How many may wait; more are told that the server is busy.
    pub waiting: usize,
    /// Transfers of one address at the same time, waiting ones included.
    pub per_address: usize,
    /// The largest block. Larger ones than 1468 bytes would travel in fragments.
    pub blksize: u16,
    /// The largest window.
    pub windowsize: u16,
    /// How long one transfer may take.
    pub longest: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            transfers: 256,
            waiting: 1024,
            per_address: 32,
            blksize: 1468,
            windowsize: 64,
            longest: Duration::from_secs(3600),
        }
    }
}

/// What became of a request.
#[derive(Debug, Clone)]
pub struct Report {
    /// Who asked.
    pub peer: SocketAddr,
    /// For what, as it was sent.
    pub asked: String,
    /// What became of it.
    pub what: What,
    /// How much there was to do besides.
    pub load: Load,
}

impl Report {
    /// The serial number or hardware address in front of the name, if there is one.
    #[must_use]
    pub fn own_part(&self) -> Option<&str> {
        own_part(&self.asked).map(|(own, _)| own)
    }
}

/// What became of a request.
#[derive(Debug, Clone)]
pub enum What {
    /// The client has all of it.
    Sent {
        /// Where the file was in the folder.
        name: String,
        /// Its length in bytes.
        bytes: u64,
        /// From the request to the last acknowledgement.
        took: Duration,
        /// Blocks that were sent more than once.
        sent_twice: u64,
    },
    /// It waits for its turn; so many others are first. Another report follows.
    Waiting(u32),
    /// There is no such file, which is an everyday thing.
    Missing,
    /// The client asked for the size only, or changed its mind.
    Stopped,
    /// It is not in the device list, under this name.
    Refused(String),
    /// It failed, or was refused for another reason.
    Failed(String),
}

/// Who is told of everything that happened.
pub type Tell = Arc<dyn Fn(Report) + std::marker::Send + Sync>;

struct Server {
    folder: Folder,
    limits: Limits,
    tell: Tell,
    gate: Arc<Admission>,
    paths: Paths,
    rules: Rules,
}

/// Who gets what.
#[derive(Default)]
pub struct Rules {
    /// Those alone are answered that it does not refuse; `None`: all.
    pub only_known: Option<Arc<OnlyKnown>>,
    /// Who boots from the folder of an image; `None`: nobody.
    pub images: Option<ImageFolders>,
}

impl Server {
    fn report(&self, peer: SocketAddr, asked: String, what: What) {
        (self.tell)(Report { peer, asked, what, load: self.gate.load() });
    }
}

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
    let refuse = |asked: String, code, text: &'static str| {
        let server = Arc::clone(server);
        async move {
            if let Err(e) = send_packet(here, peer, &packet::error(code, text)).await {
                tracing::debug!("tftp: {peer}: {e}");
            }
            server.report(peer, asked, What::Failed(text.to_owned()));
        }
    };
    let request = match Request::parse(packet) {
        Ok(request) => request,
        Err(Bad::Ignore) => return,
        Err(Bad::Refuse(code, text)) => {
            tokio::spawn(refuse(String::new(), code, text));
            return;
        }
    };
    match server.gate.enter(peer, &request.name) {
        Entry::Repeated => {}
        Entry::Refused(text) => {
            tokio::spawn(refuse(request.name, code::UNDEFINED, text));
        }
        Entry::New(turn) => {
            tokio::spawn(answer(Arc::clone(server), turn, request, here));
        }
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
    let mut told = 0;
    let slot = loop {
        match turn.ticket.turn(told).await {
            Ok(slot) => break slot,
            Err(place) => {
                if told == 0 {
                    server.report(peer, request.name.clone(), What::Waiting(place));
                }
                told = place;
            }
        }
    };
    let begun = Instant::now();
    let Rules { only_known, images } = &server.rules;
    let refused = only_known.as_ref().and_then(|known| known.refuses_tftp(peer.ip(), &request.name));
    let opened = match refused {
        Some(_) => Err(NoFile::NotListed),
        None => {
            let image = images.as_ref().and_then(|images| images.of(peer.ip(), &request.name));
            Body::open(&server.folder, &request, image.as_deref())
        }
    };
    let (refusal, what) = match opened {
        Ok((body, name)) => {
            let what = match send(&server, &request, &body, here, peer).await {
                Ok((Outcome::Complete, sent_twice)) => {
                    What::Sent { name, bytes: body.length(), took: begun.elapsed(), sent_twice }
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
        Err(e @ NoFile::Outside) => (Some((code::ACCESS, e.to_string())), What::Failed(e.to_string())),
        Err(e @ NoFile::Unreadable(_)) => (Some((code::ACCESS, e.to_string())), What::Failed(e.to_string())),
    };
    if let Some((code, text)) = refusal
        && let Err(e) = send_packet(here, peer, &packet::error(code, &text)).await
    {
        tracing::debug!("tftp: {peer}: {e}");
    }
    // What is reported then counts this one no more.
    drop((slot, turn));
    server.report(peer, request.name, what);
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Complete => write!(f, "complete"),
            Self::Stopped(code) => write!(f, "the client stopped with error {code}"),
            Self::Silent => write!(f, "the client is silent"),
            Self::TooLong => write!(f, "it took too long in all"),
        }
    }
}

/// What is agreed on, and the packet that says so.
fn agree(request: &Request, limits: &Limits, length: u64) -> (Terms, Vec<u8>) {
    let asked = request.asked;
    let blksize = asked.blksize.map(|n| n.min(limits.blksize.max(8)));
    let windowsize = asked.windowsize.map(|n| n.min(limits.windowsize.max(1)));
    let mut options = Vec::new();
    if let Some(n) = blksize {
        options.push(("blksize", u64::from(n)));
    }
    if asked.tsize {
        options.push(("tsize", length));
    }
    if let Some(n) = asked.timeout {
        options.push(("timeout", u64::from(n)));
    }
    if let Some(n) = windowsize {
        options.push(("windowsize", u64::from(n)));
    }
    let terms = Terms {
        blksize: blksize.unwrap_or(512),
        windowsize: windowsize.unwrap_or(1),
        timeout: asked.timeout.map(|n| Duration::from_secs(n.into())),
        length,
        options: !options.is_empty(),
        longest: limits.longest,
    };
    (terms, packet::option_ack(&options))
}

async fn send(
    server: &Server,
    request: &Request,
    body: &Body,
    here: IpAddr,
    peer: SocketAddr,
) -> io::Result<(Outcome, u64)> {
    let socket = UdpSocket::bind((here, 0)).await?;
    // So that nobody else's packets are taken for the client's.
    socket.connect(peer).await?;
    let blksize = server.limits.blksize.min(server.paths.blksize(&socket, peer.ip()));
    let (terms, options) = agree(request, &Limits { blksize, ..server.limits }, body.length());
    let start = Instant::now();
    let mut line = Line::new(socket, peer, terms.windowsize > 1)?;
    path::allow_cutting(&line.socket, peer.ip(), false)?;
    let mut way = Way { server, peer, blksize: terms.blksize, cut: false, trouble: None };
    let mut transfer = Transfer::new(terms, Duration::ZERO);
    let mut reply = [0; 512];
    loop {
        while let Some(send) = transfer.poll_transmit(start.elapsed()) {
            let sent = match send {
                Send::Options => line.socket.send(&options).await.map(|_| ()),
                Send::Blocks { first, count } => line.send_blocks(&transfer, body, first, count).await,
            };
            if let Err(e) = sent
                && let Err(e) = way.failed(e, &line.socket, &mut transfer)
            {
                // The client should not have to wait until it is tired.
                let _ = line.socket.send(&packet::error(code::UNDEFINED, &e.to_string())).await;
                return Err(e);
            }
            if way.was_last_word(&transfer) {
                return Ok((Outcome::Complete, transfer.sent_twice()));
            }
        }
        let Some(deadline) = transfer.poll_timeout() else { break };
        tokio::select! {
            received = line.socket.recv(&mut reply) => match received {
                Ok(n) => {
                    let packet = reply.get(..n).unwrap_or_default();
                    transfer.handle(Reply::parse(packet), start.elapsed());
                }
                Err(e) => {
                    way.failed(e, &line.socket, &mut transfer)?;
                    if way.was_last_word(&transfer) {
                        return Ok((Outcome::Complete, transfer.sent_twice()));
                    }
                }
            },
            () = sleep_until(start + deadline) => {
                transfer.handle_timeout(start.elapsed());
                if transfer.first_is_lost() {
                    way.cut(&line.socket, "the first block is lost again and again")?;
                    way.server.paths.lost(peer.ip());
                }
            }
        }
    }
    match (transfer.outcome().unwrap_or(Outcome::Silent), way.trouble) {
        (Outcome::Silent, Some(e)) => {
            Err(io::Error::new(e.kind(), format!("{}; last of all: {e}", Outcome::Silent)))
        }
        (outcome, _) => Ok((outcome, transfer.sent_twice())),
    }
}

/// What is known of the way to one client.
struct Way<'a> {
    server: &'a Server,
    peer: SocketAddr,
    blksize: u16,
    /// Packets may be cut on it.
    cut: bool,
    /// The last error that may pass.
    trouble: Option<io::Error>,
}

impl Way<'_> {
    /// Packets may be cut from now on.
    fn cut(&mut self, socket: &UdpSocket, why: &str) -> io::Result<()> {
        if self.cut {
            return Ok(());
        }
        self.cut = true;
        let ip = self.peer.ip();
        tracing::info!(
            "tftp: {ip}: blocks of {} bytes do not reach it ({why}): they may be cut on their way, and it gets smaller ones when it asks again",
            self.blksize
        );
        path::allow_cutting(socket, ip, true)
    }

    /// Sending or receiving failed.
    ///
    /// # Errors
    /// If that is the end.
    fn failed(&mut self, e: io::Error, socket: &UdpSocket, transfer: &mut Transfer) -> io::Result<()> {
        if path::is_too_large(&e) && !self.cut {
            self.cut(socket, "the network says that they are too large")?;
            transfer.again();
            return Ok(());
        }
        if !path::may_pass(&e) && !path::is_too_large(&e) {
            return Err(e);
        }
        tracing::debug!("tftp: {}: {e}", self.peer);
        self.trouble = Some(e);
        Ok(())
    }

    /// Whether the client has closed its port after it was sent everything: only its last word was lost.
    fn was_last_word(&self, transfer: &Transfer) -> bool {
        transfer.all_sent()
            && self.trouble.as_ref().is_some_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_agreed_on() {
        let request = |options: &[u8]| Request::parse(&[b"\0\x01a\0octet\0", options].concat()).unwrap();
        let limits = Limits::default();
        let (terms, packet) = agree(&request(b""), &limits, 7);
        assert_eq!((terms.blksize, terms.windowsize, terms.options), (512, 1, false));
        assert_eq!(packet, b"\0\x06");
        let all = b"windowsize\x00500\0blksize\x009000\0timeout\x002\0tsize\x000\0";
        let (terms, packet) = agree(&request(all), &limits, 7);
        assert_eq!((terms.blksize, terms.windowsize, terms.options), (1468, 64, true));
        assert_eq!(terms.timeout, Some(Duration::from_secs(2)));
        assert_eq!(packet, b"\0\x06blksize\x001468\0tsize\x007\0timeout\x002\0windowsize\x0064\0");
    }
}
