//! The drivers of the control connection, for both sides, over any byte stream with
//! `embedded_io_async`'s traits. Time-outs belong to the stream.

use core::fmt;
use core::future::Future;

use embedded_io_async::{Error as _, ErrorKind, Read, Write};

use super::guard::{Guard, Heard, Open, PIECE};
#[cfg(feature = "trust")]
use super::trust::PiTrust;
use super::{
    Agent, AgentStep, Clock, Date, Decision, Event, Hello, InstallPolicy, MARK, Milestone, Notice, Report,
    Session, Start, Step, TEXT_MAX,
};
use crate::error::{Error, PeerError};
use crate::line::{Framer, TooLong};
use crate::stream::put;
use crate::text::{Piece, Sink as _, ToText as _};

/// Serves one Pi on the control connection until the session or the stream ends.
/// `buf` bounds the length of a line ([`LINE_MAX`](crate::line::LINE_MAX) for all that old peers send).
///
/// # Errors
/// [`Error::Io`] if the stream fails. The end of the stream at any moment is no error: a Pi
/// may be switched off.
pub async fn serve<T: Read + Write>(
    io: &mut T,
    buf: &mut [u8],
    date: Option<Date>,
    policy: &mut impl InstallPolicy,
) -> Result<(), Error<T::Error>> {
    let mut framer = Framer::new(buf);
    let (mut session, mut step) = Session::open(date);
    let mut last = false;
    // One step and one place that waits for it: each would be kept apart in the future.
    loop {
        match &step {
            Step::Close => return Ok(()),
            Step::Read => {}
            step => {
                policy.prepare(step);
                let (head, text) = (policy.head(), policy.reason());
                write_line::<_, COMMAND_PIECE>(io, |to| {
                    to.text(head);
                    if let Some(command) = step.command(text) {
                        command.write_text(to);
                    }
                })
                .await?;
            }
        }
        if last {
            return Ok(());
        }
        step = loop {
            match framer.next_line() {
                Ok(Some(line)) if policy.hear(line) => break session.handle(Report::parse(line), policy),
                Ok(Some(_)) => continue,
                Ok(None) => {}
                Err(TooLong) => {
                    policy.note(Event::TooLong);
                    continue;
                }
            }
            let n = io.read(framer.spare()).await?;
            if n == 0 {
                let Some(line) = framer.rest() else { return Ok(()) };
                // The Pi may still read although it writes no more.
                last = true;
                if policy.hear(line) {
                    break session.handle(Report::parse(line), policy);
                }
                break Step::Read;
            }
            framer.filled(n);
        };
    }
}

/// What the Pi's side of the control connection asks of the Pi. What may wait for hardware is async: an
/// implementation writes `async fn`.
pub trait Pi {
    /// Sets the clock; returns whether it is set.
    fn set_date(&mut self, date: Date) -> impl Future<Output = bool>;

    /// Sets the clock to a time in UTC, which is better than a date; returns whether it is set.
    fn set_clock(&mut self, _clock: Clock) -> impl Future<Output = bool> {
        async { false }
    }

    /// Writes the Pi's addresses, one per line, without a newline at the end. Not async: the driver calls it
    /// once per piece of a long line, and each call must write the same text.
    fn addresses(&mut self, out: &mut impl fmt::Write);

    /// Wipes the root filesystem; returns whether it is gone.
    fn wipe(&mut self) -> impl Future<Output = bool>;

    /// The server has shown that it understands our lines. It may be called more than once.
    fn understood(&mut self) {}

    /// Shows why the server has the Pi wait, and the command that decides. The bytes are the server's: what is no
    /// printable text is to be escaped.
    fn waits(&mut self, _reason: &[u8]) {}

    /// Waits for about a tenth of a second, so that a server which may be an old one reads what was
    /// said so far by itself: some compare all that one read returns with a report.
    fn pause(&mut self) -> impl Future<Output = ()> {
        // `ready` has a panic of its own for a poll after its end.
        async {}
    }
}

