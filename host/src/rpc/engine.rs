//! What happens on one connection, apart from its bytes: calls out, calls in, answers, time-outs.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use piman_core::rpc::{
    AnswerOut, CALLS_MAX, Call, CallOut, Codec, DEPTH_MAX, DecodeError, Encode, Failure, Fault, Items,
    Memory, NO_CALL, NamedCallOut, NoRoom, Place, Session, Slot, Step, Value, WEIGHT_MAX, pickle, postcard,
};

use super::data::Data;
use super::peer::{CallError, Outgoing, Peer, Reply};

/// The longest message, in bytes.
pub(super) const MESSAGE_MAX: usize = 4 << 20;
/// The most values of one message.
const SLOTS_MAX: usize = 1 << 19;
/// How much of a pickle that is too long is looked at, to find out which call it belongs to.
const BEGINNING: usize = 64 << 10;
/// How many calls of a peer may be under way at once.
const ANSWERING_MAX: u32 = 10_000;

/// What a called function returns.
pub type Answer = Pin<Box<dyn Future<Output = Result<Data, String>> + Send>>;

/// The functions that peers may call. An error is `Class: message`, or a message alone.
pub trait Functions: Send + Sync + 'static {
    /// A peer calls. It runs in a task of its own and may call back.
    fn call(&self, peer: &Peer, request: Request) -> Answer;

    /// A peer has proved who it is up to its name, which it may have if this returns `true`; `false`: another peer
    /// has the name, and answers. [`closed`](Self::closed) gives the name back.
    fn claim(&self, peer: &Peer, name: &str) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        let _ = (peer, name);
        Box::pin(std::future::ready(true))
    }

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

    fn memory(&mut self) -> Memory<'_> {
        Memory {
            slots: &mut self.slots,
            stack: &mut self.stack,
            memo: &mut self.memo,
            text: &mut self.text,
            depth_max: DEPTH_MAX,
            weight_max: WEIGHT_MAX,
        }
    }

    /// Decodes the first message of `bytes`, hands it to `look`, and says how long it is.
    fn first<'m, T>(
        &'m mut self,
        codec: Codec,
        bytes: &'m [u8],
        look: impl FnOnce(Value<'m>) -> T,
    ) -> Result<(T, usize), DecodeError> {
        let memory = self.memory();
        let (value, used) = match codec {
            Codec::Postcard => postcard::decode_first(bytes, memory)?,
            _ => (codec.decode(bytes, memory)?, bytes.len()),
        };
        Ok((look(value), used))
    }
}

