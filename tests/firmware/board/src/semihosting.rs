//! Output and exit by semihosting, without `core::fmt`: what is measured must not share it.

use cortex_m_semihosting::{debug, nr, syscall1};

/// Prints a text.
pub fn print(text: &str) {
    for piece in text.as_bytes().chunks(63) {
        let mut bytes = [0; 64];
        for (to, from) in bytes.iter_mut().zip(piece) {
            *to = *from;
        }
        // SAFETY: the text ends in NUL, and the host only reads it.
        unsafe { syscall1(nr::WRITE0, bytes.as_ptr() as usize) };
    }
}

/// Prints a number in decimal.
#[inline(never)]
pub fn print_number(number: u32) {
    if number > 9 {
        print_number(number / 10);
    }
    let digit = [b'0' + (number % 10) as u8, 0];
    // SAFETY: the text ends in NUL, and the host only reads it.
    unsafe { syscall1(nr::WRITE0, digit.as_ptr() as usize) };
}

/// Ends the emulator.
pub fn exit(success: bool) -> ! {
    debug::exit(if success { debug::EXIT_SUCCESS } else { debug::EXIT_FAILURE });
    loop {
        cortex_m::asm::wfi();
    }
}

/// Prints like `print!`, with the machinery of `core::fmt`.
pub struct Out;

impl core::fmt::Write for Out {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        print(text);
        Ok(())
    }
}

/// The words of the command line, in `buf`; the first is the program.
pub fn arguments(buf: &mut [u8]) -> impl Iterator<Item = &str> {
    let mut block = [buf.as_mut_ptr() as usize, buf.len()];
    // SAFETY: the host writes no more than that length, and the length of what it wrote.
    let failed = unsafe { syscall1(nr::GET_CMDLINE, block.as_mut_ptr() as usize) } != 0;
    let length = if failed { 0 } else { core::hint::black_box(block)[1] };
    let line = buf.get(..length).and_then(|b| core::str::from_utf8(b).ok()).unwrap_or_default();
    line.split_ascii_whitespace()
}
