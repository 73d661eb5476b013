//! Identifiers in text: each that is renewed, wherever it stands on its own, in the case that it was written in.

use piman_core::install::gpt::crc32;

/// An old identifier and the new one, both as programs write them and equally long.
pub(super) type Pair = (String, String);

/// Replaces all old identifiers; whether there were any.
pub(super) fn replace(text: &mut [u8], pairs: &[Pair]) -> bool {
    let mut changed = false;
    let mut at = 0;
    while at < text.len() {
        let before = at.checked_sub(1).and_then(|at| text.get(at).copied());
        let pair = pairs.iter().find(|(old, new)| {
            let end = at + old.len();
            let found = text.get(at..end).is_some_and(|found| found.eq_ignore_ascii_case(old.as_bytes()));
            found && old.len() == new.len() && !goes_on(before) && !goes_on(text.get(end).copied())
        });
        let Some((old, new)) = pair else {
            at += 1;
            continue;
        };
        let found = text.get_mut(at..at + old.len()).unwrap_or_default();
        let new = match (found.iter().any(u8::is_ascii_uppercase), found.iter().any(u8::is_ascii_lowercase)) {
            (true, false) => new.to_ascii_uppercase(),
            (false, true) => new.to_ascii_lowercase(),
            _ => new.clone(),
        };
        found.copy_from_slice(new.as_bytes());
        changed = true;
        at += old.len();
    }
    changed
}

/// Whether a longer identifier would go on with this.
fn goes_on(byte: Option<u8>) -> bool {
    byte.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Like [`replace`], also for a script of U-Boot (`boot.scr`): a header with checksums, and the text behind it.
pub(super) fn replace_in_file(bytes: &mut [u8], pairs: &[Pair]) -> bool {
    const MAGIC: [u8; 4] = [0x27, 0x05, 0x19, 0x56];
    const HEADER: usize = 64;
    let changed = replace(bytes, pairs);
    if changed
        && bytes.starts_with(&MAGIC)
        && let Some((header, data)) = bytes.split_first_chunk_mut::<HEADER>()
    {
        let length = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
        let data = usize::try_from(length).ok().and_then(|length| data.get(..length)).unwrap_or(data);
        let sum = crc32(data.iter().copied());
        header[24..28].copy_from_slice(&sum.to_be_bytes());
        header[4..8].fill(0);
        let sum = crc32(header.iter().copied());
        header[4..8].copy_from_slice(&sum.to_be_bytes());
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::identifier::{partition, serial, uuid};

    fn replaced(text: &str, pairs: &[Pair]) -> String {
        let mut bytes = text.as_bytes().to_vec();
        let changed = replace(&mut bytes, pairs);
        assert_eq!(changed, bytes != text.as_bytes());
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn only_what_stands_alone_in_the_case_that_it_has() {
        let pairs = [
            (partition(0x5f5d_7a31, 2), partition(0xabcd_ef01, 2)),
            (serial(0x1234_abcd), serial(0xfeed_0001)),
            (uuid(&[0x11; 16]), uuid(&[0xaa; 16])),
        ];
        let old = "root=PARTUUID=5f5d7a31-02 x=5F5D7A31-02 5f5d7a31-021 a5f5d7a31-02 5f5d7a31-02";
        let new = "root=PARTUUID=abcdef01-02 x=ABCDEF01-02 5f5d7a31-021 a5f5d7a31-02 abcdef01-02";
        assert_eq!(replaced(old, &pairs), new);
        let long = "UUID=1234-ABCD 1234-abcd 99-1234-abcd 1234-abcd-1111 /dev/disk/by-uuid/1234-ABCD";
        assert_eq!(
            replaced(long, &pairs),
            "UUID=FEED-0001 feed-0001 99-1234-abcd 1234-abcd-1111 /dev/disk/by-uuid/FEED-0001"
        );
        let uuid = "'11111111-1111-1111-1111-111111111111',11111111-1111-1111-1111-1111111111111";
        let new = "'aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa',11111111-1111-1111-1111-1111111111111";
        assert_eq!(replaced(uuid, &pairs), new);
        for text in ["", "5f5d7a31-0", "\u{e4}5f5d7a31-02"] {
            let _ = replaced(text, &pairs);
        }
    }

    #[test]
    fn a_script_of_u_boot_has_right_checksums() {
        let text = b"setenv bootargs root=UUID=11111111-1111-1111-1111-111111111111\n";
        let mut script = vec![0; 64];
        script[..4].copy_from_slice(&[0x27, 0x05, 0x19, 0x56]);
        script[12..16].copy_from_slice(&(text.len() as u32).to_be_bytes());
        script.extend(text);
        let pairs = [(uuid(&[0x11; 16]), uuid(&[0xaa; 16]))];
        assert!(replace_in_file(&mut script, &pairs));
        let sum = |bytes: &[u8]| crc32(bytes.iter().copied()).to_be_bytes();
        assert_eq!(script[24..28], sum(&script[64..]));
        let mut header = script[..64].to_vec();
        header[4..8].fill(0);
        assert_eq!(script[4..8], sum(&header));
        for length in 0..script.len() {
            let _ = replace_in_file(&mut script[..length].to_vec(), &pairs);
        }
    }
}
