//! The messages service in memory: both ends against each other and against the old libraries'
//! behaviour, at every way to cut the stream.

use std::future::Future;
use std::task::{Context, Waker};

use embedded_io_async::{Read, Write};
use piman_core::Error;
use piman_core::error::PeerError;
use piman_core::messages::{
    Body, CONFLICT, FAILED, FULL, GO, MessageSink, MessageStream, Piece, Role, SIZE_MAX, SendError, TOO_LARGE,
};
use piman_tests::memory::{End, World};

/// All messages that came, whole.
#[derive(Default)]
struct Whole {
    messages: Vec<Vec<u8>>,
    part: Vec<u8>,
}

impl MessageSink for Whole {
    async fn piece(&mut self, piece: Piece<'_>) {
        assert_eq!(piece.offset as usize, self.part.len());
        assert!(!piece.bytes.is_empty() || piece.size == 0);
        self.part.extend_from_slice(piece.bytes);
        if piece.is_last() {
            assert_eq!(self.part.len(), piece.size as usize);
            self.messages.push(std::mem::take(&mut self.part));
        }
    }
}

async fn send<'b>(
    frames: &mut MessageStream<'b, End, World>,
    message: &[u8],
    inbox: &mut Whole,
) -> Result<(), SendError<std::convert::Infallible>> {
    frames.send(message.len() as u64, &mut &message[..], inbox).await
}

