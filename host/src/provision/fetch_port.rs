//! The port where our own agents fetch ranges of archives and images.

use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use piman_core::hash::Hash;
use piman_core::install::fetch::{Answer, Kind, Request};
use piman_core::install::table::Next;
use piman_core::line::{Framer, TooLong};
use rustix::net::SendFlags;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::images::ext4::{Following, Image};
use crate::images::sign;
use crate::images::source::Archive;
use crate::net::min_rate::Watch;
use crate::net::queue::Permit;
use crate::net::sendfile;
use crate::net::socket::{reset_at_close, tune};
use crate::provision::context::InstallContext;
use crate::state::Identity;
use crate::state::archive_facts::Content;

/// The longest request, in bytes, with room to spare.
const REQUEST_MAX: usize = 256;
/// How long an agent that asks for nothing keeps its slot.
const SLOT_IDLE: Duration = Duration::from_secs(5);

/// How often an agent is told that the archive is still being checked.
const CHECKING: Duration = Duration::from_secs(5);
/// How often is looked whether it has been.
const LOOK: Duration = Duration::from_millis(100);

/// Answers the requests of one connection.
pub async fn answer(stream: TcpStream, address: IpAddr, service: Arc<InstallContext>) {
    tune(&stream);
    let pi = service.who(address);
    let mut session = Session { stream, service: &service, pi, slot: None, held: None };
    if let Err(e) = session.run().await {
        // In the middle of a range there is no other way to say that it is not whole.
        reset_at_close(&session.stream);
        let pi = session.pi;
        match e.kind() {
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => tracing::debug!("{pi}: fetch: {e}"),
            _ => tracing::warn!("{pi}: a fetch connection was closed: {e}"),
        }
    }
}

struct Session<'a> {
    stream: TcpStream,
    service: &'a InstallContext,
    /// Who it was when it connected.
    pi: Identity,
    slot: Option<Permit>,
    /// What was asked for last: it stays open for this agent when it is replaced.
    held: Option<Object>,
}

/// Something that has ranges.
#[derive(Clone)]
enum Object {
    Archive(Hash, Arc<Archive>),
    Table(Arc<Image>),
    Chunks(Arc<Image>),
    Sums(Arc<Content>),
    Manifest(Hash, Arc<[u8]>),
    Personal(Hash, Arc<[u8]>),
}

impl Object {
    fn is(&self, kind: Kind, id: Hash) -> bool {
        match (self, kind) {
            (Self::Archive(own, _), Kind::Archive) => *own == id,
            (Self::Table(image), Kind::Table) | (Self::Chunks(image), Kind::Chunks) => image.hash() == id,
            (Self::Sums(facts), Kind::Sums) => facts.id == id,
            (Self::Manifest(own, _), Kind::Manifest) | (Self::Personal(own, _), Kind::Personal) => *own == id,
            _ => false,
        }
    }

    /// How many bytes there are.
    fn bytes(&self) -> u64 {
        match self {
            Self::Archive(_, archive) => archive.bytes(),
            Self::Table(image) => image.table().len() as u64,
            Self::Chunks(image) => image.stored_bytes(),
            Self::Sums(facts) => facts.sums.len() as u64,
            Self::Manifest(_, bytes) | Self::Personal(_, bytes) => bytes.len() as u64,
        }
    }
}

