//! The same conversations over every transport: one for each service, with both sides, as old peers speak.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;

use embedded_io_async::{ErrorType, Read, Write};
use piman_core::hash::Hash;
use piman_core::install::drive;
use piman_core::install::{self, Event, InstallPolicy, Plan, Question};
use piman_core::line::LINE_MAX;
use piman_core::messages::{MessageBuffer, MessageStream, Role, Timeless};
use piman_core::rpc::auth::{LoginOut, Verdict};
use piman_core::rpc::pickle::Assembler;
use piman_core::rpc::{
    AnswerOut, Codec, Encode, Failure, Memory, Message, Session, Slot, Step, Tuple, Value,
};
use piman_core::transfer::{self, Name, Refusal, Storage};
use piman_core::{rpc, telemetry};

use crate::tar::Tar;

/// The services, as the table of the README has them.
pub const SERVICES: [&str; 5] = ["install", "transfer", "telemetry", "rpc", "messages"];

/// What [`Client`] gets from port 4444.
///
/// # Panics
/// Never.
#[must_use]
pub fn archive() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.push(b"./", b'5', b"", b"").push(b"bin/sh", b'0', b"", &bytes(30_000, 3));
    zstd::encode_all(&tar.end()[..], 1).expect("packing")
}

fn bytes(n: usize, seed: u8) -> Vec<u8> {
    (0..n).map(|i| (i / 7) as u8 ^ (i as u8).wrapping_mul(seed)).collect()
}

/// The client's side of all conversations.
pub trait Client {
    /// A stream to a service.
    type Stream: Read + Write + ErrorType<Error: Debug>;

    /// Opens it, by the service's usual port.
    fn open(&mut self, port: u16) -> Self::Stream;

    /// Runs a conversation.
    fn run<F: Future>(&mut self, conversation: F) -> F::Output;
}

/// Holds the conversation of one service.
///
/// # Panics
/// If anything is not as it should be.
pub fn hold(client: &mut impl Client, service: &str) {
    // Each ends with its stream, as a program does.
    match service {
        "install" => {
            let mut io = client.open(install::CONTROL_PORT);
            client.run(async move { until_formatted(&mut io).await });
            let mut io = client.open(install::ROOTFS_PORT);
            assert!(client.run(async move { to_the_end(&mut io).await }) == archive());
        }
        "transfer" => {
            let body = bytes(20_000, 5);
            let mut io = client.open(transfer::PORT);
            client.run(async { upload(&mut io, &body).await });
            drop(io);
            let mut io = client.open(transfer::PORT);
            client.run(async { download(&mut io, &body).await });
        }
        "telemetry" => {
            let mut io = client.open(telemetry::PORT);
            client.run(async move { records(&mut io).await });
        }
        "rpc" => {
            let mut io = client.open(rpc::PORT);
            client.run(async move { call(&mut io).await });
        }
        _ => {
            let io = client.open(piman_core::messages::PORT);
            client.run(echo(io));
        }
    }
}

async fn exactly<T: Read<Error: Debug>>(io: &mut T, n: usize) -> Vec<u8> {
    let mut all = vec![0; n];
    let mut have = 0;
    while have < n {
        let read = io.read(&mut all[have..]).await.expect("the stream lives");
        assert!(read > 0, "it ended after {have} of {n} bytes");
        have += read;
    }
    all
}

async fn to_the_end<T: Read<Error: Debug>>(io: &mut T) -> Vec<u8> {
    let (mut all, mut buf) = (Vec::new(), [0; 1000]);
    loop {
        match io.read(&mut buf).await.expect("the stream lives") {
            0 => return all,
            n => all.extend(&buf[..n]),
        }
    }
}

async fn put<T: Write<Error: Debug>>(io: &mut T, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let n = io.write(bytes).await.expect("the stream lives");
        assert!(n > 0, "the stream takes no more");
        bytes = &bytes[n..];
    }
    io.flush().await.expect("the stream lives");
}

async fn until_formatted<T: Read<Error: Debug> + Write<Error: Debug>>(io: &mut T) {
    put(io, b"+ send IS_UNINSTALLED\nIS_UNINSTALLED\n").await;
    let mut heard = Vec::new();
    while !heard.ends_with(b"EOM\n") {
        heard.extend(exactly(io, 1).await);
    }
    assert_eq!(heard, b"format\nEOM\n");
    // The server reads on until this side closes.
    put(io, b"format\nRECEIVED_FORMAT\nIS_FORMATTED\n+ reboot\n").await;
}

