//! Talks in memory: two sides, both codecs, many calls under way, and peers that do not behave.

use piman_core::rpc::auth::{Authenticator, Challenge, Handshake, LoginOut, Verdict, same, verify};
use piman_core::rpc::{
    AnswerOut, CallOut, Codec, DecodeError, Dict, Encode, Failure, Head, Memory, Message, Place, Session,
    Slot, Step, Tuple, Value, postcard,
};

/// Memory for one message.
#[derive(Default)]
struct Room {
    slots: Vec<Slot>,
    stack: Vec<u32>,
    memo: Vec<u32>,
    text: Vec<u8>,
}

impl Room {
    fn new() -> Self {
        Self {
            slots: vec![Slot::default(); 500],
            stack: vec![0; 100],
            memo: vec![0; 100],
            text: vec![0; 100],
        }
    }

    fn decode<'m>(&'m mut self, codec: Codec, message: &'m [u8]) -> Result<Value<'m>, DecodeError> {
        let Self { slots, stack, memo, text } = self;
        codec.decode(message, Memory { slots, stack, memo, text, depth_max: 64, weight_max: 10_000 })
    }
}

const CODECS: [Codec; 2] = [Codec::Pickle, Codec::Postcard];

fn encode(codec: Codec, value: &dyn Encode) -> Vec<u8> {
    let mut buf = vec![0; 1000];
    let n = codec.encode(value, &mut buf).unwrap();
    assert_eq!(codec.encode(value, &mut vec![0; n]), Ok(n));
    for short in 0..n {
        assert!(codec.encode(value, &mut vec![0; short]).is_err());
    }
    buf.truncate(n);
    buf
}

/// One side.
struct Side {
    codec: Codec,
    session: Session<Vec<Place>>,
}

impl Side {
    fn new(codec: Codec, places: usize, answering_max: u32) -> Self {
        Self { codec, session: Session::new(vec![Place::default(); places], answering_max) }
    }

    fn call(&mut self, opcode: u8, args: &dyn Encode) -> (Vec<u8>, usize) {
        let random = 0x1234_5678_u32.wrapping_mul(opcode.into());
        let (retcode, place) = self.session.calls.begin(random, 1000).unwrap();
        let mut buf = vec![0; 200];
        let n = self.codec.encode(&CallOut { opcode, retcode, args }, &mut buf).unwrap();
        buf.truncate(n);
        (buf, place)
    }
}

#[test]
fn calls_each_other_recursively() {
    /// Opcode 1: a factorial, of which the other side computes the rest.
    fn answer(sides: &mut [Side; 2], which: usize, message: &[u8]) -> Vec<u8> {
        let codec = sides[which].codec;
        let mut room = Room::new();
        let value = room.decode(codec, message).unwrap();
        let Step::Run(call) = sides[which].session.handle(value) else { panic!("not a call") };
        assert_eq!((call.opcode, call.keywords.len()), (1, 0));
        let n = { call.args }.next().and_then(Value::int).unwrap();
        let product = if n <= 1 {
            1
        } else {
            let (question, place) = sides[which].call(1, &Tuple(&[&(n - 1)]));
            let reply = answer(sides, 1 - which, &question);
            let mut room = Room::new();
            let value = room.decode(codec, &reply).unwrap();
            let Step::Answered { place: got, mut values } = sides[which].session.handle(value) else {
                panic!("not an answer")
            };
            assert_eq!(got, place);
            n * values.next().and_then(Value::int).unwrap()
        };
        sides[which].session.answered();
        encode(codec, &AnswerOut { retcode: call.retcode, value: &product })
    }
    for codec in CODECS {
        let mut sides = [Side::new(codec, 20, 20), Side::new(codec, 20, 20)];
        let (question, _) = sides[0].call(1, &Tuple(&[&20_i64]));
        let reply = answer(&mut sides, 1, &question);
        let mut room = Room::new();
        let value = room.decode(codec, &reply).unwrap();
        let Step::Answered { mut values, .. } = sides[0].session.handle(value) else { panic!("{value}") };
        assert_eq!(values.next().and_then(Value::int), Some((1..=20).product()));
        assert!(sides.iter().all(|s| s.session.calls.under_way() == 0));
    }
}

