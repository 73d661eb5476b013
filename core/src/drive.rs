//! The one driver: sessions over any byte stream that implements
//! `embedded_io_async`'s traits. Time-outs belong to the stream.

use core::fmt;

use embedded_io_async::{Read, Write};

use crate::error::{Error, PeerError};
use crate::install::{
    Agent, AgentStep, Date, Decision, Event, Fleet, Hello, MARK, Milestone, Notice, Report, Session, Start,
    Step, TEXT_MAX,
};
use crate::line::{Framer, TooLong};
use crate::words::{Piece, Sink as _, Words as _};

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
    fleet: &mut impl Fleet,
) -> Result<(), Error<T::Error>> {
    let mut framer = Framer::new(buf);
    let (mut session, mut step) = Session::open(date);
    let mut last = false;
    // One step and one place that waits for it: each would be kept apart in the future.
    while !(obey(io, &step).await? || last) {
        step = loop {
            match framer.next_line() {
                Ok(Some(line)) => break session.handle(Report::parse(line), fleet),
                Ok(None) => {}
                Err(TooLong) => {
                    fleet.note(Event::TooLong);
                    continue;
                }
            }
            let n = io.read(framer.spare()).await?;
            if n == 0 {
                let Some(line) = framer.rest() else { return Ok(()) };
                // The Pi may still read although it writes no more.
                last = true;
                break session.handle(Report::parse(line), fleet);
            }
            framer.filled(n);
        };
    }
    Ok(())
}

/// Returns whether the session has ended. The step is borrowed: a future holds twice what it is
/// given.
async fn obey<T: Write>(io: &mut T, step: &Step) -> Result<bool, Error<T::Error>> {
    match step {
        Step::Read => Ok(false),
        Step::Send(command) => say::<_, COMMAND_PIECE>(io, |to| command.words(to)).await.map(|()| false),
        Step::Close => Ok(true),
    }
}

/// What the Pi's side of the talk asks of the Pi.
pub trait Pi {
    /// Sets the clock; returns whether it is set.
    fn set_date(&mut self, date: Date) -> bool;

    /// Writes the Pi's addresses, one per line, without a newline at the end.
    fn addresses(&mut self, out: &mut impl fmt::Write);

    /// Wipes the root filesystem; returns whether it is gone.
    fn wipe(&mut self) -> bool;
}

/// Talks to piman from the Pi's first report to a decision. The stream stays open: what
/// follows is reported on it with [`report`] and [`notify`].
///
/// # Errors
/// [`Error::Io`] if the stream fails, [`PeerError::Closed`] if it ends without a decision.
pub async fn attend<T: Read + Write>(
    io: &mut T,
    buf: &mut [u8],
    start: &Start<'_>,
    pi: &mut impl Pi,
) -> Result<Decision, Error<T::Error>> {
    let mut framer = Framer::new(buf);
    let mut agent = Agent::new();
    let mut step = None;
    loop {
        for then in [false, true] {
            let line = match &step {
                None if then => start.report().word().map(Line::Word),
                None => start.hello.as_ref().map(Line::Hello),
                Some(step) => Line::about(step, then, pi),
            };
            if let Some(line) = line {
                say::<_, PIECE>(io, |to| line.words(to, pi)).await?;
            }
        }
        if let Some(AgentStep::Decided(_, decision)) = step {
            return Ok(*decision);
        }
        step = loop {
            match framer.next_line() {
                Ok(Some(line)) => break Some(agent.handle(line)),
                Err(TooLong) => warning!("the server sent a line that is too long"),
                Ok(None) => {
                    let n = io.read(framer.spare()).await?;
                    if n == 0 {
                        return Err(Error::Peer(PeerError::Closed));
                    }
                    framer.filled(n);
                }
            }
        };
    }
}

/// A line that the Pi answers with.
enum Line<'a> {
    Hello(&'a Hello<'a>),
    Word(&'static str),
    Addresses,
    Sorry(&'a [u8]),
}

impl<'a> Line<'a> {
    /// What is said before the step is carried out; then carries it out and says how it was.
    fn about(step: &AgentStep<'a>, then: bool, pi: &mut impl Pi) -> Option<Self> {
        Some(Self::Word(match (step, then) {
            (AgentStep::SetDate(_), false) => Milestone::ReceivedDate.word(),
            (AgentStep::SetDate(date), true) if pi.set_date(*date) => Milestone::SetDate.word(),
            (AgentStep::Wipe, false) => Milestone::ReceivedReinstall.word(),
            (AgentStep::Wipe, true) if pi.wipe() => Report::Uninstalled.word()?,
            (AgentStep::Decided(Some(milestone), _), false) => milestone.word(),
            (AgentStep::Unknown(line), false) => return Some(Self::Sorry(line)),
            (AgentStep::Addresses, false) => return Some(Self::Addresses),
            _ => return None,
        }))
    }

    fn words(&self, to: &mut Piece<PIECE>, pi: &mut impl Pi) {
        match self {
            Self::Hello(hello) => {
                to.text(MARK);
                hello.words(to);
            }
            Self::Word(word) => to.text(word),
            Self::Addresses => pi.addresses(to),
            Self::Sorry(line) => {
                to.text("Sorry don't know how to do ");
                line.iter().take(TEXT_MAX).for_each(|byte| to.put(*byte));
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
    say::<_, PIECE>(io, |to| match (report.word(), report) {
        (Some(word), _) => {
            to.text(word);
            to.byte(b'\n')
        }
        (None, Report::Ours(notice)) => {
            notice.words(to);
            to.byte(b'\n')
        }
        (None, _) => {}
    })
    .await
}

/// Sends one line of ours.
///
/// # Errors
/// [`Error::Io`] if the stream fails.
pub async fn notify<T: Write>(io: &mut T, notice: Notice<'_>) -> Result<(), Error<T::Error>> {
    report(io, &Report::Ours(notice)).await
}

/// What the Pi's side holds of a line on its way, in bytes: most lines leave in one write.
const PIECE: usize = 128;

/// How much of a command is written at once, in bytes: a server holds this room for each Pi.
/// All that old peers are told fits.
const COMMAND_PIECE: usize = 352;

/// Writes a text, `N` bytes at once, so that most leave in one segment: `words` is called until it
/// has been taken whole.
async fn say<T: Write, const N: usize>(
    io: &mut T,
    mut words: impl FnMut(&mut Piece<N>),
) -> Result<(), Error<T::Error>> {
    let mut piece = Piece::new();
    while piece.fill(&mut words) {
        put(io, piece.bytes()).await?;
    }
    Ok(io.flush().await?)
}

/// `write_all`, with a write of 0 as the peer's fault instead of a panic.
///
/// # Errors
/// [`Error::Io`] if the stream fails, [`PeerError::Deaf`] if it takes no more bytes.
pub async fn put<T: Write>(io: &mut T, mut bytes: &[u8]) -> Result<(), Error<T::Error>> {
    while !bytes.is_empty() {
        match io.write(bytes).await? {
            0 => return Err(Error::Peer(PeerError::Deaf)),
            n => bytes = bytes.get(n..).unwrap_or_default(),
        }
    }
    Ok(())
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
