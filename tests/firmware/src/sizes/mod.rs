//! One session of each service on a chip, with all that it can do, against a script.
//!
//! What a session does with the bytes (hashing, writing to a card) is not a part of it.

pub mod frames;
pub mod install;
pub mod pickle;
pub mod postcard;
pub mod protected;
pub mod stream;
pub mod transfer;
pub mod trusted;

use core::future::Future;

use piman_core::blocking;

use crate::probe::Line;

/// The buffer that a caller lends to a session, in bytes.
pub const BUFFER: usize = 1024;

/// One measured session.
pub trait Service {
    /// What its peer says.
    const SCRIPT: &'static [u8];

    /// Runs it; whether all went as it should.
    fn run(io: &mut Line, buf: &mut [u8]) -> impl Future<Output = bool>;
}

/// The session on the chip, by the driver without an executor.
#[inline(never)]
pub fn session<S: Service>(io: &mut Line, buf: &mut [u8; BUFFER]) -> bool {
    io.receive(S::SCRIPT);
    let future = S::run(io, buf);
    let size = size_of_val(&future);
    let ok = blocking::run(future);
    io.future = io.future.max(size);
    ok && io.is_heard()
}

/// Puts a script where it is not counted: each part is read by itself, and has its length in front.
#[macro_export]
macro_rules! script {
    ($($bytes:expr),+ $(,)?) => {{
        const PARTS: &[&[u8]] = &[$($bytes),+];
        const LENGTH: usize = {
            let (mut n, mut i) = (0, 0);
            while i < PARTS.len() {
                n += 1 + PARTS[i].len();
                i += 1;
            }
            n
        };
        #[unsafe(link_section = ".script")]
        static SCRIPT: [u8; LENGTH] = {
            let (mut all, mut n, mut i) = ([0; LENGTH], 0, 0);
            while i < PARTS.len() {
                assert!(PARTS[i].len() < 256);
                all[n] = PARTS[i].len() as u8;
                n += 1;
                let mut j = 0;
                while j < PARTS[i].len() {
                    all[n] = PARTS[i][j];
                    n += 1;
                    j += 1;
                }
                i += 1;
            }
            all
        };
        &SCRIPT
    }};
}
