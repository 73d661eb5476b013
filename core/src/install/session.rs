//! piman's side of the control connection, as pure steps.

use super::command::{Command, Date};
use super::ours::{BootPersonal, Can, Clock, Fingerprint, Found, Hello, Installation, Notice, Offer, Stage};
use super::report::{Milestone, Report};
use crate::hash::Hash;

/// What a Pi asks with a report: what now?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Question {
    /// It reports a system that it could boot.
    pub installed: bool,
    /// It said who it is and what it can do. One that did not knows neither offers nor how to wait.
    pub hello: bool,
    /// What is on its disk; `None`: it cannot say.
    pub found: Option<Found>,
    /// The fingerprint of that.
    pub print: Option<Fingerprint>,
}

/// What a Pi is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Plan {
    /// Boot what is on the disk.
    Boot,
    /// Do this to what is on the disk, and boot it. A Pi that said no hello boots.
    Personalise(BootPersonal),
    /// Format and install; `None` as the offer: by the archive path, without a word about what.
    Format(Option<Offer>),
    /// Neither, for now: ask again. [`InstallPolicy::reason`] says why. A Pi that said no hello gets no answer and
    /// waits on its open connection.
    Wait {
        /// After how many seconds.
        seconds: u16,
        /// How far the preparation of the image is, in per cent.
        percent: u8,
    },
    /// Neither: what there is to install will never have room on this disk. [`InstallPolicy::reason`] says why.
    Never {
        /// After how many seconds to ask whether there is another image, for those that wait.
        seconds: u16,
    },
}

/// What decides for the Pi on one connection. It knows the peer's address by itself.
pub trait InstallPolicy {
    /// Decides what the Pi does. Asked once for each report, and what it says is what the Pi is told: whoever
    /// implements this has recorded the reason of a [`Plan::Format`] before it returns it, and turns its own
    /// errors into [`Plan::Boot`] or [`Plan::Wait`].
    fn decide(&mut self, question: &Question) -> Plan;

    /// Hears a line before it is acted on, and says whether it is to be.
    fn hear(&mut self, _line: &[u8]) -> bool {
        true
    }

    /// A step is about to be carried out.
    fn prepare(&mut self, _step: &Step) {}

    /// Lines of ours, each with its end, that go in front of what the step sends.
    fn head(&self) -> &str {
        ""
    }

    /// Why the last plan was to wait, and the command that decides; for people, may be empty.
    fn reason(&self) -> &str {
        ""
    }

    /// The time in UTC, for a Pi of ours, where it should get it.
    fn clock(&mut self) -> Option<Clock> {
        None
    }

    /// Takes note of what happened.
    fn note(&mut self, event: Event<'_>);
}

/// What happened on a control connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Event<'a> {
    /// The Pi said who it is.
    Hello(Hello<'a>),
    /// The Pi said what is on its disk, for people.
    Disk(&'a str),
    /// The Pi said whether it has a system.
    Found {
        /// It has one.
        installed: bool,
    },
    /// It was told to boot.
    Boot,
    /// It was told to format.
    Format,
    /// It was told to wait, or got no answer if it does not know how to.
    Wait,
    /// It passed a milestone.
    Milestone(Milestone),
    /// How far it is.
    Progress {
        /// What it is doing.
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
    /// It waits and will ask again.
    Waiting,
    /// The Pi reported `IS_FORMATTED`: what it sends until it closes counts no more.
    Ended,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use]
#[expect(clippy::large_enum_variant, reason = "there is one for each connection, and no allocator")]
pub enum Step {
    /// Nothing: read on.
    Read,
    /// Send this, then read on.
    Send(Command<'static>),
    /// Tell the Pi to wait, with the policy's reason ([`Step::command`]), then read on.
    Wait {
        /// For how long, in seconds.
        seconds: u16,
        /// How far the preparation of the image is, in per cent.
        percent: u8,
    },
    /// Tell the Pi that nothing there is will have room on its disk, with the policy's reason ([`Step::command`]),
    /// then read on.
    Never {
        /// For how long to wait for something else, in seconds.
        seconds: u16,
    },
    /// Close the connection.
    Close,
}

impl Step {
    /// What to send, with this reason if it is to wait; `None`: nothing.
    #[must_use]
    pub const fn command<'a>(&self, reason: &'a str) -> Option<Command<'a>> {
        match *self {
            Self::Send(command) => Some(command),
            Self::Wait { seconds, percent } => Some(Command::Wait { seconds, percent, text: reason }),
            Self::Never { seconds } => Some(Command::Never { seconds, text: reason }),
            Self::Read | Self::Close => None,
        }
    }
}

/// One control connection.
#[derive(Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Session {
    state: State,
    hello: bool,
    found: Option<Found>,
    print: Option<Fingerprint>,
}

impl Session {
    /// A session, and what to send first: the time, where the Pi should get it.
    pub fn open(date: Option<Date>) -> (Self, Step) {
        let session = Self { state: State::Greeting, hello: false, found: None, print: None };
        (session, date.map_or(Step::Read, |d| Step::Send(Command::Date(d))))
    }

