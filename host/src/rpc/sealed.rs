//! A tokio stream through which everything goes in the core's records.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use piman_core::rpc::secure::{Inbox, Keys, OVERHEAD, Opened, Outbox, RecordError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The longest content of a record, in bytes.
pub(super) const RECORD: usize = 4096;

/// A protected stream. What is written is sealed and sent by a flush, or when a record is full; a shutdown tells the
/// peer that nothing follows. An idle connection has no memory for records.
#[derive(Debug)]
pub(super) struct Sealed<S> {
    stream: S,
    inbox: Inbox<Vec<u8>>,
    outbox: Outbox<Vec<u8>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sealed<S> {
    pub(super) fn new(stream: S, keys: &Keys) -> Self {
        Self { stream, inbox: Inbox::new(keys, Vec::new()), outbox: Outbox::new(keys, Vec::new()) }
    }

    /// Sends all that is sealed or collected.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.outbox.seal().map_err(broken)?;
            if self.outbox.is_idle() {
                *self.outbox.buffer() = Vec::new();
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut self.stream).poll_write(cx, self.outbox.pending()))? {
                0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                n => self.outbox.sent(n),
            }
        }
    }
}

/// Memory for a record.
fn room(buffer: &mut Vec<u8>) {
    if buffer.is_empty() {
        *buffer = vec![0; RECORD + OVERHEAD];
    }
}

fn broken(e: RecordError) -> io::Error {
    let kind = match e {
        RecordError::Truncated => ErrorKind::ConnectionAborted,
        RecordError::Ended => ErrorKind::BrokenPipe,
        _ => ErrorKind::InvalidData,
    };
    io::Error::new(kind, e)
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Sealed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let this = &mut *self;
        loop {
            match this.inbox.open().map_err(broken)? {
                Opened::Content => {
                    let n = this.inbox.take(buf.initialize_unfilled());
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Opened::End => return Poll::Ready(Ok(())),
                Opened::More => {}
            }
            room(this.inbox.buffer());
            let mut read = ReadBuf::new(this.inbox.spare());
            let polled = Pin::new(&mut this.stream).poll_read(cx, &mut read);
            let n = read.filled().len();
            if polled.is_pending() {
                if this.inbox.is_idle() {
                    *this.inbox.buffer() = Vec::new();
                }
                return Poll::Pending;
            }
            ready!(polled)?;
            this.inbox.filled(n);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Sealed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            room(self.outbox.buffer());
            match self.outbox.push(buf) {
                0 if self.outbox.is_idle() => return Poll::Ready(Err(broken(RecordError::Ended))),
                0 => ready!(self.poll_drain(cx))?,
                n => return Poll::Ready(Ok(n)),
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        room(self.outbox.buffer());
        self.outbox.end().map_err(broken)?;
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
