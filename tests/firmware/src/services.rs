//! What a Pi does with each service over smoltcp, by the sessions of `piman-core` alone, in constant
//! memory. Linux runs the same, in `tests/services/tap.rs`.

use core::fmt;

use embedded_io_async::{Read, Write};
use piman_core::hash::Hash;
use piman_core::install::drive::{Pi, notify, report, run};
use piman_core::install::{
    Date, Decision, Hello, Milestone, Notice, Offer, Paths, REVISION, Report, Stage, Start,
};
use piman_core::messages::{MessageSink, MessageStream, Piece, Role, SendError, Timer};
use piman_core::rpc::auth::{Authenticator, KEY_CONTEXT};
use piman_core::rpc::{
    self, AnswerOut, CallOut, Codec, Dict, Encode, Failure, ID, IDENTITY, Memory, Place, STATUS, Session,
    Slot, Step, Tuple,
};
use piman_core::telemetry;
use piman_core::transfer::{self, Download, End, Name, Refusal};
use piman_core::transport::smoltcp::{Clock, Connection, Error, Limits, Stack};
use smoltcp::iface::SocketHandle;
use smoltcp::phy::Device;
use smoltcp::wire::IpEndpoint;

use crate::say;

/// The serial number of this Pi.
pub const SERIAL: &str = "10000000000000c3";

