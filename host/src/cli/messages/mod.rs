//! `piman messages`.
//!
//! | file | what lives there |
//! |---|---|
//! | `connection` | a connection, made again when it is lost |
//! | `output` | where messages go |

mod connection;
mod output;

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use piman_core::messages::{PORT, SIZE_MAX};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::messages::Plugin;
use crate::messages::transport::{ConnectError, Failure, NotSent};
use crate::text::duration::HumanDuration;
use connection::Link;
use output::Output;

/// Send and receive messages on a message channel
#[derive(Debug, Subcommand)]
#[command(
    after_help = "The server is `piman serve --messages-port PORT`, or any program that speaks this protocol, \
    such as one made with Python's tinyproto. Exit codes: 0 done, 1 failed, 3 refused (the server has too \
    many connections, or does not take the message), 5 no connection."
)]
pub enum MessagesCommand {
    /// Print the messages that come
    #[command(
        after_help = "A message is one line; control characters in it are shown as \\n or \\x1b. A connection \
        that is lost is made again."
    )]
    Listen(ListenArgs),
    /// Send messages: arguments, files or standard input
    #[command(
        after_help = "Each argument is a message, then each file. Without both, standard input is one message. \
        It is done when the server has taken all."
    )]
    Send(SendArgs),
    /// Send what is typed, line by line, and print what others say
    #[command(
        after_help = "Ctrl-D ends. On a chat channel of piman, `/who` shows who is connected and `/name NAME` \
        changes the name that others see. A connection that is lost is made again."
    )]
    Chat(ChatArgs),
}

/// How to reach the other side.
#[derive(Debug, Args)]
struct Common {
    /// Where the channel is; without a port: 9123
    #[arg(value_name = "HOST[:PORT]")]
    server: Target,
    /// Transform messages as the other side does; repeat: applied in this order, undone in reverse order
    #[arg(long = "plugin", value_name = "PLUGIN", value_enum)]
    plugins: Vec<Plugin>,
    /// How long a connection may take, and one that is in the midst of a message may stand still
    #[arg(long, value_name = "TIME", default_value = "30s")]
    timeout: HumanDuration,
    /// The largest message that is taken, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=3854))]
    limit_mib: u32,
}

/// How messages that come are printed.
#[derive(Debug, Args)]
struct Print {
    /// Print each message as a line of JSON: `text`, or `hex` where it is no UTF-8
    #[arg(long, group = "print")]
    json: bool,
    /// Print the bytes as they are, with nothing between two messages
    #[arg(long, group = "print")]
    raw: bool,
    /// Write each message to a new file in this folder, and print the file's name
    #[arg(long, value_name = "DIR", group = "print")]
    output: Option<PathBuf>,
}

/// `piman messages listen`.
#[derive(Debug, Args)]
pub struct ListenArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    print: Print,
    /// End after so many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End when the connection ends
    #[arg(long)]
    once: bool,
    /// Attempts in a row to connect that may fail; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    tries: u32,
}

/// `piman messages send`.
#[derive(Debug, Args)]
pub struct SendArgs {
    #[command(flatten)]
    common: Common,
    /// The messages
    #[arg(value_name = "MESSAGE")]
    messages: Vec<String>,
    /// Send this file as one message; repeat; - for standard input
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Send each line of standard input as one message
    #[arg(long, conflicts_with_all = ["messages", "files"])]
    lines: bool,
    /// Wait for one message after each that was sent, and print it
    #[arg(long)]
    reply: bool,
    #[command(flatten)]
    print: Print,
    /// Attempts to connect that may fail; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 1)]
    tries: u32,
}

/// `piman messages chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    common: Common,
    /// The name that others see, on a chat channel of piman
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Attempts in a row to connect that may fail; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    tries: u32,
}

