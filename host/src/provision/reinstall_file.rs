//! The old `reinstall.txt`: one address per line, taken in when it is there and complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::state::resolve::resolve;
use crate::state::{Ordered, State};
use crate::sys::files::{parent, sync_folder};

/// How often the file is looked at, and how long it must be still before it is taken.
const LOOK: Duration = Duration::from_millis(500);
/// More than this is no list of Pis.
const BYTES_MAX: u64 = 1 << 20;

/// How many lines it may have.
const LINES_MAX: usize = 65_536;
/// Of how many lines it is said that they are no addresses; of the others, how many they are.
const WRONG_SAID: usize = 10;

/// Ends the thread that watches.
#[derive(Debug, Default)]
pub struct Stop(AtomicBool);

impl Stop {
    /// Ends it, at its next look.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Watches the file until told to stop.
///
/// # Errors
/// If the system has no thread left.
pub fn watch(file: &Path, state: Arc<dyn State>, stop: Arc<Stop>) -> anyhow::Result<JoinHandle<()>> {
    let file = file.to_owned();
    let work = move || {
        let mut said = None;
        while !stop.0.load(Ordering::Relaxed) {
            if let Err(e) = look(&file, &*state, &stop) {
                let text = format!("{e:#}");
                if said.as_ref() != Some(&text) {
                    tracing::error!("{text}");
                }
                said = Some(text);
            } else {
                said = None;
            }
            thread::park_timeout(LOOK);
        }
    };
    thread::Builder::new().name("reinstall file".into()).spawn(work).context("starting a thread")
}

/// The name that the file gets while it is being taken in. It is moved away first, so that
/// nothing that is written meanwhile is lost: an open writer still writes into what is read
/// here, and a later one into the new file.
fn taken(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".taken");
    name.into()
}

fn look(file: &Path, state: &dyn State, stop: &Stop) -> anyhow::Result<()> {
    let name = file.display();
    let taken = taken(file);
    // Left over from a server that was killed while it took it in.
    if fs::symlink_metadata(&taken).is_err() {
        let found = match fs::symlink_metadata(file) {
            Ok(found) => found,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e).with_context(|| format!("reading {name}")),
        };
        if found.len() == 0 {
            return Ok(());
        }
        // Before it is moved: what is refused stays where its owner finds it.
        vetted(file)?;
        if !still(file, stop)? {
            return Ok(());
        }
        // Orders that cannot be removed would come back with every start.
        fs::rename(file, &taken).with_context(|| {
            format!("{name} cannot be emptied, so what it orders is not taken in; make its folder writable")
        })?;
        if let Err(e) = renew(file, &taken) {
            tracing::warn!("an empty {name} cannot be made: {e}");
        }
    }
    while !still(&taken, stop)? {
        if stop.0.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
    import(file, &taken, state)?;
    // Or it would come back after a power cut, and its orders with it.
    let removed = fs::remove_file(&taken).and_then(|()| sync_folder(parent(&taken)));
    removed.with_context(|| format!("removing {}", taken.display()))
}

/// Whether nobody wrote to it for a moment.
fn still(file: &Path, stop: &Stop) -> anyhow::Result<bool> {
    let look = || -> io::Result<_> {
        let m = fs::symlink_metadata(file)?;
        Ok((m.ino(), m.len(), m.mtime(), m.mtime_nsec()))
    };
    let context = || format!("reading {}", file.display());
    let before = look().with_context(context)?;
    thread::park_timeout(LOOK);
    match look() {
        Ok(after) => Ok(before == after && !stop.0.load(Ordering::Relaxed)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).with_context(context),
    }
}

/// An empty file in the old one's place, for the same users.
fn renew(file: &Path, old: &Path) -> io::Result<()> {
    let like = vetted(old).and_then(|file| Ok(file.metadata()?)).map_err(io::Error::other)?;
    let new: File =
        match OpenOptions::new().write(true).create_new(true).mode(like.mode() & 0o7777).open(file) {
            // Somebody has begun the next one already.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(()),
            new => new?,
        };
    new.set_permissions(fs::Permissions::from_mode(like.mode() & 0o7777))?;
    // Only root can give files away; for others it is theirs already or cannot be.
    let _ = fchown(&new, Some(like.uid()), Some(like.gid()));
    Ok(())
}