/// What went wrong, for people.
#[derive(Debug)]
pub struct Failed(pub &'static str);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Says what was being done.
trait Doing<T> {
    fn doing(self, what: &'static str) -> Result<T, Failed>;
}

impl<T, E: fmt::Debug> Doing<T> for Result<T, E> {
    fn doing(self, what: &'static str) -> Result<T, Failed> {
        self.map_err(|e| {
            say!("{what}: {e:?}");
            Failed(what)
        })
    }
}

fn ensure(is: bool, what: &'static str) -> Result<(), Failed> {
    if is { Ok(()) } else { Err(Failed(what)) }
}

/// Connects, also to a server that is not there yet.
pub async fn connect<'s, 'a, D: Device, C: Clock>(
    net: &'s Stack<'a, D, C>,
    socket: SocketHandle,
    to: IpEndpoint,
) -> Result<Connection<'s, 'a, D, C>, Failed> {
    let limits = Limits { open_ms: 5000, idle_ms: 30_000 };
    for _ in 0..20 {
        match net.connect(socket, to, limits).await {
            Err(Error::Refused | Error::TimedOut) => net.sleep(200).await,
            other => return other.doing("connecting"),
        }
    }
    Err(Failed("nobody accepts the connection"))
}

struct Chip;

impl Pi for Chip {
    async fn set_date(&mut self, date: Date) -> bool {
        say!("date {}", date.seconds_since_1970());
        true
    }

    fn addresses(&mut self, out: &mut impl fmt::Write) {
        let _ = out.write_str("10.0.2.15");
    }

    async fn wipe(&mut self) -> bool {
        true
    }
}

/// Installs: asks what to do, downloads the root filesystem and hashes it on the way.
pub async fn install<D: Device, C: Clock>(
    net: &Stack<'_, D, C>,
    sockets: [SocketHandle; 2],
    control: IpEndpoint,
    rootfs: IpEndpoint,
) -> Result<(), Failed> {
    let hello = Hello {
        revision: REVISION,
        serial: Some(SERIAL),
        model: Some("mps2-an385"),
        agent: Some("firmware"),
        paths: Paths { stream: true, image: false },
        ..Hello::default()
    };
    let mut talk = connect(net, sockets[0], control).await?;
    let mut buf = [0; 1024];
    let start = Start { hello: Some(hello), disk: None, installed: false };
    let offer = match run(&mut talk, &mut buf, &start, &mut Chip).await.doing("reporting")? {
        Decision::Format(Some(offer)) => offer,
        other => {
            say!("decision {other:?}");
            return Err(Failed("the server does not say what to install"));
        }
    };
    say!("offer {} {}", offer.id, offer.bytes);
    let begin = net.clock().now_ms();
    let (hash, bytes) = download(net, sockets[1], rootfs, &mut talk, &offer).await?;
    let ms = net.clock().now_ms() - begin;
    say!("rootfs {hash} {bytes} bytes {ms} ms");
    ensure(hash == offer.id && bytes == offer.bytes, "what came is not what was offered")?;
    let committed = Notice::Committed { id: offer.id, installation: offer.more.installation };
    for step in [
        Report::Ours(committed),
        Report::Milestone(Milestone::Mounting),
        Report::Milestone(Milestone::FinishedMounting),
        Report::Formatted,
    ] {
        report(&mut talk, &step).await.doing("reporting")?;
    }
    // The server closes after the last report.
    ensure(talk.read(&mut buf).await.doing("waiting for the server's end")? == 0, "the server says more")?;
    talk.close().await.doing("closing")
}

async fn download<D: Device, C: Clock>(
    net: &Stack<'_, D, C>,
    socket: SocketHandle,
    from: IpEndpoint,
    talk: &mut Connection<'_, '_, D, C>,
    offer: &Offer,
) -> Result<(Hash, u64), Failed> {
    let mut stream = connect(net, socket, from).await?;
    let mut hasher = blake3::Hasher::new();
    let mut buf = [0; 4096];
    let (mut bytes, mut told) = (0, 0);
    loop {
        let n = stream.read(&mut buf).await.doing("downloading")?;
        if n == 0 {
            break;
        }
        hasher.update(&buf[..n]);
        bytes += n as u64;
        if bytes - told >= 1 << 20 {
            told = bytes;
            let progress = Notice::Progress { stage: Stage::Transfer, done: bytes, total: offer.bytes };
            notify(talk, progress).await.doing("reporting")?;
        }
    }
    stream.close().await.doing("closing")?;
    Ok((Hash(hasher.finalize().into()), bytes))
}

/// A file that is hashed and not kept.
struct Digest {
    hasher: blake3::Hasher,
    next: u64,
}

impl transfer::Storage for Digest {
    async fn open(&mut self, _name: &Name) -> Result<u64, Refusal> {
        Err(Refusal::Refused)
    }

    async fn create(&mut self, _name: &Name, _keep: bool) -> Result<u64, Refusal> {
        Ok(0)
    }

    async fn hash(&mut self, _bytes: u64) -> Result<Hash, Refusal> {
        Err(Refusal::Failed)
    }

    async fn reserve(&mut self, start: u64, _size: u64) -> Result<(), Refusal> {
        if start == 0 { Ok(()) } else { Err(Refusal::Failed) }
    }

    async fn read_at(&mut self, _offset: u64, _buf: &mut [u8]) -> Result<usize, Refusal> {
        Err(Refusal::Failed)
    }

    async fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        if offset != self.next {
            return Err(Refusal::Failed);
        }
        self.hasher.update(bytes);
        self.next += bytes.len() as u64;
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Refusal> {
        Ok(())
    }
}

/// Downloads a file by the transfer service.
pub async fn transfer<D: Device, C: Clock>(
    net: &Stack<'_, D, C>,
    socket: SocketHandle,
    to: IpEndpoint,
    name: &str,
) -> Result<(), Failed> {
    let mut stream = connect(net, socket, to).await?;
    let name = Name::parse(name.as_bytes()).doing("naming a file")?;
    let mut storage = Digest { hasher: blake3::Hasher::new(), next: 0 };
    let mut buf = [0; 2048];
    let mut session = Download::new(name, true);
    let end = transfer::run(&mut stream, &mut buf, &mut session, &mut storage).await.doing("downloading")?;
    let End::Done { size, .. } = end else {
        say!("transfer {end:?}");
        return Err(Failed("the server does not send the file"));
    };
    say!("file {} {size}", Hash(storage.hasher.finalize().into()));
    stream.close().await.doing("closing")
}

/// The message that came last.
struct Last<const N: usize> {
    bytes: [u8; N],
    used: usize,
    whole: bool,
}

impl<const N: usize> Last<N> {
    const fn new() -> Self {
        Self { bytes: [0; N], used: 0, whole: false }
    }
}

impl<const N: usize> MessageSink for Last<N> {
    async fn piece(&mut self, piece: Piece<'_>) {
        if piece.offset == 0 {
            self.used = 0;
        }
        for (to, from) in self.bytes.iter_mut().skip(self.used).zip(piece.bytes) {
            *to = *from;
            self.used += 1;
        }
        self.whole = piece.is_last();
    }
}

/// Sends messages by the messages service and wants each back.
pub async fn frames<D: Device, C: Clock>(
    net: &Stack<'_, D, C>,
    socket: SocketHandle,
    to: IpEndpoint,
) -> Result<(), Failed> {
    let stream = connect(net, socket, to).await?;
    let mut buf = [0; 512];
    let mut frames =
        MessageStream::open(stream, net, Role::Client, 3000, &mut buf).await.doing("greeting")?;
    let mut message = [0; 3000];
    for (i, byte) in message.iter_mut().enumerate() {
        *byte = (i % 251) as u8;
    }
    let mut last = Last::<3000>::new();
    for size in [0, 1, 511, 512, 513, 3000] {
        let message = &message[..size];
        last.whole = false;
        frames.send(size as u64, &mut &*message, &mut last).await.doing("sending a message")?;
        while !last.whole {
            ensure(frames.receive(&mut last).await.doing("receiving")?, "the server closed")?;
        }
        ensure(last.bytes[..last.used] == *message, "the echo differs")?;
    }
    // Larger than the server takes: it says so, and the connection lives on.
    let large = [7; 64];
    match frames.send(100 << 20, &mut Endless(&large), &mut last).await {
        Err(SendError::Rejected(_)) => say!("frames ok"),
        other => {
            say!("frames {other:?}");
            return Err(Failed("a message that is too large was taken"));
        }
    }
    Ok(())
}

struct Endless<'a>(&'a [u8]);

impl piman_core::messages::Body for Endless<'_> {
    async fn piece(&mut self) -> &[u8] {
        self.0
    }
}

