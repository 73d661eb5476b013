//! What may be erased. A disk that holds something of somebody else is erased only by an order that names what is on
//! it, or where whoever started the agent has said so: an old server orders an installation for every Pi that
//! reports no system.

use std::str::FromStr;

use anyhow::anyhow;
use piman_core::install::{Fingerprint, Found as Kind, Stage};

use crate::card::disk::Disk;
use crate::card::inspect::Found;
use crate::failure::{Cause, Failure};

use super::Plan;

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
    pub(super) fn check(
        self,
        disk: &Disk,
        found: &Found,
        ordered: Option<Fingerprint>,
        plan: &Plan,
    ) -> Result<(), Failure> {
        let kind = found.card.kind(plan.trust_unmarked);
        let given = match kind {
            Kind::Foreign => self.foreign,
            // Who says --reinstall on the Pi itself means what is installed there.
            Kind::Damaged => self.damaged || plan.reinstall,
            Kind::Unreadable => self.unreadable,
            Kind::Blank | Kind::Ours | Kind::Incomplete => true,
        };
        if given || ordered.is_some() && ordered == Fingerprint::new(found.print) {
            return Ok(());
        }
        let why = match ordered {
            None => "the server's order to install does not say that it may be erased",
            Some(_) => "the server's order is for a disk with something else on it",
        };
        let error = anyhow!(
            "{why}: {disk} is {kind}: {found}; order `piman install` for this Pi and say yes to what it erases, or \
             start the agent with --erase {kind} (piman.erase={kind}); nothing was changed"
        );
        Err(Failure { stage: Stage::Disk, cause: Cause::Refused, error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::inspect::Card;

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
        let args = ["install", "--server", "x", "--disk", "y"].map(std::ffi::OsString::from);
        let Ok(crate::cli::Order::Install(plan, ..)) = crate::cli::parse(args) else { panic!("no plan") };
        let found = |card| Found { card, contents: "MBR table".into(), print: 5 };
        let none = Consent::default();
        for card in [Card::Blank, Card::Incomplete] {
            none.check(&disk, &found(card), None, &plan).unwrap();
        }
        for (card, word) in [
            (Card::Unmarked, "foreign"),
            (Card::Foreign("no".into()), "foreign"),
            (Card::Unreadable("byte 7".into()), "unreadable"),
        ] {
            let found = found(card);
            for ordered in [None, Fingerprint::new(6)] {
                let text = none.check(&disk, &found, ordered, &plan).unwrap_err().to_string();
                assert!(text.contains(word) && text.contains("nothing was changed"), "{text}");
            }
            none.check(&disk, &found, Fingerprint::new(5), &plan).unwrap();
            word.parse::<Consent>().unwrap().check(&disk, &found, None, &plan).unwrap();
            "damaged".parse::<Consent>().unwrap().check(&disk, &found, None, &plan).unwrap_err();
        }
    }
}
