//! The smoltcp transport in memory: two stacks on one cable, in any weather, in simulated time.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use embedded_io_async::{Error as _, ErrorKind, Read, Write};
use piman_core::transport::smoltcp::{Clock, Connection, Error, Limits, Stack};
use piman_tests::link::{End, Outside, Weather, cable};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::FaultInjector;
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, IpEndpoint};

type Link = FaultInjector<Outside<End>>;
type Net = Stack<'static, Link, Time>;

/// A clock that goes on when nobody else can.
#[derive(Clone, Default)]
struct Time(Rc<Cell<i64>>);

impl Clock for Time {
    fn now_ms(&self) -> i64 {
        self.0.get()
    }

    fn idle(&self, _at_most_ms: u64) {
        self.0.set(self.0.get() + 1);
    }
}

fn stack(end: End, number: u8, time: &Time, weather: Weather, drops: u8) -> (Net, [SocketHandle; 2]) {
    let mut device = FaultInjector::new(Outside::new(end, weather, 7 * u64::from(number)), number.into());
    device.set_drop_chance(drops);
    let mut config = Config::new(EthernetAddress([2, 0, 0, 0, 0, number]).into());
    config.random_seed = number.into();
    let mut interface = Interface::new(config, &mut device, Instant::ZERO);
    interface.update_ip_addrs(|a| a.push(IpCidr::new(address(number).addr, 24)).unwrap());
    let mut set = SocketSet::new(Vec::new());
    let sockets = [0, 1].map(|_| {
        let buffer = |n| tcp::SocketBuffer::new(vec![0; n]);
        set.add(tcp::Socket::new(buffer(3000), buffer(2000)))
    });
    (Stack::new(device, interface, set, time.clone(), number.into()), sockets)
}

fn address(number: u8) -> IpEndpoint {
    IpEndpoint::new(IpAddress::v4(10, 0, 0, number), 7)
}

/// Two stacks on one cable.
struct Lab {
    one: (Net, [SocketHandle; 2]),
    two: (Net, [SocketHandle; 2]),
    limits: Limits,
}

impl Lab {
    fn new(weather: Weather, drops: u8) -> Self {
        let (time, (a, b)) = (Time::default(), cable());
        // In bad weather the same packet may be lost several times, and each time it is waited for longer.
        let limits = if drops + weather.lost as u8 > 0 { PATIENT } else { LIMITS };
        Self { one: stack(a, 1, &time, weather, drops), two: stack(b, 2, &time, weather, drops), limits }
    }

    /// Runs both sides to their ends; what both say.
    fn run<A: Future, B: Future>(&self, a: A, b: B) -> (A::Output, B::Output) {
        let (mut a, mut b) = (pin!(a), pin!(b));
        let (mut first, mut second) = (None, None);
        self.one.0.run(poll_fn(|cx| {
            assert!(self.one.0.clock().now_ms() < 600_000, "ten minutes have passed");
            if first.is_none()
                && let Poll::Ready(out) = a.as_mut().poll(cx)
            {
                first = Some(out);
            }
            if second.is_none()
                && let Poll::Ready(out) = b.as_mut().poll(cx)
            {
                second = Some(out);
            }
            self.two.0.turn();
            match (first.take(), second.take()) {
                (Some(x), Some(y)) => Poll::Ready((x, y)),
                (x, y) => {
                    (first, second) = (x, y);
                    Poll::Pending
                }
            }
        }))
    }

    async fn client(&self) -> Result<Connection<'_, 'static, Link, Time>, Error> {
        self.one.0.connect(self.one.1[0], address(2), self.limits).await
    }

    async fn server(&self) -> Result<Connection<'_, 'static, Link, Time>, Error> {
        self.two.0.accept(self.two.1[0], 7, self.limits).await
    }
}

const LIMITS: Limits = Limits { open_ms: 5000, idle_ms: 20_000 };
const PATIENT: Limits = Limits { open_ms: 120_000, idle_ms: 120_000 };

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 31 % 251) as u8).collect()
}

/// Sends it, says that this was all, and reads to the end. In bad weather the last acknowledgement may be
/// lost for longer than the peer remembers the connection.
async fn exchange(mut io: Connection<'_, '_, Link, Time>, out: &[u8], pieces: usize, bad: bool) -> Vec<u8> {
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
            let lab = Lab::new(weather, drops);
            let bad = lab.limits == PATIENT;
            // Less than what both windows hold: neither side reads before it has written everything.
            let data = pattern(if pieces == 1 { 700 } else { 4000 });
            let (one, two) = lab
                .run(async { exchange(lab.client().await.unwrap(), &data, pieces, bad).await }, async {
                    exchange(lab.server().await.unwrap(), &data, pieces, bad).await
                });
            assert!(one == data && two == data, "{weather:?}, {drops} % dropped, pieces of {pieces}");
        }
    }
}

#[test]
fn a_socket_is_used_again_and_again() {
    let lab = Lab::new(Weather::default(), 0);
    for round in 0..20 {
        let data = pattern(round * 10 + 1);
        let (one, two) = lab
            .run(async { exchange(lab.client().await.unwrap(), &data, 64, false).await }, async {
                exchange(lab.server().await.unwrap(), &[], 64, false).await
            });
        assert_eq!((one, two), (Vec::new(), data));
    }
}

#[test]
fn nobody_listens_or_nobody_is_there() {
    let lab = Lab::new(Weather::default(), 0);
    let (refused, ()) = lab.run(async { lab.client().await.map(drop) }, async {});
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
    let lab = Lab::new(Weather::default(), 0);
    let (reset, ()) = lab.run(
        async {
            let mut io = lab.client().await.unwrap();
            let again = lab.one.0.connect(lab.one.1[0], address(2), LIMITS).await.map(drop);
            assert_eq!(again, Err(Error::Busy));
            io.read(&mut [0; 9]).await
        },
        async { lab.server().await.unwrap().abort() },
    );
    assert_eq!(reset.map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset));

    let (silence, kept) = lab.run(
        async {
            let mut io = lab.client().await.unwrap();
            let begin = lab.one.0.clock().now_ms();
            let read = io.read(&mut [0; 9]).await;
            (read, lab.one.0.clock().now_ms() - begin)
        },
        async {
            let io = lab.server().await.unwrap();
            lab.two.0.sleep(30_000).await;
            io
        },
    );
    assert_eq!(silence.0, Err(Error::TimedOut));
    assert!((20_000..20_100).contains(&silence.1), "{} ms", silence.1);
    drop(kept);
}

/// A peer that reads nothing: writing ends with a time-out, and does not hang.
#[test]
fn a_peer_that_reads_nothing() {
    let lab = Lab::new(Weather::default(), 0);
    let (written, kept) = lab.run(
        async {
            let mut io = lab.client().await.unwrap();
            let mut total = 0;
            loop {
                match io.write(&[7; 500]).await {
                    Ok(n) => total += n,
                    Err(e) => break (total, e),
                }
            }
        },
        async {
            let io = lab.server().await.unwrap();
            lab.two.0.sleep(60_000).await;
            io
        },
    );
    // What the two buffers hold.
    assert_eq!(written, (5000, Error::TimedOut));
    drop(kept);
}
