//! What happens on one connection, apart from its bytes: calls out, calls in, answers, time-outs.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use piman_core::talks::{
    AnswerOut, CALLS_MAX, Call, CallOut, Codec, DEPTH_MAX, Encode, Failure, Items, Memory, NoRoom, Place,
    Session, Slot, Step, Value, WEIGHT_MAX, postcard,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::data::Data;

/// The longest message, in bytes.
pub(super) const MESSAGE_MAX: usize = 4 << 20;
/// The most values of one message.
const SLOTS_MAX: usize = 1 << 19;
/// How many calls of a peer may be under way at once.
const ANSWERING_MAX: u32 = 10_000;
/// How many messages may wait to be sent.
const QUEUE: usize = 64;

/// What a called function returns.
pub type Answer = Pin<Box<dyn Future<Output = Result<Data, String>> + Send>>;

/// The functions that peers may call. An error is `Class: message`, or a message alone.
pub trait Functions: Send + Sync + 'static {
    /// A peer calls. It runs in a task of its own and may call back.
    fn call(&self, peer: &Peer, request: Request) -> Answer;

    /// A peer has logged in.
    fn opened(&self, peer: &Peer) {
        let _ = peer;
    }

    /// The connection is over.
    fn closed(&self, peer: &Peer) {
        let _ = peer;
    }
}

/// A call from a peer.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Which function; nothing else than 0 to 255 is ever bound.
    pub opcode: i64,
    /// The arguments by place.
    pub args: Vec<Data>,
    /// The arguments by name.
    pub keywords: Vec<(Data, Data)>,
}

/// Why a call has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The connection is over.
    #[error("the connection is closed")]
    Closed,
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// Too many calls are under way.
    #[error("too many calls wait for an answer")]
    TooMany,
    /// The arguments are too large.
    #[error("the arguments are larger than a message may be")]
    TooLarge,
    /// The function failed; its error.
    #[error("{0}")]
    Function(String),
}

type Reply = oneshot::Sender<Result<Data, CallError>>;

/// What is to be sent.
#[derive(Debug)]
pub(super) enum Outgoing {
    Call { opcode: u8, args: Vec<Data>, within: Duration, reply: Reply },
    Answer { retcode: u32, result: Result<Data, String> },
}

/// A peer that is connected.
#[derive(Debug, Clone)]
pub struct Peer {
    address: Option<IpAddr>,
    codec: Codec,
    queue: mpsc::Sender<Outgoing>,
    stop: Arc<watch::Sender<bool>>,
}

/// The other ends of what a [`Peer`] holds.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) queue: mpsc::Receiver<Outgoing>,
    pub(super) stop: watch::Receiver<bool>,
}

impl Peer {
    pub(super) fn new(address: Option<IpAddr>, codec: Codec) -> (Self, Ends) {
        let (queue, outgoing) = mpsc::channel(QUEUE);
        let (stop, stopped) = watch::channel(false);
        let peer = Self { address, codec, queue, stop: Arc::new(stop) };
        (peer, Ends { queue: outgoing, stop: stopped })
    }

    /// Its address; `None` for this machine's operator.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// How it encodes messages; old peers use pickles.
    #[must_use]
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Whether this is the same connection.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.stop, &other.stop)
    }

    /// Calls a function of the peer and waits for what it returns.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call(&self, opcode: u8, args: Vec<Data>, within: Duration) -> Result<Data, CallError> {
        let (reply, answer) = oneshot::channel();
        let deadline = tokio::time::Instant::now() + within;
        let send = self.queue.send(Outgoing::Call { opcode, args, within, reply });
        match tokio::time::timeout_at(deadline, send).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(CallError::Closed),
            Err(_) => return Err(CallError::TimedOut(within)),
        }
        answer.await.unwrap_or(Err(CallError::Closed))
    }

    /// Closes the connection.
    pub fn close(&self) {
        // Nobody listens if it is closed already.
        let _ = self.stop.send(true);
    }

    /// Returns when the connection is over.
    pub async fn closed(&self) {
        self.queue.closed().await;
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => address.fmt(f),
            None => f.write_str("operator"),
        }
    }
}

/// Encodes a message into as much memory as it takes.
pub(super) fn encode(codec: Codec, value: &dyn Encode) -> Result<Vec<u8>, NoRoom> {
    let mut room = 512;
    loop {
        let mut buf = vec![0; room];
        match codec.encode(value, &mut buf) {
            Ok(n) => {
                buf.truncate(n);
                return Ok(buf);
            }
            Err(NoRoom) if room < MESSAGE_MAX => room = (room * 8).min(MESSAGE_MAX),
            Err(e) => return Err(e),
        }
    }
}