impl Session<'_> {
    async fn run(&mut self) -> io::Result<()> {
        let mut buf = [0; REQUEST_MAX];
        let mut framer = Framer::new(&mut buf);
        loop {
            loop {
                let request = match framer.next_line() {
                    Ok(Some(line)) => Request::parse(line),
                    Ok(None) => break,
                    Err(TooLong) => None,
                };
                let Some(request) = request else {
                    return self.line(Answer::No("request that is known here"), false).await;
                };
                self.serve(request).await?;
            }
            let n = match timeout(SLOT_IDLE, self.stream.read(framer.spare())).await {
                Ok(n) => n?,
                Err(_) => {
                    self.slot = None;
                    let idle = timeout(self.service.settings().stall, self.stream.read(framer.spare()));
                    match idle.await {
                        Ok(n) => n?,
                        Err(_) => return Ok(()),
                    }
                }
            };
            if n == 0 {
                return Ok(());
            }
            framer.filled(n);
        }
    }

    async fn serve(&mut self, request: Request) -> io::Result<()> {
        let Request { kind, id, offset, length } = request;
        if self.service.may_download(&self.pi).is_err() {
            return self.line(Answer::No("such object for Pis that are not in the device list"), false).await;
        }
        if kind == Kind::Next {
            return self.next(id, (offset, length)).await;
        }
        if matches!(kind, Kind::Archive | Kind::Sums) {
            self.checked(id).await?;
        }
        let Some(object) = self.find(kind, id) else {
            return self.line(Answer::No("such object any more: ask on the control connection"), false).await;
        };
        let bytes = object.bytes();
        if offset.checked_add(length).is_none_or(|end| end > bytes) {
            return self.line(Answer::No("such range: it ends behind the object"), false).await;
        }
        let _busy = self.service.drain.transfer();
        if self.slot.is_none() {
            let mut line = self.service.line_up(self.pi.clone());
            while self.slot.is_none() {
                match line.turn().await {
                    Ok(slot) => self.slot = Some(slot),
                    Err(place) => self.line(Answer::Wait(place), false).await?,
                }
            }
        }
        self.line(Answer::Ok(length), length > 0).await?;
        let mut watch = Watch::new(&self.stream, self.service.settings().ours)?;
        match &object {
            Object::Archive(_, archive) => {
                let unchanged = |_| archive.unchanged();
                sendfile::send(&self.stream, archive.file(), offset, length, &mut watch, unchanged).await?;
            }
            Object::Chunks(image) => {
                sendfile::send(&self.stream, image.chunks(), offset, length, &mut watch, |_| Ok(())).await?;
            }
            Object::Table(image) => self.part(image.table(), offset, length).await?,
            Object::Sums(facts) => self.part(&facts.sums, offset, length).await?,
            Object::Manifest(_, bytes) | Object::Personal(_, bytes) => {
                self.part(bytes, offset, length).await?;
            }
        }
        if matches!(object, Object::Archive(..) | Object::Chunks(_)) && offset + length == bytes {
            // It has everything, whether it closes or not: the next one's turn has come.
            self.slot = None;
        }
        self.held = Some(object);
        Ok(())
    }

    /// Answers with the table that has more chunks than this one, as soon as there is one. Others have its slot while
    /// it waits.
    async fn next(&mut self, id: Hash, range: (u64, u64)) -> io::Result<()> {
        if range != (0, Next::BYTES as u64) {
            return self.line(Answer::No("such range: it is answered whole"), false).await;
        }
        let mut told: Option<Instant> = None;
        loop {
            let image = match self.service.builds.after(id) {
                Following::Table(image) => image,
                Following::Later => {
                    self.slot = None;
                    if told.is_none_or(|at| at.elapsed() > CHECKING) {
                        self.line(Answer::Wait(0), false).await?;
                        told = Some(Instant::now());
                    }
                    sleep(LOOK).await;
                    continue;
                }
                Following::Nothing => {
                    let why = "image any more that was being made: ask on the control connection";
                    return self.line(Answer::No(why), false).await;
                }
            };
            let table_bytes = u32::try_from(image.table().len()).unwrap_or(u32::MAX);
            self.line(Answer::Ok(Next::BYTES as u64), true).await?;
            return self.bytes(&Next { table: image.hash(), table_bytes }.encode(), false).await;
        }
    }

    /// After a start archives are checked first. Whoever was fetching one when the server ended
    /// goes on then where it was.
    async fn checked(&self, id: Hash) -> io::Result<()> {
        let catalog = &self.service.catalog;
        let mut told: Option<Instant> = None;
        while self.held.is_none() && catalog.by_id(id).is_none() && catalog.is_checking() {
            if told.is_none_or(|at| at.elapsed() > CHECKING) {
                self.line(Answer::Wait(0), false).await?;
                told = Some(Instant::now());
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    fn find(&self, kind: Kind, id: Hash) -> Option<Object> {
        if let Some(held) = self.held.as_ref().filter(|o| o.is(kind, id)) {
            return Some(held.clone());
        }
        let image = || self.service.builds.by_table(id);
        let archive = || self.service.catalog.by_id(id);
        match kind {
            Kind::Table => image().map(Object::Table),
            Kind::Chunks => image().map(Object::Chunks),
            Kind::Archive => archive().map(|archive| Object::Archive(id, archive)),
            Kind::Manifest => {
                sign::signed(&self.service.settings().state, id).map(|s| Object::Manifest(id, s.into()))
            }
            Kind::Personal => self.service.bundles.find(id).map(|b| Object::Personal(id, b)),
            // It is answered before.
            Kind::Next => None,
            Kind::Sums => archive().and_then(|a| a.facts().map(Arc::clone)).map(Object::Sums),
        }
    }

    /// Sends a range, which is there, of what is in memory.
    async fn part(&self, all: &[u8], offset: u64, length: u64) -> io::Result<()> {
        let (from, to) = (offset as usize, (offset + length) as usize);
        self.bytes(all.get(from..to).unwrap_or_default(), false).await
    }

    /// Sends one line; with `more` it leaves together with what follows.
    async fn line(&self, line: Answer<'_>, more: bool) -> io::Result<()> {
        self.bytes(format!("{line}\n").as_bytes(), more).await
    }

    async fn bytes(&self, mut rest: &[u8], more: bool) -> io::Result<()> {
        let flags = if more { SendFlags::MORE | SendFlags::NOSIGNAL } else { SendFlags::NOSIGNAL };
        let mut watch = Watch::new(&self.stream, self.service.settings().ours)?;
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
