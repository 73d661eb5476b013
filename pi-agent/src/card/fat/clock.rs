//! The date that files get: now, in UTC, since a Pi knows no time zone here.

use std::time::{SystemTime, UNIX_EPOCH};

use fatfs::{Date, DateTime, Time, TimeProvider};

/// The first day that FAT has, 1 January 1980, in days since 1970. A Pi that was told no time is in 1970.
const FIRST: u64 = 3652;
/// The last one, 31 December 2107.
const LAST: u64 = 50_402;

/// The clock of this machine.
#[derive(Debug)]
pub(super) struct Clock;

impl TimeProvider for Clock {
    fn get_current_date(&self) -> Date {
        self.get_current_date_time().date
    }

    fn get_current_date_time(&self) -> DateTime {
        at(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()))
    }
}

/// The date and time so many seconds after 1970 began, or the nearest that FAT has.
fn at(seconds: u64) -> DateTime {
    let day = (seconds / 86_400).clamp(FIRST, LAST);
    let second = if day == seconds / 86_400 { seconds % 86_400 } else { 0 };
    let small = |n: u64| u16::try_from(n).unwrap_or(0);
    // Years that begin with March, so that the leap day is the last: of the proleptic calendar from year 0 on.
    let days = day + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let months = (5 * of_year + 2) / 153;
    let month = if months < 10 { months + 3 } else { months - 9 };
    let date = Date {
        year: small(era * 400 + year + u64::from(month < 3)),
        month: small(month),
        day: small(of_year - (153 * months + 2) / 5 + 1),
    };
    let time =
        Time { hour: small(second / 3600), min: small(second / 60 % 60), sec: small(second % 60), millis: 0 };
    DateTime { date, time }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_the_calendar() {
        for (seconds, want) in [
            (0, (1980, 1, 1, 0, 0, 0)),
            (315_532_799, (1980, 1, 1, 0, 0, 0)),
            (951_827_696, (2000, 2, 29, 12, 34, 56)),
            (1_709_251_199, (2024, 2, 29, 23, 59, 59)),
            (1_709_251_200, (2024, 3, 1, 0, 0, 0)),
            (4_107_542_399, (2100, 2, 28, 23, 59, 59)),
            (4_107_542_400, (2100, 3, 1, 0, 0, 0)),
            (4_354_819_199, (2107, 12, 31, 23, 59, 59)),
            (u64::MAX, (2107, 12, 31, 0, 0, 0)),
        ] {
            let DateTime { date, time } = at(seconds);
            let is = (date.year, date.month, date.day, time.hour, time.min, time.sec);
            assert_eq!(is, want, "{seconds}");
        }
    }
}
