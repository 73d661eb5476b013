//! TCP connections of a smoltcp stack, as byte streams, and the loop that turns the stack. No executor
//! is needed: [`Stack::run`] polls a future and turns the stack until the future is done.

use core::cell::{Cell, RefCell};
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::{Context, Poll, Waker};

use embedded_io_async::{ErrorKind, ErrorType, Read, Write};
use smoltcp::iface::{Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::Device;
use smoltcp::socket::tcp::{self, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::IpEndpoint;

/// What tells the time, and passes it.
pub trait Clock {
    /// Milliseconds since any moment; it never goes back.
    fn now_ms(&self) -> i64;

    /// Nothing can be done until something comes, or until so many milliseconds have passed. May return
    /// early; at once, if there is nothing better to do.
    fn idle(&self, _at_most_ms: u64) {}
}

/// The longest [`Clock::idle`] asked for.
const IDLE_MS: i64 = 1000;

/// How long a connection waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Limits {
    /// For the peer to accept a connection, and to take the last bytes of one, in milliseconds.
    pub open_ms: u32,
    /// For any byte, in milliseconds.
    pub idle_ms: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { open_ms: 10_000, idle_ms: 60_000 }
    }
}

/// Why a connection does not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Error {
    /// The socket is in use.
    Busy,
    /// The address cannot be connected to or listened on.
    Address,
    /// The peer refused the connection.
    Refused,
    /// The peer reset the connection, or we did.
    Reset,
    /// Nothing happened for too long.
    TimedOut,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "the socket is in use",
            Self::Address => "that is no address to connect to or to listen on",
            Self::Refused => "the peer refused the connection",
            Self::Reset => "the connection was reset",
            Self::TimedOut => "the peer is silent",
        })
    }
}

impl core::error::Error for Error {}

impl embedded_io_async::Error for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Busy => ErrorKind::AddrInUse,
            Self::Address => ErrorKind::InvalidInput,
            Self::Refused => ErrorKind::ConnectionRefused,
            Self::Reset => ErrorKind::ConnectionReset,
            Self::TimedOut => ErrorKind::TimedOut,
        }
    }
}

/// A device, the interface on it, and its sockets.
pub struct Stack<'a, D: Device, C> {
    parts: RefCell<Parts<'a, D>>,
    clock: C,
    /// The next local port to connect from.
    port: Cell<u16>,
    /// The next moment at which somebody waits for the time alone.
    alarm_ms: Cell<Option<i64>>,
}

#[cfg(feature = "defmt")]
impl<D: Device, C> defmt::Format for Stack<'_, D, C> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Stack")
    }
}

struct Parts<'a, D: Device> {
    device: D,
    interface: Interface,
    sockets: SocketSet<'a>,
}

/// Local ports are taken from here on.
const FIRST_PORT: u16 = 49_152;

impl<D: Device, C> fmt::Debug for Stack<'_, D, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack").finish_non_exhaustive()
    }
}

impl<'a, D: Device, C: Clock> Stack<'a, D, C> {
    /// A stack of these. `random` decides where local ports begin, so that connections from before a
    /// restart are not met again.
    #[must_use]
    pub fn new(device: D, interface: Interface, sockets: SocketSet<'a>, clock: C, random: u16) -> Self {
        let parts = RefCell::new(Parts { device, interface, sockets });
        let port = Cell::new(FIRST_PORT | random);
        Self { parts, clock, port, alarm_ms: Cell::new(None) }
    }

    /// Its clock.
    pub fn clock(&self) -> &C {
        &self.clock
    }

