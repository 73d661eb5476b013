//! The Pi's side of the control connection, as pure steps.

use super::command::{Command, Date, END};
use super::ours::{self, Hello, Offer};
use super::report::{Milestone, Report};

/// What a Pi says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start<'a> {
    /// Who it is; `None` to speak as an old Pi does.
    pub hello: Option<Hello<'a>>,
    /// Whether its card holds a system.
    pub installed: bool,
}

impl Start<'_> {
    /// The report that asks for a decision.
    #[must_use]
    pub const fn report(&self) -> Report<'static> {
        if self.installed { Report::Installed } else { Report::Uninstalled }
    }
}

/// What piman decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Decision {
    /// Boot what is on the card.
    Boot,
    /// Install; `None` from a server that does not say what.
    Format(Option<Offer>),
    /// Come back after so many seconds: what is to be installed is being prepared.
    Wait {
        /// How long to wait, in seconds.
        seconds: u16,
        /// How far the preparation is, in per cent.
        percent: u8,
    },
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Step<'a> {
    /// Nothing: read on.
    Read,
    /// Report `RECEIVED_DATE`, set the clock, report `SET_DATE`.
    SetDate(Date),
    /// Answer with the addresses, as text lines.
    Addresses,
    /// Report `RECEIVED_REINSTALL`, wipe the root filesystem, report `IS_UNINSTALLED`.
    Wipe,
    /// Answer `Sorry don't know how to do ` and this.
    Unknown(&'a [u8]),
    /// Report this milestone, if any; the talk is over until the decision is carried out.
    Decided(Option<Milestone>, Decision),
}

/// The Pi's end of one control connection.
#[derive(Debug, Default)]
pub struct Agent {
    /// What the block that is being read orders when its `EOM` comes.
    pending: Option<Command>,
}

impl Agent {
    /// An agent that has said its [`Start`] and read nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { pending: None }
    }

    /// Takes one line and says what to do. A block is carried out at its `EOM`, except for
    /// what ends nothing (the date, the addresses).
    pub fn handle<'a>(&mut self, line: &'a [u8]) -> Step<'a> {
        let line = line.trim_ascii();
        if line == END {
            return match self.pending.take() {
                Some(Command::Boot) => Step::Decided(Some(Milestone::ReceivedBoot), Decision::Boot),
                Some(Command::Format(offer)) => {
                    Step::Decided(Some(Milestone::ReceivedFormat), Decision::Format(offer))
                }
                Some(Command::Wait { seconds, percent }) => {
                    Step::Decided(None, Decision::Wait { seconds, percent })
                }
                Some(Command::Reinstall) => Step::Wipe,
                Some(Command::Date(_) | Command::Ip) | None => Step::Read,
            };
        }
        match Command::parse(line) {
            Some(Command::Date(date)) => Step::SetDate(date),
            Some(Command::Ip) => Step::Addresses,
            Some(order) => {
                self.pending = Some(order);
                Step::Read
            }
            None => self.extra(line),
        }
    }

    fn extra<'a>(&mut self, line: &'a [u8]) -> Step<'a> {
        match (ours::split(line), &mut self.pending) {
            (Some((b"offer", fields)), Some(Command::Format(offer))) => {
                *offer = Offer::parse(fields);
                if offer.is_none() {
                    warning!("the server's offer cannot be read");
                }
            }
            (Some((b"wait", fields)), pending) => {
                let seconds = ours::number(fields, "seconds").unwrap_or(5);
                let percent = ours::number(fields, "percent").unwrap_or(0);
                *pending = Some(Command::Wait { seconds, percent });
            }
            (Some(_), _) => {}
            (None, _) if line.is_empty() || line.starts_with(b"PIMAN/") => {}
            (None, _) => return Step::Unknown(line),
        }
        Step::Read
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Hash;
    use std::string::ToString;

    /// The first step that is not `Read`.
    fn talk(agent: &mut Agent, block: &str) -> Option<Step<'static>> {
        block.to_string().leak().lines().map(|l| agent.handle(l.as_bytes())).find(|s| *s != Step::Read)
    }

    #[test]
    fn decisions_come_with_eom() {
        let mut agent = Agent::new();
        assert_eq!(talk(&mut agent, "boot\n"), None);
        let boot = Step::Decided(Some(Milestone::ReceivedBoot), Decision::Boot);
        assert_eq!(talk(&mut agent, "EOM"), Some(boot));
        assert_eq!(talk(&mut agent, "EOM"), None);
        let format = Step::Decided(Some(Milestone::ReceivedFormat), Decision::Format(None));
        assert_eq!(talk(&mut agent, "format\r\n EOM \n"), Some(format));
        assert_eq!(talk(&mut agent, "reinstall\nEOM\n"), Some(Step::Wipe));
    }

    #[test]
    fn ours_as_written_by_the_server() {
        let offer = Offer { id: Hash([1; 32]), bytes: 5, rootfs_port: 1, fetch_port: 2, ..Offer::default() };
        let block = Command::Format(Some(offer)).to_string();
        let want = Step::Decided(Some(Milestone::ReceivedFormat), Decision::Format(Some(offer)));
        assert_eq!(talk(&mut Agent::new(), &block), Some(want));
        let block = Command::Wait { seconds: 3, percent: 40 }.to_string();
        let want = Step::Decided(None, Decision::Wait { seconds: 3, percent: 40 });
        assert_eq!(talk(&mut Agent::new(), &block), Some(want));
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
