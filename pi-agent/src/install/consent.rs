//! What may be erased. A disk that holds something of somebody else is erased only by an order that names what is on
//! it, or where whoever started the agent has said so: an old server orders an installation for every Pi that
//! reports no system.

use std::str::FromStr;

use anyhow::anyhow;
use piman_core::install::Stage;

use crate::card::disk::Disk;
use crate::card::inspect::{Card, Found};
use crate::failure::{Cause, Failure};

/// What whoever started the agent lets it erase, whatever the server knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Consent {
    /// Somebody else's.
    pub foreign: bool,
    /// A system of ours whose filesystem is damaged.
    pub damaged: bool,
    /// What cannot be read.
    pub unreadable: bool,
}

/// Reads `foreign,damaged,unreadable`, or some of them.
impl FromStr for Consent {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut consent = Self::default();
        for word in text.split(',') {
            match word.trim() {
                "foreign" => consent.foreign = true,
                "damaged" => consent.damaged = true,
                "unreadable" => consent.unreadable = true,
                _ => return Err("not foreign, damaged or unreadable, or several of them with commas"),
            }
        }
        Ok(consent)
    }
}

impl Consent {
    /// Whether a disk may be erased; `ordered` is the fingerprint that the server's order names.
    ///
    /// # Errors
    /// [`Cause::Refused`] with what was found and what to do.
    pub(super) fn check(self, disk: &Disk, found: &Found, ordered: Option<u64>) -> Result<(), Failure> {
        let (word, given) = match found.card {
            Card::Blank | Card::Installed(_) | Card::Incomplete => return Ok(()),
            Card::Unmarked | Card::Foreign(_) => ("foreign", self.foreign),
            Card::Damaged { .. } => ("damaged", self.damaged),
            Card::Unreadable(_) => ("unreadable", self.unreadable),
        };
        if given || ordered == Some(found.print) {
            return Ok(());
        }
        let why = match ordered {
            None => "the server's order to install does not say that it may be erased",
            Some(_) => "the server's order is for a disk with something else on it",
        };
        let error = anyhow!(
            "{why}: {disk} is {word}: {found}; order `piman install` for this Pi and say yes to what it erases, or \
             start the agent with --erase {word} (piman.erase={word}); nothing was changed"
        );
        Err(Failure { stage: Stage::Disk, cause: Cause::Refused, error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let all = Consent { foreign: true, damaged: true, unreadable: true };
        assert_eq!("foreign,damaged,unreadable".parse(), Ok(all));
        assert_eq!("damaged".parse(), Ok(Consent { damaged: true, ..Consent::default() }));
        for bad in ["", "all", "foreign,", "foreign;damaged"] {
            assert!(bad.parse::<Consent>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_is_ours_or_nothing_is_erased_unasked() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::create(&folder.path().join("card"), 1 << 20).unwrap();
        let found = |card| Found { card, contents: "MBR table".into(), print: 5 };
        let none = Consent::default();
        for card in [Card::Blank, Card::Incomplete] {
            none.check(&disk, &found(card), None).unwrap();
        }
        for (card, word) in [
            (Card::Unmarked, "foreign"),
            (Card::Foreign("no".into()), "foreign"),
            (Card::Unreadable("byte 7".into()), "unreadable"),
        ] {
            let found = found(card);
            for ordered in [None, Some(6)] {
                let text = none.check(&disk, &found, ordered).unwrap_err().to_string();
                assert!(text.contains(word) && text.contains("nothing was changed"), "{text}");
            }
            none.check(&disk, &found, Some(5)).unwrap();
            word.parse::<Consent>().unwrap().check(&disk, &found, None).unwrap();
            "damaged".parse::<Consent>().unwrap().check(&disk, &found, None).unwrap_err();
        }
    }
}
