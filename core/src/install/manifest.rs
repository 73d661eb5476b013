//! The manifest of an image: what is signed, so that an agent with a public key installs nothing
//! else.
//!
//! Text, a line each, ended by `\n`, in this order:
//!
//! ```text
//! piman-manifest 1
//! image 4745630582705ec0...     BLAKE3 of the archive, which its chunk hashes give, too
//! bytes 651000000               its size
//! unpacked 1970000000           the size of what is packed in it
//! entries 34878                 how many entries it has
//! name lab                      for people
//! counter 1795231447            a Pi takes none with a smaller one than it has
//! for 10000000abcdef01          only for this serial number or hardware address; any number of them
//! table 0 0f1e...               the chunk table of the image that was made of it; 0: for cards of all sizes
//! ```
//!
//! Older servers signed an image for each size of root filesystem, with that in bytes in place of the 0; any number of
//! these lines may be there.
//!
//! Anything else is refused: an agent never passes over what it does not understand. The
//! signature is minisign's over the manifest as a file. On the fetch port (`fetch manifest ID`,
//! with the archive's id) both come as one: the four lines of the signature, then the manifest.

use core::fmt;

use crate::hash::Hash;

/// The largest manifest with its signature, in bytes.
pub const BYTES_MAX: usize = 256 << 10;

/// In place of the size of a root filesystem: the image is for cards of all sizes.
pub const ALL_SIZES: u64 = 0;

const HEADING: &str = "piman-manifest 1";

/// What is signed of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Manifest<'a> {
    /// BLAKE3 of the archive.
    pub image: Hash,
    /// Its size, in bytes.
    pub bytes: u64,
    /// The size of what is packed in it, in bytes.
    pub unpacked_bytes: u64,
    /// How many entries it has.
    pub entries: u64,
    /// How it is called.
    pub name: &'a str,
    /// Grows from one image to the next.
    pub counter: u64,
    /// The lines for devices and tables.
    rest: &'a str,
}

impl<'a> Manifest<'a> {
    /// Reads a whole manifest; `None` if it is no manifest, of another version, or says anything that is
    /// not understood.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut rest = text.strip_prefix(HEADING)?.strip_prefix('\n')?;
        let mut next = |key: &str| {
            let (line, after) = rest.split_once('\n')?;
            rest = after;
            line.strip_prefix(key)?.strip_prefix(' ')
        };
        let manifest = Self {
            image: Hash::parse(next("image")?)?,
            bytes: number(next("bytes")?)?,
            unpacked_bytes: number(next("unpacked")?)?,
            entries: number(next("entries")?)?,
            name: next("name").filter(|name| is_name(name))?,
            counter: number(next("counter")?)?,
            rest,
        };
        let whole = rest.is_empty() || rest.ends_with('\n');
        let devices = rest.lines().take_while(|line| device(line).is_some()).count();
        let understood = rest.lines().skip(devices).all(|line| table(line).is_some());
        (whole && understood && !rest.contains('\r')).then_some(manifest)
    }

    /// The Pis that it is for; none: for all.
    pub fn devices(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.rest.lines().filter_map(device)
    }

    /// The images that were made of it: the size of the root filesystems that each is for, in bytes, or [`ALL_SIZES`],
    /// and the hash of its chunk table.
    pub fn tables(&self) -> impl Iterator<Item = (u64, Hash)> + use<'a> {
        self.rest.lines().filter_map(table)
    }

    /// Whether it is for a Pi with these names.
    #[must_use]
    pub fn is_for(&self, serial: Option<&str>, mac: Option<&str>) -> bool {
        let mut devices = self.devices().peekable();
        let own = |device: &str| [serial, mac].iter().flatten().any(|own| own.eq_ignore_ascii_case(device));
        devices.peek().is_none() || devices.any(own)
    }
}

fn device(line: &str) -> Option<&str> {
    line.strip_prefix("for ").filter(|name| is_name(name))
}

fn table(line: &str) -> Option<(u64, Hash)> {
    let (size, hash) = line.strip_prefix("table ")?.split_once(' ')?;
    Some((number(size)?, Hash::parse(hash)?))
}

/// A number in its one spelling.
fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|b| b.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    text.parse().ok().filter(|_| digits)
}

/// Whether a manifest can say this as a name: 1 to 64 printable characters of ASCII without
/// white space.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// A manifest to be written; its `Display` is the text.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[expect(missing_docs, reason = "as in `Manifest`")]
pub struct Draft<'a, N, D, T> {
    pub image: Hash,
    pub bytes: u64,
    pub unpacked_bytes: u64,
    pub entries: u64,
    pub name: N,
    pub counter: u64,
    pub devices: &'a [D],
    pub tables: &'a [(u64, T)],
}