fn request(operation: u8) -> Vec<u8> {
    let mut request = vec![operation];
    request.extend(b"matrix.bin");
    request.resize(256, 0);
    request
}

async fn upload<T: Read<Error: Debug> + Write<Error: Debug>>(io: &mut T, body: &[u8]) {
    put(io, &request(b'U')).await;
    assert_eq!(exactly(io, 1).await, b"T");
    put(io, &(body.len() as u64).to_be_bytes()).await;
    assert_eq!(exactly(io, 1).await, b"T");
    put(io, body).await;
    assert_eq!(to_the_end(io).await, b"");
}

async fn download<T: Read<Error: Debug> + Write<Error: Debug>>(io: &mut T, body: &[u8]) {
    put(io, &request(b'D')).await;
    let offer = exactly(io, 9).await;
    assert_eq!((offer[0], &offer[1..]), (b'T', &(body.len() as u64).to_be_bytes()[..]));
    put(io, b"T").await;
    assert_eq!(to_the_end(io).await, body);
}

async fn records<T: Read<Error: Debug> + Write<Error: Debug>>(io: &mut T) {
    let mut client = telemetry::Client::new(telemetry::Acks::Exact);
    telemetry::open(io, &mut client).await.expect("a greeting");
    for n in 0..30 {
        let record = format!("{n},{}\n", "7".repeat(n));
        telemetry::send(io, &mut client, record.as_bytes()).await.expect("it is acknowledged");
    }
}

fn pickled(value: &dyn Encode) -> Vec<u8> {
    let mut buf = vec![0; 500];
    let n = Codec::Pickle.encode(value, &mut buf).expect("it fits");
    buf.truncate(n);
    buf
}

