//! `boot.sig`: what a Pi's boot loader checks `boot.img` against, in the form of Raspberry Pi's `rpi-eeprom-digest`.
//!
//! The first line is the SHA-256 of `boot.img` in hexadecimal digits; then `ts: SECONDS` since 1970, and, if it is
//! signed, `rsa2048: DIGITS`, the signature by RSA with 2048 bits (PKCS#1 v1.5 over that hash).

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

/// The image that a boot loader loads as a whole.
pub const BOOT_IMG: &str = "boot.img";
/// The file that belongs to it.
pub const BOOT_SIG: &str = "boot.sig";
/// The longest `boot.sig` that is looked at, in bytes; one that is signed has about 610.
pub const SIG_MAX: usize = 4096;
/// The largest `boot.img` that is hashed: twice what any boot loader is known to load.
pub const HASHED_MAX: u64 = 384 << 20;
/// The length of a signature by a key of 2048 bits, in bytes.
pub const SIGNATURE: usize = 256;

/// As much of an image is read at once.
const PIECE: usize = 1 << 20;

/// What a `boot.sig` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootSig {
    /// The SHA-256 of the image.
    pub sha256: [u8; 32],
    /// When it was made, in seconds since 1970.
    pub made: u64,
    /// The signature, if it has one.
    pub rsa2048: Option<Vec<u8>>,
}

impl BootSig {
    /// Reads one. Lines that are not known are passed over, as boot loaders do.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes.get(..bytes.len().min(SIG_MAX))?).ok()?;
        let mut lines = text.lines().map(str::trim_end);
        let sha256 = from_hex(lines.next()?)?.try_into().ok()?;
        let (mut made, mut rsa2048) = (0, None);
        for line in lines {
            match line.split_once(':').map(|(name, value)| (name, value.trim())) {
                Some(("ts", value)) => made = value.parse().ok()?,
                Some(("rsa2048", value)) => {
                    rsa2048 = Some(from_hex(value).filter(|signature| signature.len() == SIGNATURE)?);
                }
                _ => {}
            }
        }
        Some(Self { sha256, made, rsa2048 })
    }
}

impl fmt::Display for BootSig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\nts: {}", hex(&self.sha256), self.made)?;
        match &self.rsa2048 {
            Some(signature) => writeln!(f, "rsa2048: {}", hex(signature)),
            None => Ok(()),
        }
    }
}

/// In lower case.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|n| u8::try_from(n).ok())).collect();
    let digits = digits.filter(|digits| !digits.is_empty() && digits.len() % 2 == 0)?;
    Some(digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |n, digit| n << 4 | digit)).collect())
}

/// The hash of `length` bytes of a file, from its beginning.
///
/// # Errors
/// If it has fewer, or more than [`HASHED_MAX`] were asked for; and the filesystem's.
pub fn sha256(file: &File, length: u64) -> io::Result<[u8; 32]> {
    if length > HASHED_MAX {
        let text = format!("it has {length} bytes, more than any boot loader loads");
        return Err(io::Error::new(ErrorKind::FileTooLarge, text));
    }
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < length {
        let want = usize::try_from(length - at).unwrap_or(PIECE).min(PIECE);
        match file.read_at(piece.get_mut(..want).unwrap_or_default(), at)? {
            0 => return Err(io::Error::new(ErrorKind::UnexpectedEof, "it became shorter")),
            n => {
                hash.update(piece.get(..n).unwrap_or_default());
                at += n as u64;
            }
        }
    }
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for rsa2048 in [None, Some((0..=255).collect::<Vec<u8>>())] {
            let sig = BootSig { sha256: [0xa5; 32], made: 1_700_000_000, rsa2048 };
            let text = sig.to_string();
            assert_eq!(BootSig::parse(text.as_bytes()), Some(sig.clone()), "{text}");
            let other = text.replace('\n', "\r\n") + "board: 5\n";
            assert_eq!(BootSig::parse(other.as_bytes()), Some(sig));
        }
        let text = BootSig { sha256: [1; 32], made: 5, rsa2048: None }.to_string();
        assert_eq!(text, format!("{}\nts: 5\n", "01".repeat(32)));
    }

    #[test]
    fn what_is_no_signature() {
        let hash = "01".repeat(32);
        for text in [
            "",
            "\n",
            "01",
            &hash[1..],
            &format!("{hash}00"),
            &format!("{hash}\nts: soon"),
            &format!("{hash}\nrsa2048: 0102"),
            &format!("{hash}\nrsa2048: xy"),
            &format!("{hash}\nrsa2048: {}", "\u{e9}".repeat(256)),
        ] {
            assert_eq!(BootSig::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(BootSig::parse(&[0xff; 64]), None);
    }

    #[test]
    fn files_are_hashed_to_their_length() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abcdef").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(&sha256(&file, 3).unwrap()), abc);
        assert_eq!(sha256(&file, 7).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(sha256(&file, HASHED_MAX + 1).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }
}