#[test]
fn ten_thousand_under_way_and_answered_in_disorder() {
    for codec in CODECS {
        let (mut caller, mut called) = (Side::new(codec, 10_000, 0), Side::new(codec, 0, 10_000));
        let mut answers = Vec::new();
        let mut places = Vec::new();
        for i in 0..10_000_i64 {
            let (question, place) = caller.call(7, &Tuple(&[&i]));
            places.push(place);
            let mut room = Room::new();
            let value = room.decode(codec, &question).unwrap();
            let Step::Run(mut call) = called.session.handle(value) else { panic!("{value}") };
            let got = call.args.next().and_then(Value::int).unwrap();
            let mut buf = vec![0; 60];
            let n = codec.encode(&AnswerOut { retcode: call.retcode, value: &got }, &mut buf).unwrap();
            buf.truncate(n);
            answers.push(buf);
        }
        assert!(caller.session.calls.begin(1, 1).is_err(), "all places are taken");
        let (over, _) = Side::new(codec, 1, 0).call(7, &Tuple(&[]));
        let mut room = Room::new();
        assert!(matches!(called.session.handle(room.decode(codec, &over).unwrap()), Step::Busy { .. }));
        let mut room = Room::new();
        for i in 0..10_000 {
            let which = i * 7919 % 10_000;
            let value = room.decode(codec, &answers[which]).unwrap();
            let Step::Answered { place, mut values } = caller.session.handle(value) else {
                panic!("{value}")
            };
            assert_eq!(place, places[which]);
            assert_eq!(values.next().and_then(Value::int), Some(which as i64));
            // Twice is once.
            let value = room.decode(codec, &answers[which]).unwrap();
            assert!(matches!(caller.session.handle(value), Step::Late));
        }
    }
}

#[test]
fn a_peer_that_never_answers_or_too_late() {
    for codec in CODECS {
        let mut side = Side::new(codec, 4, 0);
        let (question, place) = side.call(1, &Tuple(&[]));
        assert_eq!(side.session.calls.next_deadline_ms(), Some(1000));
        assert_eq!(side.session.calls.expired(999), None);
        assert_eq!(side.session.calls.expired(1000), Some(place));
        let mut room = Room::new();
        let value = room.decode(codec, &question).unwrap();
        let Some(Message::Call(call)) = Message::parse(value) else { panic!("{value}") };
        let late = encode(codec, &AnswerOut { retcode: call.retcode, value: &true });
        // The same place serves another call by now.
        let (_, again) = side.call(1, &Tuple(&[]));
        assert_eq!(again, place);
        let mut room = Room::new();
        assert!(matches!(side.session.handle(room.decode(codec, &late).unwrap()), Step::Late));
        assert_eq!(side.session.calls.under_way(), 1);
    }
}

#[test]
fn errors_of_functions_reach_the_caller() {
    for codec in CODECS {
        let answer =
            encode(codec, &AnswerOut { retcode: 5, value: &Failure { class: "ValueError", message: "no" } });
        let mut room = Room::new();
        let value = room.decode(codec, &answer).unwrap();
        let Some(Message::Answer { retcode: 5, mut values }) = Message::parse(value) else {
            panic!("{value}")
        };
        let fault = values.next().and_then(Value::fault).unwrap();
        assert_eq!(fault.to_string(), "ValueError: no");
    }
}

#[test]
fn what_is_no_message_is_broken() {
    let nothing: &dyn Encode = &None::<bool>;
    let empty = Dict(&[]);
    for codec in CODECS {
        let mut side = Side::new(codec, 1, 1);
        for value in [
            nothing,
            &Tuple(&[]),
            &Tuple(&[&b"R"[..].to_vec().as_slice()]),
            &Tuple(&[&"R", &1_i64, &2_i64, &Tuple(&[]), &empty]),
            &Tuple(&[&&b"R"[..], &1_i64, &-2_i64, &Tuple(&[]), &empty]),
            &Tuple(&[&&b"R"[..], &1_i64, &(1_i64 << 32), &Tuple(&[]), &empty]),
            &Tuple(&[&&b"Z"[..], &1_i64, &Tuple(&[])]),
        ] {
            let message = encode(codec, value);
            let mut room = Room::new();
            let value = room.decode(codec, &message).unwrap();
            assert!(matches!(side.session.handle(value), Step::Broken), "{value}");
        }
    }
}

/// A call whose number is known has an answer, and so does our own call whose answer makes no sense.
#[test]
fn what_makes_no_sense_but_has_a_number_is_answered() {
    let empty = Dict(&[]);
    for codec in CODECS {
        let mut side = Side::new(codec, 1, 1);
        for value in [
            &Tuple(&[&&b"R"[..], &"x", &2_i64, &Tuple(&[]), &empty]),
            &Tuple(&[&&b"R"[..], &Tuple(&[]), &2_i64, &Tuple(&[]), &empty]),
            &Tuple(&[&&b"R"[..], &1_i64, &2_i64, &3_i64, &empty]),
            &Tuple(&[&&b"R"[..], &1_i64, &2_i64, &Tuple(&[]), &3_i64]),
            &Tuple(&[&&b"R"[..], &1_i64, &2_i64]),
        ] {
            let message = encode(codec, value);
            let mut room = Room::new();
            let value = room.decode(codec, &message).unwrap();
            assert!(matches!(side.session.handle(value), Step::Unreadable { retcode: 2 }), "{value}");
        }
        let (retcode, place) = side.session.calls.begin(7, 1000).unwrap();
        let message = encode(codec, &Tuple(&[&&b"A"[..], &retcode, &2_i64]));
        let mut room = Room::new();
        let value = room.decode(codec, &message).unwrap();
        let step = side.session.handle(value);
        assert!(
            matches!(step, Step::Spoilt { place: p, value } if p == place && value.and_then(Value::fault).is_none()),
            "{step:?}"
        );
        assert!(matches!(side.session.handle(value), Step::Late), "it waits no more");
    }
}

