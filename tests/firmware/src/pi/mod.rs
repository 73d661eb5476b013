//! A Pi without an operating system: Ethernet, a clock, and the services of piman on them.

pub mod clock;
pub mod lan9118;

/// Prints a line.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        // It takes everything.
        let _ = writeln!($crate::semihosting::Out, $($arg)*);
    }};
}
