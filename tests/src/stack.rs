//! TCP by smoltcp: two stacks on one cable in simulated time, or one on a TAP device, with the kernel's on
//! the other side.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::os::fd::AsRawFd as _;
use std::pin::pin;
use std::process::Command;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant as Moment;

use embedded_io_async::{ErrorType, Read, Write};
use piman_core::transport::smoltcp::{Clock, Connection, Error, Limits, Stack};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, FaultInjector, Medium, TunTapInterface, wait};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, IpEndpoint};

use crate::disk::run;
use crate::link::{End, Happened, Outside, Weather, cable};

/// A stack outside, with faults of smoltcp's own on top.
pub type Net<D, C> = Stack<'static, FaultInjector<Outside<D>>, C>;

/// A connection of it.
pub type Socket<'s, D, C> = Connection<'s, 'static, FaultInjector<Outside<D>>, C>;

/// A clock that goes on when nobody else can.
#[derive(Debug, Clone, Default)]
pub struct Time(Rc<Cell<i64>>);

impl Clock for Time {
    fn now_ms(&self) -> i64 {
        self.0.get()
    }

    fn idle(&self, _at_most_ms: u64) {
        self.0.set(self.0.get() + 1);
    }
}

/// A stack with two sockets that take so many bytes in and out.
fn stack<D: Device, C: Clock>(
    outside: Outside<D>,
    (drops, seed): (u8, u64),
    (mac, address): ([u8; 6], IpAddress),
    (input, output): (usize, usize),
    clock: C,
) -> (Net<D, C>, [SocketHandle; 2]) {
    let mut device = FaultInjector::new(outside, seed as u32);
    device.set_drop_chance(drops);
    let mut config = Config::new(EthernetAddress(mac).into());
    config.random_seed = seed;
    let mut interface = Interface::new(config, &mut device, Instant::ZERO);
    interface.update_ip_addrs(|a| a.push(IpCidr::new(address, 24)).expect("room for one"));
    let mut set = SocketSet::new(Vec::new());
    let sockets = [0, 1].map(|_| {
        let buffer = |n| tcp::SocketBuffer::new(vec![0; n]);
        set.add(tcp::Socket::new(buffer(input), buffer(output)))
    });
    (Stack::new(device, interface, set, clock, seed as u16), sockets)
}

/// Two stacks on one cable.
#[derive(Debug)]
pub struct Pair {
    /// The client's, and its sockets.
    pub one: (Net<End, Time>, [SocketHandle; 2]),
    /// The server's.
    pub two: (Net<End, Time>, [SocketHandle; 2]),
    /// How long its connections wait.
    pub limits: Limits,
}

/// How long connections in good weather wait.
pub const LIMITS: Limits = Limits { open_ms: 5000, idle_ms: 20_000 };
/// In bad weather: the same packet may be lost several times, and each time it is waited for longer.
pub const PATIENT: Limits = Limits { open_ms: 120_000, idle_ms: 120_000 };

impl Pair {
    /// A cable in this weather, on which the stacks drop so many packets of 100, too.
    #[must_use]
    pub fn new(weather: Weather, drops: u8) -> Self {
        let (time, (a, b)) = (Time::default(), cable());
        let limits = if u32::from(drops) + weather.lost > 0 { PATIENT } else { LIMITS };
        let side = |end, number: u8| {
            let outside = Outside::new(end, weather, 7 * u64::from(number));
            let addresses = ([2, 0, 0, 0, 0, number], Self::address(number, 0).addr);
            stack(outside, (drops, number.into()), addresses, (3000, 2000), time.clone())
        };
        Self { one: side(a, 1), two: side(b, 2), limits }
    }

    /// Where the stack with this number is, 1 or 2.
    #[must_use]
    pub fn address(number: u8, port: u16) -> IpEndpoint {
        IpEndpoint::new(IpAddress::v4(10, 0, 0, number), port)
    }

