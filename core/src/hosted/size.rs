//! Sizes as people write them.

/// Reads `8G`, `512M`, `64K` (powers of 1024) or bytes; `None` for anything else, and for 16 EiB and more.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let upper = text.trim().to_ascii_uppercase();
    let number = upper.trim_end_matches("IB").trim_end_matches('B');
    let units = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let in_unit = |(unit, shift)| Some((number.strip_suffix(unit)?, shift));
    let (number, shift) = units.into_iter().find_map(in_unit).unwrap_or((number, 0));
    let count: u64 = number.trim().parse().ok()?;
    count.checked_mul(1 << shift)
}
