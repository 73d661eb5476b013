//! Connections: time-outs for every wait, and the bytes of files by sendfile.

use std::fs::File;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::net::SendFlags;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

use super::range::{Part, Range};
use super::request::{Bad, HEAD_MAX, Method, Request};
use super::response::Head;
use crate::net::drain::InFlight;
use crate::net::gate::moved;
use crate::net::listen::{Gate, accept};
use crate::net::min_rate::{self, Watch};
use crate::net::sendfile;
use crate::net::socket::{reset_at_close, tune};
use crate::net::tcp::Info;

/// How many requests one connection may have.
const REQUESTS_MAX: u32 = 1000;

/// How long clients may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From its first byte, or the beginning of the connection, to the end of a request's head.
    pub head: Duration,
    /// From the end of an answer to the next request.
    pub idle: Duration,
    /// For the bytes of an answer.
    pub sending: min_rate::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Self {
            head: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            sending: min_rate::Limits {
                stall: Some(minute),
                slowest: 4096,
                span: minute,
                unanswered: minute,
            },
        }
    }
}

/// A file to be sent.
#[derive(Debug)]
pub struct Body {
    /// What it is called in reports.
    pub name: String,
    /// The bytes.
    pub content: Content,
    /// How many there are.
    pub length: u64,
    /// What changes when the content does; without quotes.
    pub tag: String,
    /// When it was changed last, if that is known.
    pub modified: Option<SystemTime>,
    /// What a stop of the server waits for.
    pub busy: InFlight,
}

/// The bytes of a file.
#[derive(Debug)]
pub enum Content {
    /// In a file.
    File(Arc<File>),
    /// In memory.
    Bytes(Arc<[u8]>),
}

/// Why there is no file.
#[derive(Debug)]
pub struct Refusal {
    /// The status of the answer, 4xx or 5xx.
    pub status: u16,
    /// Why, for whoever asks.
    pub text: String,
}

/// How the sending of a file ended.
#[derive(Debug)]
pub struct Ended {
    /// Who asked.
    pub address: IpAddr,
    /// For what.
    pub path: String,
    /// What that is called.
    pub name: String,
    /// Whether the last byte of the file was among those that were asked for.
    pub to_the_end: bool,
    /// How many bytes of it were asked for; all of them were acknowledged unless it failed.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// What went wrong.
    pub failed: Option<io::Error>,
}

/// What is served.
pub trait Files: Send + Sync + 'static {
    /// The file that this address gets for this path, which begins with `/`.
    fn open(&self, address: IpAddr, path: &str) -> impl Future<Output = Result<Body, Refusal>> + Send;

    /// A file was sent, or a part of it, or that failed.
    fn ended(&self, ended: Ended);
}

/// Answers for ever.
///
/// # Errors
/// If the listener cannot be used at all.
pub async fn run<F: Files>(
    listener: std::net::TcpListener,
    gate: Arc<Gate>,
    limits: Limits,
    files: Arc<F>,
) -> anyhow::Result<()> {
    accept(listener, gate, move |stream, address, pass| {
        let files = Arc::clone(&files);
        async move {
            let connection = Connection { stream, address, limits, read: Vec::new(), files };
            pass.serve(Box::pin(connection.serve())).await;
        }
    })
    .await
}

struct Connection<F> {
    stream: TcpStream,
    address: IpAddr,
    limits: Limits,
    /// Bytes of requests that were not answered yet.
    read: Vec<u8>,
    files: Arc<F>,
}

/// What comes after a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Request,
    End,
}

impl<F: Files> Connection<F> {
    async fn serve(mut self) {
        tune(&self.stream);
        if let Err(e) = self.requests().await {
            // In the middle of a file there is no other way to say that it is not whole.
            reset_at_close(&self.stream);
            tracing::debug!("{}: http: a connection was closed: {e}", self.address);
        }
    }

    async fn requests(&mut self) -> io::Result<()> {
        for n in 0..REQUESTS_MAX {
            let request = match self.head(n == 0).await? {
                Some(Ok(request)) => request,
                Some(Err(Bad { status, text })) => return self.refuse(status, text).await,
                None => return Ok(()),
            };
            if self.answer(request, n + 1 == REQUESTS_MAX).await? == Next::End {
                break;
            }
        }
        Ok(())
    }

    /// Reads the head of a request; `None`: the client has nothing more to ask.
    async fn head(&mut self, is_first: bool) -> io::Result<Option<Result<Request, Bad>>> {
        let wait = if is_first || !self.read.is_empty() { self.limits.head } else { self.limits.idle };
        let mut deadline = Instant::now() + wait;
        loop {
            match Request::parse(&self.read) {
                Ok(Some((request, length))) => {
                    self.read.drain(..length.min(self.read.len()));
                    return Ok(Some(Ok(request)));
                }
                Ok(None) => {}
                Err(bad) => return Ok(Some(Err(bad))),
            }
            let was_empty = self.read.is_empty();
            let room = HEAD_MAX.saturating_sub(self.read.len()) as u64;
            let mut stream = (&mut self.stream).take(room);
            match timeout_at(deadline, stream.read_buf(&mut self.read)).await {
                Err(_) if self.read.is_empty() => return Ok(None),
                Err(_) => {
                    return Ok(Some(Err(Bad { status: 408, text: "the head of the request did not come" })));
                }
                Ok(read) => match read? {
                    0 => return Ok(None),
                    _ => moved(),
                },
            }
            if was_empty && !is_first {
                deadline = Instant::now() + self.limits.head;
            }
        }
    }

