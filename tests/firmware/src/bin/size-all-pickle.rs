//! What the sessions of all services cost together, with old peers: see `piman_firmware::sizes`.
#![no_std]
#![no_main]

use piman_firmware::probe::measure;
use piman_firmware::sizes::{
    BUFFER, frames::Messages, install::Install, pickle::Pickle, session, stream::Stream, transfer::Transfer,
};

#[cortex_m_rt::entry]
fn main() -> ! {
    let mut buf = [0; BUFFER];
    measure(|io| {
        session::<Install>(io, &mut buf)
            && session::<Transfer>(io, &mut buf)
            && session::<Stream>(io, &mut buf)
            && session::<Messages>(io, &mut buf)
            && session::<Pickle>(io, &mut buf)
    })
}
