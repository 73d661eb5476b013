//! The bytes of an open talk: pickles one after another, or frames of postcard.

use std::future::pending;
use std::io;
use std::time::Duration;

use piman_core::Error;
use piman_core::messages::{MessageStream, SendError};
use piman_core::rpc::DecodeError;
use piman_core::rpc::auth::LOGIN_MAX;
use piman_core::rpc::pickle::Scanner;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::engine::{Broken, Engine, MESSAGE_MAX};
use super::mail::{Mail, Mailbox, Share, too_much};
use super::peer::Ends;
use crate::messages::transport::ahead::{Ahead, Clock};

/// No more messages are taken from the queue while so many bytes wait to be written.
const PENDING_MAX: usize = 64 << 10;
/// Nothing more is read while so many bytes wait to be written.
const PENDING_FULL: usize = 1 << 20;
/// Several messages share a frame up to this size, in bytes; every peer of ours takes that.
const FRAME: usize = 32 << 10;
/// The memory of an idle connection for reading, in bytes.
const READ: usize = 2048;
/// The same before the login, where most clients send less than 64 bytes.
const LOGIN_READ: usize = 128;
/// The most that is read at once, in bytes.
const READ_MAX: u64 = 16 << 10;

/// Why a talk ended, other than in order.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Frames(Error<io::Error>),
    #[error("{0}")]
    Broken(#[from] Broken),
    #[error("the peer sends what is no pickle, or one that is too long: {0}")]
    Pickle(DecodeError),
    #[error("the peer takes nothing for {} s", .0.as_secs())]
    Stalled(Duration),
}

/// What comes off the stream.
pub(super) enum Pickle {
    /// A whole message.
    Whole(Vec<u8>),
    /// The beginning of one that is not taken, and why; the rest of it is skipped.
    Overlong(Vec<u8>, String),
}

/// Takes whole pickles off the front of what was read.
pub(super) struct Pickles {
    bytes: Vec<u8>,
    scanned: usize,
    scanner: Scanner,
    share: Share,
    /// In the midst of a message that is not taken.
    skips: bool,
    logged_in: bool,
}

impl Pickles {
    /// For a connection whose login is still to come: nothing long is taken before. `first` is what was read
    /// already.
    pub(super) fn login(first: Option<u8>) -> Self {
        let scanner = Scanner::new(LOGIN_MAX as u64);
        Self {
            bytes: first.into_iter().collect(),
            scanned: 0,
            scanner,
            share: Share::default(),
            skips: false,
            logged_in: false,
        }
    }

    /// From now on messages may have their full length.
    pub(super) fn logged_in(&mut self) {
        // Without a limit of its own: also of a message that is too long the end has to be found.
        self.scanner.set_limit(u64::MAX);
        self.logged_in = true;
    }

    /// Whether nothing was read that is not yet taken off.
    pub(super) fn is_idle(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Reads more; `false` at the end of the stream. Loses nothing when it is cancelled.
    pub(super) async fn read(&mut self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<bool> {
        // Behind a long message there may be room for megabytes of short ones; what follows a message is
        // moved to the front, so it must not be much.
        let (room, most) = if self.logged_in {
            (READ, READ_MAX)
        } else {
            // One byte more than a login has: that is too much, and not the end of the stream.
            let room = (LOGIN_MAX + 1).saturating_sub(self.bytes.len()).max(1);
            (room.min(LOGIN_READ), room as u64)
        };
        self.bytes.reserve(room);
        Ok(from.take(most).read_buf(&mut self.bytes).await? > 0)
    }

    /// The next whole message of a login; there a message that is too long is the end.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, Lost> {
        match self.take()? {
            Some(Pickle::Whole(message)) => Ok(Some(message)),
            Some(Pickle::Overlong(..)) => Err(Lost::Pickle(DecodeError::NoRoom)),
            None => Ok(None),
        }
    }

    /// The next message. One that is too long is reported once, as soon as that is clear, and then skipped in
    /// constant memory.
    fn take(&mut self) -> Result<Option<Pickle>, Lost> {
        loop {
            let fresh = self.bytes.get(self.scanned..).unwrap_or_default();
            let end = self.scanner.feed(fresh).map_err(Lost::Pickle)?;
            if let Some(n) = end {
                let rest = self.bytes.split_off(self.scanned + n);
                let message = std::mem::replace(&mut self.bytes, rest);
                self.scanned = 0;
                self.share.give_back();
                if std::mem::take(&mut self.skips) {
                    continue;
                }
                if message.len() > MESSAGE_MAX {
                    return Ok(Some(Pickle::Overlong(message, too_long())));
                }
                return Ok(Some(Pickle::Whole(message)));
            }
            self.scanned = self.bytes.len();
            if self.skips {
                self.bytes.clear();
                self.scanned = 0;
                return Ok(None);
            }
            let why = if self.scanner.at_least() > MESSAGE_MAX as u64 {
                too_long()
            } else if !self.share.take(self.bytes.len()) {
                too_much()
            } else {
                return Ok(None);
            };
            (self.skips, self.scanned) = (true, 0);
            self.share.give_back();
            return Ok(Some(Pickle::Overlong(std::mem::take(&mut self.bytes), why)));
        }
    }
}

fn too_long() -> String {
    format!("the message is longer than {MESSAGE_MAX} bytes")
}

/// Talks in pickles until the end. Reading and writing go on at the same time, so that two peers
/// that write much to each other do not wait for each other.
pub(super) async fn pickles<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    mut incoming: Pickles,
    engine: &mut Engine,
    mut ends: Ends,
    stall: Duration,
) -> Result<(), Lost> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (mut pending_bytes, mut written) = (Vec::new(), 0);
    let mut moved = Instant::now();
    loop {
        while let Some(message) = incoming.take()? {
            match message {
                Pickle::Whole(message) => {
                    pending_bytes.extend(engine.incoming(&message)?.into_iter().flatten());
                }
                Pickle::Overlong(beginning, why) => {
                    pending_bytes.extend(engine.overlong(&beginning, &why).into_iter().flatten());
                }
            }
        }
        let waiting = pending_bytes.get(written..).unwrap_or_default();
        let left = waiting.len();
        let deadline = engine.deadline();
        tokio::select! {
            n = writer.write(waiting), if left > 0 => {
                written += n?;
                moved = Instant::now();
                if written == pending_bytes.len() {
                    pending_bytes.clear();
                    pending_bytes.shrink_to(PENDING_MAX);
                    written = 0;
                }
            }
            Some(next) = ends.queue.recv(), if left < PENDING_MAX => {
                if left == 0 {
                    moved = Instant::now();
                }
                // All that waits goes out in one write.
                let mut next = Some(next);
                while let Some(outgoing) = next {
                    pending_bytes.extend(engine.outgoing(outgoing).into_iter().flat_map(|(m, _)| m));
                    let more = pending_bytes.len() - written < PENDING_MAX;
                    next = if more { ends.queue.try_recv().ok() } else { None };
                }
            }
            more = incoming.read(&mut reader), if left < PENDING_FULL => {
                if !more? {
                    return Ok(());
                }
            }
            () = until(deadline) => engine.expire(),
            () = sleep_until(moved + stall), if left > 0 => return Err(Lost::Stalled(stall)),
            () = stopped(&mut ends.stop) => return Ok(()),
        }
    }
}

