//! The sockets of the TFTP server: requests, a port for each transfer, limits, reports.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

use super::folder::{Folder, NoFile, own_part};
use super::packet::{self, Bad, Mode, Reply, Request, code};
use super::transfer::{Outcome, Send, Terms, Transfer};

/// The longest request that is looked at.
const REQUEST_MAX: usize = 2048;
/// The largest file that is sent as text, for which it is kept in memory.
const TEXT_MAX: u64 = 1 << 20;
/// The most bytes given to the system in one call.
const RUN_MAX: usize = 60_000;

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
    /// There is no such file, which is an everyday thing.
    Missing,
    /// The client asked for the size only, or changed its mind.
    Stopped,
    /// It failed, or was refused.
    Failed(String),
}

/// Who is told of everything that happened.
pub type Tell = Arc<dyn Fn(Report) + std::marker::Send + Sync>;

struct Server {
    folder: Folder,
    limits: Limits,
    tell: Tell,
    slots: Semaphore,
    active: Mutex<Active>,
}

#[derive(Default)]
struct Active {
    requests: HashMap<(SocketAddr, String), ()>,
    by_address: HashMap<IpAddr, usize>,
}

/// One request being answered; over when dropped.
struct Turn {
    server: Arc<Server>,
    key: (SocketAddr, String),
}

enum Entry {
    New(Turn),
    /// The same request is being answered already: the client was impatient.
    Repeated,
    Refused(&'static str),
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, Active> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>, peer: SocketAddr, name: &str) -> Entry {
        let key = (peer, name.to_owned());
        let mut active = self.lock();
        if active.requests.contains_key(&key) {
            return Entry::Repeated;
        }
        let here = active.by_address.get(&peer.ip()).copied().unwrap_or(0);
        if here >= self.limits.per_address {
            return Entry::Refused("too many transfers to this address");
        }
        if active.requests.len() >= self.limits.transfers + self.limits.waiting {
            return Entry::Refused("the server is busy, ask again later");
        }
        active.by_address.insert(peer.ip(), here + 1);
        active.requests.insert(key.clone(), ());
        Entry::New(Turn { server: Arc::clone(self), key })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut active = self.server.lock();
        active.requests.remove(&self.key);
        let address = self.key.0.ip();
        if let Some(n) = active.by_address.get_mut(&address) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                active.by_address.remove(&address);
            }
        }
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
    tell: Tell,
) -> anyhow::Result<()> {
    socket.set_nonblocking(true).context("the TFTP socket")?;
    let local = socket.local_addr().context("the TFTP socket")?;
    let extras = UdpSocketState::new((&socket).into()).context("the TFTP socket")?;
    let socket = UdpSocket::from_std(socket).context("the TFTP socket")?;
    let slots = Semaphore::new(limits.transfers.max(1));
    let server = Arc::new(Server { folder, limits, tell, slots, active: Mutex::default() });
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
            log::debug!("tftp: {e}");
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
            if let Err(e) = say(here, peer, &packet::error(code, text)).await {
                log::debug!("tftp: {peer}: {e}");
            }
            (server.tell)(Report { peer, asked, what: What::Failed(text.to_owned()) });
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
    match server.enter(peer, &request.name) {
        Entry::Repeated => {}
        Entry::Refused(text) => {
            tokio::spawn(refuse(request.name, code::UNDEFINED, text));
        }
        Entry::New(turn) => {
            tokio::spawn(answer(turn, request, here));
        }
    }
}

/// One packet from a port of its own.
async fn say(here: IpAddr, peer: SocketAddr, packet: &[u8]) -> io::Result<()> {
    let socket = UdpSocket::bind((here, 0)).await?;
    socket.send_to(packet, peer).await?;
    Ok(())
}