/// Talks to piman from the Pi's first report to a decision. The stream stays open: what
/// follows is reported on it with [`report`] and [`notify`].
///
/// With a greeting that asks for an answer ([`Can::answer`](crate::install::Can::answer)) the report waits until
/// the answer is there, or until a read ends with [`ErrorKind::TimedOut`]: the stream decides how long
/// that is. A stream that knows no time must not ask.
///
/// # Errors
/// [`Error::Io`] if the stream fails, [`PeerError::Closed`] if it ends without a decision.
pub async fn run<T: Read + Write>(
    io: &mut T,
    buf: &mut [u8],
    start: &Start<'_>,
    pi: &mut impl Pi,
) -> Result<Decision, Error<T::Error>> {
    talk(io, buf, start, pi, &mut Open).await
}

/// The same as [`run`], where the server has to show who it is, and gets to know who this Pi is.
///
/// # Errors
/// As [`run`]; [`PeerError::NotTrusted`] for an order that is not taken: [`PiTrust::refusal`] says why.
#[cfg(feature = "trust")]
pub async fn run_trusted<T: Read + Write>(
    io: &mut T,
    buf: &mut [u8],
    start: &Start<'_>,
    pi: &mut impl Pi,
    trust: &mut PiTrust,
) -> Result<Decision, Error<T::Error>> {
    talk(io, buf, start, pi, trust).await
}

/// Greets a server to which things are reported that have happened before, until it has said who it is, or until a
/// read ends with [`ErrorKind::TimedOut`]: an earlier server does not say it.
///
/// # Errors
/// [`Error::Io`] if the stream fails.
#[cfg(feature = "trust")]
pub async fn greet_trusted<T: Read + Write>(
    io: &mut T,
    buf: &mut [u8],
    hello: Hello<'_>,
    trust: &mut PiTrust,
) -> Result<(), Error<T::Error>> {
    let start = Start { hello: Some(hello), disk: None, installed: false };
    trust.greet(&start);
    write_line::<_, PIECE>(io, |to| {
        trust.write_line(to);
        to.byte(b'\n');
        Notice::Hello(hello).write_text(to);
        to.byte(b'\n');
    })
    .await?;
    let mut framer = Framer::new(buf);
    while !trust.is_answered() {
        match framer.next_line() {
            Ok(Some(line)) => _ = trust.hear(line),
            Err(TooLong) => {}
            Ok(None) => match io.read(framer.spare()).await {
                Ok(0) => break,
                Ok(n) => framer.filled(n),
                Err(e) if e.kind() == ErrorKind::TimedOut => break,
                Err(e) => return Err(e.into()),
            },
        }
    }
    Ok(())
}