    async fn answer(&mut self, request: Request, is_last: bool) -> io::Result<Next> {
        let keep_alive = request.keep_alive && !is_last;
        let body = match self.files.open(self.address, &request.path).await {
            Ok(body) => body,
            Err(Refusal { status, text }) => {
                let (head, text) = Head::error(status, &text, keep_alive);
                return self.short(head, text, request.method, keep_alive).await;
            }
        };
        let tag = format!("\"{}\"", body.tag);
        // Only what is compared exactly: a client with a date gets the whole file.
        let same = request.if_range.as_ref().is_none_or(|other| *other == tag);
        let range = request.range.as_deref().filter(|_| same && request.method == Method::Get);
        let range = range.map_or(Range::Whole, |value| Range::parse(value, body.length));
        let (status, part) = match range {
            Range::Whole => (200, Part { offset: 0, length: body.length }),
            Range::Part(part) => (206, part),
            Range::Unsatisfiable => {
                let (mut head, text) = Head::error(416, "the file has no such range", keep_alive);
                head.content_range(None, body.length);
                return self.short(head, text, request.method, keep_alive).await;
            }
        };
        let mut head = Head::new(status, part.length, keep_alive);
        if status == 206 {
            head.content_range(Some(part), body.length);
        }
        head.field("Content-Type", "application/octet-stream");
        head.field("Accept-Ranges", "bytes");
        head.field("Cache-Control", "no-cache");
        head.field("ETag", &tag);
        if let Some(at) = body.modified {
            head.date("Last-Modified", at);
        }
        if request.method == Method::Head {
            self.send(&head.bytes(), false).await?;
            return self.end(keep_alive).await;
        }
        let began = Instant::now();
        let sent = self.content(head.bytes(), &body, part).await;
        let to_the_end = part.offset + part.length == body.length;
        let (failed, ended) = match sent {
            Ok(()) => (None, Ok(())),
            Err(e) => (Some(io::Error::new(e.kind(), e.to_string())), Err(e)),
        };
        let (address, path, bytes) = (self.address, request.path, part.length);
        let took = began.elapsed();
        // What waits for it goes on before it is reported.
        let Body { name, busy, .. } = body;
        drop(busy);
        self.files.ended(Ended { address, path, name, to_the_end, bytes, took, failed });
        ended?;
        self.end(keep_alive).await
    }

    /// Sends a file, until the client has acknowledged it.
    async fn content(&self, head: Vec<u8>, body: &Body, part: Part) -> io::Result<()> {
        let first = Info::of(&self.stream)?.acked();
        self.send(&head, part.length > 0).await?;
        let mut watch = Watch::new(&self.stream, self.limits.sending)?;
        match &body.content {
            Content::File(file) => {
                sendfile::send(&self.stream, file, part.offset, part.length, &mut watch, |_| Ok(())).await?;
            }
            Content::Bytes(bytes) => {
                let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
                let bytes = bytes.get(at(part.offset)..at(part.offset + part.length));
                self.send(bytes.ok_or(ErrorKind::UnexpectedEof)?, false).await?;
            }
        }
        let all = (head.len() as u64).saturating_add(part.length);
        let mut pause = Duration::from_millis(1);
        loop {
            let info = Info::of(&self.stream)?;
            if info.acked().saturating_sub(first) >= all {
                return Ok(());
            }
            if info.is_closed() {
                return Err(self.stream.take_error()?.unwrap_or_else(|| ErrorKind::ConnectionReset.into()));
            }
            watch
                .over(async {
                    sleep(pause).await;
                    Ok(())
                })
                .await?;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// Sends an answer that is a text.
    async fn short(
        &mut self,
        head: Head,
        text: String,
        method: Method,
        keep_alive: bool,
    ) -> io::Result<Next> {
        let mut bytes = head.bytes();
        if method == Method::Get {
            bytes.extend_from_slice(text.as_bytes());
        }
        self.send(&bytes, false).await?;
        self.end(keep_alive).await
    }

    /// Answers a request that is none, and closes.
    async fn refuse(&mut self, status: u16, text: &str) -> io::Result<()> {
        let (head, text) = Head::error(status, text, false);
        self.short(head, text, Method::Get, false).await.map(drop)
    }

    /// After an answer. A connection that is closed with unread bytes in it would be reset, and the client might lose the
    /// answer.
    async fn end(&self, keep_alive: bool) -> io::Result<Next> {
        if keep_alive {
            return Ok(Next::Request);
        }
        let mut watch = Watch::new(&self.stream, self.limits.sending)?;
        watch.delivered(0).await?;
        Ok(Next::End)
    }

    /// Sends what is in memory; with `more` it leaves together with what follows.
    async fn send(&self, mut rest: &[u8], more: bool) -> io::Result<()> {
        let flags = if more { SendFlags::MORE | SendFlags::NOSIGNAL } else { SendFlags::NOSIGNAL };
        let mut watch = Watch::new(&self.stream, self.limits.sending)?;
        while !rest.is_empty() {
            let piece = self.stream.async_io(Interest::WRITABLE, || {
                rustix::net::send(&self.stream, rest, flags).map_err(io::Error::from)
            });
            let n = watch.over(piece).await?;
            rest = rest.get(n..).unwrap_or_default();
        }
        Ok(())
    }
}