fn message(size: usize, seed: u8) -> Vec<u8> {
    (0..size).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

/// One side: sends `outgoing` without waiting for anything, then takes the rest.
async fn side(world: &World, end: End, role: Role, outgoing: &[Vec<u8>], expected: &[Vec<u8>], buf: usize) {
    let mut buf = vec![0; buf];
    let mut frames = MessageStream::open(end, world.clone(), role, 1 << 20, &mut buf).await.unwrap();
    let mut inbox = Whole::default();
    for message in outgoing {
        send(&mut frames, message, &mut inbox).await.unwrap();
    }
    while inbox.messages.len() < expected.len() {
        assert!(frames.receive(&mut inbox).await.unwrap());
    }
    assert_eq!(inbox.messages, expected);
}

#[test]
fn both_start_at_the_same_moment_however_the_stream_is_cut() {
    let sizes = [0, 1, 3, 255, 256, 300];
    for chop in 1..=16 {
        for room in [5, 6, 64, 4096] {
            for (i, size) in sizes.into_iter().enumerate() {
                let other = sizes[(i * 5 + chop) % sizes.len()];
                let (ours, theirs) =
                    ([message(size, 1), message(other, 2)], [message(other, 3), message(size, 4)]);
                let world = World::new();
                let (a, b) = world.stream(room, chop);
                world.run(vec![
                    Box::pin(side(&world, a, Role::Client, &ours, &theirs, 7)),
                    Box::pin(side(&world, b, Role::Server, &theirs, &ours, 64)),
                ]);
                assert_eq!(world.now_ms(), 0, "a message waited for the clock");
            }
        }
    }
}

#[test]
fn both_start_at_the_same_moment_ten_thousand_times() {
    let messages: Vec<Vec<u8>> = (0..10_000).map(|i| message(i % 97, i as u8)).collect();
    for chop in [1, 1 << 16] {
        let world = World::new();
        let (a, b) = world.stream(1 << 16, chop);
        world.run(vec![
            Box::pin(side(&world, a, Role::Client, &messages, &messages, 512)),
            Box::pin(side(&world, b, Role::Server, &messages, &messages, 512)),
        ]);
        assert_eq!(world.now_ms(), 0);
    }
}

#[test]
fn at_the_same_moment_one_or_both_too_large() {
    let limit = 100;
    for chop in 1..=9 {
        for (ours, theirs) in [(101, 7), (7, 101), (300, 70_000), (20_000_000, 101)] {
            let world = World::new();
            let (a, b) = world.stream(4096, chop);
            let one = |end, role, size: usize, other: usize| {
                let world = world.clone();
                async move {
                    let mut buf = [0; 50];
                    let mut frames = MessageStream::open(end, world, role, limit, &mut buf).await.unwrap();
                    let mut inbox = Whole::default();
                    let result =
                        frames.send(size as u64, &mut &message(size.min(101), 1)[..], &mut inbox).await;
                    let want = if size > 100 { Err(SendError::Rejected(TOO_LARGE)) } else { Ok(()) };
                    assert_eq!(result, want);
                    // The talk goes on, in both directions.
                    send(&mut frames, b"still here", &mut inbox).await.unwrap();
                    let mut expected = vec![b"still here".to_vec()];
                    if other <= 100 {
                        expected.insert(0, message(other, 1));
                    }
                    while inbox.messages.len() < expected.len() {
                        assert!(frames.receive(&mut inbox).await.unwrap());
                    }
                    assert_eq!(inbox.messages, expected);
                }
            };
            world.run(vec![
                Box::pin(one(a, Role::Client, ours, theirs)),
                Box::pin(one(b, Role::Server, theirs, ours)),
            ]);
        }
    }
}

#[test]
fn who_refuses_and_speaks_at_once_is_understood() {
    for (role, other) in [(Role::Client, Role::Server), (Role::Server, Role::Client)] {
        let world = World::new();
        let (a, b) = world.stream(4096, 4096);
        let sender = async {
            let mut buf = [0; 50];
            let mut frames = MessageStream::open(a, world.clone(), role, 100, &mut buf).await.unwrap();
            let mut inbox = Whole::default();
            assert_eq!(send(&mut frames, &[1; 101], &mut inbox).await, Err(SendError::Rejected(TOO_LARGE)));
            assert!(frames.receive(&mut inbox).await.unwrap());
            assert_eq!(inbox.messages, [b"no"]);
        };
        let refuser = async {
            let mut buf = [0; 50];
            let mut frames = MessageStream::open(b, world.clone(), other, 100, &mut buf).await.unwrap();
            let mut inbox = Whole::default();
            // Take the size and refuse it in the course of sending.
            frames.stream().readable().await;
            {
                let mut receiving = std::pin::pin!(frames.receive(&mut inbox));
                let mut context = Context::from_waker(Waker::noop());
                assert!(receiving.as_mut().poll(&mut context).is_pending());
            }
            send(&mut frames, b"no", &mut inbox).await.unwrap();
        };
        world.run(vec![Box::pin(sender), Box::pin(refuser)]);
    }
}

/// What the old libraries do: each read takes exactly what is wanted next.
async fn exactly(end: &mut End, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    end.read_exact(&mut bytes).await.unwrap();
    bytes
}

#[test]
fn an_old_peer_that_waits_sends_and_takes() {
    for role in [Role::Client, Role::Server] {
        for chop in 1..=8 {
            let world = World::new();
            let (a, mut b) = world.stream(64, chop);
            let ours = async {
                let mut buf = [0; 50];
                let mut frames = MessageStream::open(a, world.clone(), role, 100, &mut buf).await.unwrap();
                let mut inbox = Whole::default();
                assert!(frames.receive(&mut inbox).await.unwrap());
                let echo = inbox.messages[0].clone();
                send(&mut frames, &echo, &mut inbox).await.unwrap();
                assert_eq!(
                    send(&mut frames, &[7; 200], &mut inbox).await,
                    Err(SendError::Rejected(TOO_LARGE))
                );
                send(&mut frames, b"", &mut inbox).await.unwrap();
                assert!(frames.receive(&mut inbox).await.unwrap());
                assert!(!frames.receive(&mut inbox).await.unwrap());
                assert_eq!(inbox.messages, [&b"hello"[..], b"after"]);
            };
            let old = async {
                b.write_all(&[GO]).await.unwrap();
                assert_eq!(exactly(&mut b, 1).await, [GO]);
                b.write_all(&[0, 0, 0, 5]).await.unwrap();
                assert_eq!(exactly(&mut b, 1).await, [GO]);
                b.write_all(b"hello").await.unwrap();
                assert_eq!(exactly(&mut b, 4).await, [0, 0, 0, 5]);
                b.write_all(&[GO]).await.unwrap();
                assert_eq!(exactly(&mut b, 5).await, b"hello");
                assert_eq!(exactly(&mut b, 4).await, [0, 0, 0, 200]);
                b.write_all(&[TOO_LARGE]).await.unwrap();
                assert_eq!(exactly(&mut b, 4).await, [0, 0, 0, 0]);
                b.write_all(&[GO]).await.unwrap();
                // Over our limit, then within it.
                b.write_all(&[0xF0, 0xFF, 0xFF, 0xFF]).await.unwrap();
                assert_eq!(exactly(&mut b, 1).await, [TOO_LARGE]);
                b.write_all(&[0, 0, 0, 5]).await.unwrap();
                assert_eq!(exactly(&mut b, 1).await, [GO]);
                b.write_all(b"after").await.unwrap();
                drop(b);
            };
            world.run(vec![Box::pin(ours), Box::pin(old)]);
        }
    }
}

#[test]
fn a_size_that_stammers_is_no_refusal() {
    let world = World::new();
    let (a, mut b) = world.stream(64, 64);
    let ours = async {
        let mut buf = [0; 50];
        let mut frames = MessageStream::open(a, world.clone(), Role::Client, 100, &mut buf).await.unwrap();
        let mut inbox = Whole::default();
        send(&mut frames, b"ours", &mut inbox).await.unwrap();
        assert_eq!(inbox.messages, [b"theirs"]);
    };
    let theirs = async {
        b.write_all(&[GO]).await.unwrap();
        assert_eq!(exactly(&mut b, 5).await, [GO, 0, 0, 0, 4]);
        for byte in [0, 0, 0, 6] {
            b.write_all(&[byte]).await.unwrap();
            world.sleep(900).await;
        }
        assert_eq!(exactly(&mut b, 1).await, [GO]);
        b.write_all(b"theirs").await.unwrap();
        b.write_all(&[GO]).await.unwrap();
        assert_eq!(exactly(&mut b, 4).await, b"ours");
    };
    world.run(vec![Box::pin(ours), Box::pin(theirs)]);
}

#[test]
fn refusals_at_the_greeting() {
    for (sent, code) in
        [(vec![FULL], FULL), (vec![CONFLICT], CONFLICT), (vec![FAILED], FAILED), (vec![0; 254], FAILED)]
    {
        let world = World::new();
        let (a, mut b) = world.stream(512, 512);
        let ours = async {
            let mut buf = [0; 50];
            let refused = MessageStream::open(a, world.clone(), Role::Client, 100, &mut buf).await.err();
            assert_eq!(refused, Some(Error::Peer(PeerError::Refused(code))));
        };
        let server = async {
            b.write_all(&sent).await.unwrap();
            drop(b);
        };
        world.run(vec![Box::pin(ours), Box::pin(server)]);
    }
}

/// Cut after every byte that either side writes: an error or the end, and never a part of a message
/// taken for a whole one.
#[test]
fn a_connection_that_is_cut_anywhere() {
    let messages = [message(5, 1), message(0, 2), message(40, 3)];
    let mut survived = 0;
    for budget in 0..80 {
        for cut_client in [true, false] {
            let world = World::new();
            let (mut a, mut b) = world.stream(4096, 4096);
            if cut_client {
                a.cut_after(budget)
            } else {
                b.cut_after(budget)
            }
            let one = |end: End, role| {
                let (world, messages) = (world.clone(), &messages);
                async move {
                    let mut buf = [0; 16];
                    let Ok(mut frames) = MessageStream::open(end, world, role, 100, &mut buf).await else {
                        return 0;
                    };
                    let mut inbox = Whole::default();
                    for message in messages {
                        if send(&mut frames, message, &mut inbox).await.is_err() {
                            break;
                        }
                    }
                    while let Ok(true) = frames.receive(&mut inbox).await {
                        if inbox.messages.len() == messages.len() {
                            break;
                        }
                    }
                    assert_eq!(inbox.messages, messages[..inbox.messages.len()]);
                    inbox.messages.len()
                }
            };
            let came = std::cell::Cell::new(0);
            world.run(vec![
                Box::pin(async {
                    let n = one(a, Role::Client).await;
                    came.set(came.get() + n);
                }),
                Box::pin(async {
                    let n = one(b, Role::Server).await;
                    came.set(came.get() + n);
                }),
            ]);
            survived += usize::from(came.get() == 2 * messages.len());
        }
    }
    assert!(survived > 0, "a budget that is large enough cuts nothing");
}

/// Zeros without end.
struct Zeros(Vec<u8>);

impl Body for Zeros {
    async fn piece(&mut self) -> &[u8] {
        &self.0
    }
}

/// Counts what comes.
struct Count(u64);

impl MessageSink for Count {
    async fn piece(&mut self, piece: Piece<'_>) {
        assert_eq!(u64::from(piece.offset), self.0);
        self.0 += piece.bytes.len() as u64;
    }
}

#[test]
fn the_largest_message_in_bounded_memory() {
    let world = World::new();
    let (a, b) = world.stream(1 << 17, 1 << 17);
    let sender = async {
        let mut buf = [0; 16];
        let mut frames = MessageStream::open(a, world.clone(), Role::Client, 0, &mut buf).await.unwrap();
        let too_large = frames.send(u64::from(SIZE_MAX) + 1, &mut Zeros(vec![0; 9]), &mut Count(0)).await;
        assert_eq!(too_large, Err(SendError::TooLarge));
        frames.send(SIZE_MAX.into(), &mut Zeros(vec![0; 1 << 17]), &mut Count(0)).await.unwrap();
    };
    let receiver = async {
        let mut buf = vec![0; 1 << 17];
        let mut frames =
            MessageStream::open(b, world.clone(), Role::Server, SIZE_MAX, &mut buf).await.unwrap();
        let mut count = Count(0);
        assert!(frames.receive(&mut count).await.unwrap());
        assert_eq!(count.0, u64::from(SIZE_MAX));
    };
    world.run(vec![Box::pin(sender), Box::pin(receiver)]);
}

#[test]
fn a_body_that_is_too_short_is_the_callers_error() {
    let world = World::new();
    let (a, b) = world.stream(64, 64);
    let sender = async {
        let mut buf = [0; 16];
        let mut frames = MessageStream::open(a, world.clone(), Role::Client, 100, &mut buf).await.unwrap();
        let short = frames.send(9, &mut &b"short"[..], &mut Whole::default()).await;
        assert_eq!(short, Err(SendError::Short));
    };
    let receiver = async {
        let mut buf = [0; 16];
        let mut frames = MessageStream::open(b, world.clone(), Role::Server, 100, &mut buf).await.unwrap();
        let mut inbox = Whole::default();
        assert_eq!(frames.receive(&mut inbox).await, Err(Error::Peer(PeerError::Closed)));
        assert!(inbox.messages.is_empty());
    };
    world.run(vec![Box::pin(sender), Box::pin(receiver)]);
}