/// Talks in frames until the end.
pub(super) async fn frames<S: AsyncRead + AsyncWrite + Unpin>(
    frames: &mut MessageStream<'_, &mut Ahead<S>, Clock>,
    mut mail: Mailbox,
    engine: &mut Engine,
    mut ends: Ends,
) -> Result<(), Lost> {
    loop {
        let mut batch = Batch::default();
        for message in mail.take() {
            match message {
                Mail::Whole(message) => {
                    batch.waiting.extend(engine.incoming(&message)?.into_iter().map(|answer| (answer, None)));
                }
                Mail::Dropped(beginning) => {
                    let answer = engine.overlong(&beginning, &too_much());
                    batch.waiting.extend(answer.map(|answer| (answer, None)));
                }
            }
        }
        if !batch.waiting.is_empty() {
            batch.send(frames, &mut mail, engine).await?;
            continue;
        }
        let unused = frames.has_unused();
        let deadline = engine.deadline();
        tokio::select! {
            Some(next) = ends.queue.recv() => {
                let (mut next, mut bytes) = (Some(next), 0);
                while let Some(outgoing) = next {
                    if let Some((message, retcode)) = engine.outgoing(outgoing) {
                        bytes += message.len();
                        batch.waiting.push((message, Some(retcode)));
                    }
                    next = if bytes < FRAME { ends.queue.try_recv().ok() } else { None };
                }
                batch.send(frames, &mut mail, engine).await?;
            }
            first = async { if unused { Ok(Some(0)) } else { frames.stream().peek().await } } => {
                if first?.is_none() || !frames.receive(&mut mail).await.map_err(Lost::Frames)? {
                    return Ok(());
                }
            }
            () = until(deadline) => engine.expire(),
            () = stopped(&mut ends.stop) => return Ok(()),
        }
    }
}

/// Messages that go out in as few frames as may be: each frame costs a round trip.
#[derive(Default)]
struct Batch {
    /// With the number of the call, if it is one of ours.
    waiting: Vec<(Vec<u8>, Option<u32>)>,
}

impl Batch {
    async fn send<S: AsyncRead + AsyncWrite + Unpin>(
        self,
        frames: &mut MessageStream<'_, &mut Ahead<S>, Clock>,
        mail: &mut Mailbox,
        engine: &mut Engine,
    ) -> Result<(), Lost> {
        let (mut frame, mut calls) = (Vec::new(), Vec::new());
        let mut waiting = self.waiting.into_iter().peekable();
        while let Some((message, call)) = waiting.next() {
            frame.extend(message);
            calls.extend(call);
            if waiting.peek().is_some_and(|(next, _)| frame.len() + next.len() <= FRAME) {
                continue;
            }
            if !send(frames, &frame, mail).await? {
                calls.iter().for_each(|retcode| engine.rejected(*retcode));
            }
            frame.clear();
            calls.clear();
        }
        Ok(())
    }
}

/// Whether the peer took it.
pub(super) async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    frames: &mut MessageStream<'_, &mut Ahead<S>, Clock>,
    message: &[u8],
    mail: &mut Mailbox,
) -> Result<bool, Lost> {
    match frames.send(message.len() as u64, &mut &*message, mail).await {
        Ok(()) => Ok(true),
        Err(SendError::Link(e)) => Err(Lost::Frames(e)),
        Err(_) => Ok(false),
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        pending::<()>().await;
    }
}