/// Memory to decode in, in proportion to the length of what is decoded.
struct Room {
    slots: Vec<Slot>,
    stack: Vec<u32>,
    memo: Vec<u32>,
    text: Vec<u8>,
}

impl Room {
    fn new(codec: Codec, length: usize) -> Self {
        let n = length + 16;
        // What only pickles need.
        let more = if codec == Codec::Pickle { n } else { 0 };
        Self {
            slots: vec![Slot::default(); (2 * n).min(SLOTS_MAX)],
            stack: vec![0; more.min(SLOTS_MAX)],
            memo: vec![0; more.min(SLOTS_MAX)],
            text: vec![0; 2 * more],
        }
    }

    /// Decodes the first message of `bytes`, hands it to `look`, and says how long it is.
    fn first<'m, T>(
        &'m mut self,
        codec: Codec,
        bytes: &'m [u8],
        look: impl FnOnce(Value<'m>) -> T,
    ) -> Option<(T, usize)> {
        let memory = Memory {
            slots: &mut self.slots,
            stack: &mut self.stack,
            memo: &mut self.memo,
            text: &mut self.text,
            depth_max: DEPTH_MAX,
            weight_max: WEIGHT_MAX,
        };
        let decoded = match codec {
            Codec::Postcard => postcard::decode_first(bytes, memory),
            _ => codec.decode(bytes, memory).map(|value| (value, bytes.len())),
        };
        match decoded {
            Ok((value, used)) => Some((look(value), used)),
            Err(e) => {
                log::warn!("talks: a message is dropped: {e}");
                None
            }
        }
    }
}