    /// Looks at the device, the interface and the sockets, to set them up.
    pub fn with<T>(&self, look: impl FnOnce(&mut D, &mut Interface, &mut SocketSet<'a>) -> T) -> T {
        let Parts { device, interface, sockets } = &mut *self.parts.borrow_mut();
        look(device, interface, sockets)
    }

    /// Moves packets that can be moved now; whether any socket has changed.
    pub fn turn(&self) -> bool {
        let now = Instant::from_millis(self.clock.now_ms());
        self.with(|device, interface, sockets| interface.poll(now, device, sockets))
            == PollResult::SocketStateChanged
    }

    /// Runs a future to its end, and the stack with it. Several at once are one future that joins them.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            self.alarm_ms.set(None);
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            if self.turn() {
                continue;
            }
            let now = self.clock.now_ms();
            let delay = self.with(|_, interface, sockets| {
                interface.poll_delay(Instant::from_millis(now), sockets).map(|d| d.total_millis())
            });
            let alarm = self.alarm_ms.get().map_or(IDLE_MS, |at| (at - now).clamp(0, IDLE_MS));
            let wait = delay.unwrap_or(u64::MAX).min(alarm.unsigned_abs());
            if wait > 0 {
                self.clock.idle(wait);
            }
        }
    }

    /// Returns after so many milliseconds.
    pub async fn sleep(&self, ms: u32) {
        let at = self.deadline(ms);
        poll_fn(|_| if self.is_past(at) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Connects a socket that is closed.
    ///
    /// # Errors
    /// [`Error`]; the socket is closed again.
    pub async fn connect(
        &self,
        socket: SocketHandle,
        remote: IpEndpoint,
        limits: Limits,
    ) -> Result<Connection<'_, 'a, D, C>, Error> {
        let local = self.port.get();
        self.port.set(local.wrapping_add(1) | FIRST_PORT);
        self.with(|_, interface, sockets| {
            sockets.get_mut::<tcp::Socket<'_>>(socket).connect(interface.context(), remote, local)
        })
        .map_err(|e| match e {
            tcp::ConnectError::InvalidState => Error::Busy,
            tcp::ConnectError::Unaddressable => Error::Address,
        })?;
        self.established(socket, limits, Some(self.deadline(limits.open_ms))).await
    }

    /// Waits with a socket that is closed until somebody connects to `port`.
    ///
    /// # Errors
    /// [`Error`]; the socket is closed again.
    pub async fn accept(
        &self,
        socket: SocketHandle,
        port: u16,
        limits: Limits,
    ) -> Result<Connection<'_, 'a, D, C>, Error> {
        self.with(|_, _, sockets| sockets.get_mut::<tcp::Socket<'_>>(socket).listen(port)).map_err(|e| {
            match e {
                tcp::ListenError::InvalidState => Error::Busy,
                tcp::ListenError::Unaddressable => Error::Address,
            }
        })?;
        self.established(socket, limits, None).await
    }

    /// Waits until the handshake of an open socket is over.
    async fn established(
        &self,
        socket: SocketHandle,
        limits: Limits,
        deadline: Option<i64>,
    ) -> Result<Connection<'_, 'a, D, C>, Error> {
        // From here on it is closed if it is not wanted any more.
        let connection = Connection { stack: self, socket, limits };
        connection.tcp(|tcp| tcp.set_nagle_enabled(false));
        let before = connection.tcp(|tcp| tcp.timeout());
        if deadline.is_none() {
            // Whoever asks for a connection and is never heard again would keep the socket for ever.
            let open = Duration::from_millis(limits.open_ms.into());
            connection.tcp(|tcp| tcp.set_timeout(Some(open)));
        }
        let open = poll_fn(|cx| {
            let state = connection.tcp(|tcp| {
                tcp.register_send_waker(cx.waker());
                tcp.state()
            });
            match state {
                State::Closed if deadline.is_none() => Poll::Ready(Err(Error::TimedOut)),
                State::Closed => Poll::Ready(Err(Error::Refused)),
                State::Listen | State::SynSent | State::SynReceived => match deadline {
                    Some(at) if self.is_past(at) => Poll::Ready(Err(Error::TimedOut)),
                    _ => Poll::Pending,
                },
                _ => Poll::Ready(Ok(())),
            }
        })
        .await;
        connection.tcp(|tcp| tcp.set_timeout(before));
        open.map(|()| connection)
    }

    fn deadline(&self, ms: u32) -> i64 {
        self.clock.now_ms().saturating_add(ms.into())
    }

    /// Whether that moment has come; if not, [`run`](Self::run) does not sleep past it.
    fn is_past(&self, at: i64) -> bool {
        if self.clock.now_ms() >= at {
            return true;
        }
        self.alarm_ms.set(Some(self.alarm_ms.get().map_or(at, |other| other.min(at))));
        false
    }
}

/// The clock of the messages service.
#[cfg(feature = "messages")]
impl<D: Device, C: Clock> crate::messages::Timer for &Stack<'_, D, C> {
    async fn quiet(&mut self) {
        self.sleep(crate::messages::QUIET_MS).await;
    }
}

/// One connection. Dropped, it is aborted: [`close`](Self::close) ends it in order.
pub struct Connection<'s, 'a, D: Device, C: Clock> {
    stack: &'s Stack<'a, D, C>,
    socket: SocketHandle,
    limits: Limits,
}