async fn answer(turn: Turn, request: Request, here: IpAddr) {
    let server = &turn.server;
    let peer = turn.key.0;
    let Ok(_slot) = server.slots.acquire().await else { return };
    let begun = Instant::now();
    let (refusal, what) = match Body::open(&server.folder, &request) {
        Ok((body, name)) => {
            let what = match send(server, &request, &body, here, peer).await {
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
        Err(e @ NoFile::Outside) => (Some((code::ACCESS, e.to_string())), What::Failed(e.to_string())),
        Err(e @ NoFile::Unreadable(_)) => (Some((code::ACCESS, e.to_string())), What::Failed(e.to_string())),
    };
    if let Some((code, text)) = refusal
        && let Err(e) = say(here, peer, &packet::error(code, &text)).await
    {
        log::debug!("tftp: {peer}: {e}");
    }
    (server.tell)(Report { peer, asked: request.name, what });
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

/// The bytes to be sent.
enum Body {
    File(File, u64),
    Text(Vec<u8>),
}

impl Body {
    fn open(folder: &Folder, request: &Request) -> Result<(Self, String), NoFile> {
        let found = folder.open(&request.name)?;
        match request.mode {
            Mode::Octet => Ok((Self::File(found.file, found.length), found.name)),
            Mode::Netascii if found.length > TEXT_MAX => {
                Err(NoFile::Unreadable(io::Error::other("too large for netascii: ask for octet")))
            }
            Mode::Netascii => {
                let mut bytes = vec![0; usize::try_from(found.length).unwrap_or(0)];
                found.file.read_exact_at(&mut bytes, 0)?;
                Ok((Self::Text(netascii(&bytes)), found.name))
            }
        }
    }

    fn length(&self) -> u64 {
        match self {
            Self::File(_, length) => *length,
            Self::Text(text) => text.len() as u64,
        }
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(file, _) => file.read_exact_at(into, offset).map_err(|e| match e.kind() {
                ErrorKind::UnexpectedEof => io::Error::other("the file became shorter while it was sent"),
                _ => e,
            }),
            Self::Text(text) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let bytes = text.get(from..).and_then(|t| t.get(..into.len()));
                into.copy_from_slice(bytes.ok_or(ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

/// Lines end with CR LF, and a lone CR is CR NUL (RFC 764).
fn netascii(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len() + bytes.len() / 16);
    for &b in bytes {
        match b {
            b'\n' => text.extend_from_slice(b"\r\n"),
            b'\r' => text.extend_from_slice(b"\r\0"),
            b => text.push(b),
        }
    }
    text
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
    let (terms, options) = agree(request, &server.limits, body.length());
    let socket = UdpSocket::bind((here, 0)).await?;
    // So that nobody else's packets are taken for the client's.
    socket.connect(peer).await?;
    let start = Instant::now();
    let mut line = Line::new(socket, peer, terms.windowsize > 1)?;
    let mut transfer = Transfer::new(terms, Duration::ZERO);
    let mut reply = [0; 512];
    loop {
        while let Some(send) = transfer.poll_transmit(start.elapsed()) {
            let sent = match send {
                Send::Options => line.socket.send(&options).await.map(|_| ()),
                Send::Blocks { first, count } => line.send_blocks(&transfer, body, first, count).await,
            };
            match sent {
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => return gone(&transfer),
                Err(e) => {
                    // The client should not have to wait until it is tired.
                    let _ = line.socket.send(&packet::error(code::UNDEFINED, &e.to_string())).await;
                    return Err(e);
                }
                Ok(()) => {}
            }
        }
        let Some(deadline) = transfer.poll_timeout() else { break };
        tokio::select! {
            received = line.socket.recv(&mut reply) => match received {
                Ok(n) => {
                    let packet = reply.get(..n).unwrap_or_default();
                    transfer.handle(Reply::parse(packet), start.elapsed());
                }
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => return gone(&transfer),
                Err(e) => return Err(e),
            },
            () = sleep_until(start + deadline) => transfer.handle_timeout(start.elapsed()),
        }
    }
    Ok((transfer.outcome().unwrap_or(Outcome::Silent), transfer.sent_twice()))
}

/// The client's port is closed. If it was sent everything, only its last word was lost.
fn gone(transfer: &Transfer) -> io::Result<(Outcome, u64)> {
    if transfer.all_sent() {
        return Ok((Outcome::Complete, transfer.sent_twice()));
    }
    Err(io::Error::other("the client is gone"))
}

/// The socket of a transfer.
struct Line {
    socket: UdpSocket,
    peer: SocketAddr,
    /// Cuts a run of blocks into packets in the kernel; only for windows.
    extras: Option<UdpSocketState>,
    packets: Vec<u8>,
}

impl Line {
    fn new(socket: UdpSocket, peer: SocketAddr, windows: bool) -> io::Result<Self> {
        let extras = windows.then(|| UdpSocketState::new((&socket).into())).transpose()?;
        Ok(Self { socket, peer, extras, packets: Vec::new() })
    }

    async fn send_blocks(
        &mut self,
        transfer: &Transfer,
        body: &Body,
        first: u64,
        count: u16,
    ) -> io::Result<()> {
        let end = first + u64::from(count);
        let mut next = first;
        while next < end {
            let (_, length) = transfer.place(next);
            let size = usize::from(length) + 4;
            let at_once = self.extras.as_ref().map_or(1, |e| e.max_gso_segments().min(RUN_MAX / size)).max(1);
            self.packets.clear();
            let mut run = 0;
            while run < at_once && next < end {
                let (offset, length) = transfer.place(next);
                // The wire has the low 16 bits only: numbers wrap to 0.
                self.packets.extend_from_slice(&packet::data_head(next as u16));
                let at = self.packets.len();
                self.packets.resize(at + usize::from(length), 0);
                body.read(offset, self.packets.get_mut(at..).unwrap_or_default())?;
                next += 1;
                run += 1;
            }
            self.send_run(size).await?;
        }
        Ok(())
    }

    /// Sends packets that lie one behind the other, all of this size but the last.
    async fn send_run(&self, size: usize) -> io::Result<()> {
        let Some(extras) = self.extras.as_ref().filter(|_| self.packets.len() > size) else {
            return self.socket.send(&self.packets).await.map(|_| ());
        };
        let transmit = Transmit {
            destination: self.peer,
            ecn: None,
            contents: &self.packets,
            segment_size: Some(size),
            src_ip: None,
        };
        let send = || extras.try_send((&self.socket).into(), &transmit);
        match self.socket.async_io(Interest::WRITABLE, send).await {
            // The card or kernel cannot cut: one by one then (and `extras` knows from now on).
            Err(e) if e.kind() != ErrorKind::ConnectionRefused => {
                log::debug!("tftp: {}: a run of blocks: {e}", self.peer);
                for packet in self.packets.chunks(size) {
                    self.socket.send(packet).await?;
                }
                Ok(())
            }
            sent => sent,
        }
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

    #[test]
    fn text_has_its_own_ends_of_lines() {
        assert_eq!(netascii(b"a\nb\rc"), b"a\r\nb\r\0c");
    }
}
