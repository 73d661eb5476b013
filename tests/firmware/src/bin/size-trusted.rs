//! What a session of this service costs: see `piman_firmware::sizes`.
#![no_std]
#![no_main]

use piman_firmware::probe::measure;
use piman_firmware::sizes::trusted::Trusted;
use piman_firmware::sizes::{BUFFER, session};

#[cortex_m_rt::entry]
fn main() -> ! {
    let mut buf = [0; BUFFER];
    measure(|io| session::<Trusted>(io, &mut buf))
}
