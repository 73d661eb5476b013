//! Between the streams of a serial line and TCP streams of this machine: one thread, one poll.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::prelude::rust_2024::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use crate::serial::{Event, Link, Role, STREAMS};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_linger;

/// How often it is looked whether it is to stop.
const LOOK: Duration = Duration::from_millis(200);
/// No more frames are made while so many bytes wait for the line.
const AHEAD: usize = 512;

/// A stream to be opened.
pub(super) struct Order {
    pub(super) port: u16,
    /// Gets its other end when it is.
    pub(super) open: Sender<TcpStream>,
    /// How long somebody waits for that.
    pub(super) until: Instant,
}

/// Who opens streams.
pub(super) enum Side {
    /// This program.
    Dialler { orders: Receiver<Order>, woken: UnixStream, waiting: VecDeque<Order> },
    /// The other end.
    Listener(Services),
}

/// One end of a line with all its streams.
pub(super) struct Mux {
    tty: File,
    link: Link,
    open: [Option<Conn>; STREAMS],
    /// The other end has said all on these, and their places may be in new use.
    last: Vec<Conn>,
    wire: VecDeque<u8>,
    began: Instant,
}

/// A stream of the line and its TCP stream.
struct Conn {
    stream: TcpStream,
    /// What waits to be written to it.
    out: VecDeque<u8>,
    /// It has said all.
    ended: bool,
    /// The other end has said all, and it was told.
    peer_ended: bool,
    told: bool,
}

