//! Serial lines: opening them raw, dialling, and the listening end.

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::prelude::rust_2024::*;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::serial::Role;
use rustix::fs::OFlags;
use rustix::termios::{ControlModes, OptionalActions, tcgetattr, tcsetattr};

pub use super::mux::Services;
use super::mux::{Mux, Order, Side};

/// The speed if nobody says another.
const BAUD: u32 = 115_200;
/// How long a line that failed is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// A line: its device and its speed. Written `DEVICE[:BAUD]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Line {
    /// The device, such as `/dev/ttyUSB0`.
    pub device: PathBuf,
    /// Bits a second.
    pub baud: u32,
}

impl FromStr for Line {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (device, baud) = match text.rsplit_once(':') {
            Some((device, baud)) => {
                let wrong = |_| format!("{baud} is no speed of a serial line: write DEVICE:115200");
                (device, baud.parse().map_err(wrong)?)
            }
            None => (text, BAUD),
        };
        if device.is_empty() || baud == 0 {
            return Err(format!("{text:?} is no serial line: write DEVICE or DEVICE:BAUD"));
        }
        Ok(Self { device: device.into(), baud })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device.display(), self.baud)
    }
}

impl Line {
    /// Opens it for bytes as they are: no echo, no lines, no flow control by characters.
    ///
    /// # Errors
    /// If there is no such device, it is no serial line, or it cannot have that speed.
    pub fn open(&self) -> io::Result<File> {
        let open = || -> io::Result<File> {
            let flags = OFlags::NOCTTY | OFlags::NONBLOCK;
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(flags.bits().cast_signed())
                .open(&self.device)?;
            let mut settings = tcgetattr(&file)?;
            settings.make_raw();
            settings.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
            settings.control_modes -= ControlModes::CRTSCTS | ControlModes::CSTOPB;
            settings.set_speed(self.baud)?;
            tcsetattr(&file, OptionalActions::Flush, &settings)?;
            Ok(file)
        };
        open().map_err(|e| io::Error::new(e.kind(), format!("the serial line {self}: {e}")))
    }
}

/// A line that this program has dialled.
#[derive(Clone)]
struct Dialled {
    orders: Sender<Order>,
    wake: Arc<UnixStream>,
}

/// Opens a stream to a service at the other end of a line; the line is opened by the first of them, and kept.
///
/// # Errors
/// If the line cannot be opened, or the other end does not answer within this time.
pub fn connect(line: &Line, port: u16, within: Duration) -> io::Result<TcpStream> {
    static LINES: Mutex<Option<HashMap<Line, Dialled>>> = Mutex::new(None);
    let dialled = {
        let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = lines.get_or_insert_default();
        match lines.get(line) {
            Some(dialled) => dialled.clone(),
            None => {
                let dialled = dial(line)?;
                lines.insert(line.clone(), dialled.clone());
                dialled
            }
        }
    };
    let (open, opened) = channel();
    let gone = |_| io::Error::new(io::ErrorKind::NotConnected, format!("the serial line {line} is gone"));
    dialled.orders.send(Order { port, open, until: Instant::now() + within }).map_err(|_| gone(()))?;
    // A full pipe wakes as well.
    let _ = (&*dialled.wake).write(&[1]);
    match opened.recv_timeout(within) {
        Ok(stream) => Ok(stream),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "nobody answers on the serial line {line}: does piman serve --serial run at its other end?"
            ),
        )),
    }
}

fn dial(line: &Line) -> io::Result<Dialled> {
    let first = line.open()?;
    let (orders, ordered) = channel();
    let (wake, woken) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    let mut side = Side::Dialler { orders: ordered, woken, waiting: Default::default() };
    let line = line.clone();
    thread::Builder::new().name("serial".into()).spawn(move || {
        let (mut first, stop) = (Some(first), AtomicBool::new(false));
        loop {
            run(&line, first.take(), Role::Dialler, &mut side, &stop);
            thread::sleep(PAUSE);
        }
    })?;
    Ok(Dialled { orders, wake: Arc::new(wake) })
}

/// The listening end of a line, at work in a thread of its own; it ends when this is dropped.
#[derive(Debug)]
pub struct Listening {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Listens on a line: streams that the other end opens are connected by `services`.
///
/// # Errors
/// If the line cannot be opened.
pub fn listen(line: &Line, services: Services) -> io::Result<Listening> {
    let first = line.open()?;
    let stop = Arc::new(AtomicBool::new(false));
    let (line, told) = (line.clone(), Arc::clone(&stop));
    let thread = thread::Builder::new().name("serial".into()).spawn(move || {
        let (mut first, mut side) = (Some(first), Side::Listener(services));
        while !told.load(Ordering::Relaxed) {
            run(&line, first.take(), Role::Listener, &mut side, &told);
            if !told.load(Ordering::Relaxed) {
                thread::sleep(PAUSE);
            }
        }
    })?;
    Ok(Listening { stop, thread: Some(thread) })
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it died of was said.
            let _ = thread.join();
        }
    }
}

/// Until the line fails or it is told to stop.
fn run(line: &Line, open: Option<File>, role: Role, side: &mut Side, stop: &AtomicBool) {
    let tty = match open.map_or_else(|| line.open(), Ok) {
        Ok(tty) => tty,
        Err(e) => return log::warn!("{e}; again in {} s", PAUSE.as_secs()),
    };
    if let Err(e) = Mux::new(tty, role).run(side, stop) {
        log::warn!("the serial line {line}: {e}; again in {} s", PAUSE.as_secs());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let line = |text: &str| text.parse::<Line>();
        assert_eq!(line("/dev/ttyUSB0"), Ok(Line { device: "/dev/ttyUSB0".into(), baud: 115_200 }));
        assert_eq!(line("/dev/ttyS0:9600").unwrap().to_string(), "/dev/ttyS0:9600");
        for bad in ["", ":9600", "/dev/ttyS0:", "/dev/ttyS0:fast", "/dev/ttyS0:0"] {
            assert!(line(bad).is_err(), "{bad}");
        }
        let error = line("/dev/null").unwrap().open().unwrap_err();
        assert!(error.to_string().contains("/dev/null"), "{error}");
    }
}