fn look<T>(message: &[u8], look: impl FnOnce(Value<'_>) -> T) -> T {
    let (mut slots, mut stack, mut memo) = (vec![Slot::default(); 200], vec![0; 50], vec![0; 50]);
    let mut text = vec![0; 500];
    let memory = Memory {
        slots: &mut slots,
        stack: &mut stack,
        memo: &mut memo,
        text: &mut text,
        depth_max: 20,
        weight_max: 1000,
    };
    look(Codec::Pickle.decode(message, memory).expect("a pickle"))
}

async fn message<T: Read<Error: Debug>>(io: &mut T, incoming: &mut Assembler<'_>) -> Option<Vec<u8>> {
    loop {
        if let Some(message) = incoming.next_message().expect("pickles") {
            return Some(message.to_vec());
        }
        let n = io.read(incoming.spare()).await.expect("the stream lives");
        if n == 0 {
            return None;
        }
        incoming.filled(n);
    }
}

/// Logs in, calls a function that does not exist, and wants the error.
async fn call<T: Read<Error: Debug> + Write<Error: Debug>>(io: &mut T) {
    let mut buf = vec![0; 2000];
    let mut incoming = Assembler::new(&mut buf);
    put(io, &pickled(&LoginOut(None))).await;
    let verdict = message(io, &mut incoming).await.expect("a verdict");
    assert_eq!(look(&verdict, Verdict::parse), Some(Verdict(true)));
    let call = rpc::CallOut { opcode: 222, retcode: 4711, args: &Tuple(&[&7_u8]) };
    put(io, &pickled(&call)).await;
    loop {
        let answer = message(io, &mut incoming).await.expect("an answer");
        let fault = look(&answer, |value| match Message::parse(value) {
            Some(Message::Answer { retcode: 4711, mut values }) => {
                Some(values.next().and_then(Value::fault).expect("an error").to_string())
            }
            // A server may call us.
            _ => None,
        });
        if let Some(fault) = fault {
            assert!(fault.contains("222"), "{fault}");
            return;
        }
    }
}

/// Messages there and back.
async fn echo<T: Read<Error: Debug> + Write<Error: Debug>>(io: T) {
    let mut buf = vec![0; 700];
    let mut frames =
        MessageStream::open(io, Timeless, Role::Client, 1 << 20, &mut buf).await.expect("a greeting");
    let mut mail = MessageBuffer::default();
    for size in [0, 1, 255, 256, 5000] {
        let message = bytes(size, 9);
        frames.send(size as u64, &mut &message[..], &mut mail).await.expect("it is taken");
        while mail.whole.is_empty() {
            assert!(frames.receive(&mut mail).await.expect("the stream lives"));
        }
        assert_eq!(mail.whole.pop(), Some(message));
    }
}

/// The server's side of all conversations in memory: the core alone.
#[derive(Debug, Default)]
pub struct Host {
    files: HashMap<String, Vec<u8>>,
    part: Option<(String, Vec<u8>)>,
    open: Option<String>,
    /// What the telemetry service has written.
    pub records: Vec<u8>,
}

impl Host {
    /// Serves one connection to a service, by its usual port.
    ///
    /// # Panics
    /// If anything is not as it should be.
    pub async fn serve<T: Read<Error: Debug> + Write<Error: Debug>>(&mut self, mut io: T, port: u16) {
        let mut buf = vec![0; LINE_MAX];
        match port {
            install::CONTROL_PORT => {
                drive::serve(&mut io, &mut buf, None, self).await.expect("the stream lives");
            }
            install::ROOTFS_PORT => put(&mut io, &archive()).await,
            transfer::PORT => {
                let mut machine = transfer::Server::default();
                let end =
                    transfer::run(&mut io, &mut buf, &mut machine, self).await.expect("the stream lives");
                assert!(matches!(end, transfer::End::Done { .. }), "{end:?}");
            }
            telemetry::PORT => {
                telemetry::serve(&mut io, &mut buf, self).await.expect("the stream lives").expect("room");
            }
            rpc::PORT => answer(&mut io).await,
            _ => {
                let mut frames = MessageStream::open(io, Timeless, Role::Server, 1 << 20, &mut buf)
                    .await
                    .expect("a greeting");
                let mut mail = MessageBuffer::default();
                while frames.receive(&mut mail).await.expect("the stream lives") {
                    for message in std::mem::take(&mut mail.whole) {
                        let size = message.len() as u64;
                        frames.send(size, &mut &message[..], &mut mail).await.expect("it is taken");
                    }
                }
            }
        }
    }
}

async fn answer<T: Read<Error: Debug> + Write<Error: Debug>>(io: &mut T) {
    let mut buf = vec![0; 2000];
    let mut incoming = Assembler::new(&mut buf);
    let login = message(io, &mut incoming).await.expect("a login");
    let admitted = look(&login, |value| rpc::auth::verify(None, value));
    put(io, &pickled(&Verdict(admitted))).await;
    let mut session = Session::new([], 1);
    while let Some(call) = message(io, &mut incoming).await {
        let answer = look(&call, |value| match session.handle(value) {
            Step::Run(call) => {
                let text = format!("no function is bound to opcode {}", call.opcode);
                let value = &Failure { class: "LookupError", message: &text };
                pickled(&AnswerOut { retcode: call.retcode, value })
            }
            other => panic!("{other:?}"),
        });
        put(io, &answer).await;
        session.answered();
    }
}

impl InstallPolicy for Host {
    fn decide(&mut self, question: &Question) -> Plan {
        if question.installed { Plan::Boot } else { Plan::Format(None) }
    }

    fn note(&mut self, _: Event<'_>) {}
}

impl telemetry::Journal for Host {
    type Error = std::convert::Infallible;

    async fn append(&mut self, records: &[u8]) -> Result<(), Self::Error> {
        self.records.extend(records);
        Ok(())
    }
}

impl Storage for Host {
    async fn open(&mut self, name: &Name) -> Result<u64, Refusal> {
        let file = self.files.get(name.as_str()).ok_or(Refusal::Refused)?;
        self.open = Some(name.as_str().to_owned());
        Ok(file.len() as u64)
    }

    async fn create(&mut self, name: &Name, _: bool) -> Result<u64, Refusal> {
        if self.files.contains_key(name.as_str()) {
            return Err(Refusal::Exists);
        }
        self.part = Some((name.as_str().to_owned(), Vec::new()));
        Ok(0)
    }

    async fn hash(&mut self, _: u64) -> Result<Hash, Refusal> {
        Err(Refusal::Failed)
    }

    async fn reserve(&mut self, _: u64, _: u64) -> Result<(), Refusal> {
        Ok(())
    }

    async fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, Refusal> {
        let name = self.open.as_ref().ok_or(Refusal::Failed)?;
        let rest = self.files[name].get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    async fn write_at(&mut self, _: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.part.as_mut().ok_or(Refusal::Failed)?.1.extend(bytes);
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Refusal> {
        self.files.extend(self.part.take());
        Ok(())
    }
}