impl Conn {
    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, out: VecDeque::new(), ended: false, peer_ended: false, told: false })
    }

    /// Writes what is taken; how many bytes.
    fn write(&mut self) -> io::Result<usize> {
        let mut written = 0;
        while !self.out.is_empty() {
            match self.stream.write(self.out.as_slices().0) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.out.drain(..n);
                    written += n;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if self.out.is_empty() && self.peer_ended && !self.told {
            self.told = true;
            // It may be gone, which is no matter now.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(written)
    }

    /// Its program must not take it for a whole conversation.
    fn reset(self) {
        let _ = set_socket_linger(&self.stream, Some(Duration::ZERO));
    }
}

impl Mux {
    pub(super) fn new(tty: File, role: Role) -> Self {
        // Another one each time a program begins; time is enough for that.
        let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let session = (since.as_micros() ^ u128::from(std::process::id())) as u16;
        let open = std::array::from_fn(|_| None);
        let link = Link::new(role, session);
        Self { tty, link, open, last: Vec::new(), wire: VecDeque::new(), began: Instant::now() }
    }

    /// Until the line fails or `stop` is set.
    pub(super) fn run(mut self, side: &mut Side, stop: &AtomicBool) -> io::Result<()> {
        let ended = loop {
            if stop.load(Ordering::Relaxed) {
                break Ok(());
            }
            if let Err(e) = self.turn(side) {
                break Err(e);
            }
        };
        self.drop_all();
        ended
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn turn(&mut self, side: &mut Side) -> io::Result<()> {
        if let Some(Event::Down) = self.link.tick(self.now_ms()) {
            log::warn!("the other end of the serial line does not answer any more");
            self.drop_all();
        }
        self.take_orders(side);
        self.move_streams();
        let mut frame = Default::default();
        while self.wire.len() < AHEAD {
            let Some(bytes) = self.link.transmit(self.now_ms(), &mut frame) else { break };
            self.wire.extend(bytes);
        }
        self.write_line()?;
        self.wait(side)?;
        self.read_line(side)
    }

    fn take_orders(&mut self, side: &mut Side) {
        let Side::Dialler { orders, woken, waiting } = side else { return };
        while matches!(woken.read(&mut [0; 64]), Ok(n) if n > 0) {}
        let now = Instant::now();
        waiting.extend(orders.try_iter());
        waiting.retain(|order| order.until > now);
        while let Some(order) = waiting.pop_front() {
            let Some(at) = self.link.open(order.port) else {
                waiting.push_front(order);
                return;
            };
            let gone = |_| io::Error::new(ErrorKind::NotConnected, "whoever wanted it has given up");
            let conn = super::pair().and_then(|(ours, theirs)| {
                let conn = Conn::new(theirs)?;
                order.open.send(ours).map_err(gone).map(|()| conn)
            });
            match conn {
                Ok(conn) => self.put(at, conn),
                Err(e) => {
                    log::warn!("a stream of the serial line to port {}: {e}", order.port);
                    self.link.cut(at);
                }
            }
        }
    }

    fn put(&mut self, at: usize, conn: Conn) {
        if let Some(place) = self.open.get_mut(at)
            && let Some(old) = place.replace(conn)
        {
            self.last.push(old);
        }
    }

    /// From and to the TCP streams.
    fn move_streams(&mut self) {
        let mut buf = [0; 512];
        for at in 0..STREAMS {
            let Some(place) = self.open.get_mut(at) else { continue };
            let Some(conn) = place else { continue };
            let mut moved = conn.write().map(|n| self.link.consumed(at, n));
            while moved.is_ok() && !conn.ended {
                let room = self.link.room(at).min(buf.len());
                if room == 0 {
                    break;
                }
                match conn.stream.read(buf.get_mut(..room).unwrap_or_default()) {
                    Ok(0) => {
                        conn.ended = true;
                        self.link.end(at);
                    }
                    Ok(n) => {
                        self.link.send(at, buf.get(..n).unwrap_or_default());
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => moved = Err(e),
                }
            }
            if moved.is_err() {
                self.link.cut(at);
                *place = None;
            } else if conn.ended && conn.told {
                *place = None;
            }
        }
        self.last.retain_mut(|conn| conn.write().is_ok() && !conn.told);
    }

    fn write_line(&mut self) -> io::Result<()> {
        while !self.wire.is_empty() {
            match self.tty.write(self.wire.as_slices().0) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => drop(self.wire.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Until something can be done.
    fn wait(&self, side: &Side) -> io::Result<()> {
        let flag = |on: bool, flag| if on { flag } else { PollFlags::empty() };
        let busy = flag(!self.wire.is_empty(), PollFlags::OUT);
        let mut all = vec![PollFd::from_borrowed_fd(self.tty.as_fd(), PollFlags::IN | busy)];
        if let Side::Dialler { woken, .. } = side {
            all.push(PollFd::from_borrowed_fd(woken.as_fd(), PollFlags::IN));
        }
        let open = self.open.iter().enumerate().filter_map(|(at, c)| Some((at, c.as_ref()?)));
        for (at, conn) in open {
            let reads = flag(!conn.ended && self.link.room(at) > 0, PollFlags::IN);
            let wants = reads | flag(!conn.out.is_empty(), PollFlags::OUT);
            // One that is closed and of which nothing is wanted would never let us sleep.
            if !wants.is_empty() {
                all.push(PollFd::from_borrowed_fd(conn.stream.as_fd(), wants));
            }
        }
        for conn in &self.last {
            all.push(PollFd::from_borrowed_fd(conn.stream.as_fd(), PollFlags::OUT));
        }
        let until = self.link.deadline_ms().map_or(LOOK, |at| {
            Duration::from_millis(at.saturating_sub(self.now_ms())).clamp(Duration::from_millis(1), LOOK)
        });
        let until = Timespec { tv_sec: 0, tv_nsec: until.subsec_nanos().into() };
        match poll(&mut all, Some(&until)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn read_line(&mut self, side: &mut Side) -> io::Result<()> {
        let mut buf = [0; 2048];
        let n = match self.tty.read(&mut buf) {
            Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "it was hung up")),
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
            Err(e) => return Err(e),
        };
        let now = self.now_ms();
        let mut input = buf.get(..n).unwrap_or_default();
        while let Some(event) = self.link.receive(&mut input, now) {
            match event {
                Event::Up => {
                    log::info!("the other end of the serial line is there");
                    self.drop_all();
                }
                Event::Opened { stream: at, port } => {
                    let Side::Listener(services) = side else { continue };
                    match services(port).and_then(Conn::new) {
                        Ok(conn) => self.put(at, conn),
                        Err(e) => {
                            log::warn!("the other end of the serial line wants port {port}: {e}");
                            self.link.cut(at);
                        }
                    }
                }
                Event::Bytes { stream: at, bytes } => {
                    if let Some(Some(conn)) = self.open.get_mut(at) {
                        conn.out.extend(bytes);
                    }
                }
                Event::Ended { stream: at } => {
                    if let Some(Some(conn)) = self.open.get_mut(at) {
                        conn.peer_ended = true;
                    }
                }
                Event::Cut { stream: at } => {
                    if let Some(conn) = self.open.get_mut(at).and_then(Option::take) {
                        conn.reset();
                    }
                }
                Event::Down => {}
            }
        }
        Ok(())
    }

    fn drop_all(&mut self) {
        self.open.iter_mut().filter_map(Option::take).chain(self.last.drain(..)).for_each(Conn::reset);
    }
}

/// Connects to the service of this port, for the other end of a line.
pub type Services = Box<dyn FnMut(u16) -> io::Result<TcpStream> + Send>;
