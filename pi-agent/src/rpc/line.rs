//! One connection to the server: login, calls in, answers out. The connection is served by one thread, which
//! waits for the server and for answers at the same time; calls run in threads of their own.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use piman_core::blocking;
use piman_core::messages::{MessageBuffer, MessageStream, Role, Timeless};
use piman_core::rpc::{Codec, DEPTH_MAX, Head, Memory, Place, Protocol, Session, Slot, WEIGHT_MAX, postcard};

use super::calls::{Back, Ended, begin, encode, refuse};
use super::protected::{BUFFER, RECORD, Stream, enter};
use super::socket::{CONNECT, no_greeting, readable, tune};
use super::{Service, old};
use piman_core::hosted::dial;

/// How long the server may take to let us in.
const LOGIN: Duration = Duration::from_secs(10);
/// The longest call, in bytes.
const CALL_MAX: u32 = 64 << 10;
/// How many calls run at the same time; more are refused.
const RUNNING_MAX: u32 = 8;

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
            log::warn!(
                "connected to {}:{} by the old login, not protected: an old server cannot prove who it is, and whoever is in between can read and change all calls",
                service.host,
                service.port
            );
            return old::serve(service, &stream, &mut incoming, &back, &answered, &woken, RUNNING_MAX);
        }
    }
    let socket = stream.try_clone().context("sharing the socket")?;
    let mut records = [[0; BUFFER]; 2];
    let end = Instant::now() + LOGIN;
    let (stream, deadline) = enter(service, stream, password.as_deref(), protocol, end, &mut records)?;
    *proven = password.is_some();
    let mut buf = [0; RECORD];
    let open = MessageStream::open(stream, Timeless, Role::Client, CALL_MAX, &mut buf);
    let mut frames = blocking::run(open).map_err(no_greeting)?;
    deadline.over();
    log::info!("connected to {}:{}", service.host, service.port);

    let mut session = Session::new([], RUNNING_MAX);
    let mut mail = MessageBuffer::default();
    loop {
        send_answers(&mut frames, &mut session, &answered, &mut mail)?;
        for frame in mail.whole.drain(..) {
            begin_all(service, &mut session, &frame, &back)?;
        }
        if !frames.has_unused() && !frames.stream().has_unread() && !readable(&socket, &woken, None)? {
            // Answers are there.
            while matches!(woken.read(&mut [0; 64]), Ok(n) if n > 0) {}
            continue;
        }
        if !blocking::run(frames.receive(&mut mail)).map_err(|e| anyhow!("{e}"))? {
            return Ok(());
        }
    }
}

fn send_answers(
    frames: &mut MessageStream<'_, Stream<'_>, Timeless>,
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

fn password(service: &Service) -> anyhow::Result<Option<String>> {
    let Some(file) = &service.password_file else { return Ok(None) };
    let name = file.display();
    let text = fs::read_to_string(file).with_context(|| format!("reading the password in {name}"))?;
    let password = text.lines().next().unwrap_or("").trim();
    ensure!(!password.is_empty(), "the password in {name} is empty: write it into the first line");
    Ok(Some(password.to_owned()))
}
