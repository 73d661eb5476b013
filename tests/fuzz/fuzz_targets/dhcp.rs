//! DHCP from both ends: any packet is read without a panic, what the server answers can be encoded,
//! and the agent's client never leaves the rules whatever it hears.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use pi_agent::init::net::client::{Client, Event};
use pi_agent::init::net::message::{Asker, Reply, unwrap, wrap};
use piman::netboot::dhcp::message::{Ask, encode, found};
use piman::netboot::dhcp::proxy::{self, Boot, Port};
use piman_core::dhcp::{Builder, Header, Message, Op};

const WHO: Asker = Asker { mac: [0xb8, 0x27, 0xeb, 0, 0, 1], serial: Some(1), number: 7 };

fuzz_target!(|data: &[u8]| {
    codec(data);
    let _ = unwrap(data);
    let _ = found(data, 7);
    if let Some(ask) = Ask::parse(data) {
        let _ = (ask.describe(), ask.is_pi(), ask.requested(), ask.server(), ask.destination(ask.kind));
        let reply = encode(&ask.reply(ask.kind, [10, 0, 0, 1].into())).expect("a reply fits");
        assert!(reply.len() >= 300);
        let boot = Boot { file: "file".into(), everybody: true };
        for port in [Port::Dhcp, Port::Pxe] {
            if let Some(offer) = proxy::answer(&ask, port, [10, 0, 0, 1].into(), &boot) {
                assert!(offer.header.your_address.is_unspecified() && encode(&offer).is_some());
            }
        }
    }
    client(data);
});

/// What is read of a message says the same once it is written again.
fn codec(data: &[u8]) {
    let Some(message) = Message::parse(data) else { return };
    for (code, _) in message.options() {
        let value = message.option(code).expect("it has a value");
        assert_eq!(value.bytes().count(), value.length());
        let _ = (value.address(), value.addresses().count(), value.fixed::<4>(), value.text(&mut [0; 64]));
    }
    let (Some(op), Some(mac)) = (message.op(), message.mac()) else { return };
    let header = Header { flags: message.flags(), ..Header::new(op, message.number(), mac) };
    let mut out = vec![0; 2 * data.len() + 300];
    let mut builder = Builder::new(&mut out, &header);
    // What says that there are options elsewhere holds no longer.
    let options = message.options().filter(|(code, _)| *code != 52);
    for (code, value) in options.clone() {
        builder.option(code, value);
    }
    let length = builder.finish().expect("it fits");
    let again = Message::parse(&out[..length]).expect("it is a message");
    assert!(again.options().eq(options) && !again.is_cut());
    assert_eq!((again.op(), again.number(), again.mac()), (Some(op), message.number(), Some(mac)));
    assert!(op == Op::Reply || again.flags() == message.flags());
}

/// Pieces of the input are answers; times go on by what the first byte of each says.
fn client(data: &[u8]) {
    let mut client = Client::new(WHO, None, data.len() % 2 == 0, Duration::ZERO);
    let mut now = Duration::ZERO;
    let mut asked = false;
    for piece in data.chunks(300) {
        now += Duration::from_millis(u64::from(piece[0]) * 100);
        if let Some((question, _)) = client.poll(now) {
            asked = true;
            assert!(question.len() >= 300 && client.due() > now);
            assert_eq!(unwrap(&wrap(&question)), None, "it is to servers");
        }
        // Most answers would be to somebody else.
        let mut answer = vec![0; 240];
        answer[..3].copy_from_slice(&[2, 1, 6]);
        answer[7] = 7;
        answer[16..24].copy_from_slice(&[10, 0, 0, piece[0] % 4, 10, 0, 0, 1]);
        answer[28..34].copy_from_slice(&WHO.mac);
        answer[236..].copy_from_slice(&[99, 130, 83, 99]);
        answer.extend_from_slice(&piece[1..]);
        let reply = Reply::parse(&answer, &WHO);
        if let Some(Event::Bound(lease)) = client.handle(&answer, now) {
            let reply = reply.expect("what binds is a reply");
            assert!(asked && reply.address == Some(lease.address) && lease.prefix <= 32);
            assert!(client.due() > now);
        }
    }
}