/// Why it did not work.
#[derive(Debug, thiserror::Error)]
pub enum MessagesError {
    /// There is no connection.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// The connection ended.
    #[error("the connection to {server} is lost: {why}")]
    Lost {
        /// Where to.
        server: String,
        /// Why.
        why: String,
    },
    /// A message was not sent.
    #[error("sending {what} to {server}: {why}")]
    NotSent {
        /// Which message.
        what: String,
        /// Where to.
        server: String,
        /// Why.
        why: NotSent,
    },
    /// No reply came.
    #[error("{server} took {what} and sent no reply within {} s; --timeout TIME waits longer", .within.as_secs_f32())]
    NoReply {
        /// Where to.
        server: String,
        /// To which message.
        what: String,
        /// How long was waited.
        within: Duration,
    },
}

impl MessagesError {
    /// The exit code for it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Connect(ConnectError::Greeting { source: Failure::Refused(_), .. })
            | Self::NotSent { why: NotSent::Rejected(_), .. } => 3,
            Self::NotSent { why: NotSent::Unfit | NotSent::Full, .. } => 1,
            Self::NotSent { why: NotSent::Closed, .. }
            | Self::Connect(_)
            | Self::Lost { .. }
            | Self::NoReply { .. } => 5,
        }
    }
}

/// `HOST`, `HOST:PORT`, `ADDRESS` or `[ADDRESS]:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    host: String,
    port: u16,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no server; write HOST or HOST:PORT, and [ADDRESS]:PORT for IPv6");
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
                (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(wrong)?) })
            }
            // An IPv6 address has more than one colon.
            None => match text.split_once(':').filter(|(_, rest)| !rest.contains(':')) {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = port.map_or(Ok(PORT), |p| p.parse().ok().filter(|p| *p != 0).ok_or_else(wrong))?;
        if host.is_empty() { Err(wrong()) } else { Ok(Self { host: host.to_owned(), port }) }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// `piman messages`.
///
/// # Errors
/// [`MessagesError`], or what went wrong with a file.
pub fn run(command: &MessagesCommand) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting to wait for the network")?;
    let done = match command {
        MessagesCommand::Listen(args) => runtime.block_on(listen(args)),
        MessagesCommand::Send(args) => runtime.block_on(send(args)),
        MessagesCommand::Chat(args) => runtime.block_on(chat(args)),
    };
    // A thread may wait for standard input: nobody wants what it reads.
    runtime.shutdown_background();
    done
}

async fn listen(args: &ListenArgs) -> anyhow::Result<()> {
    let mut link = Link::new(&args.common, args.tries);
    let mut output = Output::open(&args.print)?;
    let mut left = args.count;
    loop {
        let mut line = link.connect().await?;
        while let Some(message) = line.next().await {
            if !output.message(&message)? {
                return Ok(());
            }
            if let Some(left) = &mut left {
                *left -= 1;
                if *left == 0 {
                    return line.close().await;
                }
            }
        }
        match (line.why(), args.once) {
            (None, true) => return Ok(()),
            (Some(why), true) => return Err(MessagesError::Lost { server: link.server(), why }.into()),
            (why, false) => link.lost(why.as_deref()).await,
        }
    }
}

async fn send(args: &SendArgs) -> anyhow::Result<()> {
    if !args.reply && (args.print.json || args.print.raw || args.print.output.is_some()) {
        bail!("--json, --raw and --output say how replies are printed: they have no effect without --reply");
    }
    let mut output = Output::open(&args.print)?;
    let mut link = Link::new(&args.common, args.tries);
    // What cannot be read is found before anything is sent.
    let mut all = Vec::new();
    for (number, text) in args.messages.iter().enumerate() {
        all.push((format!("message {}", number + 1), text.clone().into_bytes()));
    }
    for path in &args.files {
        all.push((path.display().to_string(), read(path)?));
    }
    if all.is_empty() && !args.lines {
        all.push(("standard input".into(), read(Path::new("-"))?));
    }
    let mut line = link.connect().await?;
    for (what, message) in all {
        line.send(&what, message, args.reply, &mut output).await?;
    }
    if args.lines {
        let (mut lines, mut number) = (typed()?, 0_u64);
        while let Some(text) = lines.recv().await {
            number += 1;
            let text = text.context("reading standard input")?;
            line.send(&format!("line {number}"), text, args.reply, &mut output).await?;
        }
    }
    line.close().await
}

