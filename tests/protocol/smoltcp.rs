//! The smoltcp transport in memory: two stacks on one cable, in any weather, in simulated time.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use embedded_io_async::{Error as _, ErrorKind, Read, Write};
use piman_core::transport::smoltcp::{Clock, Error};
use piman_tests::link::{End, Weather};
use piman_tests::stack::{LIMITS, PATIENT, Pair, Socket, Time};
use smoltcp::socket::tcp;
use smoltcp::wire::{IpAddress, IpEndpoint};

const PORT: u16 = 7;

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 31 % 251) as u8).collect()
}

/// Sends it, says that this was all, and reads to the end. In bad weather the last acknowledgement may be
/// lost for longer than the peer remembers the connection.
async fn exchange(mut io: Socket<'_, End, Time>, out: &[u8], pieces: usize, bad: bool) -> Vec<u8> {
    let (mut left, mut got, mut buf) = (out, Vec::new(), vec![0; pieces]);
    while !left.is_empty() {
        let n = io.write(&left[..pieces.min(left.len())]).await.unwrap();
        left = &left[n..];
    }
    io.flush().await.unwrap();
    io.finish();
    loop {
        match io.read(&mut buf).await.unwrap() {
            0 => break,
            n => got.extend_from_slice(&buf[..n]),
        }
    }
    let closed = io.close().await;
    assert!(closed.is_ok() || bad && closed == Err(Error::Reset), "{closed:?}");
    got
}

#[test]
fn bytes_arrive_in_any_weather() {
    let storm = Weather { lost: 5, twice: 5, damaged: 5, late: 10, delay_ms: 3 };
    for (weather, drops) in [(Weather::default(), 0), (Weather::default(), 15), (storm, 0), (storm, 10)] {
        for pieces in [1, 100, 5000] {
            let lab = Pair::new(weather, drops);
            let bad = lab.limits == PATIENT;
            // Less than what both windows hold: neither side reads before it has written everything.
            let data = pattern(if pieces == 1 { 700 } else { 4000 });
            let (one, two) = lab
                .run(async { exchange(lab.client(PORT).await.unwrap(), &data, pieces, bad).await }, async {
                    exchange(lab.server(PORT).await.unwrap(), &data, pieces, bad).await
                });
            assert!(one == data && two == data, "{weather:?}, {drops} % dropped, pieces of {pieces}");
        }
    }
}

#[test]
fn a_socket_is_used_again_and_again() {
    let lab = Pair::new(Weather::default(), 0);
    for round in 0..20 {
        let data = pattern(round * 10 + 1);
        let (one, two) = lab
            .run(async { exchange(lab.client(PORT).await.unwrap(), &data, 64, false).await }, async {
                exchange(lab.server(PORT).await.unwrap(), &[], 64, false).await
            });
        assert_eq!((one, two), (Vec::new(), data));
    }
}

#[test]
fn nobody_listens_or_nobody_is_there() {
    let lab = Pair::new(Weather::default(), 0);
    let (refused, ()) = lab.run(async { lab.client(PORT).await.map(drop) }, async {});
    assert_eq!(refused.map_err(|e| e.kind()), Err(ErrorKind::ConnectionRefused));

    let before = lab.one.0.clock().now_ms();
    let nobody = IpEndpoint::new(IpAddress::v4(10, 0, 0, 9), 7);
    let (silent, ()) =
        lab.run(async { lab.one.0.connect(lab.one.1[0], nobody, LIMITS).await.map(drop) }, async {});
    assert_eq!(silent.map_err(|e| e.kind()), Err(ErrorKind::TimedOut));
    let waited = lab.one.0.clock().now_ms() - before;
    assert!((5000..5100).contains(&waited), "{waited} ms");

    let nowhere = IpEndpoint::new(IpAddress::v4(0, 0, 0, 0), 7);
    let (bad, ()) =
        lab.run(async { lab.one.0.connect(lab.one.1[0], nowhere, LIMITS).await.map(drop) }, async {});
    assert_eq!(bad.map_err(|e| e.kind()), Err(ErrorKind::InvalidInput));
}