    /// Takes one report and says what to do.
    pub fn handle(&mut self, report: Report<'_>, policy: &mut impl InstallPolicy) -> Step {
        let (state, event, step) = match (self.state, report) {
            (State::Ended, _) => return self.end(),
            (_, Report::Formatted) => (State::Ended, Event::Formatted, self.end()),
            (_, Report::Uninstalled) => self.decide(false, policy),
            (_, Report::Installed) => self.decide(true, policy),
            (state, Report::Milestone(milestone)) => (state, Event::Milestone(milestone), Step::Read),
            (state, Report::Ours(notice)) => {
                let step = match notice {
                    Notice::Hello(Hello { can: Can { answer: true, .. }, .. }) => {
                        Step::Send(Command::Hello { clock: policy.clock() })
                    }
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

    /// Asks once, and says what was answered.
    fn decide<'a>(&self, installed: bool, policy: &mut impl InstallPolicy) -> (State, Event<'a>, Step) {
        policy.note(Event::Found { installed });
        let Self { hello, found, print, .. } = *self;
        match policy.decide(&Question { installed, hello, found, print }) {
            Plan::Boot => (State::Booting, Event::Boot, Step::Send(Command::Boot)),
            Plan::Personalise(personal) if hello => {
                (State::Booting, Event::Boot, Step::Send(Command::Personalise(personal)))
            }
            Plan::Personalise(_) => (State::Booting, Event::Boot, Step::Send(Command::Boot)),
            Plan::Format(offer) => {
                let offer = offer.filter(|_| hello);
                (State::Formatting, Event::Format, Step::Send(Command::Format(offer)))
            }
            Plan::Wait { seconds, percent } if hello => {
                (State::Waiting, Event::Wait, Step::Wait { seconds, percent })
            }
            Plan::Never { seconds } if hello => (State::Waiting, Event::Wait, Step::Never { seconds }),
            // An old Pi does not know how to wait; while it has no answer it does nothing.
            Plan::Wait { .. } | Plan::Never { .. } => (State::Waiting, Event::Wait, Step::Read),
        }
    }

    fn notice<'a>(&mut self, notice: Notice<'a>) -> Event<'a> {
        match notice {
            Notice::Hello(hello) => {
                (self.hello, self.found, self.print) = (true, hello.found, hello.print);
                Event::Hello(hello)
            }
            Notice::Disk { text } => Event::Disk(text),
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
        plan: Plan,
        asked: Vec<Question>,
        notes: Vec<String>,
    }

    impl InstallPolicy for Lab {
        fn decide(&mut self, question: &Question) -> Plan {
            self.asked.push(*question);
            self.plan
        }
        fn note(&mut self, event: Event<'_>) {
            self.notes.push(std::format!("{event:?}"));
        }
    }

    fn lab() -> Lab {
        Lab { plan: Plan::Format(None), asked: Vec::new(), notes: Vec::new() }
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
        let waits = Plan::Wait { seconds: 2, percent: 9 };
        for (report, installed) in [(Report::Uninstalled, false), (Report::Installed, true)] {
            for (plan, want) in [
                (Plan::Format(None), Step::Send(Command::Format(None))),
                (Plan::Boot, Step::Send(Command::Boot)),
                (waits, Step::Read),
            ] {
                let mut lab = Lab { plan, ..lab() };
                assert_eq!(Session::open(None).0.handle(report, &mut lab), want);
                let asked = Question { installed, hello: false, found: None, print: None };
                assert_eq!(lab.asked, [asked], "once");
            }
        }
    }

    #[test]
    fn what_is_on_the_disk_is_part_of_the_question() {
        let mut lab = Lab { plan: Plan::Wait { seconds: 2, percent: 0 }, ..lab() };
        let mut session = Session::open(None).0;
        let (found, print) = (Some(Found::Foreign), Fingerprint::new(7));
        let hello = Hello { found, print, ..Hello::default() };
        for report in [Report::Ours(Notice::Hello(hello)), Report::Ours(Notice::Disk { text: "gpt" })] {
            assert_eq!(session.handle(report, &mut lab), Step::Read);
        }
        let step = session.handle(Report::Uninstalled, &mut lab);
        assert_eq!(step.command("why"), Some(Command::Wait { seconds: 2, percent: 0, text: "why" }));
        assert_eq!(lab.asked, [Question { installed: false, hello: true, found, print }]);
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
        for (answer, want) in [(false, Step::Read), (true, Step::Send(Command::Hello { clock: None }))] {
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
