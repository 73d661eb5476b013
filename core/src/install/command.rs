//! What piman orders: a line (or more), and then a line `EOM`.

use core::fmt;

use super::ours::{self, BootPersonal, Clock, Offer};
use crate::text::{self, Sink, ToText};

/// The line that ends a block of commands.
pub(super) const END: &[u8] = b"EOM";

/// One order to a Pi.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Command<'a> {
    /// Boot what is on the card.
    Boot,
    /// Ours: do this to what is on the card, and boot it.
    Personalise(BootPersonal),
    /// Partition, format, install; for our own agents with what to install.
    Format(Option<Offer>),
    /// Wipe the root filesystem, report `IS_UNINSTALLED` and wait.
    Reinstall,
    /// Set the clock; a Pi has none that runs without power.
    Date(Date),
    /// Answer with the Pi's addresses.
    Ip,
    /// Ours: the answer to a greeting that asks for one, so that the Pi knows that it is understood.
    Hello {
        /// The time in UTC, where the Pi should get it.
        clock: Option<Clock>,
    },
    /// Ours: not now; report again after this many seconds.
    Wait {
        /// How long to wait, in seconds.
        seconds: u16,
        /// How far the preparation of the image is, in per cent.
        percent: u8,
        /// Why, and the command that decides, for people; may be empty.
        text: &'a str,
    },
    /// Ours: what there is to install will never have room on this disk. An agent that does not know this waits.
    Never {
        /// When one that waits for another image is to report again, in seconds.
        seconds: u16,
        /// Why, for people.
        text: &'a str,
    },
}

/// The orders that are one word.
#[derive(Clone, Copy)]
pub(super) enum Word {
    Boot,
    Format,
    Reinstall,
    Ip,
}

impl Word {
    /// `None` for anything else than the bare word.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        // One comparison in a loop, not one for each.
        const WORDS: &[(&[u8], Word)] = &[
            (b"boot", Word::Boot),
            (b"format", Word::Format),
            (b"reinstall", Word::Reinstall),
            (b"ip", Word::Ip),
        ];
        WORDS.iter().find(|(word, _)| *word == line).map(|(_, order)| *order)
    }
}

impl ToText for Command<'_> {
    fn write_text(&self, to: &mut impl Sink) {
        match self {
            Self::Boot => to.text("boot"),
            Self::Personalise(personal) => {
                to.text("boot\n");
                personal.write_text(to);
            }
            Self::Format(None) => to.text("format"),
            Self::Format(Some(offer)) => {
                to.text("format\n");
                offer.write_text(to);
            }
            Self::Reinstall => to.text("reinstall"),
            Self::Date(date) => date.write_text(to),
            Self::Ip => to.text("ip"),
            Self::Hello { clock } => {
                to.text(ours::MARK);
                to.text(" hello rev=");
                text::number(to, ours::REVISION.into(), 0);
                if let Some(clock) = clock {
                    clock.write_text(to);
                }
            }
            Self::Wait { seconds, percent, text } => write_wait(to, *seconds, *percent, "", text),
            Self::Never { seconds, text } => write_wait(to, *seconds, 0, " never=1", text),
        }
        to.text("\nEOM\n")
    }
}

fn write_wait(to: &mut impl Sink, seconds: u16, percent: u8, more: &str, why: &str) {
    to.text(ours::MARK);
    to.text(" wait seconds=");
    text::number(to, seconds.into(), 0);
    to.text(" percent=");
    text::number(to, percent.into(), 0);
    to.text(more);
    if !why.is_empty() {
        to.text(" text=");
        ours::put_text(to, why);
    }
}

/// The whole block, `EOM` included.
impl fmt::Display for Command<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f)
    }
}

