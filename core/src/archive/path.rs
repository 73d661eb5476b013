//! Names of entries as paths below the root that is being filled.

use alloc::vec::Vec;
use core::fmt;

/// The components of an entry's name below the root: a leading `/` and `.` are left out, as
/// is everything empty. No component at all is the root itself.
///
/// # Errors
/// A `..`, a NUL, or a component of more than 255 bytes: the archive's fault.
pub fn components(path: &[u8]) -> Result<impl DoubleEndedIterator<Item = &[u8]> + Clone, UnsafePath> {
    let parts = || path.split(|b| *b == b'/');
    let refuse = |why| Err(UnsafePath { path: path.to_vec(), why });
    for part in parts() {
        if part == b".." {
            return refuse("leads out of the root by `..`");
        }
        if part.contains(&0) {
            return refuse("holds a NUL byte");
        }
        if part.len() > 255 {
            return refuse("has a component of more than 255 bytes");
        }
    }
    Ok(parts().filter(|part| !matches!(*part, b"" | b".")))
}

/// A name that must not, or cannot, be created.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct UnsafePath {
    path: Vec<u8>,
    why: &'static str,
}

impl UnsafePath {
    /// What is wrong with it, to be put behind the name.
    #[must_use]
    pub const fn why(&self) -> &'static str {
        self.why
    }
}

impl fmt::Display for UnsafePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the name `{}` {}", self.path.escape_ascii(), self.why)
    }
}

impl core::error::Error for UnsafePath {}

#[cfg(test)]
mod tests {
    use std::string::ToString as _;

    use super::*;

    #[test]
    fn what_is_left_of_a_name() {
        for (path, want) in [
            (&b"./a/b/"[..], &[&b"a"[..], b"b"][..]),
            (b"/etc/passwd", &[b"etc", b"passwd"]),
            (b".//a/./...", &[b"a", b"..."]),
            (b"./", &[]),
            (b"", &[]),
            (b"\xff\n", &[b"\xff\n"]),
        ] {
            assert_eq!(components(path).unwrap().collect::<Vec<_>>(), want, "{}", path.escape_ascii());
        }
    }

    #[test]
    fn what_is_refused() {
        let long = [b'x'; 256];
        for bad in [&b".."[..], b"a/../b", b"a/..", b"/..", b"a\0b", &long] {
            let error = components(bad).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(&bad.escape_ascii().to_string()));
        }
    }
}
