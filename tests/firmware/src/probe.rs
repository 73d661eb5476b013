//! Runs one session against a script, and says how deep the stack was: one binary for each session,
//! so that the difference to the empty one is what the session costs.

use core::convert::Infallible;
use core::hint::black_box;
use core::ptr;

use embedded_io_async::{ErrorType, Read, Write};

use crate::semihosting::{exit, print, print_number};

/// A peer whose words are fixed; what it is told is counted and dropped.
pub struct Line {
    input: &'static [u8],
    /// What is left of the part that is read.
    part: u8,
    written: usize,
    /// The size of the session's future, in bytes.
    pub future: usize,
}

impl ErrorType for Line {
    type Error = Infallible;
}

impl Read for Line {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Infallible> {
        Ok(self.take(buf))
    }
}

impl Write for Line {
    async fn write(&mut self, buf: &[u8]) -> Result<usize, Infallible> {
        Ok(self.drop(buf))
    }

    async fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

impl Line {
    /// The peer says this next.
    pub fn receive(&mut self, script: &'static [u8]) {
        self.input = black_box(script);
    }

    /// Whether all that the peer said was read.
    pub fn is_heard(&self) -> bool {
        self.input.is_empty()
    }

    #[inline(never)]
    fn take(&mut self, buf: &mut [u8]) -> usize {
        if self.part == 0
            && let Some((length, rest)) = self.input.split_first()
        {
            self.part = *length;
            self.input = rest;
        }
        let mut n = 0;
        while self.part > 0
            && let (Some(to), Some((from, rest))) = (buf.get_mut(n), self.input.split_first())
        {
            *to = *from;
            self.input = rest;
            self.part -= 1;
            n += 1;
        }
        n
    }

    #[inline(never)]
    fn drop(&mut self, buf: &[u8]) -> usize {
        for byte in buf {
            black_box(*byte);
        }
        self.written += buf.len();
        buf.len()
    }
}

/// What is painted below the stack pointer, in words.
const PAINTED: usize = 16 << 10;
const PAINT: u32 = 0x7069_6D61;

/// Paints the stack below here; returns where that ends.
#[inline(never)]
fn paint() -> *mut u32 {
    let top = (cortex_m::register::msp::read() as usize - 64) & !3;
    let bottom = (top as *mut u32).wrapping_sub(PAINTED);
    for i in 0..PAINTED {
        // SAFETY: below the stack pointer and far above the statics, nothing lives.
        unsafe { ptr::write_volatile(bottom.wrapping_add(i), PAINT) };
    }
    bottom
}

/// How many bytes of what was painted have been used.
#[inline(never)]
fn used(bottom: *mut u32) -> u32 {
    let mut left = 0;
    // SAFETY: as in `paint`.
    while left < PAINTED && unsafe { ptr::read_volatile(bottom.wrapping_add(left)) } == PAINT {
        left += 1;
    }
    ((PAINTED - left) * 4 + 64) as u32
}

/// Runs `session`, and prints what it used. It says whether all went as it should.
#[inline(never)]
pub fn measure(session: impl FnOnce(&mut Line) -> bool) -> ! {
    let bottom = paint();
    let mut line = Line { input: &[], part: 0, written: 0, future: 0 };
    let ok = run(session, &mut line);
    let stack = used(bottom);
    print("stack ");
    print_number(stack);
    print(" future ");
    print_number(line.future as u32);
    print(" wrote ");
    print_number(line.written as u32);
    print("\n");
    exit(ok && line.written > 0)
}

/// A frame of its own: what is painted begins above everything that the session has.
#[inline(never)]
fn run(session: impl FnOnce(&mut Line) -> bool, line: &mut Line) -> bool {
    session(line)
}
