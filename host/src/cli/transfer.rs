//! `piman get` and `piman put`.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use piman_core::transfer::{Name, PORT};

use crate::text::human::json_line;
use crate::transfer::Target;
use crate::transfer::{Deadlines, Outcome, Progress, TransferError, get, put};

/// Without a terminal, so often a line says how far it is.
const SAY: Duration = Duration::from_secs(10);

/// Get a file from a transfer service
#[derive(Debug, Args)]
#[command(
    after_help = "A download that broke off is resumed, if the file is still the same. Exit codes: 0 done, \
    1 failed, 3 refused (no such file), 4 no space, 5 no connection."
)]
pub struct GetArgs {
    /// Where from, and which file
    #[arg(value_name = "HOST:NAME")]
    from: String,
    /// Where to: a file or a folder [default: NAME here]
    #[arg(value_name = "FILE")]
    to: Option<PathBuf>,
    /// Replace the file if there is one, once all is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

/// Put a file to a transfer service
#[derive(Debug, Args)]
#[command(
    after_help = "An upload that broke off is resumed, if the file is still the same. Exit codes: 0 done, \
    1 failed, 3 refused (there is a file of that name), 4 no space, 5 no connection."
)]
pub struct PutArgs {
    /// Which file
    #[arg(value_name = "FILE")]
    from: PathBuf,
    /// Where to, and under which name [default: the file's own]
    #[arg(value_name = "HOST:[NAME]")]
    to: String,
    /// How long the server may take no byte of the file [default: as long as its system answers]
    #[arg(long, value_name = "TIME")]
    stall_timeout: Option<crate::text::duration::HumanDuration>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// The service's port
    #[arg(long, value_name = "PORT", default_value_t = PORT)]
    port: u16,
    /// Attempts in a row that may fail without a byte moved
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    tries: u32,
    /// How long the other side may be silent
    #[arg(long, value_name = "TIME", default_value = "60s")]
    timeout: crate::text::duration::HumanDuration,
    /// Print what was done as one line of JSON
    #[arg(long)]
    json: bool,
}

/// `piman get`.
///
/// # Errors
/// [`TransferError`] with what was being done.
pub fn run_get(args: &GetArgs) -> anyhow::Result<()> {
    let (host, name) = split(&args.from)?;
    let name = Name::parse(name.as_bytes()).with_context(|| format!("the name in {:?}", args.from))?;
    let to = match &args.to {
        None => PathBuf::from(name.as_str()),
        Some(folder) if folder.is_dir() => folder.join(name.as_str()),
        Some(file) => file.clone(),
    };
    let what = format!("getting {name} from {host} to {}", to.display());
    report(&args.common, None, name.as_str(), "get", what, |deadlines, tell| {
        let mut target = Target::open(&to, args.force).map_err(TransferError::Local)?;
        get((host, args.common.port), &name, &mut target, deadlines, tell)
    })
}

/// `piman put`.
///
/// # Errors
/// [`TransferError`] with what was being done.
pub fn run_put(args: &PutArgs) -> anyhow::Result<()> {
    let (host, name) = split(&args.to)?;
    let name = if name.is_empty() { own_name(&args.from)? } else { name.to_owned() };
    let name = Name::parse(name.as_bytes()).with_context(|| format!("the name {name:?}"))?;
    let stall = args.stall_timeout.map(|s| s.0);
    let what = format!("putting {} to {host} as {name}", args.from.display());
    report(&args.common, stall, name.as_str(), "put", what, |deadlines, tell| {
        put(&args.from, (host, args.common.port), &name, deadlines, tell)
    })
}

fn own_name(path: &Path) -> anyhow::Result<String> {
    let name = path.file_name().and_then(|n| n.to_str());
    Ok(name.with_context(|| format!("{} has no name that can be sent; give one", path.display()))?.to_owned())
}

