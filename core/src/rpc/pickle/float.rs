//! Numbers in decimal, rounded as they must be, without the tables of the standard library, which are
//! larger than all of pickle: long division, as on paper. Slow, and only for what the oldest pickles hold.

/// The most digits that count; those after them only round.
const DIGITS_MAX: usize = 100;
/// ToText of 32 bits: for so many digits, times ten to the 308th or over ten to the 324th and all digits.
const WORDS: usize = 52;

/// Reads `-1.5e-7`, `inf`, `nan` and the like; `None` if it is no number.
pub(super) fn parse(text: &[u8]) -> Option<f64> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] | rest => (false, rest),
    };
    let size = if [&b"inf"[..], b"infinity"].iter().any(|w| w.eq_ignore_ascii_case(text)) {
        f64::INFINITY
    } else if text.eq_ignore_ascii_case(b"nan") {
        f64::NAN
    } else {
        finite(text)?
    };
    Some(if negative { -size } else { size })
}

fn finite(text: &[u8]) -> Option<f64> {
    let end = text.iter().position(|b| matches!(b, b'e' | b'E'));
    let (digits, exponent) = match end.and_then(|at| text.split_at_checked(at)) {
        Some((digits, exponent)) => (digits, whole(exponent.get(1..)?)?),
        None => (text, 0),
    };
    let mut number = Big([0; WORDS]);
    let (mut power, mut taken, mut seen) = (exponent, 0, 0);
    let (mut point, mut sticky) = (false, false);
    for byte in digits {
        let digit = match byte {
            b'.' if !point => {
                point = true;
                continue;
            }
            b'0'..=b'9' => byte - b'0',
            _ => return None,
        };
        seen += 1;
        if taken < DIGITS_MAX {
            number.times(10, digit.into());
            taken += usize::from(taken > 0 || digit > 0);
            power -= i32::from(point);
        } else {
            sticky |= digit > 0;
            power += i32::from(!point);
        }
    }
    (seen > 0).then(|| number.scaled(power, sticky))
}

/// An exponent; what is too large for any number is as large as fits.
fn whole(text: &[u8]) -> Option<i32> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] | rest => (false, rest),
    };
    if digits.is_empty() {
        return None;
    }
    let size = digits.iter().try_fold(0, |number: i32, byte| {
        byte.is_ascii_digit().then(|| (number * 10 + i32::from(byte - b'0')).min(100_000))
    })?;
    Some(if negative { -size } else { size })
}

/// A large number, the lowest word first.
struct Big([u32; WORDS]);

impl Big {
    /// Multiplies, and adds.
    fn times(&mut self, factor: u32, add: u32) {
        let mut carry = u64::from(add);
        for word in &mut self.0 {
            carry += u64::from(*word) * u64::from(factor);
            *word = carry as u32;
            carry >>= 32;
        }
    }

    /// Divides by ten; the rest.
    fn by_ten(&mut self) -> u32 {
        let mut rest = 0;
        for word in self.0.iter_mut().rev() {
            // In halves, so that a small processor divides by itself.
            let high = (rest << 16) | (*word >> 16);
            let low = ((high % 10) << 16) | (*word & 0xFFFF);
            *word = ((high / 10) << 16) | (low / 10);
            rest = low % 10;
        }
        rest
    }

    /// How many bits it has.
    fn bits(&self) -> i32 {
        let above = self.0.iter().rev().take_while(|w| **w == 0).count();
        let top = self.0.iter().rev().nth(above).map_or(0, |w| w.leading_zeros());
        (WORDS as i32 - above as i32) * 32 - top as i32
    }

    fn bit(&self, at: i32) -> bool {
        usize::try_from(at).is_ok_and(|at| self.0.get(at / 32).is_some_and(|w| (w >> (at % 32)) & 1 == 1))
    }

    /// This times ten to the `power`, rounded to the nearest, and to even between two. `sticky`: it is a
    /// little more.
    fn scaled(mut self, power: i32, mut sticky: bool) -> f64 {
        if self.bits() == 0 || power < -(325 + DIGITS_MAX as i32) {
            return 0.0;
        }
        if power > 308 {
            return f64::INFINITY;
        }
        for _ in 0..power {
            self.times(10, 0);
        }
        // Bits behind the point: as many as fit.
        let mut point = 0;
        if power < 0 {
            while self.bits() < WORDS as i32 * 32 - 16 {
                self.times(1 << 16, 0);
                point += 16;
            }
            for _ in power..0 {
                sticky |= self.by_ten() > 0;
            }
        }
        // Of the 53 bits of a number the last is worth 2^-1074 at least.
        let last = (self.bits() - 53).max(point - 1074);
        let mantissa = (0..53).rev().fold(0, |m, i| (m << 1) | u64::from(self.bit(last + i)));
        let below = sticky || (0..last - 1).any(|at| self.bit(at));
        let up = self.bit(last - 1) && (below || mantissa & 1 == 1);
        // A mantissa that grows by one bit makes the exponent larger by itself; 1074 and 52 are the
        // format's.
        let exponent = (last - point + 1074) as u64;
        let bits = (mantissa + u64::from(up)) + (exponent << 52);
        if bits >= f64::INFINITY.to_bits() { f64::INFINITY } else { f64::from_bits(bits) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};
    use std::vec::Vec;

    fn same(text: &str) {
        let want: f64 = text.parse().unwrap();
        let got = parse(text.as_bytes());
        assert_eq!(got.map(f64::to_bits), Some(want.to_bits()), "{text}: {got:?}, not {want:?}");
    }

    #[test]
    fn as_the_standard_library_reads_them() {
        for text in [
            "0",
            "-0.0",
            "1",
            "1.",
            ".5",
            "0.1",
            "-1.5e-7",
            "1e22",
            "1e23",
            "9007199254740993",
            "9007199254740991.5",
            "1.7976931348623157e308",
            "1.7976931348623159e308",
            "1e309",
            "5e-324",
            "2.4703282292062327e-324",
            "2.4703282292062328e-324",
            "2.2250738585072014e-308",
            "2.225073858507201e-308",
            "1e-400",
            "0e999999999",
            "123456789012345678901234567890",
            "0.000000000000000000000000000000000000000000000000000000001",
            "4.35",
            "8.41e21",
            "1e+3",
            "00012.50",
        ] {
            same(text);
        }
        let mut seed = 7_u64;
        for _ in 0..3000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = f64::from_bits(seed ^ seed >> 29);
            if number.is_finite() {
                same(&number.to_string());
                same(&std::format!("{number:e}"));
            }
        }
    }

    #[test]
    fn many_digits_round_as_all_of_them() {
        let mut half = String::from("1.00000000000000011102230246251565404236316680908203125");
        same(&half);
        half.push_str(&"0".repeat(300));
        same(&half);
        half.push('1');
        same(&half);
        same(&std::format!("{}e-300", "7".repeat(400)));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for bad in ["", "-", ".", "e5", "1e", "1e+", "1.2.3", "0x10", "1_0", " 1", "infinit", "1e5.0"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
        let words: Vec<_> = ["inf", "-Infinity", "+inf"].map(|w| parse(w.as_bytes())).into();
        assert_eq!(words, [Some(f64::INFINITY), Some(f64::NEG_INFINITY), Some(f64::INFINITY)]);
        assert!(parse(b"NaN").unwrap().is_nan());
    }
}