impl<N: fmt::Display, D: fmt::Display, T: fmt::Display> fmt::Display for Draft<'_, N, D, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image, bytes, unpacked_bytes, entries, name, counter, devices, tables } = self;
        write!(f, "{HEADING}\nimage {image}\nbytes {bytes}\nunpacked {unpacked_bytes}\n")?;
        write!(f, "entries {entries}\nname {name}\ncounter {counter}\n")?;
        devices.iter().try_for_each(|device| writeln!(f, "for {device}"))?;
        tables.iter().try_for_each(|(size, hash)| writeln!(f, "table {size} {hash}"))
    }
}

/// What the fetch port sends, as the signature and the manifest; `None` if it is not both.
#[must_use]
pub fn split(bytes: &[u8]) -> Option<(&str, &str)> {
    let text = core::str::from_utf8(bytes).ok()?;
    let (end, _) = text.match_indices('\n').nth(3)?;
    text.split_at_checked(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};
    use std::vec::Vec;

    const DEVICES: [&str; 2] = ["10000000abcdef01", "b8:27:eb:00:00:01"];

    fn draft<'a>(
        devices: &'a [&'a str],
        tables: &'a [(u64, Hash)],
    ) -> Draft<'a, &'static str, &'a str, Hash> {
        Draft {
            image: Hash([1; 32]),
            bytes: 651,
            unpacked_bytes: 1970,
            entries: 3,
            name: "lab",
            counter: 9,
            devices,
            tables,
        }
    }

    #[test]
    fn text_and_back() {
        let tables = [(1 << 30, Hash([2; 32])), (2 << 30, Hash([3; 32]))];
        let text = draft(&DEVICES, &tables).to_string();
        let manifest = Manifest::parse(&text).unwrap();
        assert_eq!((manifest.image, manifest.bytes, manifest.counter), (Hash([1; 32]), 651, 9));
        assert_eq!((manifest.unpacked_bytes, manifest.entries, manifest.name), (1970, 3, "lab"));
        assert_eq!(manifest.devices().collect::<Vec<_>>(), DEVICES);
        assert_eq!(manifest.tables().collect::<Vec<_>>(), tables);
        let golden = "piman-manifest 1\nimage 0101010101010101010101010101010101010101010101010101010101010101\n\
            bytes 651\nunpacked 1970\nentries 3\nname lab\ncounter 9\n";
        assert_eq!(draft(&[], &[]).to_string(), golden);
        let whole = std::format!("untrusted comment: x\nabc\ntrusted comment: y\ndef\n{golden}");
        assert_eq!(split(whole.as_bytes()).map(|(_, manifest)| manifest), Some(golden));
        assert_eq!(split(b"a\nb\nc\n"), None);
    }

    #[test]
    fn whom_it_is_for() {
        let (all, two) = (draft(&[], &[]).to_string(), draft(&DEVICES, &[]).to_string());
        let is = |text: &str, serial, mac| Manifest::parse(text).unwrap().is_for(serial, mac);
        assert!(is(&all, None, None) && is(&all, Some("x"), None));
        assert!(is(&two, Some("10000000ABCDEF01"), None) && is(&two, Some("y"), Some("b8:27:eb:00:00:01")));
        assert!(!is(&two, None, None) && !is(&two, Some("10000000abcdef0"), Some("b8:27:eb:00:00:02")));
    }

    #[test]
    fn anything_else_is_none() {
        let text = draft(&DEVICES, &[(5, Hash([2; 32]))]).to_string();
        assert!(Manifest::parse(&text).is_some());
        // Cut anywhere but between two lines of which any number may be there, it is refused.
        let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).skip(6).collect();
        for n in (0..text.len()).filter(|n| !ends.contains(n)) {
            assert_eq!(Manifest::parse(&text[..n]), None, "{n} bytes");
        }
        let changes: [(&str, &str); 10] = [
            ("piman-manifest 1", "piman-manifest 2"),
            ("bytes 651", "bytes 0651"),
            ("bytes 651", "bytes +651"),
            ("counter 9", "counter 9\nonly-if raining"),
            ("counter 9\n", ""),
            ("name lab", "name la b"),
            ("entries 3\nname", "name"),
            ("for 1000", "fur 1000"),
            ("table 5", "for 5\ntable 5 "),
            ("lab\n", "lab\r\n"),
        ];
        for (old, new) in changes {
            let changed: String = text.replacen(old, new, 1);
            assert_ne!(changed, text, "{old}");
            assert_eq!(Manifest::parse(&changed), None, "{new}");
        }
    }
}
