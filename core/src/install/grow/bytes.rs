//! Fields, bits and the checksum of ext4, in plain bytes.

/// A block of the filesystem.
pub type Block = [u8; super::BLOCK_BYTES];

/// The field at this place; what is behind the end reads as 0.
pub(super) fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().unwrap_or([0; N])
}

pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(get(bytes, at))
}

pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(bytes, at))
}

/// Sets the field at this place; what does not fit is left out.
pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, field: [u8; N]) {
    if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<N>()) {
        *place = field;
    }
}

/// The low 16 bits of a number that is known to fit.
pub(super) fn put16(bytes: &mut [u8], at: usize, value: u64) {
    let [low, high, ..] = value.to_le_bytes();
    put(bytes, at, [low, high]);
}

/// The low 32 bits of a number that is known to fit.
pub(super) fn put32(bytes: &mut [u8], at: usize, value: u64) {
    let [a, b, c, d, ..] = value.to_le_bytes();
    put(bytes, at, [a, b, c, d]);
}

/// Sets or clears bits of a bitmap.
pub(super) fn fill(bits: &mut Block, from: u64, to: u64, value: bool) {
    let mut at = from;
    while at < to {
        let Some(byte) = usize::try_from(at / 8).ok().and_then(|at| bits.get_mut(at)) else { return };
        if at.is_multiple_of(8) && to - at >= 8 {
            *byte = if value { 0xff } else { 0 };
            at += 8;
        } else {
            let bit = 1 << (at % 8);
            *byte = if value { *byte | bit } else { *byte & !bit };
            at += 1;
        }
    }
}

/// How many bits are clear.
pub(super) fn zeros(bits: &Block) -> u64 {
    bits.iter().map(|byte| u64::from(byte.count_zeros())).sum()
}

/// CRC-32C as ext4 has it: the register goes in and comes out as it is.
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 16] = [
        0x0000_0000,
        0x105e_c76f,
        0x20bd_8ede,
        0x30e3_49b1,
        0x417b_1dbc,
        0x5125_dad3,
        0x61c6_9362,
        0x7198_540d,
        0x82f6_3b78,
        0x92a8_fc17,
        0xa24b_b5a6,
        0xb215_72c9,
        0xc38d_26c4,
        0xd3d3_e1ab,
        0xe330_a81a,
        0xf36e_6f75,
    ];
    let step = |sum: u32| (sum >> 4) ^ TABLE.get((sum & 15) as usize).copied().unwrap_or(0);
    bytes.iter().fold(seed, |sum, byte| step(step(sum ^ u32::from(*byte))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_the_check_string() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn bits_are_filled_and_counted() {
        let mut bits = [0; super::super::BLOCK_BYTES];
        for (from, to) in [(3, 29), (40, 40), (32_760, 32_768), (100, 108)] {
            fill(&mut bits, from, to, true);
        }
        assert_eq!(zeros(&bits), 32_768 - 26 - 8 - 8);
        assert_eq!(bits[0], 0xf8);
        fill(&mut bits, 0, 32_768, false);
        assert_eq!(zeros(&bits), 32_768);
        fill(&mut bits, 32_767, u64::MAX, true);
        assert_eq!(zeros(&bits), 32_767);
    }
}
