//! Log lines on standard error: for people, for machines (JSON) or for the journal of systemd.
//!
//! A line has a message and fields (`serial=... event=... reason="..."`). What a peer on the network has sent may
//! be in either, so characters that steer a terminal or hide text are escaped in every format.

mod limit;
mod line;

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;

use limit::{Kind, Limit};
use line::{Fields, Style};

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Text; under systemd with the levels of its journal
    #[default]
    Human,
    /// One JSON object per line
    Json,
}

impl Format {
    /// What the variable says, if it says something.
    fn of_environment() -> Option<Result<Self, BadFormat>> {
        use clap::ValueEnum;
        let text = std::env::var(FORMAT).ok().filter(|text| !text.is_empty())?;
        Some(Self::from_str(&text, true).map_err(|_| BadFormat(text)))
    }
}

/// The variable, where the command line cannot be changed, as in a unit of systemd.
const FORMAT: &str = "PIMAN_LOG_FORMAT";

/// The variable names an unknown format.
#[derive(Debug, thiserror::Error)]
#[error("{FORMAT} is `{0}`: write human or json")]
struct BadFormat(String);

/// Logs a message at a level that is known only when the program runs.
#[macro_export]
macro_rules! log_at {
    ($level:expr, $($arg:tt)+) => {
        match $level {
            ::tracing::Level::ERROR => ::tracing::error!($($arg)+),
            ::tracing::Level::WARN => ::tracing::warn!($($arg)+),
            ::tracing::Level::INFO => ::tracing::info!($($arg)+),
            ::tracing::Level::DEBUG => ::tracing::debug!($($arg)+),
            ::tracing::Level::TRACE => ::tracing::trace!($($arg)+),
        }
    };
}

/// Why the log could not be set up as it was asked for. It then runs at its default levels.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{levels}` in {source_name} is not a list of log levels ({reason}): write debug, or info,piman::rpc=debug"
)]
pub struct BadLevels {
    levels: String,
    source_name: &'static str,
    reason: String,
}

/// Starts logging to standard error, once per process: a second start changes nothing, since a program around this
/// one may have its own logger.
///
/// `levels` is the command line's; without it the variables PIMAN_LOG and RUST_LOG are read, then `default` holds. For `format` the variable is
/// PIMAN_LOG_FORMAT.
///
/// # Errors
/// If the levels cannot be read; logging has started with `default`.
pub fn start(levels: Option<&str>, default: &str, format: Option<Format>) -> Result<(), BadLevels> {
    let chosen = levels.map(|text| (text.to_owned(), "--log-level")).or_else(|| {
        ["PIMAN_LOG", "RUST_LOG"].into_iter().find_map(|name| {
            std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| (text, name))
        })
    });
    let (format, unknown) = match format.map(Ok).or_else(Format::of_environment) {
        None => (Format::default(), None),
        Some(Ok(format)) => (format, None),
        Some(Err(e)) => (Format::default(), Some(e)),
    };
    let fallback = || Targets::from_str(default).unwrap_or_default();
    let (targets, refused) = match chosen {
        None => (fallback(), Ok(())),
        Some((levels, source_name)) => match Targets::from_str(&levels) {
            Ok(targets) => (targets, Ok(())),
            Err(e) => (fallback(), Err(BadLevels { levels, source_name, reason: e.to_string() })),
        },
    };
    let most = targets.iter().map(|(_, level)| level).chain(targets.default_level()).max();
    let subscriber = Registry::default()
        .with(LineLayer { style: style(format), limit: Mutex::default() }.with_filter(targets));
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        // The core logs with `log`. Its records pass the same filter.
        let level = most.unwrap_or(tracing::level_filters::LevelFilter::OFF);
        let log = tracing_log::LogTracer::builder().with_max_level(tracing_log::AsLog::as_log(&level));
        // It says what ordinary file systems have that no standard wants.
        let _ = log.ignore_crate("fatfs").init();
    }
    if let Some(e) = unknown {
        tracing::warn!("{e}");
    }
    refused
}

fn style(format: Format) -> Style {
    match format {
        Format::Json => Style::Json,
        Format::Human if is_journal() => Style::Journal,
        Format::Human => {
            let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
            Style::Human { color: io::stderr().is_terminal() && !no_color }
        }
    }
}

/// Whether standard error is the stream that systemd has named in `JOURNAL_STREAM` as `DEVICE:INODE`. The variable
/// alone does not suffice: children inherit it, also where their standard error was redirected.
fn is_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(io::stderr()).is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Writes each event as one line, with one call, so that lines of several threads do not mix.
struct LineLayer {
    style: Style,
    limit: Mutex<Limit>,
}

impl<S: Subscriber> Layer<S> for LineLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let normalized = tracing_log::NormalizeEvent::normalized_metadata(event);
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        let mut fields = Fields::default();
        event.record(&mut fields);
        let (level, now) = (*metadata.level(), Instant::now());
        let kind = Kind::of(metadata.callsite(), metadata.target(), &fields);
        let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = limit.admits(level, &kind, &fields, now);
        let left_out = limit.left_out(now);
        drop(limit);
        if let Some(text) = left_out {
            self.write(Level::WARN, module_path!(), &Fields::of_message(text));
        }
        if admitted {
            self.write(level, metadata.target(), &fields);
        }
    }
}

impl LineLayer {
    fn write(&self, level: Level, target: &str, fields: &Fields) {
        let line = self.style.line(level, target, fields, jiff::Timestamp::now());
        // A closed standard error is no reason to stop serving.
        let _ = io::stderr().lock().write_all(line.as_bytes());
    }
}

impl fmt::Debug for LineLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LineLayer").finish_non_exhaustive()
    }
}