/// `HOST:NAME`, or `[ADDRESS]:NAME` for an address with colons.
fn split(text: &str) -> anyhow::Result<(&str, &str)> {
    let parts = match text.strip_prefix('[') {
        Some(rest) => rest.split_once("]:"),
        None => text.split_once(':'),
    };
    let parts = parts.filter(|(host, _)| !host.is_empty());
    parts.ok_or_else(|| anyhow!("{text:?} does not say where: write HOST:NAME, or [ADDRESS]:NAME for IPv6"))
}

/// Runs it, showing how far it is, and says what was done.
fn report(
    common: &Common,
    stall: Option<Duration>,
    name: &str,
    verb: &str,
    what: String,
    run: impl FnOnce(Deadlines, &mut dyn FnMut(Progress<'_>)) -> Result<Outcome, TransferError>,
) -> anyhow::Result<()> {
    let deadlines =
        Deadlines { silence: common.timeout.0, stall, tries: common.tries, ..Deadlines::default() };
    let mut display = Display::new();
    let began = Instant::now();
    let done = run(deadlines, &mut |progress| display.show(progress));
    display.end();
    let seconds = began.elapsed().as_secs_f64();
    let line = match &done {
        Ok(o) if common.json => json_line(&serde_json::json!({
            "operation": verb, "name": name, "bytes": o.size, "moved": o.moved,
            "resumed_at": o.resumed_at, "already": o.already, "seconds": seconds,
        })),
        Err(e) if common.json => json_line(&serde_json::json!({
            "operation": verb, "name": name, "error": e.to_string(), "code": e.exit_code(),
        })),
        Ok(o) if o.already => format!("{name}: the server has exactly this file already\n"),
        Ok(o) => {
            let rate = HumanBytes((o.moved as f64 / seconds.max(0.001)) as u64);
            let resumed = if o.resumed_at > 0 { ", resumed" } else { "" };
            format!("{name}: {} in {seconds:.1} s ({rate}/s{resumed})\n", HumanBytes(o.size))
        }
        Err(_) => String::new(),
    };
    if !line.is_empty() {
        // Whoever reads it may have stopped reading: the file is there all the same.
        let _ = crate::text::human::print(&line);
    }
    done.map(drop).context(what)
}

/// A bar on a terminal, now and then a line elsewhere.
struct Display {
    bar: Option<ProgressBar>,
    terminal: bool,
    size: u64,
    said: Instant,
}

impl Display {
    fn new() -> Self {
        Self { bar: None, terminal: io::stderr().is_terminal(), size: 0, said: Instant::now() }
    }

    fn show(&mut self, progress: Progress<'_>) {
        match progress {
            Progress::Begins { start, size } => {
                self.size = size;
                if start > 0 {
                    self.print(&format!("resumed: {} of {} are there", HumanBytes(start), HumanBytes(size)));
                }
                if self.terminal {
                    let bar = ProgressBar::new(size).with_position(start);
                    let style = "{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
                    if let Ok(style) = ProgressStyle::with_template(style) {
                        bar.set_style(style);
                    }
                    bar.reset_eta();
                    self.bar = Some(bar);
                }
            }
            Progress::Moved(bytes) => match &self.bar {
                Some(bar) => bar.set_position(bytes),
                None if self.said.elapsed() >= SAY => {
                    self.said = Instant::now();
                    self.print(&format!("{} of {}", HumanBytes(bytes), HumanBytes(self.size)));
                }
                None => {}
            },
            Progress::Again(why) => {
                self.end();
                self.print(&format!("{why}; trying again"));
            }
        }
    }

    fn print(&self, text: &str) {
        crate::text::human::print_error(format_args!("{text}"));
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_and_which() {
        assert_eq!(split("server:a:b").unwrap(), ("server", "a:b"));
        assert_eq!(split("[fe80::1%eth0]:name").unwrap(), ("fe80::1%eth0", "name"));
        assert_eq!(split("server:").unwrap(), ("server", ""));
        for bad in ["server", ":name", "[::1]name", ""] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }
}
