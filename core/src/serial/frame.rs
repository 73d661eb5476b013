//! Frames on the line: COBS between zero bytes, with a CRC-32 at the end.

use heapless::Vec;

/// The longest frame without its CRC, in bytes: with it, COBS adds one byte.
pub(super) const FRAME_MAX: usize = 250;
/// The longest frame as it is on the line, with a zero byte on either side.
pub const WIRE_MAX: usize = FRAME_MAX + 4 + 3;

/// Writes the frame as it goes on the line; `frame` is no longer than [`FRAME_MAX`].
pub(super) fn encode(frame: &[u8], out: &mut Vec<u8, WIRE_MAX>) {
    out.clear();
    let mut put = |byte| {
        // WIRE_MAX is room for all of it.
        let _ = out.push(byte);
    };
    // A zero byte first ends what noise may have begun.
    put(0);
    let crc = crc32(frame).to_be_bytes();
    let bytes = || frame.iter().chain(&crc).copied();
    let mut rest = bytes();
    loop {
        // Up to the next zero byte or the end; never more than 254.
        let run = rest.clone().take_while(|b| *b != 0).count();
        put(u8::try_from(run + 1).unwrap_or(u8::MAX));
        rest.by_ref().take(run).for_each(&mut put);
        if rest.next().is_none() {
            break;
        }
    }
    put(0);
}

/// Finds frames in what comes off the line.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    frame: Vec<u8, { FRAME_MAX + 4 }>,
    /// So many bytes follow before a zero byte is meant.
    run: u8,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the middle of nothing known: until the next zero byte.
    #[default]
    Lost,
    Code,
    Run,
}

/// What a byte made complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    /// A frame, in [`Decoder::frame`].
    Frame,
    /// Something that was damaged.
    Damage,
}

impl Decoder {
    /// The frame that was found last.
    pub(super) fn frame(&self) -> &[u8] {
        &self.frame
    }

    pub(super) fn take(&mut self, byte: u8) -> Found {
        if byte == 0 {
            let was = core::mem::replace(&mut self.state, State::Code);
            return match was {
                State::Lost | State::Code => Found::Nothing,
                State::Run if self.run > 0 => Found::Damage,
                State::Run => self.check(),
            };
        }
        let kept = match self.state {
            State::Lost => return Found::Nothing,
            State::Code => {
                // What was found before is not looked at any more.
                self.frame.clear();
                self.run = byte - 1;
                self.state = State::Run;
                true
            }
            State::Run if self.run == 0 => {
                let put = self.frame.push(0).is_ok();
                self.run = byte - 1;
                put
            }
            State::Run => {
                self.run -= 1;
                self.frame.push(byte).is_ok()
            }
        };
        if kept {
            return Found::Nothing;
        }
        self.state = State::Lost;
        Found::Damage
    }

    fn check(&mut self) -> Found {
        let Some(length) = self.frame.len().checked_sub(4) else { return Found::Damage };
        let (frame, crc) = self.frame.split_at(length);
        if crc32(frame).to_be_bytes() != crc {
            return Found::Damage;
        }
        self.frame.truncate(length);
        Found::Frame
    }
}

/// As Ethernet and gzip have it. Half a byte at a time: a line is slower than that.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 16] = table();
    let step = |crc: u32, nibble: u32| {
        let index = (crc ^ nibble) & 15;
        TABLE.get(index as usize).copied().unwrap_or(0) ^ (crc >> 4)
    };
    !bytes.iter().fold(!0, |crc, byte| step(step(crc, u32::from(*byte)), u32::from(byte >> 4)))
}

#[expect(clippy::indexing_slicing, reason = "by the compiler, which tells")]
const fn table() -> [u32; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 4 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> std::vec::Vec<std::vec::Vec<u8>> {
        let mut decoder = Decoder::default();
        let found = bytes.iter().filter_map(|b| match decoder.take(*b) {
            Found::Frame => Some(decoder.frame().to_vec()),
            _ => None,
        });
        found.collect()
    }

    #[test]
    fn the_crc_is_the_one_that_everybody_knows() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn frames_of_all_lengths_with_and_without_zero_bytes() {
        let mut wire = Vec::new();
        for length in 0..=FRAME_MAX {
            for pattern in [0, 1, 7] {
                let frame: std::vec::Vec<u8> =
                    (0..length).map(|i| if pattern == 0 { 0 } else { (i % pattern) as u8 }).collect();
                encode(&frame, &mut wire);
                assert!(wire.len() <= WIRE_MAX && !wire[1..wire.len() - 1].contains(&0));
                let twice = [&wire[..], &wire].concat();
                assert_eq!(decode(&twice), [frame.clone(), frame]);
            }
        }
    }

    #[test]
    fn a_damaged_frame_is_none_and_the_next_one_is_found() {
        let mut wire = Vec::new();
        encode(b"one\0frame", &mut wire);
        let whole = wire.to_vec();
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << bit;
                damaged.extend(&whole);
                let found = decode(&damaged);
                assert!(found.iter().all(|f| f == b"one\0frame") && !found.is_empty(), "{at} {bit}");
            }
            let mut short = whole.clone();
            short.remove(at);
            short.extend(&whole);
            assert!(decode(&short).iter().all(|f| f == b"one\0frame"));
        }
    }
}