/// A moment in the server's local time, to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Date {
    /// `None` unless it is a moment that exists (years 1970 to 9999, seconds to 60).
    #[must_use]
    pub fn new(year: u16, month: u8, day: u8, hour: u8, minute: u8, second: u8) -> Option<Self> {
        let leap = year.is_multiple_of(if year.is_multiple_of(100) { 400 } else { 4 });
        let days = match month {
            4 | 6 | 9 | 11 => 30,
            2 => 28 + u8::from(leap),
            _ => 31,
        };
        let exists = (1970..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=days).contains(&day)
            && hour < 24
            && minute < 60
            && second <= 60;
        exists.then_some(Self { year, month, day, hour, minute, second })
    }

    /// Reads `busybox date -s YYYYMMDDhhmm.ss` and no other form: nothing of the line
    /// is ever given to a shell.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let stamp = text::after(line.trim_ascii(), b"busybox date -s ")?;
        let [digits @ .., b'.', _, _] = stamp else { return None };
        if digits.len() != 12 {
            return None;
        }
        let mut pairs = [0, 2, 4, 6, 8, 10, 13];
        for place in &mut pairs {
            let at = usize::from(*place);
            // Two digits: they fit.
            *place = text::parse(stamp.get(at..at + 2)?)? as u8;
        }
        let [century, year, month, day, hour, minute, second] = pairs;
        Self::new(u16::from(century) * 100 + u16::from(year), month, day, hour, minute, second)
    }

    /// Seconds since 1970-01-01T00:00:00 of the same clock (whatever its zone).
    #[must_use]
    pub fn seconds_since_1970(&self) -> u64 {
        // Days by counting years from March, so that the leap day is a year's last.
        let shifted = u32::from(self.month + 9) % 12;
        let year = u32::from(self.year) - u32::from(self.month < 3);
        let days =
            365 * year + year / 4 - year / 100 + year / 400 + (153 * shifted + 2) / 5 + u32::from(self.day)
                - 719_469;
        ((u64::from(days) * 24 + u64::from(self.hour)) * 60 + u64::from(self.minute)) * 60
            + u64::from(self.second)
    }
}

impl ToText for Date {
    fn write_text(&self, to: &mut impl Sink) {
        let Self { year, month, day, hour, minute, second } = *self;
        to.text("busybox date -s ");
        text::number(to, year.into(), 4);
        for pair in [month, day, hour, minute] {
            text::number(to, pair.into(), 2);
        }
        to.byte(b'.');
        text::number(to, second.into(), 2)
    }
}

/// The one form on the wire.
impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn blocks_as_old_pis_read_them() {
        assert_eq!(Command::Boot.to_string(), "boot\nEOM\n");
        assert_eq!(Command::Format(None).to_string(), "format\nEOM\n");
        assert_eq!(Command::Reinstall.to_string(), "reinstall\nEOM\n");
        assert_eq!(Command::Ip.to_string(), "ip\nEOM\n");
        let date = Date::new(2026, 3, 9, 8, 7, 5).unwrap();
        assert_eq!(Command::Date(date).to_string(), "busybox date -s 202603090807.05\nEOM\n");
    }

    #[test]
    fn the_answer_to_a_greeting() {
        let revision = ours::REVISION;
        let hello = |clock| Command::Hello { clock }.to_string();
        assert_eq!(hello(None), std::format!("PIMAN/1 hello rev={revision}\nEOM\n"));
        let clock = Clock { seconds: 1_795_231_447, nanos: 7_000_001 };
        let want = std::format!("PIMAN/1 hello rev={revision} seconds=1795231447 nanos=7000001\nEOM\n");
        assert_eq!(hello(Some(clock)), want);
    }

    #[test]
    fn only_one_form_of_the_date() {
        let date = Date::new(2024, 2, 29, 23, 59, 60).unwrap();
        assert_eq!(Date::parse(b"busybox date -s 202402292359.60\r"), Some(date));
        for bad in [
            "date -s 202402292359.60",
            "busybox date -s 202302292359.60",
            "busybox date -s 202402292359",
            "busybox date -s 202402292359.6",
            "busybox date -s 202402292359.600",
            "busybox date -s 2024022923.59.60",
            "busybox date -s 202402292359.60; reboot",
            "busybox date -s +02402292359.60",
            "busybox date -s $(reboot)",
            "busybox date -s ",
        ] {
            assert_eq!(Date::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn seconds() {
        assert_eq!(Date::new(1970, 1, 1, 0, 0, 0).unwrap().seconds_since_1970(), 0);
        assert_eq!(Date::new(2000, 3, 1, 0, 0, 0).unwrap().seconds_since_1970(), 951_868_800);
        assert_eq!(Date::new(2026, 11, 21, 3, 24, 7).unwrap().seconds_since_1970(), 1_795_231_447);
    }
}
