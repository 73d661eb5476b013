//! Values of a profile that are checked where they are read, so that an error names its line.

use std::fmt;
use std::ops::Deref;

use piman_core::install::personal;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::images::personalise::template::Template;

macro_rules! checked {
    ($($(#[$doc:meta])* $name:ident: $check:path;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                $check(&text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

/// The largest number of a Pi.
const ORDINAL_MAX: u32 = 999_999;

/// The number of a Pi.
pub(super) fn ordinal<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    match Option::<u32>::deserialize(from)? {
        Some(number) if !(1..=ORDINAL_MAX).contains(&number) => {
            Err(D::Error::custom(format!("a number of a Pi is one from 1 to {ORDINAL_MAX}")))
        }
        number => Ok(number),
    }
}

checked! {
    /// A host name, or a pattern of one: `lab-{ordinal:02}`.
    Pattern: pattern;
    /// A locale, such as `en_GB.UTF-8`.
    Locale: locale;
    /// A time zone of the IANA's database, such as `Europe/London`.
    TimeZone: time_zone;
    /// A keyboard layout of X11, such as `gb` or `de`.
    Keyboard: keyboard;
    /// The name of a host, or its address.
    Host: host;
    /// The name of a user or a group.
    Name: name;
    /// An absolute path on the card.
    CardPath: card_path;
    /// `USER:GROUP`, or a user alone, whose group has the same name; by names or numbers.
    Owner: owner;
    /// A line of a file `authorized_keys`.
    SshKey: ssh_key;
    /// The name of a Wi-Fi network.
    Ssid: ssid;
    /// A country by two capital letters.
    Country: country;
    /// Text in one line.
    Line: line;
}

type Checked = Result<(), String>;

fn expect(good: bool, text: &str, why: &str) -> Checked {
    if good { Ok(()) } else { Err(format!("`{}` {why}", text.escape_debug())) }
}

fn pattern(text: &str) -> Checked {
    Template::host_name(text).map(drop)
}

fn locale(text: &str) -> Checked {
    let (name, charset) = text.split_once('.').unwrap_or((text, ""));
    let is_part = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-@".contains(&b));
    expect(
        !name.is_empty() && text.len() <= 64 && is_part(name) && is_part(charset),
        text,
        "is no locale: write it as en_GB.UTF-8",
    )
}

fn time_zone(text: &str) -> Checked {
    let is_part = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-+".contains(&b))
    };
    let is_known = || {
        let zones = jiff::tz::db();
        zones.is_definitively_empty() || zones.get(text).is_ok()
    };
    expect(
        text.len() <= 64 && text.split('/').all(is_part) && is_known(),
        text,
        "is no time zone that is known: write it as Europe/London",
    )
}

fn keyboard(text: &str) -> Checked {
    let good = (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    expect(good, text, "is no keyboard layout: write it as gb, us or de")
}

fn host(text: &str) -> Checked {
    let good = (1..=253).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:".contains(&b))
        && !text.starts_with('-');
    expect(good, text, "is no name of a host, and no address")
}

fn name(text: &str) -> Checked {
    expect(personal::is_name(text), text, "is no name of a user or a group")
}

fn card_path(text: &str) -> Checked {
    let is_line = !text.chars().any(char::is_control);
    expect(
        personal::is_path(text) && is_line,
        text,
        "is no path on a card: write it from `/` on, without `..`",
    )
}

fn owner(text: &str) -> Checked {
    let is_one = |one: &str| personal::is_name(one) || one.parse::<u32>().is_ok();
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    expect(is_one(user) && is_one(group), text, "is no owner: write USER or USER:GROUP")
}

impl Owner {
    /// With a group.
    #[must_use]
    pub fn whole(&self) -> String {
        if self.contains(':') { self.to_string() } else { format!("{self}:{self}") }
    }
}

fn ssh_key(text: &str) -> Checked {
    const KINDS: [&str; 3] = ["ssh-", "ecdsa-", "sk-"];
    let is_key = text.split_ascii_whitespace().any(|word| KINDS.iter().any(|kind| word.starts_with(kind)));
    let good = is_key && text.len() <= 16 << 10 && !text.chars().any(char::is_control);
    // What is there by mistake may be a private one, which is not repeated.
    if good {
        Ok(())
    } else {
        Err("it is no public key: write a line of a file such as ~/.ssh/id_ed25519.pub".into())
    }
}

fn ssid(text: &str) -> Checked {
    let good = (1..=32).contains(&text.len()) && !text.chars().any(char::is_control);
    expect(good, text, "is no name of a Wi-Fi network: it has 1 to 32 bytes and no control characters")
}

fn country(text: &str) -> Checked {
    let good = text.len() == 2 && text.bytes().all(|b| b.is_ascii_uppercase());
    expect(good, text, "is no country: write two capital letters, such as GB")
}

fn line(text: &str) -> Checked {
    let good = text.len() <= 256 && !text.contains(':') && !text.chars().any(char::is_control);
    expect(good, text, "cannot stand there: no colons, no control characters, 256 bytes at most")
}

/// Permissions, written in octal digits: `\"0644\"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mode(pub u32);

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777);
        mode.map(Self).ok_or_else(|| format!("`{}` is no mode: write it as \"0644\"", text.escape_debug()))
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> Self {
        format!("{:04o}", mode.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_and_what_cannot() {
        fn all<T: TryFrom<String>>(good: &[&str], bad: &[&str]) {
            good.iter().for_each(|text| assert!(T::try_from((*text).into()).is_ok(), "{text}"));
            bad.iter().for_each(|text| assert!(T::try_from((*text).into()).is_err(), "{text}"));
        }
        all::<Locale>(&["en_GB.UTF-8", "C.UTF-8", "de_DE@euro"], &["", ".UTF-8", "en GB", "a;reboot", "x\n"]);
        all::<TimeZone>(&["UTC", "Europe/London"], &["", "/etc/passwd", "Europe/../x", "Europe/ London"]);
        all::<Keyboard>(&["gb", "de-latin1"], &["", "gb us", "\"", "gb\n"]);
        all::<Host>(&["ntp.lab", "10.0.0.1", "fd00::1"], &["", "-x", "a b", "a\nb"]);
        all::<Name>(&["pi", "_x", "a-b"], &["", "-a", "1a", "a b", "ä", "root:x"]);
        all::<CardPath>(&["/etc/motd", "/a b"], &["etc", "/", "/a/../b", "/a\n", "/a//b"]);
        all::<Owner>(&["pi", "0:0", "pi:users", "1000"], &["", "pi:", "a b", "pi:x:y"]);
        all::<SshKey>(&["ssh-ed25519 AAAA me", "no-pty ssh-rsa A"], &["", "AAAA", "ssh-rsa A\nssh-rsa B"]);
        all::<Ssid>(&["lab", "ünï \"x\""], &["", "a\tb", "123456789012345678901234567890123"]);
        all::<Country>(&["GB"], &["gb", "GBR", ""]);
        all::<Mode>(&["0644", "755", "4755"], &["", "0o644", "888", "10000", "-1"]);
        assert_eq!(Owner::try_from("pi".to_owned()).unwrap().whole(), "pi:pi");
    }
}