    /// Runs both sides to their ends; what both say.
    ///
    /// # Panics
    /// If they have not ended after ten minutes of simulated time.
    pub fn run<A: Future, B: Future>(&self, a: A, b: B) -> (A::Output, B::Output) {
        let (mut a, mut b) = (pin!(a), pin!(b));
        let (mut first, mut second) = (None, None);
        let begin = self.one.0.clock().now_ms();
        self.one.0.run(poll_fn(|cx| {
            assert!(self.one.0.clock().now_ms() - begin < 600_000, "ten minutes have passed");
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

    /// Connects the first stack to the second.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn client(&self, port: u16) -> Result<Socket<'_, End, Time>, Error> {
        self.one.0.connect(self.one.1[0], Self::address(2, port), self.limits).await
    }

    /// Takes that connection.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn server(&self, port: u16) -> Result<Socket<'_, End, Time>, Error> {
        self.two.0.accept(self.two.1[0], port, self.limits).await
    }
}

/// The kernel's address on the other side of the [TAP device](tap).
pub const KERNEL: [u8; 4] = [10, 77, 0, 1];
/// The stack's address on the TAP device.
const OURS: IpAddress = IpAddress::v4(10, 77, 0, 2);
const TAP: &str = "piman0";

/// The time, and the device that is waited for.
#[derive(Debug)]
pub struct Wall {
    begin: Moment,
    fd: i32,
}

impl Clock for Wall {
    fn now_ms(&self) -> i64 {
        self.begin.elapsed().as_millis() as i64
    }

    fn idle(&self, at_most_ms: u64) {
        // What the weather delays comes without the device: so never for long.
        wait(self.fd, Some(Duration::from_millis(at_most_ms.min(5)))).expect("the device is there");
    }
}

/// A stack on a TAP device, the device set up, and what happens on it: for a thread that is
/// [alone].
///
/// # Panics
/// If it cannot be made.
#[must_use]
pub fn tap(
    weather: Weather,
    drops: u8,
) -> (Net<TunTapInterface, Wall>, [SocketHandle; 2], Rc<RefCell<Happened>>) {
    let tap = TunTapInterface::new(TAP, Medium::Ethernet).expect("a TAP device");
    let address = KERNEL.map(|b| b.to_string()).join(".") + "/24";
    run(Command::new("ip").args(["address", "add", &address, "dev", TAP]));
    run(Command::new("ip").args(["link", "set", TAP, "up"]));
    run(Command::new("ip").args(["link", "set", "lo", "up"]));
    let clock = Wall { begin: Moment::now(), fd: tap.as_raw_fd() };
    let outside = Outside::new(tap, weather, 0x5eed);
    let happened = outside.happened();
    let addresses = ([2, 0, 0, 0, 0, 0xc3], OURS);
    let (net, sockets) = stack(outside, (drops, 0x5eed), addresses, (16 << 10, 4 << 10), clock);
    (net, sockets, happened)
}

/// Runs this on a thread of its own in a network name space of its own, which its children share and which
/// goes with them.
///
/// # Panics
/// If it does, or this is not root.
pub fn alone<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let in_name_space = std::thread::spawn(move || {
        #[expect(
            unsafe_code,
            reason = "it is declared so; this thread has nothing that this could take away"
        )]
        // SAFETY: no file descriptors are shared or closed by this.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.expect("root may");
        test()
    });
    in_name_space.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
}

/// Connections that are over, and end in order.
#[derive(Debug)]
pub struct Closing<'s, D: Device, C: Clock>(Rc<RefCell<Vec<Socket<'s, D, C>>>>);

impl<D: Device, C: Clock> Default for Closing<'_, D, C> {
    fn default() -> Self {
        Self(Rc::default())
    }
}

impl<'s, D: Device, C: Clock> Closing<'s, D, C> {
    /// Keeps a connection alive when it is dropped, until [`all`](Self::all) has closed it: so a kernel does
    /// with a program's sockets.
    #[must_use]
    pub fn later(&self, io: Socket<'s, D, C>) -> Orderly<'s, D, C> {
        Orderly { io: Some(io), closing: Self(Rc::clone(&self.0)) }
    }

    /// Closes those that were dropped.
    pub async fn all(&self) {
        let over = std::mem::take(&mut *self.0.borrow_mut());
        for io in over {
            // The peer may be gone already, or its last word lost.
            let _ = io.close().await;
        }
    }
}

/// A connection that is not aborted when it is dropped.
#[derive(Debug)]
pub struct Orderly<'s, D: Device, C: Clock> {
    io: Option<Socket<'s, D, C>>,
    closing: Closing<'s, D, C>,
}

impl<'s, D: Device, C: Clock> Orderly<'s, D, C> {
    fn io(&mut self) -> &mut Socket<'s, D, C> {
        self.io.as_mut().expect("it is there until it is dropped")
    }
}

impl<D: Device, C: Clock> Drop for Orderly<'_, D, C> {
    fn drop(&mut self) {
        if let Some(mut io) = self.io.take() {
            io.finish();
            self.closing.0.borrow_mut().push(io);
        }
    }
}

impl<D: Device, C: Clock> ErrorType for Orderly<'_, D, C> {
    type Error = Error;
}

impl<D: Device, C: Clock> Read for Orderly<'_, D, C> {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        self.io().read(buf).await
    }
}

impl<D: Device, C: Clock> Write for Orderly<'_, D, C> {
    async fn write(&mut self, buf: &[u8]) -> Result<usize, Error> {
        self.io().write(buf).await
    }

    async fn flush(&mut self) -> Result<(), Error> {
        self.io().flush().await
    }
}
