//! The Pi's side of the control connection, as pure steps.

use super::command::{Date, END, Word};
use super::ours::{self, BootPersonal, Clock, Hello, Offer};
use super::report::{Milestone, Report};

/// What a Pi says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Start<'a> {
    /// Who it is; `None` to speak as an old Pi does.
    pub hello: Option<Hello<'a>>,
    /// What is on its disk, for people; said after the greeting.
    pub disk: Option<&'a str>,
    /// Whether its card holds a system.
    pub installed: bool,
}

/// Whether the report waits for an answer to the greeting.
impl Start<'_> {
    pub(crate) fn waits(&self) -> bool {
        self.hello.is_some_and(|hello| hello.can.answer)
    }
}

impl Start<'_> {
    /// The report that asks for a decision.
    #[must_use]
    pub const fn report(&self) -> Report<'static> {
        if self.installed { Report::Installed } else { Report::Uninstalled }
    }
}

/// What piman decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Decision {
    /// Boot what is on the card.
    #[default]
    Boot,
    /// Do this to what is on the card, and boot it.
    Personalise(BootPersonal),
    /// Install; `None` from a server that does not say what.
    Format(Option<Offer>),
    /// Install, but this agent cannot read what: nothing may be done. The next talk may tell.
    Unclear,
    /// Come back after this many seconds. The reason came before ([`Step::Reason`]).
    Wait {
        /// How long to wait, in seconds.
        seconds: u16,
        /// How far the preparation of the image is, in per cent.
        percent: u8,
    },
    /// What there is to install will never have room on this disk. The reason came before ([`Step::Reason`]).
    Never,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use]
pub enum Step<'a> {
    /// Nothing: read on.
    Read,
    /// Report `RECEIVED_DATE`, set the clock, report `SET_DATE`.
    SetDate(Date),
    /// Set the clock to this, report `SET_DATE`.
    SetClock(Clock),
    /// Answer with the addresses, as text lines.
    Addresses,
    /// Report `RECEIVED_REINSTALL`, wipe the root filesystem, report `IS_UNINSTALLED`.
    Wipe,
    /// Show why the server has the Pi wait, in a text of the server's: any bytes.
    Reason(&'a [u8]),
    /// Answer `Sorry don't know how to do ` and this.
    Unknown(&'a [u8]),
    /// Report this milestone, if any; the talk is over until the decision is carried out.
    Decided(Option<Milestone>, &'a Decision),
}

/// The Pi's end of one control connection.
#[derive(Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Agent {
    /// What the block that is being read orders when its `EOM` comes.
    pending: Pending,
    /// What it decides, then and afterwards: the one place where an offer is kept.
    decision: Decision,
    /// Whether the server has said a line of ours.
    ours: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
enum Pending {
    #[default]
    Nothing,
    Wipe,
    Decision,
}

impl Agent {
    /// An agent that has said its [`Start`] and read nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { pending: Pending::Nothing, decision: Decision::Boot, ours: false }
    }

    /// Whether the server has shown that it understands our lines. One that has not may compare
    /// all that it reads at once with a report, so a report must reach it alone.
    #[must_use]
    pub const fn understood(&self) -> bool {
        self.ours
    }

    /// Takes one line and says what to do. A block is carried out at its `EOM`, except for
    /// what ends nothing (the date, the addresses).
    // As a part of the driver it is larger: what it knows then has no registers left.
    #[inline(never)]
    pub fn handle<'a>(&'a mut self, line: &'a [u8]) -> Step<'a> {
        let line = line.trim_ascii();
        if line == END {
            return match core::mem::take(&mut self.pending) {
                Pending::Nothing => Step::Read,
                Pending::Wipe => Step::Wipe,
                Pending::Decision => {
                    let milestone = match self.decision {
                        Decision::Boot | Decision::Personalise(_) => Some(Milestone::ReceivedBoot),
                        Decision::Format(_) => Some(Milestone::ReceivedFormat),
                        Decision::Wait { .. } | Decision::Never | Decision::Unclear => None,
                    };
                    Step::Decided(milestone, &self.decision)
                }
            };
        }
        match Word::parse(line) {
            Some(Word::Boot) => self.decide(Decision::Boot),
            Some(Word::Format) => self.decide(Decision::Format(None)),
            Some(Word::Reinstall) => self.pending = Pending::Wipe,
            Some(Word::Ip) => return Step::Addresses,
            None => {
                return match Date::parse(line) {
                    Some(date) => Step::SetDate(date),
                    None => self.extra(line),
                };
            }
        }
        Step::Read
    }

    fn decide(&mut self, decision: Decision) {
        self.decision = decision;
        self.pending = Pending::Decision;
    }

    fn extra<'a>(&mut self, line: &'a [u8]) -> Step<'a> {
        let Some((verb, fields)) = ours::split(line) else {
            let is_quiet = line.is_empty() || line.starts_with(b"PIMAN/");
            return if is_quiet { Step::Read } else { Step::Unknown(line) };
        };
        self.ours = true;
        match (Verb::parse(verb), self.pending, &mut self.decision) {
            (Some(Verb::Offer), Pending::Decision, Decision::Format(offer)) => {
                Offer::read(fields, offer);
                // Without it this would look like an old server, which sends what nobody checks.
                if offer.is_none() {
                    self.decision = Decision::Unclear;
                }
            }
            (Some(Verb::Personal), Pending::Decision, decision @ Decision::Boot) => {
                // In its place, since a copy costs more than reading it.
                *decision = Decision::Personalise(BootPersonal::default());
                if let Decision::Personalise(personal) = decision
                    && !personal.read(fields)
                {
                    *decision = Decision::Boot;
                }
            }
            (Some(Verb::Wait), ..) => {
                let (fields, reason) = ours::split_text(fields);
                let seconds = ours::number(fields, "seconds").unwrap_or(5);
                let percent = ours::number(fields, "percent").unwrap_or(0);
                let never = ours::number(fields, "never") == Some(1_u8);
                self.decide(if never { Decision::Never } else { Decision::Wait { seconds, percent } });
                if let Some(reason) = reason {
                    return Step::Reason(reason);
                }
            }
            (Some(Verb::Hello), ..) => {
                if let Some(clock) = Clock::parse(fields) {
                    return Step::SetClock(clock);
                }
            }
            _ => {}
        }
        Step::Read
    }
}

