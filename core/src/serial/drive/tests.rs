//! Streams over a line in memory, on a clock that jumps.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake};
use std::vec::Vec as Bytes;

use super::*;

/// A clock that jumps to the next moment somebody waits for, as soon as nothing else is to be done.
#[derive(Debug, Clone, Default)]
struct Jumping(Rc<Time>);

#[derive(Debug, Default)]
struct Time {
    now: Cell<u64>,
    sleeper: RefCell<Option<(u64, Waker)>>,
}

impl Clock for Jumping {
    fn now_ms(&self) -> u64 {
        self.0.now.get()
    }

    async fn sleep(&self, ms: u64) {
        let at = self.now_ms() + ms;
        poll_fn(|cx| {
            if self.now_ms() >= at {
                return Poll::Ready(());
            }
            *self.0.sleeper.borrow_mut() = Some((at, cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Polls only what was woken, so that a forgotten waker shows.
fn execute<F: Future>(clock: &Jumping, future: F) -> F::Output {
    let flag = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&flag));
    let mut future = pin!(future);
    loop {
        while flag.0.swap(false, Ordering::Relaxed) {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return output;
            }
        }
        let (at, sleeper) = clock.0.sleeper.borrow_mut().take().expect("somebody waits for the time");
        clock.0.now.set(at);
        assert!(at < 600_000, "nothing comes of it");
        sleeper.wake();
    }
}

/// One direction of a line. Of so many bytes one is damaged, if it is not 0.
#[derive(Debug, Default)]
struct Wire {
    bytes: RefCell<VecDeque<u8>>,
    reader: RefCell<Waiting>,
    damage: usize,
    written: Cell<usize>,
}

struct End<'w>(&'w Wire);

impl ErrorType for End<'_> {
    type Error = Infallible;
}

impl Read for End<'_> {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Infallible> {
        poll_fn(|cx| {
            let n = buf.len().min(self.0.bytes.borrow().len());
            if n == 0 {
                self.0.reader.borrow_mut().register(cx.waker());
                return Poll::Pending;
            }
            buf.iter_mut().zip(self.0.bytes.borrow_mut().drain(..n)).for_each(|(to, from)| *to = from);
            Poll::Ready(Ok(n))
        })
        .await
    }
}

impl Write for End<'_> {
    async fn write(&mut self, buf: &[u8]) -> Result<usize, Infallible> {
        for byte in buf {
            let count = self.0.written.get() + 1;
            self.0.written.set(count);
            let spoilt = self.0.damage > 0 && count.is_multiple_of(self.0.damage);
            self.0.bytes.borrow_mut().push_back(if spoilt { byte ^ 0x10 } else { *byte });
        }
        self.0.reader.borrow_mut().wake();
        Ok(buf.len())
    }

    async fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The other end: says all that it hears on a stream again, in the order of its coming. Port 1 it cuts.
async fn echo(mut from: End<'_>, mut to: End<'_>, clock: &Jumping) {
    let mut link = Link::new(Role::Listener, 0);
    let mut waiting: Bytes<(usize, Bytes<u8>, bool)> = Bytes::new();
    let (mut buf, mut frame) = ([0; 64], Vec::new());
    loop {
        let n = from.read(&mut buf).await.unwrap();
        let mut input = &buf[..n];
        while let Some(event) = link.receive(&mut input, clock.now_ms()) {
            match event {
                Event::Opened { stream, port: 1 } => link.cut(stream),
                Event::Opened { stream, .. } => waiting.push((stream, Bytes::new(), false)),
                Event::Bytes { stream, bytes } => {
                    let n = bytes.len();
                    let told = waiting.iter_mut().find(|w| w.0 == stream);
                    told.unwrap().1.extend(bytes);
                    link.consumed(stream, n);
                }
                Event::Ended { stream } => {
                    waiting.iter_mut().filter(|w| w.0 == stream).for_each(|w| w.2 = true);
                }
                Event::Cut { stream } => waiting.retain(|w| w.0 != stream),
                Event::Up | Event::Down => waiting.clear(),
            }
        }
        waiting.retain_mut(|(stream, bytes, ended)| {
            let n = link.send(*stream, bytes);
            bytes.drain(..n);
            let over = bytes.is_empty() && *ended;
            if over {
                link.end(*stream);
            }
            !over
        });
        link.tick(clock.now_ms());
        while let Some(bytes) = link.transmit(clock.now_ms(), &mut frame) {
            to.write(bytes).await.unwrap();
        }
    }
}

