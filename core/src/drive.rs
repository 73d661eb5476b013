//! The one driver: sessions over any byte stream that implements
//! `embedded_io_async`'s traits. Time-outs belong to the stream.

use core::fmt::{self, Write as _};

use embedded_io_async::{Read, Write};
use heapless::{String, Vec};

use crate::error::{Error, PeerError};
use crate::install::{
    Agent, AgentStep, Date, Decision, Event, Fleet, Milestone, Notice, Report, Session, Start, Step, TEXT_MAX,
};
use crate::line::{Framer, LINE_MAX, TooLong};

/// Serves one Pi on the control connection until the session or the stream ends.
/// `buf` bounds the length of a line ([`LINE_MAX`] for all that old peers send).
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
    let (mut session, first) = Session::open(date);
    obey(io, first).await?;
    loop {
        loop {
            let step = match framer.next_line() {
                Ok(Some(line)) => session.handle(Report::parse(line), fleet),
                Ok(None) => break,
                Err(TooLong) => {
                    fleet.note(Event::TooLong);
                    continue;
                }
            };
            if obey(io, step).await? {
                return Ok(());
            }
        }
        let n = io.read(framer.spare()).await?;
        if n == 0 {
            if let Some(line) = framer.rest() {
                let step = session.handle(Report::parse(line), fleet);
                // The Pi may still read although it writes no more.
                obey(io, step).await?;
            }
            return Ok(());
        }
        framer.filled(n);
    }
}

/// Returns whether the session has ended.
async fn obey<T: Write>(io: &mut T, step: Step) -> Result<bool, Error<T::Error>> {
    match step {
        Step::Read => Ok(false),
        Step::Send(command) => send_within::<_, COMMAND_PIECE>(io, &command).await.map(|()| false),
        Step::Close => Ok(true),
    }
}

/// What the Pi's side of the talk asks of the Pi.
pub trait Pi {
    /// Sets the clock; returns whether it is set.
    fn set_date(&mut self, date: Date) -> bool;

    /// Writes the Pi's addresses, one per line, without a newline at the end.
    fn addresses(&mut self, out: &mut dyn fmt::Write);

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
    start: Start<'_>,
    pi: &mut impl Pi,
) -> Result<Decision, Error<T::Error>> {
    if let Some(hello) = start.hello {
        notify(io, Notice::Hello(hello)).await?;
    }
    report(io, start.report()).await?;
    let mut framer = Framer::new(buf);
    let mut agent = Agent::new();
    loop {
        loop {
            let step = match framer.next_line() {
                Ok(Some(line)) => agent.handle(line),
                Ok(None) => break,
                Err(TooLong) => {
                    warning!("the server sent a line that is too long");
                    continue;
                }
            };
            match step {
                AgentStep::Read => {}
                AgentStep::SetDate(date) => {
                    report(io, Report::Milestone(Milestone::ReceivedDate)).await?;
                    if pi.set_date(date) {
                        report(io, Report::Milestone(Milestone::SetDate)).await?;
                    }
                }
                AgentStep::Addresses => {
                    let mut text = String::<LINE_MAX>::new();
                    pi.addresses(&mut text);
                    send(io, &format_args!("{text}\n")).await?;
                }
                AgentStep::Wipe => {
                    report(io, Report::Milestone(Milestone::ReceivedReinstall)).await?;
                    if pi.wipe() {
                        report(io, Report::Uninstalled).await?;
                    }
                }
                AgentStep::Unknown(line) => {
                    let line = line.get(..TEXT_MAX).unwrap_or(line);
                    put(io, b"Sorry don't know how to do ").await?;
                    put(io, line).await?;
                    put(io, b"\n").await?;
                    io.flush().await?;
                }
                AgentStep::Decided(milestone, decision) => {
                    if let Some(milestone) = milestone {
                        report(io, Report::Milestone(milestone)).await?;
                    }
                    return Ok(decision);
                }
            }
        }
        let n = io.read(framer.spare()).await?;
        if n == 0 {
            return Err(Error::Peer(PeerError::Closed));
        }
        framer.filled(n);
    }
}

/// Sends one report that is a word; noise is not sent.
///
/// # Errors
/// [`Error::Io`] if the stream fails.
pub async fn report<T: Write>(io: &mut T, report: Report<'_>) -> Result<(), Error<T::Error>> {
    match (report.word(), report) {
        (Some(word), _) => send(io, &format_args!("{word}\n")).await,
        (None, Report::Ours(notice)) => notify(io, notice).await,
        (None, _) => Ok(()),
    }
}

/// Sends one line of ours.
///
/// # Errors
/// [`Error::Io`] if the stream fails.
pub async fn notify<T: Write>(io: &mut T, notice: Notice<'_>) -> Result<(), Error<T::Error>> {
    send(io, &format_args!("{notice}\n")).await
}

/// How much of a command is written at once, in bytes: a server holds this room for each Pi.
/// All that old peers are told fits.
const COMMAND_PIECE: usize = 352;

/// Writes what fits one line of ours at once, so that it leaves in one segment.
async fn send<T: Write>(io: &mut T, what: &impl fmt::Display) -> Result<(), Error<T::Error>> {
    send_within::<T, LINE_MAX>(io, what).await
}

/// Writes in pieces of `MAX` bytes; what is longer is formatted once for each piece.
async fn send_within<T: Write, const MAX: usize>(
    io: &mut T,
    what: &impl fmt::Display,
) -> Result<(), Error<T::Error>> {
    let mut sent = 0;
    loop {
        let mut piece = Piece::<MAX> { skip: sent, bytes: Vec::new(), more: false };
        // It takes all that is written to it.
        let _ = write!(piece, "{what}");
        put(io, &piece.bytes).await?;
        sent += piece.bytes.len();
        if !piece.more || piece.bytes.is_empty() {
            return Ok(io.flush().await?);
        }
    }
}

/// `MAX` bytes of a text, behind those that were sent.
struct Piece<const MAX: usize> {
    skip: usize,
    bytes: Vec<u8, MAX>,
    /// Whether there is more behind them.
    more: bool,
}

impl<const MAX: usize> fmt::Write for Piece<MAX> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let text = text.as_bytes();
        let fresh = text.get(self.skip..).unwrap_or_default();
        self.skip = self.skip.saturating_sub(text.len());
        let room = MAX - self.bytes.len();
        let fits = fresh.get(..room).unwrap_or(fresh);
        self.more |= fits.len() < fresh.len();
        // It fits.
        let _ = self.bytes.extend_from_slice(fits);
        Ok(())
    }
}

/// `write_all`, with a write of 0 as the peer's fault instead of a panic.
pub(crate) async fn put<T: Write>(io: &mut T, mut bytes: &[u8]) -> Result<(), Error<T::Error>> {
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

    #[test]
    fn pieces_of_every_size_are_the_whole() {
        fn pieces<const MAX: usize>() -> std::string::String {
            let mut whole = std::vec::Vec::new();
            loop {
                let mut piece = Piece::<MAX> { skip: whole.len(), bytes: Vec::new(), more: false };
                let bird = "é\u{1f980}";
                write!(piece, "{bird} {}", 12_345).unwrap();
                whole.extend_from_slice(&piece.bytes);
                if !piece.more {
                    return std::string::String::from_utf8(whole).unwrap();
                }
            }
        }
        for text in [pieces::<1>(), pieces::<2>(), pieces::<5>(), pieces::<12>(), pieces::<13>()] {
            assert_eq!(text, "é\u{1f980} 12345");
        }
    }
}
