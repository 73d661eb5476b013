//! The proof of a finished installation: one block in the root filesystem, written last.

use crate::hash::Hash;
use crate::install::Installation;
#[cfg(feature = "std")]
use crate::install::More;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

/// The proof's name in the root directory.
pub const NAME: &str = ".piman-proof";

/// The name, in the root directory, of what the server is still to be told of the installation.
pub const UNSAID: &str = ".piman-unsaid";

/// Whether the agent writes what has this name in the root directory: no archive brings it, since it is of one
/// installation.
#[must_use]
pub fn is_own(name: &[u8]) -> bool {
    [NAME, UNSAID].iter().any(|own| own.as_bytes() == name)
}

/// The size of a proof, in bytes: one block, so that it is written at once.
pub const SIZE: usize = 4096;

const HEADING: &str = "piman-proof 1";

/// How an image came to the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Way {
    /// The archive, extracted.
    Archive,
    /// The image, in chunks.
    Image,
}

/// What a finished installation leaves behind.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Proof {
    /// What was installed: BLAKE3 of the archive.
    pub image: Hash,
    /// How.
    pub path: Way,
    /// By which version of the agent.
    pub agent: String,
    /// When, in seconds since 1970; a small number if the Pi did not know the time.
    pub time: u64,
    /// The number that piman gave this installation; `None` from a server that gives none.
    pub installation: Option<Installation>,
    /// The counter of a signed image; 0: it was not checked who made it.
    pub counter: u64,
}

impl Proof {
    /// The proof of an installation that ends now, by this agent.
    #[cfg(feature = "std")]
    #[must_use]
    pub fn now(image: Hash, path: Way, more: More) -> Self {
        let time = std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_secs());
        let More { installation, counter, .. } = more;
        Self { image, path, agent: env!("CARGO_PKG_VERSION").into(), time, installation, counter }
    }

    /// The block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut text = String::new();
        let Self { image, path, agent, time, installation, counter } = self;
        let path = match path {
            Way::Archive => "stream",
            Way::Image => "image",
        };
        // Writing to a String cannot fail.
        let _ = write!(text, "{HEADING}\nimage {image}\npath {path}\nagent {agent}\ntime {time}\n");
        if let Some(installation) = installation {
            let _ = writeln!(text, "installation {installation}");
        }
        if *counter > 0 {
            let _ = writeln!(text, "counter {counter}");
        }
        let mut block = text.into_bytes();
        block.resize(SIZE, b'\n');
        block
    }

    /// Reads a block; `None` if it is not a whole proof, as after an interrupted installation.
    #[must_use]
    pub fn parse(block: &[u8]) -> Option<Self> {
        let text = core::str::from_utf8(block).ok()?;
        let (heading, fields) = text.split_once('\n')?;
        if heading != HEADING {
            return None;
        }
        let field = |key: &str| {
            fields.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')).filter(|v| v.len() <= 64)
        };
        Some(Self {
            image: Hash::parse(field("image")?)?,
            path: match field("path")? {
                "stream" => Way::Archive,
                "image" => Way::Image,
                _ => return None,
            },
            agent: field("agent")?.into(),
            time: field("time")?.parse().ok()?,
            installation: field("installation").and_then(Installation::parse),
            counter: field("counter").and_then(|n| n.parse().ok()).unwrap_or(0),
        })
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    #[test]
    fn a_proof_and_back() {
        for path in [Way::Archive, Way::Image] {
            for (installation, counter) in [(None, 0), (Some(Installation(5)), 7)] {
                let more = More { installation, counter, ..More::default() };
                let proof = Proof::now(Hash([7; 32]), path, more);
                let block = proof.encode();
                assert_eq!(block.len(), SIZE);
                assert_eq!(Proof::parse(&block), Some(proof));
            }
        }
    }

    #[test]
    fn a_torn_or_empty_block_is_no_proof() {
        let block = Proof::now(Hash([7; 32]), Way::Image, More::default()).encode();
        let end = block.iter().rposition(|b| *b != b'\n').unwrap();
        assert_eq!(Proof::parse(&[b'\n'; SIZE]), None);
        assert_eq!(Proof::parse(&[0; SIZE]), None);
        assert_eq!(Proof::parse(&[0xff; SIZE]), None);
        for n in 0..end - 12 {
            let mut torn = block[..n].to_vec();
            torn.resize(SIZE, b'\n');
            assert_eq!(Proof::parse(&torn), None, "{n} bytes of it");
        }
    }
}
