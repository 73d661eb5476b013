//! The logging macros: each call goes to `log`, to `defmt`, to both or to
//! none, as the features say. Declared first, so that every module sees them.

macro_rules! emit {
    ($level:ident, $($arg:tt)*) => {{
        #[cfg(feature = "log")]
        ::log::$level!($($arg)*);
        #[cfg(feature = "defmt")]
        ::defmt::$level!($($arg)*);
        #[cfg(not(any(feature = "log", feature = "defmt")))]
        {
            let _ = ::core::format_args!($($arg)*);
        }
    }};
}

macro_rules! debug {
    ($($arg:tt)*) => { emit!(debug, $($arg)*) };
}

macro_rules! warning {
    ($($arg:tt)*) => { emit!(warn, $($arg)*) };
}