/// The key of both peers.
struct Key([u8; 32]);

impl Authenticator for Key {
    fn tag(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in parts {
            hasher.update(part);
        }
        hasher.finalize().into()
    }
}

/// Logs in to the rpc service, calls a function of the server, and answers the server's calls until it
/// has called `STATUS`.
pub async fn talks<D: Device, C: Clock>(
    net: &Stack<'_, D, C>,
    socket: SocketHandle,
    to: IpEndpoint,
    password: &str,
) -> Result<(), Failed> {
    let stream = connect(net, socket, to).await?;
    let mut buf = [0; 256];
    let mut talk = MessageStream::open(stream, net, Role::Client, 512, &mut buf).await.doing("greeting")?;
    let key = Key(blake3::derive_key(KEY_CONTEXT, password.as_bytes()));
    // Not random on this board: its clock is all that differs.
    let nonce = blake3::hash(&net.clock().now_ms().to_le_bytes()).into();
    rpc::login(&mut talk, &key, nonce).await.doing("logging in")?;

    let mut session = Session::new([Place::default(); 2], 2);
    let mut last = Last::<512>::new();
    let (retcode, _) = session.calls.begin(0x5eed_0000, u64::MAX).doing("calling")?;
    say_message(&mut talk, &mut last, &CallOut { opcode: ID, retcode, args: &Tuple(&[]) }).await?;
    let (mut answered, mut called) = (false, false);
    while !(answered && called) {
        if !last.whole {
            ensure(talk.receive(&mut last).await.doing("receiving")?, "the server closed")?;
        }
        last.whole = false;
        let mut slots = [Slot::default(); 32];
        let memory = Memory {
            slots: &mut slots,
            stack: &mut [],
            memo: &mut [],
            text: &mut [],
            depth_max: rpc::DEPTH_MAX,
            weight_max: 32,
        };
        let message = last.bytes;
        let value = Codec::Postcard.decode(&message[..last.used], memory).doing("reading a message")?;
        match session.handle(value) {
            Step::Run(call) => {
                let (opcode, retcode) = (call.opcode, call.retcode);
                say!("called {opcode}");
                let value: &dyn Encode = match u8::try_from(opcode) {
                    Ok(IDENTITY) => &Dict(&[("serial", &SERIAL), ("model", &"mps2-an385")]),
                    Ok(STATUS) => &Dict(&[("uptime_ms", &net.clock().now_ms())]),
                    _ => &Failure { class: "LookupError", message: "there is no such function" },
                };
                say_message(&mut talk, &mut last, &AnswerOut { retcode, value }).await?;
                session.answered();
                called |= opcode == i64::from(STATUS);
            }
            Step::Answered { mut values, .. } => {
                let id = values.next().and_then(|v| v.str()).unwrap_or("?");
                say!("answer {id}");
                answered = id == "piman0";
                ensure(answered, "the server is another")?;
            }
            other => {
                say!("talks {other:?}");
                return Err(Failed("that was no call and no answer"));
            }
        }
    }
    // The last answer reaches the server before the end does.
    talk.stream().finish();
    while talk.receive(&mut last).await.doing("waiting for the server's end")? {}
    Ok(())
}

async fn say_message<T: Read + Write, C: Timer>(
    talk: &mut MessageStream<'_, T, C>,
    last: &mut Last<512>,
    message: &dyn Encode,
) -> Result<(), Failed>
where
    T::Error: fmt::Debug,
{
    let mut buf = [0; 256];
    let n = Codec::Postcard.encode(message, &mut buf).doing("writing a message")?;
    talk.send(n as u64, &mut &buf[..n], last).await.doing("sending a message")
}

/// Sends so many records by the telemetry service, each acknowledged.
pub async fn records<D: Device, C: Clock>(
    net: &Stack<'_, D, C>,
    socket: SocketHandle,
    to: IpEndpoint,
    count: u32,
) -> Result<(), Failed> {
    let mut io = connect(net, socket, to).await?;
    let mut client = telemetry::Client::default();
    telemetry::open(&mut io, &mut client).await.doing("waiting for the greeting")?;
    let begin = net.clock().now_ms();
    for i in 0..count {
        let mut line = Line::default();
        let _ = fmt::Write::write_fmt(&mut line, format_args!("{i},{},{SERIAL}\n", i * i));
        telemetry::send(&mut io, &mut client, line.bytes()).await.doing("sending a record")?;
    }
    say!("records {count} {} ms", net.clock().now_ms() - begin);
    io.close().await.doing("closing")
}

/// A line of text.
struct Line([u8; 64], usize);

impl Default for Line {
    fn default() -> Self {
        Self([0; 64], 0)
    }
}

impl Line {
    fn bytes(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let to = self.0.get_mut(self.1..self.1 + text.len()).ok_or(fmt::Error)?;
        to.copy_from_slice(text.as_bytes());
        self.1 += text.len();
        Ok(())
    }
}
