//! One connection to the server: login, calls in, answers out. The connection is served by one thread, which
//! waits for the server and for answers at the same time; calls run in threads of their own.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use embedded_io_adapters::std::FromStd;
use piman_core::blocking::{self, Blocking};
use piman_core::messages::{MessageBuffer, MessageStream, Role, Timeless};
use piman_core::rpc::auth::{Authenticator, KEY_CONTEXT};
use piman_core::rpc::{
    AnswerOut, Codec, DEPTH_MAX, Failure, Head, LoginError, Memory, NO_CALL, Place, Protocol, Session, Slot,
    Step, Value, WEIGHT_MAX, login, postcard,
};
use rustix::event::{PollFd, PollFlags, poll};

use super::functions::Call;
use super::messages::no_greeting;
use super::value::Answer;
use super::{Service, functions, old};
use piman_core::hosted::dial;

/// How long a connection may take to be made.
pub(super) const CONNECT: Duration = Duration::from_secs(30);
/// How long the server may take to let us in.
const LOGIN: Duration = Duration::from_secs(10);
/// How long the server may stand still in the midst of a message.
const STALL: Duration = Duration::from_secs(30);
/// The longest call, in bytes.
const CALL_MAX: u32 = 64 << 10;
/// The longest answer, in bytes.
const ANSWER_MAX: usize = 1 << 20;
/// How many calls run at the same time; more are refused.
const RUNNING_MAX: u32 = 8;

type Stream = Blocking<FromStd<TcpStream>>;

/// The key of both peers, made of the password.
struct Key([u8; 32]);

impl Key {
    fn of(password: &str) -> Self {
        Self(blake3::derive_key(KEY_CONTEXT, password.as_bytes()))
    }
}

impl Authenticator for Key {
    fn tag(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in parts {
            hasher.update(part);
        }
        hasher.finalize().into()
    }
}

/// A call that has ended.
pub(super) struct Ended {
    retcode: u32,
    answer: Answer,
    /// Whether it ever began; one that was one too many did not.
    ran: bool,
}

/// What a thread that ran a call hands back; the byte wakes the connection's thread.
pub(super) struct Back {
    answers: Sender<Ended>,
    wake: UnixStream,
}

/// Dials, logs in and serves until the connection ends. `proven` is whether the server has proved before that it
/// is one of ours: then an old server must refuse us once before it gets the password.
///
/// # Errors
/// If there is no connection, no login, or the connection fails.
pub(super) fn serve(service: &Arc<Service>, proven: &mut bool) -> anyhow::Result<()> {
    let password = password(service)?;
    let protocol = service.protocol.unwrap_or_else(|| Protocol::default_for(password.is_some()));
    let stream = dial::connect(&service.host, service.port, CONNECT)?;
    tune(&stream).context("setting the socket's options")?;
    let (answers, answered) = channel();
    let (wake, mut woken) = UnixStream::pair().context("making a pair of sockets")?;
    woken.set_nonblocking(true)?;
    let back = Back { answers, wake };
    if protocol != Protocol::Piman {
        let mut incoming = old::Pickles::new();
        let given = if *proven { None } else { password.as_deref() };
        *proven = false;
        let server = old::login(&stream, protocol, given, &mut incoming, Instant::now() + LOGIN)?;
        if server == old::Server::Old {
            log::info!(
                "connected to {}:{}, an old server: it cannot prove who it is",
                service.host,
                service.port
            );
            return old::serve(service, &stream, &mut incoming, &back, &answered, &woken, RUNNING_MAX);
        }
    }
    stream.set_read_timeout(Some(LOGIN)).context("setting the socket's options")?;
    let socket = stream.try_clone().context("sharing the socket")?;
    let mut buf = [0; 4096];
    let io = Blocking(FromStd::new(stream));
    let open = MessageStream::open(io, Timeless, Role::Client, CALL_MAX, &mut buf);
    let mut frames = blocking::run(open).map_err(|e| match protocol {
        Protocol::Piman => anyhow!("{:#}; if it is an old TCPTalks server, say --protocol pickle (a password then crosses the network in clear)", no_greeting(e)),
        _ => no_greeting(e),
    })?;
    let key = Key::of(password.as_deref().unwrap_or(""));
    blocking::run(login(&mut frames, &key, nonce()?)).map_err(|e| match e {
        LoginError::Denied if password.is_none() => {
            anyhow!("login: the server wants a password: give it with --password-file FILE")
        }
        e => anyhow!("login: {e}"),
    })?;
    *proven = password.is_some();
    socket.set_read_timeout(Some(STALL)).context("setting the socket's options")?;
    log::info!("connected to {}:{}", service.host, service.port);

    let mut session = Session::new([], RUNNING_MAX);
    let mut mail = MessageBuffer::default();
    loop {
        send_answers(&mut frames, &mut session, &answered, &mut mail)?;
        for frame in mail.whole.drain(..) {
            begin_all(service, &mut session, &frame, &back)?;
        }
        if !frames.has_unused() && !readable(&socket, &woken, None)? {
            // Answers are there.
            while matches!(woken.read(&mut [0; 64]), Ok(n) if n > 0) {}
            continue;
        }
        if !blocking::run(frames.receive(&mut mail)).map_err(|e| anyhow!("{e}"))? {
            return Ok(());
        }
    }
}

/// Waits, for `at_most` or for ever; whether the server has said something.
pub(super) fn readable(
    socket: &TcpStream,
    woken: &UnixStream,
    at_most: Option<Duration>,
) -> anyhow::Result<bool> {
    let at_most = at_most.and_then(|time| time.try_into().ok());
    let mut both = [
        PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(woken.as_fd(), PollFlags::IN),
    ];
    loop {
        match poll(&mut both, at_most.as_ref()) {
            Ok(_) => return Ok(both.first().is_some_and(|fd| !fd.revents().is_empty())),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).context("waiting for the server"),
        }
    }
}