async fn talk<T: Read + Write, G: Guard>(
    io: &mut T,
    buf: &mut [u8],
    start: &Start<'_>,
    pi: &mut impl Pi,
    guard: &mut G,
) -> Result<Decision, Error<T::Error>> {
    let mut framer = Framer::new(buf);
    let mut agent = Agent::new();
    let mut turn = Turn::Greet;
    let (mut reported, mut last) = (false, Last::Nothing);
    guard.greet(start);
    loop {
        for then in [false, true] {
            let done = match &turn {
                Turn::Step(AgentStep::SetDate(date)) if then => pi.set_date(*date).await,
                Turn::Step(AgentStep::SetClock(clock)) if then => pi.set_clock(*clock).await,
                Turn::Step(AgentStep::Reason(reason)) if !then => {
                    pi.waits(reason);
                    true
                }
                Turn::Step(AgentStep::Wipe) if then => pi.wipe().await,
                _ => true,
            };
            let line = match &turn {
                _ if !done => None,
                Turn::Greet => match (&start.hello, then) {
                    (Some(hello), false) => Some(Line::Hello(hello)),
                    (Some(_), true) => start.disk.map(Line::Disk),
                    (None, _) => None,
                },
                Turn::Report => start.report().word().filter(|_| !then).map(Line::Report),
                Turn::Step(step) => Line::about(step, then),
            };
            let Some(line) = line else { continue };
            let now = line.kind();
            if last.must_be_read_before(now) {
                pi.pause().await;
            }
            if let Line::Report(word) = line {
                guard.reported(word);
            }
            if G::SPEAKS && matches!(line, Line::Hello(_)) {
                write_line::<_, PIECE>(io, |to| {
                    guard.write_line(to);
                    to.byte(b'\n')
                })
                .await?;
            }
            let mut words = |to: &mut Piece<PIECE>| line.write_text(to, pi);
            let mark = if line.is_marked() { guard.mark(&mut words) } else { None };
            write_line::<_, PIECE>(io, |to| {
                if let Some(mark) = &mark {
                    G::write_mark(to, mark);
                    to.byte(b'\n');
                }
                words(to);
            })
            .await?;
            last = now;
        }
        reported |= matches!(turn, Turn::Report);
        if let Turn::Step(AgentStep::Decided(_, decision)) = turn {
            let decision = *decision;
            if agent.understood() {
                pi.understood();
            }
            return Ok(decision);
        }
        turn = loop {
            if agent.understood() {
                pi.understood();
                last = Last::Nothing;
            }
            if !reported && (agent.understood() || !start.waits()) {
                break Turn::Report;
            }
            match framer.next_line() {
                Ok(Some(line)) => match guard.hear(line) {
                    Heard::Take => break Turn::Step(agent.handle(line)),
                    Heard::Skip => {}
                    Heard::Refuse => return Err(Error::Peer(PeerError::NotTrusted)),
                },
                Err(TooLong) => warning!("the server sent a line that is too long"),
                Ok(None) => match io.read(framer.spare()).await {
                    Ok(0) => return Err(Error::Peer(PeerError::Closed)),
                    Ok(n) => framer.filled(n),
                    Err(e) if !reported && e.kind() == ErrorKind::TimedOut => break Turn::Report,
                    Err(e) => return Err(e.into()),
                },
            }
        };
    }
}

/// What the Pi does next.
enum Turn<'a> {
    Greet,
    Report,
    Step(AgentStep<'a>),
}

/// What was sent last to a server that may be an old one and may not have read it yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    /// Nothing, or the peer is no server of piman.
    Nothing,
    /// A line that such a server does not act on.
    Line,
    /// A report: it acts on it if it reads it alone.
    Report,
    /// A line that follows its order: it has read all before.
    Answer,
}

impl Last {
    /// A report goes alone.
    fn must_be_read_before(self, now: Self) -> bool {
        match (self, now) {
            (Self::Nothing, _) | (_, Self::Answer | Self::Nothing) => false,
            (_, Self::Report) | (Self::Report, _) => true,
            (Self::Line | Self::Answer, Self::Line) => false,
        }
    }
}

