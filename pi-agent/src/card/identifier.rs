//! Identifiers as programs write them.

/// A UUID as text.
pub(crate) fn uuid(bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (n, byte) in bytes.iter().enumerate() {
        if matches!(n, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 0xf] {
            text.extend(char::from_digit(digit.into(), 16));
        }
    }
    text
}

/// A UUID as a GPT has it, as text.
pub(crate) fn guid(bytes: &[u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = *bytes;
    let [i, j, k, l, m, n, o, p] = rest;
    uuid(&[d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p])
}

/// The serial number of a FAT filesystem as text.
pub(crate) fn serial(number: u32) -> String {
    format!("{:04X}-{:04X}", number >> 16, number & 0xffff)
}

/// A partition of a disk with an MBR as text.
pub(crate) fn partition(disk_id: u32, number: u32) -> String {
    format!("{disk_id:08x}-{number:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_as_blkid_has_them() {
        let id = *b"\x01\x23\x45\x67\x89\xab\xcd\xef\xfe\xdc\xba\x98\x76\x54\x32\x10";
        assert_eq!(uuid(&id), "01234567-89ab-cdef-fedc-ba9876543210");
        assert_eq!(guid(&id), "67452301-ab89-efcd-fedc-ba9876543210");
        assert_eq!(serial(0x1a2b_0c0d), "1A2B-0C0D");
        assert_eq!(partition(0x05f5_d7a3, 10), "05f5d7a3-0a");
    }
}