fn send_answers(
    frames: &mut MessageStream<'_, Stream, Timeless>,
    session: &mut Session<[Place; 0]>,
    answered: &Receiver<Ended>,
    mail: &mut MessageBuffer,
) -> anyhow::Result<()> {
    while let Ok(ended) = answered.try_recv() {
        let message = encode(Codec::Postcard, session, &ended)?;
        blocking::run(frames.send(message.len() as u64, &mut &*message, mail)).map_err(|e| anyhow!("{e}"))?;
    }
    Ok(())
}

/// The message that answers a call.
pub(super) fn encode(
    codec: Codec,
    session: &mut Session<[Place; 0]>,
    Ended { retcode, answer, ran }: &Ended,
) -> anyhow::Result<Vec<u8>> {
    let retcode = *retcode;
    if *ran {
        session.answered();
    }
    let mut buf = vec![0; ANSWER_MAX];
    let encoded = match answer {
        Ok(value) => codec.encode(&AnswerOut { retcode, value }, &mut buf),
        Err(text) => {
            let (class, message) = text.split_once(": ").unwrap_or(("RuntimeError", text));
            let value = &Failure { class, message };
            codec.encode(&AnswerOut { retcode, value }, &mut buf)
        }
    };
    let n = encoded.or_else(|_| {
        let value = &Failure { class: "MemoryError", message: "the result is too large" };
        codec.encode(&AnswerOut { retcode, value }, &mut buf)
    });
    buf.truncate(n.context("encoding an answer")?);
    Ok(buf)
}

/// Starts what the messages of a frame ask for.
fn begin_all(
    service: &Arc<Service>,
    session: &mut Session<[Place; 0]>,
    mut frame: &[u8],
    back: &Back,
) -> anyhow::Result<()> {
    let mut slots = vec![Slot::default(); 2 * frame.len() + 16];
    while !frame.is_empty() {
        let memory = Memory {
            slots: &mut slots,
            stack: &mut [],
            memo: &mut [],
            text: &mut [],
            depth_max: DEPTH_MAX,
            weight_max: WEIGHT_MAX,
        };
        let (refused, used) = match postcard::decode_first(frame, memory) {
            Ok((value, used)) => (begin(service, session, value, back)?, used),
            Err(e) => {
                log::warn!("a message of the server cannot be read: {e}");
                // Whoever called learns it at once; what follows in the frame is read as ever.
                let Some((used, head)) = postcard::skip(frame) else { return Ok(()) };
                let call = match head {
                    Some(Head::Call { retcode }) => Some((retcode, format!("ValueError: {e}"))),
                    _ => None,
                };
                (call, used)
            }
        };
        if let Some((retcode, error)) = refused {
            refuse(retcode, error, back)?;
        }
        frame = frame.get(used..).unwrap_or_default();
    }
    Ok(())
}

/// Answers a call by an error.
pub(super) fn refuse(retcode: u32, error: String, back: &Back) -> anyhow::Result<()> {
    back.answers.send(Ended { retcode, answer: Err(error), ran: false }).ok();
    Ok((&back.wake).write_all(&[1])?)
}

/// Starts what a message asks for, or refuses it if too much is under way.
pub(super) fn begin_one(
    service: &Arc<Service>,
    session: &mut Session<[Place; 0]>,
    value: Value<'_>,
    back: &Back,
) -> anyhow::Result<()> {
    if let Some((retcode, error)) = begin(service, session, value, back)? {
        refuse(retcode, error, back)?;
    }
    Ok(())
}

/// Starts what a message asks for; the number of a call that is refused, and the error.
fn begin(
    service: &Arc<Service>,
    session: &mut Session<[Place; 0]>,
    value: Value<'_>,
    back: &Back,
) -> anyhow::Result<Option<(u32, String)>> {
    match session.handle(value) {
        Step::Run(call) => {
            let (retcode, call) = (call.retcode, Call::of(call));
            let service = Arc::clone(service);
            let (answers, wake) = (back.answers.clone(), back.wake.try_clone()?);
            std::thread::Builder::new()
                .name(format!("call {}", call.opcode))
                .spawn(move || {
                    let answer = functions::run(&service, &call);
                    // The connection may be gone by now.
                    if answers.send(Ended { retcode, answer, ran: true }).is_ok() {
                        (&wake).write_all(&[1]).ok();
                    }
                })
                .context("starting a thread for a call")?;
        }
        Step::Busy { retcode } => {
            return Ok(Some((retcode, "RuntimeError: too many calls are under way".into())));
        }
        Step::Unreadable { retcode } => return Ok(Some((retcode, format!("TypeError: {NO_CALL}")))),
        // We ask nothing.
        Step::Answered { .. } | Step::Spoilt { .. } | Step::Late => {}
        Step::Broken => bail!("the server says what is no call"),
    }
    Ok(None)
}

fn password(service: &Service) -> anyhow::Result<Option<String>> {
    let Some(file) = &service.password_file else { return Ok(None) };
    let name = file.display();
    let text = fs::read_to_string(file).with_context(|| format!("reading the password in {name}"))?;
    let password = text.lines().next().unwrap_or("").trim();
    ensure!(!password.is_empty(), "the password in {name} is empty: write it into the first line");
    Ok(Some(password.to_owned()))
}

fn nonce() -> anyhow::Result<[u8; 32]> {
    let mut nonce = [0; 32];
    let n = rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty());
    ensure!(n.context("asking the kernel for random bytes")? == nonce.len(), "too few random bytes");
    Ok(nonce)
}

pub(super) fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    dial::keepalive(stream)
}
