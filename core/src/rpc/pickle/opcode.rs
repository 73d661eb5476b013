//! The instructions of a pickle, and the form of what follows each.

/// What follows an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Argument {
    /// Nothing.
    None,
    /// So many bytes.
    Fixed(u8),
    /// A length of so many bytes, little-endian, and as many bytes.
    Counted(u8),
    /// So many lines.
    Lines(u8),
}

/// The end of a message.
pub(super) const STOP: u8 = b'.';

/// What follows `opcode`; `None` if no protocol up to 5 has it.
pub(super) const fn argument(opcode: u8) -> Option<Argument> {
    Some(match opcode {
        b'(' | b'.' | b'0' | b'1' | b'2' | b'N' | b'Q' | b'R' | b'a' | b'b' | b'd' | b'}' | b'e' | b'l'
        | b']' | b'o' | b's' | b't' | b')' | b'u' => Argument::None,
        b'F' | b'I' | b'L' | b'P' | b'S' | b'V' | b'g' | b'p' => Argument::Lines(1),
        b'c' | b'i' => Argument::Lines(2),
        b'K' | b'h' | b'q' | 0x80 | 0x82 => Argument::Fixed(1),
        b'M' | 0x83 => Argument::Fixed(2),
        b'J' | b'j' | b'r' | 0x84 => Argument::Fixed(4),
        b'G' | 0x95 => Argument::Fixed(8),
        b'U' | b'C' | 0x8A | 0x8C => Argument::Counted(1),
        b'T' | b'X' | b'B' | 0x8B => Argument::Counted(4),
        0x8D | 0x8E | 0x96 => Argument::Counted(8),
        0x81 | 0x85..=0x89 | 0x8F..=0x94 | 0x97 | 0x98 => Argument::None,
        _ => return None,
    })
}
