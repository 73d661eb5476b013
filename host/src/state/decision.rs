//! What decides whether a disk is erased: the policy for each finding, and the claim that is on record before a Pi
//! is told to format.

use std::fmt;
use std::str::FromStr;

use piman_core::hash::Hash;
use piman_core::install::{Fingerprint, Found, Installation};
use serde::Deserialize;

use super::{Identity, OpenOrder};

/// What happens with a Pi by what is on its disk, if nothing is ordered for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// It is installed: what is on the disk is erased.
    Install,
    /// It boots what is on the disk; if that cannot be booted, it waits.
    Boot,
    /// It waits for an order.
    Wait,
}

impl Action {
    const ALL: [Self; 3] = [Self::Install, Self::Boot, Self::Wait];

    /// The word in the configuration, in commands and in tables.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Boot => "boot",
            Self::Wait => "wait",
        }
    }

    /// The action with this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.word() == word)
    }
}

/// The word.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One rule: `foreign=wait`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Rule {
    /// For disks with this on them.
    pub found: Found,
    /// What happens.
    pub action: Action,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rule = text.split_once('=').and_then(|(found, action)| {
            Some(Self { found: Found::from_word(found)?, action: Action::from_word(action)? })
        });
        rule.ok_or_else(|| {
            let found = Found::ALL.map(Found::word).join(", ");
            format!(
                "`{text}` is no rule: write FOUND=ACTION with one of {found} and one of install, boot, wait"
            )
        })
    }
}

impl TryFrom<String> for Rule {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// As it is written.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.found, self.action)
    }
}

/// An action for each finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy([Action; Found::ALL.len()]);

/// What is nobody's is installed, what is ours boots, what is somebody's waits.
impl Default for Policy {
    fn default() -> Self {
        Self(Found::ALL.map(|found| match found {
            Found::Blank | Found::Incomplete => Action::Install,
            Found::Ours | Found::Damaged => Action::Boot,
            Found::Foreign | Found::Unreadable => Action::Wait,
        }))
    }
}

impl Policy {
    /// What happens with this on the disk.
    #[must_use]
    pub fn of(&self, found: Found) -> Action {
        let known = Found::ALL.into_iter().zip(self.0).find(|(f, _)| *f == found);
        known.map_or(Action::Wait, |(_, action)| action)
    }

    /// The same with these rules; a later one wins.
    #[must_use]
    pub fn with(mut self, rules: &[Rule]) -> Self {
        for rule in rules {
            for (found, action) in Found::ALL.into_iter().zip(&mut self.0) {
                if found == rule.found {
                    *action = rule.action;
                }
            }
        }
        self
    }
}

/// For whom a rule of the state is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Every Pi.
    Server,
    /// The Pis of this group.
    Group(String),
    /// This Pi.
    Device(String),
}

/// For tables.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server => f.write_str("every Pi"),
            Self::Group(name) => write!(f, "group {name}"),
            Self::Device(name) => f.write_str(name),
        }
    }
}

/// What is asked of the state before a Pi is told to format.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Who.
    pub pi: &'a Identity,
    /// What it found on its disk, if it can say.
    pub found: Option<Found>,
    /// The fingerprint of that.
    pub print: Option<Fingerprint>,
    /// What was found, in words.
    pub disk: &'a str,
    /// How the installation is called if no order has a name for it yet.
    pub number: Installation,
    /// The policy by which it may be formatted without an order; `None`: only by order.
    pub policy: Option<&'a str>,
    /// The image that it is given, if that is known.
    pub image: Option<Hash>,
}

/// What is on record now: the Pi may be told to format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// How the installation is called.
    pub number: Installation,
    /// How many orders it carries out.
    pub orders: usize,
    /// The reason, as it is on record.
    pub reason: String,
}

/// What cancelling an order led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelled {
    /// There is no such order any more, and nothing came of it.
    Yes,
    /// A Pi was told to format because of it already, which this does not undo; it does not get that order again.
    Begun {
        /// The Pi, by the name that it is kept under.
        by: String,
        /// Since when, in milliseconds since 1970.
        since_ms: u64,
    },
    /// Nothing is ordered by this name.
    NoOrder,
}

impl OpenOrder {
    /// Whether this order allows to erase what is on a disk: one for a certain content allows that alone, and
    /// what is somebody's or cannot be read is erased only by such an order.
    #[must_use]
    pub fn allows(&self, found: Option<Found>, print: Option<Fingerprint>) -> bool {
        match self.print {
            // What it has begun to erase it may go on with.
            Some(_) => self.print == print || self.claimed && found == Some(Found::Incomplete),
            None => !matches!(found, Some(Found::Foreign | Found::Unreadable)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_and_the_policy_of_them() {
        let rule = |text: &str| text.parse::<Rule>();
        for bad in ["", "foreign", "foreign=", "foreign=erase", "strange=wait", "foreign = wait"] {
            assert!(rule(bad).is_err(), "{bad}");
        }
        let policy = Policy::default().with(&[rule("foreign=install").unwrap(), rule("blank=wait").unwrap()]);
        for (found, action) in [
            (Found::Blank, Action::Wait),
            (Found::Ours, Action::Boot),
            (Found::Incomplete, Action::Install),
            (Found::Damaged, Action::Boot),
            (Found::Foreign, Action::Install),
            (Found::Unreadable, Action::Wait),
        ] {
            assert_eq!(policy.of(found), action, "{found}");
        }
        assert_eq!(rule("foreign=wait").unwrap().to_string(), "foreign=wait");
    }

    #[test]
    fn what_an_order_allows() {
        let print = Fingerprint::new;
        let order = |print| OpenOrder { id: 1, ordered_ms: 1, claimed: false, installation: None, print };
        for (bound, found, here, allowed) in [
            (None, None, None, true),
            (None, Some(Found::Ours), print(1), true),
            (None, Some(Found::Foreign), print(1), false),
            (None, Some(Found::Unreadable), None, false),
            (print(1), Some(Found::Foreign), print(1), true),
            (print(1), Some(Found::Foreign), print(2), false),
            (print(1), Some(Found::Unreadable), None, false),
            (print(1), Some(Found::Blank), print(2), false),
        ] {
            assert_eq!(order(bound).allows(found, here), allowed, "{bound:?} {found:?} {here:?}");
        }
        let begun = OpenOrder { claimed: true, ..order(print(1)) };
        assert!(
            begun.allows(Some(Found::Incomplete), print(2)) && !begun.allows(Some(Found::Foreign), print(2))
        );
        assert!(!order(print(1)).allows(Some(Found::Incomplete), print(2)));
    }
}
