//! How long a server waits for its interface and addresses.

use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use crate::netboot::ready;
use crate::text::duration::HumanDuration;

/// A length of time that may be 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "toml::Value")]
pub struct Wait(pub Duration);

impl Wait {
    /// What holds if nothing is said: services are started while the network comes up, people see what is wrong.
    pub(super) fn usual() -> Duration {
        if ready::is_service() { ready::LIMIT } else { Duration::ZERO }
    }
}

impl FromStr for Wait {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if matches!(text.trim(), "0" | "0s") {
            return Ok(Self(Duration::ZERO));
        }
        text.parse().map(|HumanDuration(time)| Self(time))
    }
}

impl TryFrom<toml::Value> for Wait {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::Integer(seconds) => seconds.to_string().parse(),
            toml::Value::String(text) => text.parse(),
            _ => Err("it is no length of time; write \"90s\" or a number of seconds".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_and_a_time() {
        for (text, seconds) in [("0", 0), ("0s", 0), ("90", 90), ("2m", 120)] {
            assert_eq!(text.parse(), Ok(Wait(Duration::from_secs(seconds))), "{text}");
        }
        assert!("soon".parse::<Wait>().is_err());
        for (text, seconds) in
            [("0", Some(0)), ("5", Some(5)), ("\"5m\"", Some(300)), ("true", None), ("-1", None)]
        {
            #[derive(Deserialize)]
            struct File {
                wait: Wait,
            }
            let read = toml::from_str::<File>(&format!("wait = {text}")).ok();
            assert_eq!(read.map(|file| file.wait.0.as_secs()), seconds, "{text}");
        }
    }
}
