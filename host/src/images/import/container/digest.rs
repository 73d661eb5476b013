//! SHA-256, by which container images name their parts.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

/// A digest of SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Digest([u8; 32]);

impl Digest {
    /// `sha256:` and 64 small hexadecimal digits, and nothing else: it becomes part of a path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let shown = || text.chars().take(100).collect::<String>().escape_debug().to_string();
        let Some(hex) = text.strip_prefix("sha256:") else {
            anyhow::bail!("`{}` is no digest of SHA-256, the only kind that piman can check", shown());
        };
        Self::from_hex(hex).ok_or_else(|| anyhow::anyhow!("`{}` is no digest", shown()))
    }

    /// The digest of these 64 small digits.
    pub(super) fn from_hex(hex: &str) -> Option<Self> {
        let digit = |b: &u8| match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 32];
        let (pairs, []) = hex.as_bytes().as_chunks::<2>() else { return None };
        if pairs.len() != bytes.len() {
            return None;
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(high)? << 4 | digit(low)?;
        }
        Some(Self(bytes))
    }

    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Where a blob is in an OCI image layout.
    pub(super) fn path(&self) -> String {
        format!("blobs/sha256/{}", self.to_string().trim_start_matches("sha256:"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The digest of what passes, for who still reads and who asks in the end.
#[derive(Default)]
pub(super) struct Sum(RefCell<Sha256>);

impl Sum {
    pub(super) fn over<R: Read>(&self, from: R) -> Summing<'_, R> {
        Summing { from, sum: self }
    }

    pub(super) fn finish(self) -> Digest {
        Digest(self.0.into_inner().finalize().into())
    }
}

/// A reader whose bytes are summed.
pub(super) struct Summing<'s, R> {
    from: R,
    sum: &'s Sum,
}

impl<R: Read> Read for Summing<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buf)?;
        self.sum.0.borrow_mut().update(buf.get(..n).unwrap_or_default());
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_and_what_is_none() {
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::parse(text).unwrap(), Digest::of(b""));
        assert_eq!(Digest::of(b"").to_string(), text);
        assert_eq!(Digest::of(b"").path(), text.replace("sha256:", "blobs/sha256/"));
        let (upper, long) = (text.to_uppercase().replace("SHA", "sha"), format!("{text}0"));
        for bad in
            ["", "sha256:", "sha256:../../x", "sha512:00", &upper, &long, &text[..70], "../../etc/passwd"]
        {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
        let sum = Sum::default();
        sum.over(&b"abc"[..]).read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(sum.finish(), Digest::of(b"abc"));
    }
}
