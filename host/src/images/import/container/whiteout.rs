//! Entries that hide something of the layers below (OCI image specification 1.1, "Whiteouts").

use anyhow::{bail, ensure};

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Files of AUFS itself, which had whiteouts first.
const BOOKKEEPING: &[u8] = b".wh..wh.";

/// What an entry hides: names as they are written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whiteout {
    /// All that is in the directory.
    Opaque(Vec<u8>),
    /// In this directory what is called so.
    Hides(Vec<u8>, Vec<u8>),
    /// Nothing; it is no entry of the system either.
    Bookkeeping,
}

impl Whiteout {
    /// `None` if the entry of this name is an ordinary one.
    ///
    /// # Errors
    /// If it cannot hide what it names.
    pub(super) fn of(path: &[u8]) -> anyhow::Result<Option<Self>> {
        let mut parts: Vec<&[u8]> =
            path.split(|b| *b == b'/').filter(|p| !matches!(*p, b"" | b".")).collect();
        let Some(last) = parts.pop() else { return Ok(None) };
        if parts.iter().any(|part| part.starts_with(BOOKKEEPING)) {
            return Ok(Some(Self::Bookkeeping));
        }
        ensure!(!parts.iter().any(|part| part.starts_with(PREFIX)), "it is below a whiteout");
        let Some(name) = last.strip_prefix(PREFIX) else { return Ok(None) };
        ensure!(!parts.contains(&&b".."[..]), "it is a whiteout that leads out of the root by `..`");
        let directory = parts.join(&b'/');
        Ok(Some(match name {
            _ if last == OPAQUE => Self::Opaque(directory),
            _ if last.starts_with(BOOKKEEPING) => Self::Bookkeeping,
            b"" | b"." | b".." => {
                bail!("it is a whiteout of `{}`, which cannot be hidden", name.escape_ascii())
            }
            _ => Self::Hides(directory, name.to_vec()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whiteouts_by_their_names() {
        let of = |path: &str| Whiteout::of(path.as_bytes());
        let hides = |folder: &str, name: &str| Some(Whiteout::Hides(folder.into(), name.into()));
        for (path, want) in [
            ("./a/.wh.b", hides("a", "b")),
            ("/.wh.b", hides("", "b")),
            (".wh.b/", hides("", "b")),
            ("a/.wh..b", hides("a", ".b")),
            ("a/b/.wh..wh..opq", Some(Whiteout::Opaque(b"a/b".to_vec()))),
            (".wh..wh..opq", Some(Whiteout::Opaque(Vec::new()))),
            (".wh..wh.plnk/12.34", Some(Whiteout::Bookkeeping)),
            (".wh..wh.aufs", Some(Whiteout::Bookkeeping)),
            ("a/b", None),
            ("a/wh.b", None),
            ("./", None),
        ] {
            assert_eq!(of(path).unwrap(), want, "{path}");
        }
        for bad in ["a/.wh.", ".wh..", "a/.wh...", "../.wh.x", ".wh.a/b"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