/// Opens the list if it is one that only the server's user or root can have written: whoever else could put a link or a
/// file there would have other files read, or Pis erased.
fn vetted(file: &Path) -> anyhow::Result<File> {
    let name = file.display();
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let opened = match OpenOptions::new().read(true).custom_flags(flags).open(file) {
        Err(e) if e.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            bail!("{name} is a link, which is not followed: put the list of addresses itself there")
        }
        opened => opened.with_context(|| format!("reading {name}"))?,
    };
    let found = opened.metadata().with_context(|| format!("reading {name}"))?;
    ensure!(found.is_file(), "{name} is no file: a list of addresses is expected there");
    let (owner, user) = (found.uid(), geteuid().as_raw());
    ensure!(
        owner == 0 || owner == user,
        "{name} belongs to user {owner}, and only root and user {user} may order reinstalls by it: `chown {user} {name}`"
    );
    ensure!(
        found.mode() & 0o022 == 0,
        "{name} can be written by others than its owner, who could order reinstalls by it: `chmod go-w {name}`"
    );
    Ok(opened)
}

fn import(file: &Path, taken: &Path, state: &dyn State) -> anyhow::Result<()> {
    let name = file.display();
    let mut bytes = Vec::new();
    let read = vetted(taken)?.take(BYTES_MAX + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("reading {}", taken.display()))?;
    let is_long = bytes.iter().filter(|b| **b == b'\n').count() > LINES_MAX;
    if bytes.len() as u64 > BYTES_MAX || is_long {
        tracing::error!(
            "{name} has more than {BYTES_MAX} bytes or {LINES_MAX} lines, so it is no list of addresses; it is dropped"
        );
        return Ok(());
    }
    let mut wrong = 0;
    for (number, line) in (1..).zip(bytes.split(|b| *b == b'\n')) {
        match parse(line) {
            Ok(None) => {}
            Ok(Some(address)) => {
                let source = format!("{name}:{number}");
                // An address that is known to be a certain Pi's stands for that one.
                let pi = resolve(&address.to_string(), &state.devices()?)?.name;
                match state.order(&pi, &source, None)? {
                    Ordered::New => tracing::info!("{source}: a reinstall of {pi} is ordered"),
                    Ordered::Already { .. } => {
                        tracing::info!("{source}: a reinstall of {pi} was ordered already")
                    }
                }
            }
            Err(why) => {
                wrong += 1;
                // Not what it says: it may be a line of something that is not for everybody who reads logs.
                if wrong <= WRONG_SAID {
                    tracing::error!("{name}:{number}: this line {why}; it orders nothing");
                }
            }
        }
    }
    if wrong > WRONG_SAID {
        tracing::error!(
            "{name}: {} more lines are no IPv4 addresses; they order nothing",
            wrong - WRONG_SAID
        );
    }
    Ok(())
}

/// One line: an address, nothing, or a comment after `#`.
fn parse(line: &[u8]) -> Result<Option<Ipv4Addr>, &'static str> {
    let text = str::from_utf8(line).map_err(|_| "is no text")?;
    // An editor on Windows begins a file with this mark.
    let text = text.trim_start_matches('\u{feff}');
    let text = text.split('#').next().unwrap_or_default().trim();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| "is no IPv4 address")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let pi = Some(Ipv4Addr::new(172, 30, 1, 10));
        for (line, want) in [
            (&b"172.30.1.10"[..], Ok(pi)),
            (b" \t172.30.1.10 \r", Ok(pi)),
            (b"\xef\xbb\xbf172.30.1.10", Ok(pi)),
            (b"172.30.1.10 # the one by the window", Ok(pi)),
            (b"", Ok(None)),
            (b"\r", Ok(None)),
            (b"# all of them", Ok(None)),
            (b"172.30.1.1 172.30.1.2", Err("is no IPv4 address")),
            (b"172.30.1", Err("is no IPv4 address")),
            (b"172.30.1.010", Err("is no IPv4 address")),
            (b"\xff", Err("is no text")),
        ] {
            assert_eq!(parse(line), want, "{}", line.escape_ascii());
        }
    }
}
