//! Random bytes, from the kernel.

use std::io;

use crate::sys::clock::now_ms;

/// Random bytes that somebody's trust rests on.
///
/// # Errors
/// If the kernel has none.
pub(crate) fn secret<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())? {
        n if n == N => Ok(bytes),
        _ => Err(io::Error::other("the kernel gives too few random bytes")),
    }
}

/// Linux always has them, from shortly after its start; until then the time has to do.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(n) if n == N => {}
        other => {
            tracing::error!("there are no random bytes: {other:?}");
            bytes.iter_mut().zip(now_ms().to_le_bytes()).for_each(|(byte, time)| *byte ^= time);
        }
    }
    bytes
}