async fn chat(args: &ChatArgs) -> anyhow::Result<()> {
    let mut link = Link::new(&args.common, args.tries);
    let mut output = Output::Lines;
    let mut lines = typed()?;
    // A line that was not sent because the connection was lost.
    let mut unsent = None;
    loop {
        let mut line = link.connect().await?;
        // A relay, or the chat of the old library, would pass `/name` on to all as a line.
        let mut unnamed = args.name.as_ref();
        // What is typed waits for the name, but not for long: others may never say a word.
        let nameless = sleep(NAME_WAIT);
        tokio::pin!(nameless);
        let mut waits = unnamed.is_some();
        let why = loop {
            if let Some(text) = unsent.take() {
                match line.peer.send(Vec::clone(&text)).await {
                    Err(NotSent::Closed) => unsent = Some(text),
                    Err(e) => {
                        crate::text::human::print_error(format_args!("piman: this line was not sent: {e}"))
                    }
                    Ok(()) => {}
                }
            }
            tokio::select! {
                message = line.next() => match message {
                    Some(message) => {
                        waits = false;
                        if let Some(name) = unnamed.take_if(|_| is_chat_of_ours(&message)) {
                            // A connection that is lost shows below.
                            let _ = line.peer.send(format!("/name {name}").into_bytes()).await;
                        }
                        if !output.message(&message)? {
                            return Ok(());
                        }
                    }
                    None => break line.why(),
                },
                () = &mut nameless, if waits => waits = false,
                text = lines.recv(), if unsent.is_none() && !waits => match text {
                    Some(text) => unsent = Some(text.context("reading standard input")?),
                    None => return line.close().await,
                },
            }
        };
        link.lost(why.as_deref()).await;
    }
}

/// How long what is typed waits until the server shows what it is.
const NAME_WAIT: Duration = Duration::from_secs(1);

/// Whether only `piman serve --messages-chat` sends such a line.
fn is_chat_of_ours(message: &[u8]) -> bool {
    message.starts_with(b"[piman] ") || message.starts_with(b"[guest-")
}

/// The lines of standard input, without their ends; it can only be waited for in a thread.
fn typed() -> anyhow::Result<mpsc::Receiver<io::Result<Vec<u8>>>> {
    let (to, lines) = mpsc::channel(1);
    let read = move || {
        let mut input = io::stdin().lock();
        loop {
            let mut line = Vec::new();
            let line = match (&mut input).take(SIZE_MAX.into()).read_until(b'\n', &mut line) {
                Ok(0) => return,
                Ok(_) => {
                    if line.ends_with(b"\n") {
                        line.pop();
                    }
                    if line.ends_with(b"\r") {
                        line.pop();
                    }
                    Ok(line)
                }
                Err(e) => Err(e),
            };
            let failed = line.is_err();
            if to.blocking_send(line).is_err() || failed {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("input".into())
        .spawn(read)
        .context("starting a thread for standard input")?;
    Ok(lines)
}

/// A whole file, or standard input.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let name = if path == Path::new("-") { "standard input".into() } else { path.display().to_string() };
    let mut from: Box<dyn Read> = match path == Path::new("-") {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(path).with_context(|| format!("opening {name}"))?),
    };
    let mut bytes = Vec::new();
    from.by_ref()
        .take(u64::from(SIZE_MAX) + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("reading {name}"))?;
    if bytes.len() as u64 > u64::from(SIZE_MAX) {
        bail!(
            "{name} is larger than a message can be ({SIZE_MAX} bytes); `piman put` sends files of any size"
        );
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers() {
        for (text, host, port) in [
            ("pi.lab", "pi.lab", 9123),
            ("pi.lab:7", "pi.lab", 7),
            ("::1", "::1", 9123),
            ("[::1]:7", "::1", 7),
            ("[::1]", "::1", 9123),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!((target.host.as_str(), target.port), (host, port), "{text}");
            assert_eq!(target.to_string().parse(), Ok(target));
        }
        for bad in ["", ":7", "pi:", "pi:0", "pi:70000", "[::1", "[::1]7"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