/// What the Pi does on the line, beside the driver and the other end.
fn on_a_line<T>(damage: usize, work: impl AsyncFnOnce(&Line<Jumping, 2>) -> T) -> T {
    let clock = Jumping::default();
    let line = Line::new(7, clock.clone());
    let (there, back) = (Wire { damage, ..Wire::default() }, Wire::default());
    execute(&clock, async {
        let (mut from, mut to) = (End(&back), End(&there));
        let mut driver = pin!(line.run(&mut from, &mut to));
        let mut echo = pin!(echo(End(&there), End(&back), &clock));
        let mut work = pin!(work(&line));
        poll_fn(|cx| {
            assert!(driver.as_mut().poll(cx).is_pending() && echo.as_mut().poll(cx).is_pending());
            work.as_mut().poll(cx)
        })
        .await
    })
}

/// All of `bytes` there and back on one stream, which is ended in order.
async fn there_and_back(line: &Line<Jumping, 2>, bytes: &[u8]) -> Bytes<u8> {
    let mut stream = line.open(4444).await;
    let (mut back, mut sent, mut buf) = (Bytes::new(), 0, [0; 100]);
    while back.len() < bytes.len() {
        let next = sent + 700.min(bytes.len() - sent);
        put(&mut stream, &bytes[sent..next]).await.unwrap();
        sent = next;
        while back.len() < sent {
            let n = stream.read(&mut buf).await.unwrap();
            back.extend_from_slice(&buf[..n]);
        }
    }
    stream.close().await.unwrap();
    back
}

#[test]
fn streams_carry_bytes_over_a_line_that_damages_them() {
    let bytes: Bytes<u8> = (0..9000_u32).map(|i| ((i * i) >> 3) as u8).collect();
    for damage in [0, 997] {
        on_a_line(damage, async |line| {
            // Both at once, and then more than there are places.
            let (mut one, mut two) =
                (pin!(there_and_back(line, &bytes)), pin!(there_and_back(line, &bytes[1..])));
            let (mut first, mut second) = (None, None);
            poll_fn(|cx| {
                if first.is_none()
                    && let Poll::Ready(back) = one.as_mut().poll(cx)
                {
                    first = Some(back);
                }
                if second.is_none()
                    && let Poll::Ready(back) = two.as_mut().poll(cx)
                {
                    second = Some(back);
                }
                if first.is_some() && second.is_some() { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            assert!(first.as_deref() == Some(&bytes[..]) && second.as_deref() == Some(&bytes[1..]));
            for _ in 0..20 {
                assert_eq!(there_and_back(line, b"again").await, b"again");
            }
        });
    }
}

#[test]
fn the_other_end_can_cut_a_stream() {
    on_a_line(0, async |line| {
        let mut stream = line.open(1).await;
        assert_eq!(stream.read(&mut [0; 8]).await, Err(StreamError::Cut));
        assert_eq!(stream.write(b"more").await, Err(StreamError::Cut));
        drop(stream);
        assert_eq!(there_and_back(line, b"another one").await, b"another one");
    });
}

#[test]
fn what_is_finished_takes_no_more() {
    on_a_line(0, async |line| {
        let mut stream = line.open(4444).await;
        put(&mut stream, b"all").await.unwrap();
        stream.finish();
        assert_eq!(stream.write(b"more").await, Err(StreamError::Finished));
        let mut buf = [0; 8];
        assert_eq!(stream.read(&mut buf).await, Ok(3));
        assert_eq!(buf[..3], *b"all");
        assert_eq!(stream.read(&mut buf).await, Ok(0));
    });
}