#[cfg(feature = "defmt")]
impl<D: Device, C: Clock> defmt::Format for Connection<'_, '_, D, C> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Connection({})", self.socket)
    }
}

impl<D: Device, C: Clock> fmt::Debug for Connection<'_, '_, D, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl<'a, D: Device, C: Clock> Connection<'_, 'a, D, C> {
    /// Says that nothing more will be written. What the peer still says can be read.
    pub fn finish(&mut self) {
        self.tcp(tcp::Socket::close);
    }

    /// Ends the connection: what was written reaches the peer, what it still says is dropped.
    ///
    /// # Errors
    /// [`Error::Reset`] or [`Error::TimedOut`] if not everything did, or if the acknowledgement of the last
    /// bytes was lost for longer than the peer remembers the connection.
    pub async fn close(mut self) -> Result<(), Error> {
        self.finish();
        let at = self.stack.deadline(self.limits.open_ms);
        poll_fn(|cx| {
            let (state, unsent) = self.tcp(|tcp| {
                let _ = tcp.recv(|bytes| (bytes.len(), ()));
                tcp.register_send_waker(cx.waker());
                tcp.register_recv_waker(cx.waker());
                (tcp.state(), tcp.send_queue())
            });
            match state {
                // Our end has been acknowledged, whatever the peer's is.
                State::TimeWait | State::FinWait2 => Poll::Ready(Ok(())),
                State::Closed if unsent == 0 => Poll::Ready(Ok(())),
                State::Closed => Poll::Ready(Err(Error::Reset)),
                _ if self.stack.is_past(at) => Poll::Ready(Err(Error::TimedOut)),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// Ends the connection at once; the peer sees a reset.
    pub fn abort(self) {}

    fn tcp<T>(&self, look: impl FnOnce(&mut tcp::Socket<'a>) -> T) -> T {
        self.stack.with(|_, _, sockets| look(sockets.get_mut(self.socket)))
    }

    /// Waits until `attempt` has an answer, for [`Limits::idle_ms`] at most.
    async fn until<T>(
        &self,
        mut attempt: impl FnMut(&mut tcp::Socket<'a>, &Waker) -> Poll<Result<T, Error>>,
    ) -> Result<T, Error> {
        let at = self.stack.deadline(self.limits.idle_ms);
        poll_fn(|cx| match self.tcp(|tcp| attempt(tcp, cx.waker())) {
            Poll::Pending if self.stack.is_past(at) => Poll::Ready(Err(Error::TimedOut)),
            other => other,
        })
        .await
    }
}

impl<D: Device, C: Clock> Drop for Connection<'_, '_, D, C> {
    fn drop(&mut self) {
        self.tcp(|tcp| {
            // Both ends are over: it may still have to say so again, until the socket is used again.
            if tcp.state() != State::TimeWait {
                tcp.abort();
            }
        });
        // A reset leaves now; and the socket can be used again.
        self.stack.turn();
    }
}

impl<D: Device, C: Clock> ErrorType for Connection<'_, '_, D, C> {
    type Error = Error;
}

impl<D: Device, C: Clock> Read for Connection<'_, '_, D, C> {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.until(|tcp, waker| match tcp.recv_slice(buf) {
            Ok(0) => {
                tcp.register_recv_waker(waker);
                Poll::Pending
            }
            Ok(n) => Poll::Ready(Ok(n)),
            Err(tcp::RecvError::Finished) => Poll::Ready(Ok(0)),
            Err(tcp::RecvError::InvalidState) => Poll::Ready(Err(Error::Reset)),
        })
        .await
    }
}

impl<D: Device, C: Clock> Write for Connection<'_, '_, D, C> {
    async fn write(&mut self, buf: &[u8]) -> Result<usize, Error> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.until(|tcp, waker| match tcp.send_slice(buf) {
            Ok(0) => {
                tcp.register_send_waker(waker);
                Poll::Pending
            }
            Ok(n) => Poll::Ready(Ok(n)),
            Err(tcp::SendError::InvalidState) => Poll::Ready(Err(Error::Reset)),
        })
        .await
    }

    /// Lets leave what was written, as far as the peer takes it now; it is sent again if it is lost.
    async fn flush(&mut self) -> Result<(), Error> {
        self.stack.turn();
        Ok(())
    }
}
