//! `piman telemetry`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::Context;
use clap::Args;
use piman_core::telemetry::PORT;

use crate::telemetry::{Client, Waits};
use crate::telemetry::{Follow, Mark, Next};

/// Send the records of a file to a telemetry service, as the file grows
#[derive(Debug, Args)]
#[command(
    after_help = "A record is a line. It counts when the server has written it; then the next one is sent. \
    A server that is away is tried again for ever. The file is followed like `tail -F` does it: it may be \
    rotated, truncated, or made later. Exit codes: 0 all records sent, 1 failed, 5 no connection (with --tries)."
)]
pub struct TelemetryArgs {
    /// Which file; - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where to
    #[arg(value_name = "HOST")]
    host: String,
    /// The service's port
    #[arg(long, value_name = "PORT", default_value_t = PORT)]
    port: u16,
    /// Stop at the end of the file
    #[arg(long)]
    no_follow: bool,
    /// Keep in this file how far it was sent, so that a restart goes on there
    #[arg(long, value_name = "FILE")]
    position: Option<PathBuf>,
    /// Attempts in a row that may fail; 0: for ever
    #[arg(long, value_name = "N", default_value_t = 0)]
    tries: u32,
    /// How long the server may take to write a record
    #[arg(long, value_name = "TIME", default_value = "60s")]
    timeout: crate::text::duration::HumanDuration,
}

/// The connection could not be had or kept, or a record was not acknowledged.
#[derive(Debug, thiserror::Error)]
#[error("sending a record to {server}: {why}")]
pub struct Unreachable {
    server: String,
    why: io::Error,
}

/// `piman telemetry`.
///
/// # Errors
/// [`Unreachable`] after the attempts that were asked for, or if the file cannot be read.
pub fn run(args: &TelemetryArgs) -> anyhow::Result<()> {
    let place = args.position.as_deref().map(Position::open).transpose()?;
    let mut follow = if args.file == Path::new("-") {
        Follow::stream(io::stdin())
    } else {
        let mark = place.as_ref().map(Position::read).transpose()?.flatten();
        Follow::file(&args.file, !args.no_follow, mark)
    };
    let waits = Waits { silence: args.timeout.0, tries: args.tries, ..Waits::default() };
    let mut client = Client::new(&args.host, args.port, waits);
    let mut said = false;
    let mut records = 0u64;
    loop {
        match follow.pull().with_context(|| format!("reading {}", args.file.display()))? {
            Next::Record(record) => {
                let mut tell = |e: &io::Error| {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!("{} port {}: {e}; trying again", args.host, args.port);
                    }
                };
                client.send(record, &mut tell).map_err(|why| Unreachable {
                    server: format!("{} port {}", args.host, args.port),
                    why,
                })?;
                if std::mem::take(&mut said) {
                    tracing::info!("records are written again");
                }
                records += 1;
            }
            Next::Wait(time) => {
                thread::sleep(time);
                continue;
            }
            Next::End => break,
        }
        if let Some(place) = &place {
            place.write(follow.mark())?;
        }
    }
    client.finish();
    // That it cannot be said is no failure: they were sent.
    let _ = crate::text::human::print(&format!("{records} records\n"));
    Ok(())
}

/// How far it was sent, kept in a file.
struct Position {
    file: File,
    path: PathBuf,
}

impl Position {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        Ok(Self { file: file.with_context(|| format!("opening {}", path.display()))?, path: path.to_owned() })
    }

    fn read(&self) -> anyhow::Result<Option<Mark>> {
        let text = std::fs::read_to_string(&self.path)
            .with_context(|| format!("reading {}", self.path.display()))?;
        if text.is_empty() {
            return Ok(None);
        }
        let mut words = text.split_ascii_whitespace().map(str::parse);
        match (words.next(), words.next(), words.next()) {
            (Some(Ok(inode)), Some(Ok(offset)), None) => Ok(Some(Mark { inode, offset })),
            _ => anyhow::bail!(
                "{} is not a position that piman wrote; remove it to begin anew",
                self.path.display()
            ),
        }
    }

    /// One write of fixed length: it is whole even if the program is killed.
    fn write(&self, mark: Mark) -> anyhow::Result<()> {
        let text = format!("{:020} {:020}\n", mark.inode, mark.offset);
        self.file.write_all_at(text.as_bytes(), 0).with_context(|| format!("writing {}", self.path.display()))
    }
}

impl Unreachable {
    /// The exit code for it.
    pub const EXIT_CODE: u8 = 5;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let place = Position::open(&path).unwrap();
        assert_eq!(place.read().unwrap(), None);
        for offset in [u64::MAX, 7] {
            let mark = Mark { inode: 12, offset };
            place.write(mark).unwrap();
            assert_eq!(Position::open(&path).unwrap().read().unwrap(), Some(mark));
        }
        std::fs::write(&path, "else").unwrap();
        assert!(place.read().is_err());
    }
}
