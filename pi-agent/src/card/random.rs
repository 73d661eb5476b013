//! Identifiers by chance.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// So many random bytes.
///
/// # Errors
/// If the system has none.
pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    if getrandom(&mut bytes, GetRandomFlags::empty())? != N {
        return Err(io::Error::other("the system has too few random numbers"));
    }
    Ok(bytes)
}

/// A UUID (version 4), in the order of its text.
///
/// # Errors
/// If the system has no random numbers.
pub(crate) fn uuid() -> io::Result<[u8; 16]> {
    let mut id: [u8; 16] = bytes()?;
    let [_, _, _, _, _, _, version, _, variant, ..] = &mut id;
    (*version, *variant) = (*version & 0x0f | 0x40, *variant & 0x3f | 0x80);
    Ok(id)
}

/// A UUID (version 4) as a GPT has it on the disk.
///
/// # Errors
/// If the system has no random numbers.
pub(crate) fn guid() -> io::Result<[u8; 16]> {
    let [a, b, c, d, e, f, g, h, rest @ ..] = uuid()?;
    let [i, j, k, l, m, n, o, p] = rest;
    Ok([d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p])
}

/// A number that is not 0.
///
/// # Errors
/// If the system has no random numbers.
pub(crate) fn number() -> io::Result<u32> {
    loop {
        match u32::from_le_bytes(bytes()?) {
            0 => {}
            number => return Ok(number),
        }
    }
}