/// Decodes one message and hands it to `look`.
pub(super) fn decode<T>(codec: Codec, message: &[u8], look: impl FnOnce(Value<'_>) -> T) -> Option<T> {
    let mut room = Room::new(codec, message.len());
    let first = room.first(codec, message, look);
    first.inspect_err(|e| tracing::warn!("rpc: a message is dropped: {e}")).ok().map(|(seen, _)| seen)
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
        let codec = self.peer.codec();
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
            Outgoing::Call { opcode, args, keywords, within, reply } => {
                let (retcode, place) = match self.begin(within) {
                    Ok(begun) => begun,
                    Err(e) => {
                        // Whoever called may not wait any more; here and below.
                        let _ = reply.send(Err(e));
                        return None;
                    }
                };
                let call = CallOut { opcode, retcode, args: &Data::Tuple(args) };
                match encode(codec, &NamedCallOut { call, keywords: &Data::Dict(keywords) }) {
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
        let mut room = Room::new(self.peer.codec(), bytes.len());
        let mut answers = Vec::new();
        while !bytes.is_empty() {
            let session = &mut self.session;
            let first = room.first(self.peer.codec(), bytes, |value| Done::of(session.handle(value), None));
            match first {
                Ok((done, used)) => {
                    bytes = bytes.get(used..).unwrap_or_default();
                    answers.extend(self.finish(done)?);
                }
                Err(e) => {
                    let (answer, used) = self.unreadable(bytes, &mut room, &e);
                    answers.extend(answer);
                    bytes = bytes.get(used..).unwrap_or_default();
                }
            }
        }
        Ok(answers)
    }

    /// The beginning of a message has come that is too long, for the reason given; the rest of it is skipped.
    /// What is to be sent at once.
    pub(super) fn overlong(&mut self, mut beginning: &[u8], why: &str) -> Option<Vec<u8>> {
        // What matters comes first, and memory to decode with is in proportion.
        beginning = beginning.get(..BEGINNING).unwrap_or(beginning);
        let mut room = Room::new(self.peer.codec(), beginning.len());
        self.unreadable(beginning, &mut room, &why).0
    }

    /// A message cannot be decoded: whoever waits for it learns it now, and why. What is to be sent at once,
    /// and the length of the message.
    fn unreadable(
        &mut self,
        bytes: &[u8],
        room: &mut Room,
        why: &dyn fmt::Display,
    ) -> (Option<Vec<u8>>, usize) {
        let (head, used) = match self.peer.codec() {
            Codec::Postcard => match postcard::skip(bytes) {
                Some((used, head)) => (head, used),
                None => (postcard::head(bytes), bytes.len()),
            },
            _ => (pickle::head(bytes, room.memory()), bytes.len()),
        };
        tracing::warn!("rpc: {}: a message cannot be read: {why}", self.peer);
        let Some(head) = head else { return (None, used) };
        let done = Done::of(self.session.unreadable(head), Some(why));
        // It is no answer and no call for nobody: nothing is broken.
        (self.finish(done).ok().flatten(), used)
    }

    /// What is to be sent at once.
    fn finish(&mut self, done: Done) -> Result<Option<Vec<u8>>, Broken> {
        match done {
            Done::Run(request, retcode) => return Ok(self.run(request, retcode)),
            Done::Refused(retcode, class, message) => {
                let value = Failure { class, message: &message };
                return Ok(encode(self.peer.codec(), &AnswerOut { retcode, value: &value }).ok());
            }
            Done::Answered(place, result) => self.reply(place, |_| result),
            Done::Late => tracing::debug!("rpc: {}: an answer that nobody waits for", self.peer),
            Done::Broken => return Err(Broken),
        }
        Ok(None)
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
        // A deadline in centuries means no deadline.
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
    /// A call that is answered by an error of this class.
    Refused(u32, &'static str, String),
    Answered(usize, Result<Data, CallError>),
    Late,
    Broken,
}

impl Done {
    /// `why` is the reason if the message could not be read; otherwise it makes no sense.
    fn of(step: Step<'_>, why: Option<&dyn fmt::Display>) -> Self {
        let reason = |senseless: &str| why.map_or_else(|| senseless.into(), ToString::to_string);
        match step {
            Step::Run(call) => Self::Run(request(call), call.retcode),
            Step::Busy { retcode } => {
                Self::Refused(retcode, "RuntimeError", "too many calls are under way".into())
            }
            Step::Unreadable { retcode } => Self::Refused(retcode, "ValueError", reason(NO_CALL)),
            Step::Answered { place, mut values } => Self::Answered(place, result(&mut values)),
            Step::Spoilt { place, value } => {
                let error = match value.and_then(Value::fault) {
                    Some(fault) => CallError::Function(fault_text(fault)),
                    None => CallError::Unreadable(reason("it is no tuple of values")),
                };
                Self::Answered(place, Err(error))
            }
            Step::Late => Self::Late,
            Step::Broken => Self::Broken,
        }
    }
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

/// The longest error of a function, in bytes.
const ERROR_MAX: usize = 64 << 10;

/// An error for people, cut where it is longer than anybody reads.
fn fault_text(fault: Fault<'_>) -> String {
    let mut text = fault.to_string();
    let length = text.len();
    if length > ERROR_MAX {
        let end = (0..=ERROR_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str(&format!("... ({length} bytes)"));
    }
    text
}

/// What a function reports as its error. The old library sends the type, the instance and the traceback, as
/// one value or as three; our own peers send an error that is of no module. Any other object is a value.
fn error<'m>(values: Items<'m>) -> Option<Fault<'m>> {
    let triple = |mut items: Items<'m>| {
        let (length, class, instance) = (items.len(), items.next()?, items.next()?);
        match (length, class, instance) {
            (3, Value::Class(_), Value::Object(_)) => instance.fault(),
            (3, Value::Class(_), _) => class.fault(),
            _ => None,
        }
    };
    let mut one = values;
    match (values.len(), one.next()) {
        (1, Some(Value::Tuple(items))) => triple(items),
        (1, Some(object @ Value::Object(_))) => object.fault().filter(|f| f.class.module.is_empty()),
        _ => triple(values),
    }
}

/// One value is itself, none is nothing, several are a tuple.
fn result(values: &mut Items<'_>) -> Result<Data, CallError> {
    if let Some(fault) = error(*values) {
        return Err(CallError::Function(fault_text(fault)));
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
    u32::from_ne_bytes(crate::sys::random::bytes())
}
