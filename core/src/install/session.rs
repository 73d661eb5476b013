//! piman's side of the control connection, as pure steps.

use super::command::{Command, Date};
use super::ours::{Can, Hello, Installation, Notice, Offer, Stage};
use super::report::{Milestone, Report};
use crate::hash::Hash;

/// What a Pi that has no system, or has to lose it, should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Plan {
    /// Format and install; `None` as the offer: by stream, without a word about what.
    Format(Option<Offer>),
    /// What it would get is being prepared: ask again. Only for a Pi that said hello.
    Wait {
        /// After how many seconds.
        seconds: u16,
        /// How far the preparation is, in per cent.
        percent: u8,
    },
}

/// What the session asks of whoever knows the Pis, and tells it. One value serves one
/// connection, so it knows the peer's address by itself.
pub trait InstallPolicy {
    /// Is a reinstall ordered for this Pi?
    fn reinstall_ordered(&mut self) -> bool;

    /// What to install. `hello` says whether the Pi said who it is and what it can do.
    fn plan(&mut self, hello: bool) -> Plan;

    /// Takes note of what happened.
    fn note(&mut self, event: Event<'_>);
}

/// What happened on a control connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The Pi said who it is.
    Hello(Hello<'a>),
    /// The Pi said whether it has a system.
    Found {
        /// It has one.
        installed: bool,
    },
    /// It was told to boot.
    Boot,
    /// It was told to format.
    Format {
        /// Because a reinstall was ordered.
        ordered: bool,
    },
    /// It was told to wait.
    Wait,
    /// It passed a milestone.
    Milestone(Milestone),
    /// It is so far.
    Progress {
        /// Doing what.
        stage: Stage,
        /// Bytes done.
        done: u64,
        /// Bytes to do; 0 if unknown.
        total: u64,
    },
    /// The proof is on its card.
    Committed {
        /// Which image.
        id: Hash,
        /// By which installation, if it says so.
        installation: Option<Installation>,
    },
    /// It could not do what it was doing.
    Failed {
        /// What it was doing.
        stage: Stage,
        /// What happened.
        text: &'a str,
    },
    /// It reported `IS_FORMATTED`.
    Formatted,
    /// It sent something else.
    Noise(&'a [u8]),
    /// It sent a line too long to be anything.
    TooLong,
}

/// Where a conversation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
enum State {
    /// The Pi has not said whether it has a system.
    Greeting,
    /// It was told to boot.
    Booting,
    /// It was told to format.
    Formatting,
    /// It was told to wait and ask again.
    Waiting,
    /// The Pi reported `IS_FORMATTED`: what it sends until it closes counts no more.
    Ended,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// Nothing: read on.
    Read,
    /// Send this, then read on.
    Send(Command),
    /// Close the connection.
    Close,
}

/// One control connection.
#[derive(Debug)]
pub struct Session {
    state: State,
    hello: bool,
}

impl Session {
    /// A session, and what to send first: the time, where the Pi should get it.
    pub fn open(date: Option<Date>) -> (Self, Step) {
        let session = Self { state: State::Greeting, hello: false };
        (session, date.map_or(Step::Read, |d| Step::Send(Command::Date(d))))
    }

    /// Takes one report and says what to do.
    pub fn handle(&mut self, report: Report<'_>, policy: &mut impl InstallPolicy) -> Step {
        let (state, event, step) = match (self.state, report) {
            (State::Ended, _) => return self.end(),
            (_, Report::Formatted) => (State::Ended, Event::Formatted, self.end()),
            (_, Report::Uninstalled) => {
                policy.note(Event::Found { installed: false });
                self.format(false, policy)
            }
            (_, Report::Installed) => {
                policy.note(Event::Found { installed: true });
                if policy.reinstall_ordered() {
                    self.format(true, policy)
                } else {
                    (State::Booting, Event::Boot, Step::Send(Command::Boot))
                }
            }
            (state, Report::Milestone(milestone)) => (state, Event::Milestone(milestone), Step::Read),
            (state, Report::Ours(notice)) => {
                let step = match notice {
                    Notice::Hello(Hello { can: Can { answer: true, .. }, .. }) => Step::Send(Command::Hello),
                    _ => Step::Read,
                };
                (state, self.notice(notice), step)
            }
            (state, Report::Noise(line)) => (state, Event::Noise(line), Step::Read),
        };
        if self.state != state {
            debug!("session: {:?} -> {:?}", self.state, state);
            self.state = state;
        }
        policy.note(event);
        step
    }

    /// After the last report that counts. An old Pi may work on, with a trace of all that it does on
    /// this connection: to close it would kill a shell that writes to it. One of ours has said all.
    const fn end(&self) -> Step {
        if self.hello { Step::Close } else { Step::Read }
    }

    fn format<'a>(&self, ordered: bool, policy: &mut impl InstallPolicy) -> (State, Event<'a>, Step) {
        match policy.plan(self.hello) {
            // An old Pi does not know how to wait.
            Plan::Wait { seconds, percent } if self.hello => {
                (State::Waiting, Event::Wait, Step::Send(Command::Wait { seconds, percent }))
            }
            Plan::Format(offer) => {
                let offer = offer.filter(|_| self.hello);
                (State::Formatting, Event::Format { ordered }, Step::Send(Command::Format(offer)))
            }
            Plan::Wait { .. } => {
                (State::Formatting, Event::Format { ordered }, Step::Send(Command::Format(None)))
            }
        }
    }

    fn notice<'a>(&mut self, notice: Notice<'a>) -> Event<'a> {
        match notice {
            Notice::Hello(hello) => {
                self.hello = true;
                Event::Hello(hello)
            }
            Notice::Progress { stage, done, total } => Event::Progress { stage, done, total },
            Notice::Committed { id, installation } => Event::Committed { id, installation },
            Notice::Failed { stage, text } => Event::Failed { stage, text },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;
    use std::vec::Vec;

    struct Lab {
        ordered: bool,
        plan: Plan,
        notes: Vec<String>,
    }

    impl InstallPolicy for Lab {
        fn reinstall_ordered(&mut self) -> bool {
            self.ordered
        }
        fn plan(&mut self, _hello: bool) -> Plan {
            self.plan
        }
        fn note(&mut self, event: Event<'_>) {
            self.notes.push(std::format!("{event:?}"));
        }
    }

    fn lab() -> Lab {
        Lab { ordered: false, plan: Plan::Format(None), notes: Vec::new() }
    }

    fn offer() -> Offer {
        Offer { id: Hash([1; 32]), bytes: 5, rootfs_port: 4444, fetch_port: 4445, ..Offer::default() }
    }

    #[test]
    fn the_time_is_sent_first_or_not_at_all() {
        let date = Date::new(2026, 1, 2, 3, 4, 5).unwrap();
        assert_eq!(Session::open(Some(date)).1, Step::Send(Command::Date(date)));
        assert_eq!(Session::open(None).1, Step::Read);
    }

    #[test]
    fn decisions() {
        for (report, ordered, want) in [
            (Report::Uninstalled, false, Command::Format(None)),
            (Report::Uninstalled, true, Command::Format(None)),
            (Report::Installed, false, Command::Boot),
            (Report::Installed, true, Command::Format(None)),
        ] {
            let mut lab = Lab { ordered, ..lab() };
            assert_eq!(Session::open(None).0.handle(report, &mut lab), Step::Send(want));
        }
    }

    #[test]
    fn an_offer_is_made_only_to_who_said_hello() {
        let mut lab = Lab { plan: Plan::Format(Some(offer())), ..lab() };
        let mut session = Session::open(None).0;
        assert_eq!(session.handle(Report::Uninstalled, &mut lab), Step::Send(Command::Format(None)));
        let hello = Report::Ours(Notice::Hello(Hello::default()));
        assert_eq!(session.handle(hello, &mut lab), Step::Read);
        let want = Step::Send(Command::Format(Some(offer())));
        assert_eq!(session.handle(Report::Uninstalled, &mut lab), want);
    }

    #[test]
    fn an_old_pi_is_never_told_to_wait() {
        let mut lab = Lab { plan: Plan::Wait { seconds: 2, percent: 9 }, ..lab() };
        let mut session = Session::open(None).0;
        assert_eq!(session.handle(Report::Uninstalled, &mut lab), Step::Send(Command::Format(None)));
    }

    #[test]
    fn after_formatted_nothing_counts_and_an_old_pi_closes() {
        let (mut session, mut lab) = (Session::open(None).0, lab());
        assert_eq!(session.handle(Report::Formatted, &mut lab), Step::Read);
        assert_eq!(session.state, State::Ended);
        for report in [Report::Uninstalled, Report::Installed, Report::Formatted, Report::Noise(b"+ sfdisk")]
        {
            assert_eq!(session.handle(report, &mut lab), Step::Read);
        }
        assert_eq!(lab.notes, ["Formatted"]);
        let mut ours = Session { hello: true, ..Session::open(None).0 };
        assert_eq!(ours.handle(Report::Formatted, &mut lab), Step::Close);
        assert_eq!(ours.handle(Report::Uninstalled, &mut lab), Step::Close);
    }

    #[test]
    fn a_greeting_is_answered_if_it_asks_for_it() {
        let mut lab = lab();
        for (answer, want) in [(false, Step::Read), (true, Step::Send(Command::Hello))] {
            let hello = Hello { can: Can { answer, ..Can::default() }, ..Hello::default() };
            let report = Report::Ours(Notice::Hello(hello));
            assert_eq!(Session::open(None).0.handle(report, &mut lab), want);
        }
    }

    #[test]
    fn noise_and_milestones_change_nothing() {
        let (mut session, mut lab) = (Session::open(None).0, lab());
        for line in [&b"+ send IS_INSTALLED"[..], b"boot", b"\xfe", b"MOUNTING"] {
            assert_eq!(session.handle(Report::parse(line), &mut lab), Step::Read);
        }
        assert_eq!((session.state, lab.notes.len()), (State::Greeting, 4));
    }
}
