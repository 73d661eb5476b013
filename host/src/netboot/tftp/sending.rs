//! One transfer to its end: what is agreed on, the first answer, the turn, the blocks.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until, timeout};

use super::admission::{Answered, Turn};
use super::body::Body;
use super::folder::{Folder, NoFile};
use super::limits::Limits;
use super::line::Line;
use super::packet::{self, Reply, Request, code};
use super::path;
use super::service::{Server, What};
use super::transfer::{Outcome, Send, Terms, Transfer};

/// A client that waits for its turn says something at least so often.
const SILENCE_MAX: Duration = Duration::from_secs(60);

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

/// Where the bytes come from.
pub(super) struct Source<'a> {
    pub(super) folder: &'a Folder,
    pub(super) request: &'a Request,
    /// Which image is meant for whoever asks.
    pub(super) image: Option<&'a str>,
}

impl Source<'_> {
    /// The bytes, and where they are in the folder.
    pub(super) fn open(&self) -> Result<(Body, String), NoFile> {
        Body::open(self.folder, self.request, self.image)
    }
}

/// One file on its way to one client.
pub(super) struct Sending<'a> {
    pub(super) server: &'a Server,
    pub(super) source: Source<'a>,
    /// The length of the file when it was asked for, in bytes.
    pub(super) length: u64,
    pub(super) here: IpAddr,
    pub(super) turn: &'a Turn,
    /// Whether the client has answered.
    pub(super) proven: &'a mut bool,
}

impl Sending<'_> {
    /// Sends all of it; how that ended, and how many blocks were sent more than once.
    pub(super) async fn run(&mut self, body: Body) -> io::Result<(Outcome, u64)> {
        let peer = self.turn.peer();
        let socket = UdpSocket::bind((self.here, 0)).await?;
        // So that nobody else's packets are taken for the client's.
        socket.connect(peer).await?;
        let server = self.server;
        let blksize = server.limits.blksize.min(server.paths.blksize(&socket, peer.ip()));
        let (terms, options) = agree(self.source.request, &Limits { blksize, ..server.limits }, self.length);
        let line = Line::new(socket, peer, terms.windowsize > 1)?;
        path::allow_cutting(&line.socket, peer.ip(), false)?;
        let way = Way { server, peer, blksize: terms.blksize, cut: false, trouble: None };
        let transfer = Transfer::new(terms, Duration::ZERO);
        let mut talk = Talk { start: Instant::now(), line, way, transfer, options };
        let turn = self.turn;
        let ended = tokio::select! {
            ended = self.drive(&mut talk, body) => ended,
            () = turn.ousted() => {
                Err(io::Error::other("it gave way to other clients: it hardly moved, or its address has more than others"))
            }
        };
        if let Err(e) = &ended {
            // The client should not have to wait until it is tired.
            let _ = talk.line.socket.send(&packet::error(code::UNDEFINED, &e.to_string())).await;
        }
        match (ended?, talk.way.trouble) {
            (Outcome::Silent, Some(e)) => {
                Err(io::Error::new(e.kind(), format!("{}; last of all: {e}", Outcome::Silent)))
            }
            (outcome, _) => Ok((outcome, talk.transfer.sent_twice())),
        }
    }

    async fn drive(&mut self, talk: &mut Talk<'_>, body: Body) -> io::Result<Outcome> {
        let mut body = Some(body);
        loop {
            if talk.transmit(self, &mut body).await? {
                return Ok(Outcome::Complete);
            }
            if !*self.proven {
                // A client that has not answered holds no file open.
                body = None;
            }
            let Some(deadline) = talk.transfer.poll_timeout() else { break };
            if talk.receive(deadline).await? {
                return Ok(Outcome::Complete);
            }
            if talk.transfer.is_answered() && !*self.proven {
                *self.proven = true;
                if talk.transfer.outcome().is_none() {
                    self.wait(talk).await?;
                }
            }
            self.turn.moved(talk.transfer.acked_bytes());
        }
        Ok(talk.transfer.outcome().unwrap_or(Outcome::Silent))
    }

    fn reopen(&self) -> io::Result<Body> {
        let (body, _) = self.source.open().map_err(|e| io::Error::other(e.to_string()))?;
        if body.length() == self.length {
            Ok(body)
        } else {
            Err(io::Error::other("the file was replaced while it was sent"))
        }
    }

    /// The client has answered: its turn may not have come yet.
    async fn wait(&self, talk: &mut Talk<'_>) -> io::Result<()> {
        match self.turn.answered() {
            Answered::Begin => return Ok(()),
            Answered::Refused(text) => return Err(io::Error::other(text)),
            Answered::Waits(place) => {
                let asked = self.source.request.name.clone();
                self.server.report(self.turn.peer(), asked, What::Waiting(place), true);
            }
        }
        let mut reply = [0; 512];
        loop {
            tokio::select! {
                granted = self.turn.granted() => {
                    if !granted {
                        return Err(io::Error::other("it gave way to other clients"));
                    }
                    talk.transfer.resume(talk.start.elapsed());
                    return Ok(());
                }
                said = timeout(SILENCE_MAX, talk.line.socket.recv(&mut reply)) => match said {
                    Err(_) => return Err(io::Error::other("the client is silent while it waits for its turn")),
                    Ok(Ok(n)) => {
                        let packet = Reply::parse(reply.get(..n).unwrap_or_default());
                        if let Reply::Error(..) = packet {
                            talk.transfer.handle(packet, talk.start.elapsed());
                            return Ok(());
                        }
                    }
                    Ok(Err(e)) => talk.way.failed(e, &talk.line.socket, &mut talk.transfer)?,
                },
            }
        }
    }
}

/// The packets of one transfer.
struct Talk<'a> {
    start: Instant,
    line: Line,
    way: Way<'a>,
    transfer: Transfer,
    /// The packet that says what is agreed on.
    options: Vec<u8>,
}

impl Talk<'_> {
    /// Sends what is due; whether that was all, and only the client's last word was lost.
    async fn transmit(&mut self, sending: &Sending<'_>, body: &mut Option<Body>) -> io::Result<bool> {
        while let Some(send) = self.transfer.poll_transmit(self.start.elapsed()) {
            let sent = match send {
                Send::Options => self.line.socket.send(&self.options).await.map(|_| ()),
                Send::Blocks { first, count } => {
                    let body = match body {
                        Some(body) => body,
                        None => body.insert(sending.reopen()?),
                    };
                    self.line.send_blocks(&self.transfer, body, first, count).await
                }
            };
            if let Err(e) = sent {
                self.way.failed(e, &self.line.socket, &mut self.transfer)?;
            }
            if self.way.was_last_word(&self.transfer) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes one reply, or notices that none has come in time; as [`transmit`](Self::transmit).
    async fn receive(&mut self, deadline: Duration) -> io::Result<bool> {
        let mut reply = [0; 512];
        tokio::select! {
            received = self.line.socket.recv(&mut reply) => match received {
                Ok(n) => {
                    let packet = reply.get(..n).unwrap_or_default();
                    self.transfer.handle(Reply::parse(packet), self.start.elapsed());
                }
                Err(e) => {
                    self.way.failed(e, &self.line.socket, &mut self.transfer)?;
                    return Ok(self.way.was_last_word(&self.transfer));
                }
            },
            () = sleep_until(self.start + deadline) => {
                self.transfer.handle_timeout(self.start.elapsed());
                if self.transfer.first_is_lost() {
                    self.way.cut(&self.line.socket, "the first block is lost again and again")?;
                    self.way.server.paths.lost(self.way.peer.ip());
                }
            }
        }
        Ok(false)
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
