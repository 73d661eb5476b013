//! What all measurements have in common: the difference to this one is the session.
#![no_std]
#![no_main]

use embedded_io_async::{Read, Write};
use piman_firmware::probe::{Line, measure};
use piman_firmware::script;
use piman_firmware::sizes::{BUFFER, Service, session};

struct Echo;

impl Service for Echo {
    const SCRIPT: &'static [u8] = script!(b"abcdefghijklmnopqrstuvwxyz");

    async fn run(io: &mut Line, buf: &mut [u8]) -> bool {
        loop {
            match io.read(buf).await {
                Ok(0) => return true,
                Ok(n) => _ = io.write(buf.get(..n).unwrap_or_default()).await,
            }
        }
    }
}

#[cortex_m_rt::entry]
fn main() -> ! {
    let mut buf = [0; BUFFER];
    measure(|io| session::<Echo>(io, &mut buf))
}