/// A line that the Pi answers with.
enum Line<'a> {
    Hello(&'a Hello<'a>),
    Disk(&'a str),
    Report(&'static str),
    Word(&'static str),
    /// The decision is known.
    Decided(&'static str),
    Addresses,
    Sorry(&'a [u8]),
}

impl<'a> Line<'a> {
    /// The line before the step is carried out, and `then` the line after it.
    fn about(step: &AgentStep<'a>, then: bool) -> Option<Self> {
        Some(Self::Word(match (step, then) {
            (AgentStep::SetDate(_), false) => Milestone::ReceivedDate.word(),
            (AgentStep::SetDate(_) | AgentStep::SetClock(_), true) => Milestone::SetDate.word(),
            (AgentStep::Wipe, false) => Milestone::ReceivedReinstall.word(),
            (AgentStep::Wipe, true) => return Report::Uninstalled.word().map(Self::Report),
            (AgentStep::Decided(Some(milestone), _), false) => return Some(Self::Decided(milestone.word())),
            (AgentStep::Unknown(line), false) => return Some(Self::Sorry(line)),
            (AgentStep::Addresses, false) => return Some(Self::Addresses),
            _ => return None,
        }))
    }

    /// Whether it is one that a server acts on.
    const fn is_marked(&self) -> bool {
        matches!(self, Self::Report(_) | Self::Word(_) | Self::Decided(_))
    }

    fn kind(&self) -> Last {
        match self {
            Self::Report(_) => Last::Report,
            Self::Decided(_) => Last::Answer,
            _ => Last::Line,
        }
    }

    fn write_text(&self, to: &mut Piece<PIECE>, pi: &mut impl Pi) {
        match self {
            Self::Hello(hello) => {
                to.text(MARK);
                hello.write_text(to);
            }
            Self::Disk(text) => Notice::Disk { text }.write_text(to),
            Self::Word(word) | Self::Report(word) | Self::Decided(word) => to.text(word),
            Self::Addresses => pi.addresses(to),
            Self::Sorry(line) => {
                to.text("Sorry don't know how to do ");
                to.put_all(line.get(..TEXT_MAX).unwrap_or(line));
            }
        }
        to.byte(b'\n')
    }
}

/// Sends one report that is a word or a line of ours; noise is not sent.
///
/// # Errors
/// [`Error::Io`] if the stream fails.
pub async fn report<T: Write>(io: &mut T, report: &Report<'_>) -> Result<(), Error<T::Error>> {
    write_line::<_, PIECE>(io, |to| write_report(to, report)).await
}

/// The same, marked, on a connection that began with [`run_trusted`] or [`greet_trusted`].
///
/// # Errors
/// [`Error::Io`] if the stream fails.
#[cfg(feature = "trust")]
pub async fn report_trusted<T: Write>(
    io: &mut T,
    report: &Report<'_>,
    trust: &mut PiTrust,
) -> Result<(), Error<T::Error>> {
    let mark = trust.mark(&mut |to: &mut Piece<PIECE>| write_report(to, report));
    write_line::<_, PIECE>(io, |to| {
        if let Some(mark) = &mark {
            PiTrust::write_mark(to, mark);
            to.byte(b'\n');
        }
        write_report(to, report);
    })
    .await
}

fn write_report(to: &mut Piece<PIECE>, report: &Report<'_>) {
    match (report.word(), report) {
        (Some(word), _) => {
            to.text(word);
            to.byte(b'\n')
        }
        (None, Report::Ours(notice)) => {
            notice.write_text(to);
            to.byte(b'\n')
        }
        (None, _) => {}
    }
}

/// Sends one line of ours.
///
/// # Errors
/// [`Error::Io`] if the stream fails.
pub async fn notify<T: Write>(io: &mut T, notice: Notice<'_>) -> Result<(), Error<T::Error>> {
    report(io, &Report::Ours(notice)).await
}

/// How much of a command is written at once, in bytes: a server holds this room for each Pi.
/// All that old peers are told fits.
const COMMAND_PIECE: usize = 320;

/// Writes a text, `N` bytes at once, so that most leave in one segment: `words` is called until it
/// has been taken whole.
async fn write_line<T: Write, const N: usize>(
    io: &mut T,
    mut words: impl FnMut(&mut Piece<N>),
) -> Result<(), Error<T::Error>> {
    let mut piece = Piece::new();
    while piece.fill(&mut words) {
        put(io, piece.bytes()).await?;
    }
    Ok(io.flush().await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::Command;

    #[test]
    fn what_old_peers_are_told_leaves_at_once() {
        let date = Date::new(2026, 11, 21, 3, 24, 7).unwrap();
        for command in [Command::Boot, Command::Format(None), Command::Reinstall, Command::Date(date)] {
            assert!(std::format!("{command}").len() <= COMMAND_PIECE);
        }
    }
}