/// Over frames what cannot be decoded is passed over: several messages share a frame.
#[test]
fn a_message_that_is_refused_is_passed_over_in_its_frame() {
    let deep = [[7, 1].repeat(100), vec![0]].concat();
    // (b'R', 1, 5, [[[...]]], {}).
    let refused = [&[6, 5, 4, 1, b'R', 2, 2, 2, 10][..], &deep, &[9, 0]].concat();
    let next = encode(Codec::Postcard, &CallOut { opcode: 1, retcode: 6, args: &Tuple(&[]) });
    let frame = [&refused[..], &next].concat();
    let mut room = Room::new();
    assert_eq!(room.decode(Codec::Postcard, &frame).unwrap_err(), DecodeError::TooDeep);
    let (length, head) = postcard::skip(&frame).unwrap();
    assert!(matches!(head, Some(Head::Call { retcode: 5 })), "{head:?}");
    assert_eq!(&frame[length..], next);
    // A text that is not Unicode, also as the opcode.
    let refused = [6, 5, 4, 1, b'R', 5, 1, 0xFF, 2, 10, 6, 0, 9, 0];
    let (length, head) = postcard::skip(&refused).unwrap();
    assert!(matches!(head, Some(Head::Call { retcode: 5 })) && length == refused.len(), "{head:?}");
    let answer = [6, 3, 4, 1, b'A', 2, 10, 6, 1, 5, 1, 0xFF];
    let (length, head) = postcard::skip(&answer).unwrap();
    assert!(matches!(head, Some(Head::Answer { retcode: 5, .. })) && length == answer.len(), "{head:?}");
    for end in 0..refused.len() {
        assert!(postcard::skip(&refused[..end]).is_none());
    }
    // More members than any message has.
    assert!(postcard::skip(&[7, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F, 0, 0]).is_none());
    assert!(postcard::skip(&[15]).is_none());
}

#[test]
fn passwords() {
    let mut room = Room::new();
    let mut said = |login: &dyn Encode, password| {
        let message = encode(Codec::Pickle, login);
        verify(password, room.decode(Codec::Pickle, &message).unwrap())
    };
    assert!(said(&LoginOut(Some("secret")), Some("secret")));
    assert!(said(&LoginOut(None), None));
    assert!(said(&LoginOut(Some("anything")), None));
    assert!(!said(&LoginOut(Some("secret ")), Some("secret")));
    assert!(!said(&LoginOut(None), Some("secret")));
    // A login of another form, and a call before the login.
    assert!(!said(&Verdict(true), Some("secret")));
    assert!(!said(&CallOut { opcode: 1, retcode: 0xAA, args: &Tuple(&[&"secret"]) }, Some("secret")));
    assert!(!said(&CallOut { opcode: 1, retcode: 0xAA, args: &Tuple(&[]) }, None));
    // As the old library writes it, protocol 4.
    let old = b"\x80\x04\x95\x14\0\0\0\0\0\0\0C\x01A\x94K\xaa\x8c\x06secret\x94\x85\x94\x87\x94.";
    assert!(verify(Some("secret"), room.decode(Codec::Pickle, old).unwrap()));
    for verdict in [true, false] {
        let message = encode(Codec::Pickle, &Verdict(verdict));
        assert_eq!(Verdict::parse(room.decode(Codec::Pickle, &message).unwrap()), Some(Verdict(verdict)));
    }
}

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

#[test]
fn the_challenge_admits_the_key_alone() {
    let challenge = Challenge { client: [1; 32], server: [2; 32] };
    let (right, wrong) = (Key([7; 32]), Key([8; 32]));
    let proof = challenge.client_proof(&right);
    assert!(same(&proof, &challenge.client_proof(&right)));
    assert!(!same(&proof, &challenge.client_proof(&wrong)));
    assert!(!same(&proof, &challenge.server_proof(&right)), "a proof cannot be sent back");
    assert!(
        !same(&proof, &Challenge { server: [3; 32], ..challenge }.client_proof(&right)),
        "nor used again"
    );
    for step in [Handshake::Hello([1; 32]), Handshake::Challenge([2; 32]), Handshake::Proof(proof)] {
        let message = encode(Codec::Postcard, &step);
        let mut room = Room::new();
        assert_eq!(Handshake::parse(room.decode(Codec::Postcard, &message).unwrap()), Some(step));
    }
}