#[test]
fn a_reset_a_silence_and_a_socket_in_use() {
    let lab = Pair::new(Weather::default(), 0);
    let (reset, ()) = lab.run(
        async {
            let mut io = lab.client(PORT).await.unwrap();
            let again = lab.one.0.connect(lab.one.1[0], Pair::address(2, PORT), LIMITS).await.map(drop);
            assert_eq!(again, Err(Error::Busy));
            io.read(&mut [0; 9]).await
        },
        async { lab.server(PORT).await.unwrap().abort() },
    );
    assert_eq!(reset.map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset));

    let (silence, kept) = lab.run(
        async {
            let mut io = lab.client(PORT).await.unwrap();
            let begin = lab.one.0.clock().now_ms();
            let read = io.read(&mut [0; 9]).await;
            (read, lab.one.0.clock().now_ms() - begin)
        },
        async {
            let io = lab.server(PORT).await.unwrap();
            lab.two.0.sleep(30_000).await;
            io
        },
    );
    assert_eq!(silence.0, Err(Error::TimedOut));
    assert!((20_000..20_100).contains(&silence.1), "{} ms", silence.1);
    drop(kept);
}

/// Whoever asks for a connection and is never heard again does not keep the socket.
#[test]
fn a_peer_that_is_gone_in_the_midst_of_the_handshake() {
    let lab = Pair::new(Weather::default(), 0);
    // Both know each other's addresses from here on.
    let meet = || {
        let (one, two) = lab
            .run(async { exchange(lab.client(PORT).await.unwrap(), b"one", 64, false).await }, async {
                exchange(lab.server(PORT).await.unwrap(), b"two", 64, false).await
            });
        assert_eq!((&*one, &*two), (&b"two"[..], &b"one"[..]));
    };
    meet();
    let begin = lab.one.0.clock().now_ms();
    let drops = |percent| lab.one.0.with(|device, _, _| device.set_drop_chance(percent));
    let state = || lab.two.0.with(|_, _, sockets| sockets.get::<tcp::Socket<'_>>(lab.two.1[0]).state());
    let (asked, accepted) = lab.run(
        async {
            let mut dial = pin!(lab.client(PORT));
            assert!(poll_fn(|cx| Poll::Ready(dial.as_mut().poll(cx).is_pending())).await);
            // The stack has turned once when it is looked again: the call has left, and no answer is here yet.
            let mut looked = false;
            poll_fn(|_| if std::mem::replace(&mut looked, true) { Poll::Ready(()) } else { Poll::Pending })
                .await;
            drops(100);
            lab.one.0.sleep(1).await;
            state() == tcp::State::SynReceived
        },
        async { lab.server(PORT).await.map(drop) },
    );
    assert!(asked, "it is as far as that");
    assert_eq!(accepted, Err(Error::TimedOut));
    let waited = lab.one.0.clock().now_ms() - begin;
    assert!((5000..5200).contains(&waited), "{waited} ms");
    drops(0);
    meet();
}

/// A peer that reads nothing: writing ends with a time-out, and does not hang.
#[test]
fn a_peer_that_reads_nothing() {
    let lab = Pair::new(Weather::default(), 0);
    let (written, kept) = lab.run(
        async {
            let mut io = lab.client(PORT).await.unwrap();
            let mut total = 0;
            loop {
                match io.write(&[7; 500]).await {
                    Ok(n) => total += n,
                    Err(e) => break (total, e),
                }
            }
        },
        async {
            let io = lab.server(PORT).await.unwrap();
            lab.two.0.sleep(60_000).await;
            io
        },
    );
    // What the two buffers hold.
    assert_eq!(written, (5000, Error::TimedOut));
    drop(kept);
}
