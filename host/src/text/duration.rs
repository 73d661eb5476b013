//! Lengths of time as they are written in options.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// A length of time as people write it: `90` or `90s`, `5m`, `2h`, `500ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HumanDuration(pub Duration);

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(at);
        let wrong = || format!("`{text}` is no length of time; write 90s, 5m, 2h or 500ms");
        let n: u64 = number.parse().map_err(|_| wrong())?;
        let ms = match unit.trim() {
            "" | "s" => 1_000,
            "ms" => 1,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let ms = n.checked_mul(ms).filter(|ms| (1..=1_000_000_000_000).contains(ms)).ok_or_else(wrong)?;
        Ok(Self(Duration::from_millis(ms)))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a length of time such as \"90s\", \"5m\", or a number of seconds")]
        enum Either {
            Seconds(u64),
            Text(String),
        }
        let text = match Either::deserialize(from)? {
            Either::Seconds(n) => n.to_string(),
            Either::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        for (text, ms) in
            [("90", 90_000), ("90s", 90_000), ("5m", 300_000), ("2h", 7_200_000), ("250ms", 250)]
        {
            assert_eq!(text.parse(), Ok(HumanDuration(Duration::from_millis(ms))), "{text}");
        }
        for bad in ["", "s", "0", "-1s", "1y", "1.5s", "99999999999999999999", "99999999999999h"] {
            assert!(bad.parse::<HumanDuration>().is_err(), "{bad}");
        }
    }
}
