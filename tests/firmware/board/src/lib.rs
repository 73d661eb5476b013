//! The board mps2-an385 as QEMU has it, without a network stack: the firmware puts smoltcp on it, the example
//! embassy-net.
#![no_std]

pub mod lan9118;
pub mod semihosting;

#[panic_handler]
fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    if cfg!(feature = "tell-panics") {
        core::hint::black_box((info.message().as_str(), info.location()));
    }
    semihosting::print("panic\n");
    semihosting::exit(false)
}