/// What a server says to our own agents.
#[derive(Clone, Copy)]
enum Verb {
    Offer,
    Personal,
    Wait,
    Hello,
}

impl Verb {
    fn parse(verb: &[u8]) -> Option<Self> {
        // One comparison in a loop, not one for each.
        const VERBS: &[(&[u8], Verb)] = &[
            (b"offer", Verb::Offer),
            (b"personal", Verb::Personal),
            (b"wait", Verb::Wait),
            (b"hello", Verb::Hello),
        ];
        VERBS.iter().find(|(word, _)| *word == verb).map(|(_, verb)| *verb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Hash;
    use crate::install::{Command, Installation, Personal};
    use std::string::ToString;

    type Decided = (Option<Milestone>, Decision);

    /// The first decision.
    fn talk(agent: &mut Agent, block: &str) -> Option<Decided> {
        for line in block.lines() {
            match agent.handle(line.as_bytes()) {
                Step::Decided(milestone, decision) => return Some((milestone, *decision)),
                step => assert_eq!(step, Step::Read, "{line}"),
            }
        }
        None
    }

    #[test]
    fn decisions_come_with_eom() {
        let mut agent = Agent::new();
        assert_eq!(talk(&mut agent, "boot\n"), None);
        let boot = (Some(Milestone::ReceivedBoot), Decision::Boot);
        assert_eq!(talk(&mut agent, "EOM"), Some(boot));
        assert_eq!(talk(&mut agent, "EOM"), None);
        let format = (Some(Milestone::ReceivedFormat), Decision::Format(None));
        assert_eq!(talk(&mut agent, "format\r\n EOM \n"), Some(format));
        assert_eq!(agent.handle(b"reinstall"), Step::Read);
        assert_eq!(agent.handle(b"EOM"), Step::Wipe);
        assert_eq!(agent.handle(b"EOM"), Step::Read);
    }

    #[test]
    fn ours_as_written_by_the_server() {
        let offer = Offer { id: Hash([1; 32]), bytes: 5, rootfs_port: 1, fetch_port: 2, ..Offer::default() };
        let block = Command::Format(Some(offer)).to_string();
        let want = (Some(Milestone::ReceivedFormat), Decision::Format(Some(offer)));
        assert_eq!(talk(&mut Agent::new(), &block), Some(want));
        let block = Command::Wait { seconds: 3, percent: 40, text: "" }.to_string();
        let want = (None, Decision::Wait { seconds: 3, percent: 40 });
        assert_eq!(talk(&mut Agent::new(), &block), Some(want));
        let mut agent = Agent::new();
        let text = "waits: seconds=9 text=foreign disk";
        let block = Command::Never { seconds: 30, text: "" }.to_string();
        assert_eq!(block, "PIMAN/1 wait seconds=30 percent=0 never=1\nEOM\n");
        assert_eq!(talk(&mut Agent::new(), &block), Some((None, Decision::Never)));
        let block = Command::Wait { seconds: 3, percent: 40, text }.to_string();
        let line = block.lines().next().unwrap();
        assert_eq!(agent.handle(line.as_bytes()), Step::Reason(text.as_bytes()));
        assert_eq!(talk(&mut agent, "EOM"), Some(want));
    }

    #[test]
    fn a_card_is_made_one_pis_own_before_it_boots() {
        let personal = BootPersonal {
            personal: Personal { hash: Hash([4; 32]), bytes: 700 },
            fetch_port: 4445,
            installation: Some(Installation(3)),
        };
        let block = Command::Personalise(personal).to_string();
        let hash = "04".repeat(32);
        let line = std::format!(
            "PIMAN/1 personal personal={hash} personal-bytes=700 fetch=4445 installation=0000000000000003"
        );
        assert_eq!(block, std::format!("boot\n{line}\nEOM\n"));
        let want = (Some(Milestone::ReceivedBoot), Decision::Personalise(personal));
        assert_eq!(talk(&mut Agent::new(), &block), Some(want));
        let boot = (Some(Milestone::ReceivedBoot), Decision::Boot);
        for block in ["boot\nPIMAN/1 personal fetch=1\nEOM", "PIMAN/1 personal fetch=1\nboot\nEOM"] {
            assert_eq!(talk(&mut Agent::new(), block), Some(boot), "{block}");
        }
        let other = std::format!("format\n{line}\nEOM");
        let format = (Some(Milestone::ReceivedFormat), Decision::Format(None));
        assert_eq!(talk(&mut Agent::new(), &other), Some(format));
    }

    #[test]
    fn a_time_that_can_be_is_taken() {
        let mut agent = Agent::new();
        let clock = Clock { seconds: 1_795_231_447, nanos: 7 };
        let hello = b"PIMAN/1 hello rev=2 nanos=7 seconds=1795231447";
        assert_eq!(agent.handle(hello), Step::SetClock(clock));
        for fields in ["", "seconds=1", "nanos=1", "seconds=1 nanos=1000000000", "seconds=-1 nanos=0"] {
            let line = std::format!("PIMAN/1 hello rev=2 {fields}");
            assert_eq!(agent.handle(line.as_bytes()), Step::Read, "{fields}");
        }
    }

    #[test]
    fn numbers_that_are_too_large_count_as_missing() {
        for (fields, seconds, percent) in [
            ("seconds=65535 percent=255", 65535, 255),
            ("seconds=65536 percent=256", 5, 0),
            ("seconds=4294967297 percent=4294967297", 5, 0),
            ("seconds=18446744073709551617 percent=-1", 5, 0),
        ] {
            let block = std::format!("PIMAN/1 wait {fields}\nEOM\n");
            let want = (None, Decision::Wait { seconds, percent });
            assert_eq!(talk(&mut Agent::new(), &block), Some(want), "{fields}");
        }
    }

    #[test]
    fn a_server_is_understood_by_any_line_of_ours() {
        for (line, want) in [
            (&b"PIMAN/1 hello rev=1"[..], true),
            (b"PIMAN/1 wait seconds=1 percent=1", true),
            (b"PIMAN/2 hello", false),
            (b"boot", false),
        ] {
            let mut agent = Agent::new();
            let _ = agent.handle(line);
            assert_eq!(agent.understood(), want, "{line:?}");
        }
    }

    #[test]
    fn what_is_no_command_is_answered_and_never_run() {
        let mut agent = Agent::new();
        for line in ["rm -rf /", "format now", "BOOT", "busybox date -s 1; reboot"] {
            assert_eq!(agent.handle(line.as_bytes()), Step::Unknown(line.as_bytes()));
        }
        for quiet in ["", "PIMAN/1 dance", "PIMAN/9 offer", "PIMAN/1 offer id=12"] {
            assert_eq!(agent.handle(quiet.as_bytes()), Step::Read, "{quiet}");
        }
    }
}
