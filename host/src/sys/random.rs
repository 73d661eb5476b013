//! Random bytes, from the kernel.

use crate::sys::clock::now_ms;

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