/// Decodes one message and hands it to `look`.
pub(super) fn decode<T>(codec: Codec, message: &[u8], look: impl FnOnce(Value<'_>) -> T) -> Option<T> {
    let mut room = Room::new(codec, message.len());
    room.first(codec, message, look).map(|(seen, _)| seen)
}

/// The peer does not speak this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer says what is no call and no answer")]
pub(super) struct Broken;

/// One connection after the login.
pub(super) struct Engine {
    peer: Peer,
    session: Session<Vec<Place>>,
    waiting: Vec<Option<(Reply, Duration)>>,
    began: Instant,
    functions: Arc<dyn Functions>,
}

impl Engine {
    pub(super) fn new(peer: Peer, functions: Arc<dyn Functions>) -> Self {
        functions.opened(&peer);
        let session = Session::new(Vec::new(), ANSWERING_MAX);
        Self { peer, session, waiting: Vec::new(), began: Instant::now(), functions }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Turns what is to be sent into a message; `None` if nothing is to be sent after all. The number
    /// is for [`rejected`](Self::rejected).
    pub(super) fn outgoing(&mut self, outgoing: Outgoing) -> Option<(Vec<u8>, u32)> {
        let codec = self.peer.codec;
        match outgoing {
            Outgoing::Answer { retcode, result } => {
                self.session.answered();
                let message = match &result {
                    Ok(value) => encode(codec, &AnswerOut { retcode, value }),
                    Err(text) => encode(codec, &AnswerOut { retcode, value: &failure(text) }),
                };
                let message = message.or_else(|NoRoom| {
                    let failure = Failure { class: "MemoryError", message: "the result is too large" };
                    encode(codec, &AnswerOut { retcode, value: &failure })
                });
                Some((message.ok()?, 0))
            }
            Outgoing::Call { reply, .. } if reply.is_closed() => None,
            Outgoing::Call { opcode, args, within, reply } => {
                let (retcode, place) = match self.begin(within) {
                    Ok(begun) => begun,
                    Err(e) => {
                        // Whoever called may not wait any more; here and below.
                        let _ = reply.send(Err(e));
                        return None;
                    }
                };
                match encode(codec, &CallOut { opcode, retcode, args: &Data::Tuple(args) }) {
                    Ok(message) => {
                        if let Some(waiting) = self.waiting.get_mut(place) {
                            *waiting = Some((reply, within));
                        }
                        Some((message, retcode))
                    }
                    Err(NoRoom) => {
                        let _ = self.session.calls.end(retcode);
                        let _ = reply.send(Err(CallError::TooLarge));
                        None
                    }
                }
            }
        }
    }

    fn begin(&mut self, within: Duration) -> Result<(u32, usize), CallError> {
        let within = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let deadline = self.now_ms().saturating_add(within);
        // Places grow with the calls that are under way at once: most connections need very few.
        if self.session.calls.under_way() == self.waiting.len() && self.waiting.len() < CALLS_MAX {
            let more = (2 * self.waiting.len()).clamp(4, CALLS_MAX);
            self.session.calls.places().resize(more, Place::default());
            self.waiting.resize_with(more, || None);
        }
        self.session.calls.begin(random(), deadline).map_err(|_| CallError::TooMany)
    }

    /// The peer does not take the message with this number.
    pub(super) fn rejected(&mut self, retcode: u32) {
        if let Some(place) = self.session.calls.end(retcode) {
            self.reply(place, |_| Err(CallError::TooLarge));
        }
    }

    /// Messages have come, whole: one pickle, or all that is in one frame. What is to be sent at once.
    pub(super) fn incoming(&mut self, mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, Broken> {
        let mut room = Room::new(self.peer.codec, bytes.len());
        let mut answers = Vec::new();
        while !bytes.is_empty() {
            let session = &mut self.session;
            let first = room.first(self.peer.codec, bytes, |value| match session.handle(value) {
                Step::Run(call) => Done::Run(request(call), call.retcode),
                Step::Busy { retcode } => Done::Busy(retcode),
                Step::Answered { place, mut values } => Done::Answered(place, result(&mut values)),
                Step::Late => Done::Late,
                Step::Broken => Done::Broken,
            });
            // What cannot be decoded is dropped; the caller's time-out tells it.
            let Some((done, used)) = first else { break };
            bytes = bytes.get(used..).unwrap_or_default();
            match done {
                Done::Run(request, retcode) => answers.extend(self.run(request, retcode)),
                Done::Busy(retcode) => {
                    let value = Failure { class: "RuntimeError", message: "too many calls are under way" };
                    answers.extend(encode(self.peer.codec, &AnswerOut { retcode, value: &value }).ok());
                }
                Done::Answered(place, result) => self.reply(place, |_| result),
                Done::Late => log::debug!("talks: {}: an answer that nobody waits for", self.peer),
                Done::Broken => return Err(Broken),
            }
        }
        Ok(answers)
    }

    /// Runs a function: one that is done at once is answered at once, any other gets a task.
    fn run(&mut self, request: Request, retcode: u32) -> Option<Vec<u8>> {
        let mut running = self.functions.call(&self.peer, request);
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(result) = running.as_mut().poll(&mut context) {
            return self.outgoing(Outgoing::Answer { retcode, result }).map(|(answer, _)| answer);
        }
        // The task polls it once more, with a waker that counts.
        let peer = self.peer.clone();
        tokio::spawn(async move {
            let result = running.await;
            // The connection may be over by now.
            let _ = peer.queue.send(Outgoing::Answer { retcode, result }).await;
        });
        None
    }

    /// When to call [`expire`](Self::expire).
    pub(super) fn deadline(&self) -> Option<tokio::time::Instant> {
        let at = self.session.calls.next_deadline_ms()?;
        // A deadline of centuries is none.
        Some(self.began.checked_add(Duration::from_millis(at))?.into())
    }

    /// Ends the calls whose time is over.
    pub(super) fn expire(&mut self) {
        while let Some(place) = self.session.calls.expired(self.now_ms()) {
            self.reply(place, |within| Err(CallError::TimedOut(within)));
        }
    }

    fn reply(&mut self, place: usize, result: impl FnOnce(Duration) -> Result<Data, CallError>) {
        if let Some((reply, within)) = self.waiting.get_mut(place).and_then(Option::take) {
            let _ = reply.send(result(within));
        }
    }
}

/// What came of a message.
enum Done {
    Run(Request, u32),
    Busy(u32),
    Answered(usize, Result<Data, CallError>),
    Late,
    Broken,
}

/// The calls that still wait learn that the connection is over by their senders being dropped.
impl Drop for Engine {
    fn drop(&mut self) {
        self.functions.closed(&self.peer);
    }
}

fn request(call: Call<'_>) -> Request {
    Request {
        opcode: call.opcode,
        args: call.args.map(Data::from).collect(),
        keywords: call.keywords.pairs().map(|(k, v)| (k.into(), v.into())).collect(),
    }
}

/// One value is itself, none is nothing, several are a tuple.
fn result(values: &mut Items<'_>) -> Result<Data, CallError> {
    let mut all = *values;
    if let Some(fault) = all.find_map(Value::fault) {
        return Err(CallError::Function(fault.to_string()));
    }
    Ok(match values.len() {
        0 => Data::None,
        1 => values.next().map_or(Data::None, Data::from),
        _ => Data::Tuple(values.map(Data::from).collect()),
    })
}

fn failure(text: &str) -> Failure<'_> {
    match text.split_once(": ") {
        Some((class, message)) if class.bytes().all(|b| b.is_ascii_alphanumeric()) => {
            Failure { class, message }
        }
        _ => Failure { class: "RuntimeError", message: text },
    }
}

fn random() -> u32 {
    u32::from_ne_bytes(crate::random::bytes())
}
